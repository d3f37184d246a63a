# SPDX-License-Identifier: Apache-2.0
"""Training for few bits: while it learns, a model computes with the rounded weights and inputs that
its `quantize` step will give it, so that it learns to do well with those (Jacob et al. 2018,
arXiv:1712.05877, section 3).

Rounding has no useful gradient, so it is taken for the identity on the way back (the straight-
through estimator, Bengio et al. 2013, arXiv:1308.3432). The weights that learn stay as they are in
the background; when training ends, the rounded ones take their place, and since these are integers
times scales, the `quantize` step finds just them again.

2 bits are -1, 0 and 1, with threshold and scale of ternary weight networks (Li et al. 2016,
arXiv:1605.04711, section 2.3); 1 bit is the sign, with the mean size as scale (Rastegari et al.
2016, arXiv:1603.05279, section 3.1; for BERT, Bai et al. 2021, arXiv:2012.15701).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from typing_extensions import override

from kompakt.api.steps import Quantize
from kompakt.jobs.compress.blocks import block_size
from kompakt.jobs.compress.qdq import quantize_rows
from kompakt.jobs.compress.quantize_weights import table_blocks
from kompakt.jobs.errors import StepInvalid
from kompakt.jobs.models.encoder import Encoder

Round = Callable[[torch.Tensor], torch.Tensor]
METHODS = ("DynamicInt8", "StaticInt8", "WeightOnly")
"""What can be simulated."""
_THRESHOLD = 0.7
"""Of the mean size of a block's weights: what is smaller becomes 0."""
_LEVELS = 255
_TINY = torch.finfo(torch.float32).tiny


@contextmanager
def simulated(encoder: Encoder, quantize: Quantize | None) -> Iterator[None]:
    """As long as this is open, the model computes as it will when it is quantized; at the end, its
    weights are the rounded ones.

    Raises:
        StepInvalid: The recipe does not quantize, or in a way that is not known here.
    """
    parameters = _required(quantize)
    linears = [m for m in encoder.modules() if isinstance(m, nn.Linear) and m.weight.numel()]
    inputs = rounding_of_inputs(parameters)
    if parameters.method == "WeightOnly":
        _round_tables(encoder, parameters)
    with ExitStack() as stack:
        for linear in linears:
            rounding = _Rounding(rounding_of_weights(parameters))
            parametrize.register_parametrization(linear, "weight", rounding)
            if inputs is not None:
                handle = linear.register_forward_pre_hook(_rounded_inputs(inputs))
                stack.callback(handle.remove)
        try:
            yield
        finally:
            for linear in linears:
                parametrize.remove_parametrizations(linear, "weight", leave_parametrized=True)


def rounding_of_weights(quantize: Quantize) -> Round:
    """What a step makes of a matrix [outputs, inputs]."""
    if quantize.method == "WeightOnly":
        bits, size = quantize.weight_bits, quantize.block_size
        return lambda weight: _in_blocks(weight, size, _BLOCKS[bits])
    reduced = quantize.reduce_range == "Enabled"
    # ONNX Runtime's own tool, which makes dynamic int8, counts 7 bits as -64 to 64.
    largest = (64 if quantize.method == "DynamicInt8" else 63) if reduced else 127
    if quantize.per_channel == "Enabled":
        return lambda weight: _to_largest(weight, largest)
    return lambda weight: _to_largest(weight.flatten(), largest).view_as(weight)


def rounding_of_inputs(quantize: Quantize) -> Round | None:
    """What a step makes of what a matrix is multiplied with. Ranges of static int8, which are those
    of its calibration texts, are taken from the batch at hand.
    """
    if quantize.method != "WeightOnly":
        return _to_bytes
    if quantize.weight_bits == 1 or quantize.activations == "Float32":
        return None
    return lambda x: _in_blocks(x, quantize.block_size, lambda part, _: _to_largest(part, 127))


