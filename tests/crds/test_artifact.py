# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kompakt.api.artifact import padded_length, padded_lengths

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
