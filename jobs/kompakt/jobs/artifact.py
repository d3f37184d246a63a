# SPDX-License-Identifier: Apache-2.0
"""Making an artifact of a graph and a tokenizer, and counting what is in it. No torch here."""

from __future__ import annotations

import math
from pathlib import Path

import onnx

from kompakt.api.artifact import MODEL_NAME, TOKENIZER_NAME, ArtifactManifest
from kompakt.api.base import Digest
from kompakt.jobs.store import Store, describe_files


def store_artifact(
    store: Store,
    folder: Path,
    *,
    labels: list[str],
    max_sequence_length: int,
    source_digest: Digest,
    parent_digest: Digest | None = None,
    recipe: str = "",
    steps_digest: Digest | None = None,
) -> tuple[Digest, ArtifactManifest]:
    """Describes the graph and the tokenizer in a folder by a manifest, and stores all three."""
    manifest = ArtifactManifest(
        task="TextClassification",
        labels=labels,
        max_sequence_length=max_sequence_length,
        source_digest=source_digest,
        parent_digest=parent_digest,
        recipe=recipe,
        steps_digest=steps_digest,
        files=describe_files(folder, [MODEL_NAME, TOKENIZER_NAME]),
    )
    return store.put_artifact(folder, manifest), manifest


def count_parameters(model: Path) -> int:
    """The numbers in a graph that is not quantized; scalars are the operators'."""
    graph = onnx.load(str(model), load_external_data=False).graph
    return sum(
        math.prod(tensor.dims)
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.dims
    )
