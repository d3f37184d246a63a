# SPDX-License-Identifier: Apache-2.0
"""From torch to ONNX, and the proof that both answer the same.

The TorchScript exporter (`dynamo=False`) with eager attention is used on purpose: ONNX Runtime
fuses its graphs into attention and layer-norm kernels, and it takes a second; of the graphs of the
newer exporter it fuses none.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.jit._trace import TracerWarning
from typing_extensions import override

from kompakt.jobs.errors import ExportMismatch
from kompakt.jobs.models.load import TorchModel
from kompakt.jobs.models.session import open_session
from kompakt.jobs.models.text import pad

if TYPE_CHECKING:
    from tokenizers import Encoding

OPSET = 17
"""The first with LayerNormalization as one operator; every runtime in use reads it."""
TOLERANCE = 1e-4
TRACE_SHAPE = (2, 8)


class _LogitsOnly(nn.Module):
    """Positional inputs in the graph's order, and logits alone."""

    def __init__(self, model: TorchModel) -> None:
        super().__init__()
        self.module = model.module  # so that torch sees the weights
        self.model = model

    @override
    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        names = self.model.architecture.input_names
        return self.model.logits(dict(zip(names, inputs, strict=True)))


def export(model: TorchModel, path: Path) -> None:
    """Writes `model.onnx` with the inputs and outputs of the artifact contract; any batch, any
    length.
    """
    names = list(model.architecture.input_names)
    inputs = tuple(
        torch.zeros(TRACE_SHAPE, dtype=torch.int64)
        if name == "token_type_ids"
        else torch.ones(TRACE_SHAPE, dtype=torch.int64)
        for name in names
    )
    axes = {name: {0: "batch", 1: "tokens"} for name in names} | {"logits": {0: "batch"}}
    with warnings.catch_warnings(), torch.no_grad():
        # Torch announces the end of this exporter at every call; why it is used stands above.
        warnings.simplefilter("ignore", DeprecationWarning)
        # Shapes that tracing takes for constants are what `parity` looks for.
        warnings.simplefilter("ignore", TracerWarning)
        torch.onnx.export(
            _LogitsOnly(
                model
            ).eval(),  # the exporter puts the mode back that it found, in all submodules
            inputs,
            str(path),
            dynamo=False,
            input_names=names,
            output_names=["logits"],
            dynamic_axes=axes,
            opset_version=OPSET,
            do_constant_folding=True,
        )


def parity(
    model: TorchModel, path: Path, encodings: Sequence[Encoding], *, pad_id: int, threads: int
) -> float:
    """The largest difference of a logit between torch and ONNX Runtime, one by one and in padded
    batches.
    """
    session = open_session(path, threads=threads)
    names = model.architecture.input_names
    ordered = sorted(encodings, key=len)
    # Neighbours in length, and the shortest beside the longest, so that padding is part of the
    # proof.
    batches = [[encoding] for encoding in ordered] + [ordered[:1] + ordered[-1:]]
    largest = 0.0
    with torch.no_grad():
        for batch in batches:
            arrays = pad(batch, pad_id=pad_id, input_names=names)
            expected = model.logits({k: torch.from_numpy(v) for k, v in arrays.items()}).numpy()
            (found,) = session.run(["logits"], arrays)
            largest = max(largest, float(np.abs(expected - found).max()))
    if not largest <= TOLERANCE:  # also when it is not a number
        raise ExportMismatch(
            f"the exported graph differs from torch by {largest:.1e} in a logit, more than"
            f" {TOLERANCE:.0e}; report"
            f" the model ({model.architecture.class_name}), please"
        )
    return largest
