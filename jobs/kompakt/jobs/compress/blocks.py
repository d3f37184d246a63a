# SPDX-License-Identifier: Apache-2.0
"""Matrices in few bits: each column of a matrix [inputs, outputs] in blocks of consecutive inputs,
each block with a scale, and with a zero point where integers need not lie symmetrically.

Rounding to the nearest, with the largest weight as the largest integer, wastes levels on outliers.
So several scales are tried for each block, and that with the least squared error is taken. Among
them are all by which the largest weight is an integer: a block that already is integers times a
scale, as training for few bits leaves it, is found again exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kompakt.jobs.compress.products import Matrix

Codes = NDArray[np.uint8]
Floats = NDArray[np.float32]
SMALLEST_BLOCK = 16
"""Of ONNX Runtime's kernels."""
_CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
"""Shares of the range that are tried."""
_AT_ONCE = 64
"""Columns; more would not stay in the cache."""
_TINY = np.float32(np.finfo(np.float32).tiny)
_WHOLE_BITS = 4
"""With more, the largest weight is taken for the largest integer alone."""


@dataclass(frozen=True)
class Blocks:
    """A matrix [inputs, outputs] in a few bits; a weight is `scale · (code - zero)`, but of 1 bit
    `scale · (2 · code - 1)`.
    """

    codes: Codes
    """[outputs, blocks, size]; inputs beyond the matrix have any code."""
    scales: Floats
    """[outputs, blocks]."""
    zeros: Codes | None
    """[outputs, blocks]; None where it is the middle, 2^(bits - 1), everywhere."""
    bits: int
    inputs: int

    @property
    def weight(self) -> Matrix:
        """What the codes stand for, [inputs, outputs]."""
        codes = self.codes.astype(np.float32)
        if self.bits == 1:
            values = 2 * codes - 1
        elif self.zeros is None:
            values = codes - 2 ** (self.bits - 1)
        else:
            values = codes - self.zeros[..., None]
        values *= self.scales[..., None]
        return np.ascontiguousarray(values.reshape(len(values), -1)[:, : self.inputs].T)


def to_blocks(weight: Matrix, *, bits: int, size: int, symmetric: bool) -> Blocks:
    """Rounds a matrix.

    Args:
        weight: [inputs, outputs].
        bits: 2 to 8.
        size: Inputs in a block, a power of two. Narrow matrices get the smallest block that holds
            all of their inputs.
        symmetric: Without zero points.
    """
    rows = _rows(weight, size)
    parts = [
        _best(rows[start : start + _AT_ONCE], bits=bits, symmetric=symmetric)
        for start in range(0, len(rows), _AT_ONCE)
    ]
    codes, scales, zeros = (np.concatenate(some) for some in zip(*parts, strict=True))
    return Blocks(codes, scales, None if symmetric else zeros, bits, len(weight))


def to_signs(weight: Matrix, *, size: int) -> Blocks:
    """A matrix in 1 bit: signs, times the mean size of a block's weights, which is the scale of
    least squared error (Rastegari et al. 2016, arXiv:1603.05279, section 3.1).
    """
    rows = _rows(weight, size)
    # What a block is filled up with counts for nothing.
    filled = np.pad(np.ones(len(weight), np.float32), (0, rows[0].size - len(weight)))
    counts = filled.reshape(rows.shape[1:]).sum(axis=-1)
    scales = np.abs(rows).sum(axis=-1, dtype=np.float64) / counts
    return Blocks((rows >= 0).astype(np.uint8), scales.astype(np.float32), None, 1, len(weight))


def block_size(inputs: int, size: int) -> int:
    """No larger than a matrix needs."""
    return min(size, max(SMALLEST_BLOCK, 1 << (inputs - 1).bit_length()))


def packed(codes: Codes, bits: int) -> Codes:
    """Codes along the last axis in bytes, the first one in the lowest bits; filled up with 0."""
    each = 8 // bits
    fill = [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % each)]
    parts = np.pad(codes, fill)
    parts = parts.reshape(*parts.shape[:-1], -1, each)
    shifts = (bits * np.arange(each)).astype(np.uint8)
    together: Codes = np.bitwise_or.reduce(parts << shifts, axis=-1)
    return together


def _rows(weight: Matrix, size: int) -> Floats:
    """[outputs, blocks, size], filled up with zeros."""
    inputs, outputs = weight.shape
    size = block_size(inputs, size)
    filled = np.pad(weight.T, ((0, 0), (0, -inputs % size)))
    return filled.reshape(outputs, -1, size).astype(np.float32)


def _best(rows: Floats, *, bits: int, symmetric: bool) -> tuple[Codes, Floats, Codes]:
    """Codes, scales and zero points of least squared error."""
    least: Floats | None = None
    candidates = _symmetric(rows, bits) if symmetric else _between(rows, bits)
    for scales, zeros in candidates:
        codes = _rounded(rows, scales, zeros, bits)
        codes -= zeros[..., None]
        codes *= scales[..., None]
        codes -= rows
        errors = np.einsum("obs,obs->ob", codes, codes)
        if least is None:
            least, best_scales, best_zeros = errors, scales, zeros
            continue
        wins = errors < least
        least = np.where(wins, errors, least)
        best_scales = np.where(wins, scales, best_scales)
        best_zeros = np.where(wins, zeros, best_zeros)
    codes = _rounded(rows, best_scales, best_zeros, bits)
    return codes.astype(np.uint8), best_scales, best_zeros.astype(np.uint8)


def _rounded(rows: Floats, scales: Floats, zeros: Floats, bits: int) -> Floats:
    codes = rows / scales[..., None]
    np.rint(codes, out=codes)
    codes += zeros[..., None]
    np.clip(codes, 0, 2**bits - 1, out=codes)
    return codes


def _symmetric(rows: Floats, bits: int) -> Iterator[tuple[Floats, Floats]]:
    """Scales and zero points, [outputs, blocks], the zero point always in the middle."""
    half = 2 ** (bits - 1)
    place = np.abs(rows).argmax(axis=-1)[..., None]
    # With its sign, since there is one negative integer more than positive ones.
    peak = np.take_along_axis(rows, place, axis=-1)[..., 0]
    peak = np.where(np.abs(peak) < half * _TINY, half * _TINY, peak)
    zeros = np.full_like(peak, half)
    yield peak / np.float32(half - 1), zeros
    if bits <= _WHOLE_BITS:
        for integer in range(1, half + 1):
            yield peak / np.float32(-integer), zeros
            if integer < half - 1:
                yield peak / np.float32(integer), zeros
    if bits < _WHOLE_BITS:
        for clip in _CLIPS[1:]:
            yield peak / np.float32(-half * clip), zeros


def _between(rows: Floats, bits: int) -> Iterator[tuple[Floats, Floats]]:
    """Scales and zero points, [outputs, blocks], for the range of each block, zero included."""
    low, high = np.minimum(rows.min(axis=-1), 0), np.maximum(rows.max(axis=-1), 0)
    levels = np.float32(2**bits - 1)
    for clip in _CLIPS:
        share = np.float32(clip)
        scales = np.maximum((high - low) * share / levels, _TINY)
        yield scales, np.clip(np.rint(-low * share / scales), 0, levels)
