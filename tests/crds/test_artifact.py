# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from kompakt.api.artifact import FIXED_MOST_BYTES, fixed_lengths, padded_length, padded_lengths

LONGEST = st.integers(8, 8192)


@given(LONGEST, st.data())
def test_padding_is_bounded(longest: int, data: st.DataObject) -> None:
    """Every text fits, no model is asked for more than it takes, and at most a quarter is added."""
    tokens = data.draw(st.integers(1, longest))
    padded = padded_length(tokens, longest)
    assert tokens <= padded <= longest
    assert padded - tokens < max(8, tokens / 4)
    assert padded_length(padded, longest) == padded


@given(LONGEST)
def test_lengths_are_few(longest: int) -> None:
    """A server that has seen them all at start has seen every text's: four for each doubling."""
    lengths = padded_lengths(longest)
    assert lengths[-1] == longest
    assert len(lengths) <= 8 + 4 * (longest - 1).bit_length()
    assert len(padded_lengths(128)) == 12


@given(LONGEST)
def test_a_small_model_has_graphs_for_some_lengths(longest: int) -> None:
    """From 16 tokens on, a text up to 512 is filled up by half at most; a large model has none."""
    lengths = fixed_lengths(longest, FIXED_MOST_BYTES)
    assert lengths == sorted(set(lengths))
    assert lengths[-1] == min(longest, 512)
    for shorter, longer in itertools.pairwise(lengths):
        assert longer <= 1.5 * shorter
    assert lengths[0] == min(longest, 16)
    assert fixed_lengths(longest, FIXED_MOST_BYTES + 1) == []


def test_the_lengths_of_a_usual_model() -> None:
    """As a table."""
    assert fixed_lengths(128, 0) == [16, 24, 32, 48, 64, 96, 128]
    assert fixed_lengths(40, 0) == [16, 24, 32, 40]