class _Straight(torch.autograd.Function):
    """Rounds on the way there, and does nothing on the way back."""

    @staticmethod
    @override
    def forward(_context: Any, x: torch.Tensor, rounding: Round) -> torch.Tensor:
        return rounding(x.float()).to(x.dtype)

    @staticmethod
    @override
    def backward(_context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


class _Rounding(nn.Module):
    """Stands between the weight that learns and the one that is computed with."""

    def __init__(self, rounding: Round) -> None:
        super().__init__()
        self._rounding = rounding

    @override
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        rounded: torch.Tensor = _Straight.apply(weight, self._rounding)
        return rounded


def _rounded_inputs(rounding: Round) -> Callable[[nn.Module, Any], Any]:
    return lambda _module, inputs: (_Straight.apply(inputs[0], rounding), *inputs[1:])


def _required(quantize: Quantize | None) -> Quantize:
    if quantize is None:
        raise StepInvalid(
            "distill.quantizationAware trains for the recipe's quantize step, and there is none:"
            " add it as the next step, or set quantizationAware to Disabled"
        )
    if quantize.method not in METHODS:
        raise StepInvalid(
            f"distill.quantizationAware cannot simulate the method {quantize.method}; quantize by"
            f" {', '.join(METHODS[:-1])} or {METHODS[-1]}, or set it to Disabled"
        )
    return quantize


def _round_tables(encoder: Encoder, quantize: Quantize) -> None:
    """Embedding tables do not learn, so they are rounded once."""
    with torch.no_grad():
        for table in encoder.tables:
            weight = table.weight.numpy(force=True)
            integers, scales = quantize_rows(weight)
            rounded = integers * scales
            if table is encoder.word and quantize.table_bits < 8:  # noqa: PLR2004 a byte
                rounded = table_blocks(weight, size=quantize.block_size).weight.T
            table.weight.copy_(torch.from_numpy(rounded))


def _to_largest(x: torch.Tensor, largest: int) -> torch.Tensor:
    """The largest value along the last axis becomes the largest integer."""
    scale = (x.abs().amax(dim=-1, keepdim=True) / largest).clamp_min(_TINY)
    return (x / scale).round() * scale


def _to_bytes(x: torch.Tensor) -> torch.Tensor:
    """All values together get 256 levels, 0 among them, as DynamicQuantizeLinear does it."""
    low, high = x.amin().clamp_max(0), x.amax().clamp_min(0)
    scale = ((high - low) / _LEVELS).clamp_min(_TINY)
    zero = (-low / scale).round()
    return (((x / scale).round() + zero).clamp(0, _LEVELS) - zero) * scale


def _ternary(rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    sizes = rows.abs()
    threshold = _THRESHOLD * sizes.sum(dim=-1, keepdim=True) / counts
    large = (sizes > threshold).to(rows.dtype)
    scale = (sizes * large).sum(dim=-1, keepdim=True) / large.sum(dim=-1, keepdim=True).clamp_min(1)
    return rows.sign() * large * scale


def _signs(rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    scale = rows.abs().sum(dim=-1, keepdim=True) / counts
    return torch.where(rows >= 0, scale, -scale)


_BLOCKS: dict[int, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    8: lambda rows, _: _to_largest(rows, 127),
    4: lambda rows, _: _to_largest(rows, 7),
    2: _ternary,
    1: _signs,
}
"""By bits: what becomes of blocks [..., blocks, size], of which so many values count."""


def _in_blocks(
    x: torch.Tensor, size: int, rounding: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Rounds blocks along the last axis."""
    length = x.shape[-1]
    size = block_size(length, size)
    filled = nn.functional.pad(x, (0, -length % size)).unflatten(-1, (-1, size))
    starts = torch.arange(0, length, size, device=x.device)
    counts = (length - starts).clamp_max(size)[:, None].to(x.dtype)
    return rounding(filled, counts).flatten(-2)[..., :length]
