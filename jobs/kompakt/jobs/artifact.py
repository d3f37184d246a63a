# SPDX-License-Identifier: Apache-2.0
"""Making an artifact of a graph and a tokenizer, and counting what is in it. No torch here."""

from __future__ import annotations

import math
from pathlib import Path

import onnx

from kompakt.api.artifact import (
    MANIFEST_NAME,
    MODEL_FILES,
    MODEL_NAME,
    TOKENIZER_NAME,
    ArtifactManifest,
)
from kompakt.api.base import Digest, Runtime, Task
from kompakt.jobs.store import describe_files


def describe_artifact(
    folder: Path,
    *,
    labels: list[str],
    max_sequence_length: int,
    source_digest: Digest,
    task: Task = "TextClassification",
    **changes: object,
) -> ArtifactManifest:
    """The manifest of a baseline: a folder with an ONNX graph and a tokenizer. `changes` are what
    its task needs beside.
    """
    return ArtifactManifest(
        task=task,
        labels=labels,
        max_sequence_length=max_sequence_length,
        source_digest=source_digest,
        files=describe_files(folder, [MODEL_NAME, TOKENIZER_NAME]),
        **changes,  # type: ignore[arg-type]  # pydantic checks them
    )


def describe_variant(
    folder: Path, baseline: ArtifactManifest, *, runtime: Runtime, **changes: object
) -> ArtifactManifest:
    """The manifest of what was made from a baseline, written beside its files.

    Args:
        folder: Holds the model's files and the tokenizer.
        baseline: Manifest of the baseline.
        runtime: What runs the variant.
        changes: Other fields of the manifest in which the two differ.
    """
    files = describe_files(folder, [*MODEL_FILES[runtime], TOKENIZER_NAME])
    manifest = baseline.evolve(runtime=runtime, files=files, **changes)
    (folder / MANIFEST_NAME).write_bytes(manifest.canonical())
    return manifest


def count_parameters(model: Path) -> int:
    """The numbers in a graph that is not quantized; scalars are the operators'."""
    graph = onnx.load(str(model), load_external_data=False).graph
    return sum(
        math.prod(tensor.dims)
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.dims
    )
