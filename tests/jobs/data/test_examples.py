# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from kompakt.jobs.data.examples import (
    Example,
    draw,
    in_selection,
    texts_digest,
)


def test_a_split_follows_from_the_text_alone() -> None:
    """The share is about what is asked for, a text is always on the same side, and splits nest."""
    texts = [f"sentence number {i}" for i in range(4000)]
    quarter = {text for text in texts if in_selection(text, 250)}
    assert 900 < len(quarter) < 1100
    assert quarter == {text for text in reversed(texts) if in_selection(text, 250)}
    assert quarter < {text for text in texts if in_selection(text, 500)}
    assert not any(in_selection(text, 0) for text in texts)
    assert all(in_selection(text, 1000) for text in texts)


def test_a_digest_of_texts_knows_their_borders() -> None:
    """Other texts, another order or another division have another digest."""
    digests = {texts_digest(t) for t in (["ab", "c"], ["a", "bc"], ["c", "ab"], ["abc"], [])}
    assert len(digests) == 5
    assert texts_digest(iter(["ab", "c"])) == texts_digest(["ab", "c"])


def test_without_weights_every_order_is_a_shuffle() -> None:
    """Every index once, in another order for another seed."""
    examples = [Example(text=str(i)) for i in range(100)]
    orders = [draw(examples, seed=seed) for seed in range(3)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert draw(examples, seed=1) == orders[1]


def test_weighted_slices_are_drawn_as_much_oftener() -> None:
    """The first draws hold them in proportion to weight times number; nothing is drawn twice."""
    rare = [Example(text=f"rare {i}", weight=4.0) for i in range(500)]
    common = [Example(text=f"common {i}") for i in range(4500)]
    examples = [*common, *rare]
    shares = []
    for seed in range(8):
        order = draw(examples, seed=seed)
        assert sorted(order) == list(range(5000))
        shares.append(sum(index >= 4500 for index in order[:600]) / 600)
    # Without replacement: 500 (1 - exp(-4t)) of 600, where 500 (1 - exp(-4t)) + 4500 (1 - exp(-t))
    # are 600. Unweighted it would be a tenth.
    assert sum(shares) / len(shares) == pytest.approx(0.27, abs=0.02)
