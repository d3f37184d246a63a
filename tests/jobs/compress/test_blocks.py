# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kompakt.jobs.compress.blocks import block_size, packed, to_blocks, to_signs

FEW_LEVELS = [(1, 16), (2, 16), (2, 64), (4, 16), (4, 128), (8, 32)]


def matrix(inputs: int, outputs: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Weights as models have them: bell-shaped, with some outliers."""
    rng = np.random.default_rng(seed)
    values = rng.standard_t(4, (inputs, outputs)) * 0.05
    return values.astype(np.float32)


def unpacked(packed_codes: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """Bit by bit, by numpy's own."""
    flat = np.unpackbits(packed_codes, axis=-1, bitorder="little")
    parts = flat.reshape(*flat.shape[:-1], -1, bits)
    codes = np.packbits(parts, axis=-1, bitorder="little")[..., 0]
    return codes[..., :count]


@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 40), st.integers(0, 1000))
def test_packing_loses_nothing(bits: int, count: int, seed: int) -> None:
    """Whatever the number of codes, each is where the format wants it, and the rest is 0."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**bits, (3, count)).astype(np.uint8)
    found = packed(codes, bits)
    assert found.shape == (3, -(-count * bits // 8))
    np.testing.assert_array_equal(unpacked(found, bits, count), codes)
    everything = unpacked(found, bits, found.shape[-1] * 8 // bits)
    assert not everything[:, count:].any()


@pytest.mark.parametrize(("bits", "size"), FEW_LEVELS)
@pytest.mark.parametrize("inputs", [64, 50])
def test_what_is_integers_already_is_found_again(bits: int, size: int, inputs: int) -> None:
    """Weights as training for few bits leaves them, also where not all integers are in use."""
    rng = np.random.default_rng(bits)
    outputs, width = 24, block_size(inputs, size)
    count = -(-inputs // width)
    most = max(1, 2 ** (bits - 1) - 1)
    used = rng.integers(1, most + 1, (outputs, count, 1)) if bits < 8 else most
    integers = np.rint(rng.uniform(-1, 1, (outputs, count, width)) * used)
    integers[..., :1] = used  # the largest weight is one of them
    if bits == 1:
        integers = np.where(integers < 0, -1, 1)
    scales = rng.uniform(0.001, 0.1, (outputs, count, 1))
    weight = (integers * scales).reshape(outputs, -1)[:, :inputs].T.astype(np.float32)
    blocks = (
        to_signs(weight, size=size)
        if bits == 1
        else to_blocks(weight, bits=bits, size=size, symmetric=True)
    )
    np.testing.assert_allclose(blocks.weight, weight, rtol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero points"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_scale_is_no_worse_than_rounding_by_the_range(bits: int, *, symmetric: bool) -> None:
    """In each block the error is at most that of plain rounding to the nearest, and in some it is
    less; no single weight is further off than half of what its block covers.
    """
    weight = matrix(128, 40)
    blocks = to_blocks(weight, bits=bits, size=32, symmetric=symmetric)
    rows = weight.T.reshape(40, 4, 32)
    if symmetric:
        scale = np.abs(rows).max(axis=-1, keepdims=True) / (2 ** (bits - 1) - 1)
        plain = np.rint(rows / scale) * scale
    else:
        low = np.minimum(rows.min(axis=-1, keepdims=True), 0)
        scale = (np.maximum(rows.max(axis=-1, keepdims=True), 0) - low) / (2**bits - 1)
        zero = np.rint(-low / scale)
        plain = (np.clip(np.rint(rows / scale) + zero, 0, 2**bits - 1) - zero) * scale
    theirs = ((plain - rows) ** 2).sum(axis=-1)
    ours = ((blocks.weight.T.reshape(rows.shape) - rows) ** 2).sum(axis=-1)
    assert (ours <= theirs * (1 + 1e-5)).all()
    if bits < 8:
        assert ours.sum() < 0.98 * theirs.sum()
    assert (blocks.zeros is None) == symmetric


def test_signs_have_the_scale_of_least_error() -> None:
    """The mean size, also of a block that is not full: no other scale is better."""
    weight = matrix(40, 10)
    blocks = to_signs(weight, size=32)
    assert blocks.scales.shape == (10, 2)
    for column in range(10):
        for number, part in enumerate((weight[:32, column], weight[32:, column])):
            assert blocks.scales[column, number] == pytest.approx(np.abs(part).mean(), rel=1e-5)
    assert (np.sign(blocks.weight) == np.sign(weight)).all()


@pytest.mark.parametrize(
    ("inputs", "wanted", "size"), [(384, 32, 32), (64, 128, 64), (50, 128, 64), (3, 32, 16)]
)
def test_blocks_are_no_larger_than_the_matrix_needs(inputs: int, wanted: int, size: int) -> None:
    """A narrow matrix is not filled up for nothing."""
    assert block_size(inputs, wanted) == size


def test_a_matrix_of_zeros_stays_one() -> None:
    """No division by zero."""
    zeros = np.zeros((32, 4), np.float32)
    for symmetric in (True, False):
        blocks = to_blocks(zeros, bits=4, size=32, symmetric=symmetric)
        assert not blocks.weight.any()
        assert np.isfinite(blocks.scales).all()
    assert not to_signs(zeros, size=32).weight.any()
