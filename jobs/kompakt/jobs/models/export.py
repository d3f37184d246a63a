# SPDX-License-Identifier: Apache-2.0
"""From torch to ONNX, and the proof that both answer the same.

The TorchScript exporter (`dynamo=False`) is used on purpose: ONNX Runtime
finds the patterns in its graphs that it has kernels for, and it takes a second; of the graphs of
the newer exporter, which take five, it fuses no attention.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.jit._trace import TracerWarning

from kompakt.jobs.errors import ExportMismatch
from kompakt.jobs.models.encoder import Encoder
from kompakt.jobs.models.local_graph import write_out
from kompakt.jobs.models.session import open_session
from kompakt.jobs.models.text import pad

if TYPE_CHECKING:
    from tokenizers import Encoding

OPSET = 17
"""The first with LayerNormalization as one operator; every runtime in use reads it."""
TOLERANCE = 1e-4
TRACE_SHAPE = (2, 8)


def export(encoder: Encoder, path: Path, *, input_names: Sequence[str]) -> None:
    """Writes a graph with the inputs and outputs of the artifact contract; any batch and length."""
    names = list(input_names)
    inputs = tuple(
        torch.zeros(TRACE_SHAPE, dtype=torch.int64)
        if name == "token_type_ids"
        else torch.ones(TRACE_SHAPE, dtype=torch.int64)
        for name in names
    )
    axes = {name: {0: "batch", 1: "tokens"} for name in names} | {
        "logits": {0: "batch", 1: "tokens"} if encoder.config.each_token else {0: "batch"}
    }
    with _known_distances(encoder):
        trace(encoder, inputs, path, input_names=names, output_names=["logits"], dynamic_axes=axes)
    write_out(path)


@contextmanager
def _known_distances(encoder: Encoder) -> Iterator[None]:
    """What layers make of relative positions is the same for all texts, so the graph has it as
    numbers. As operators on the layers' own matrices, it would be computed for each text as soon
    as those are integers.
    """
    layers = [layer for layer in encoder.encoder_layers() if layer.heads]
    try:
        with torch.no_grad():
            for layer in layers:
                if layer.relative is not None:
                    query, key = layer.distances(layer.relative)
                    layer.known_distances = query.contiguous(), key.contiguous()
        yield
    finally:
        for layer in layers:
            layer.known_distances = None


def trace(
    module: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    path: Path,
    *,
    input_names: list[str],
    output_names: list[str],
    dynamic_axes: dict[str, dict[int, str]],
) -> None:
    """Writes a graph of any module, of what it does with these inputs."""
    with warnings.catch_warnings(), torch.no_grad():
        # Torch announces the end of this exporter at every call; why it is used stands above.
        warnings.simplefilter("ignore", DeprecationWarning)
        # Shapes that tracing takes for constants are what `parity` looks for.
        warnings.simplefilter("ignore", TracerWarning)
        torch.onnx.export(
            module,
            inputs,
            str(path),
            dynamo=False,
            input_names=input_names,
            output_names=output_names,
            dynamic_axes=dynamic_axes,
            opset_version=OPSET,
            do_constant_folding=True,
        )


def parity(
    encoder: Encoder,
    path: Path,
    encodings: Sequence[Encoding],
    *,
    input_names: Sequence[str],
    pad_id: int,
    threads: int,
) -> float:
    """The largest difference of a logit between torch and ONNX Runtime, padded or not."""
    session = open_session(path, threads=threads)
    ordered = sorted(encodings, key=len)
    # Neighbours in length, and the shortest beside the longest, so that padding is part of the
    # proof.
    batches = [[encoding] for encoding in ordered] + [ordered[:1] + ordered[-1:]]
    largest = 0.0
    with torch.no_grad():
        for batch in batches:
            arrays = pad(batch, pad_id=pad_id, input_names=input_names)
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            expected = encoder(**tensors).numpy()
            (found,) = session.run(["logits"], arrays)
            # Unlike max(), it keeps what is not a number.
            largest = float(np.maximum(largest, np.abs(expected - found).max()))
    if not largest <= TOLERANCE:  # also when it is not a number
        raise ExportMismatch(
            f"the exported graph differs from torch by {largest:.1e} in a logit, more than"
            f" {TOLERANCE:.0e}; this is a defect of Kompakt: please report the model"
        )
    return largest
