# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kompakt.jobs.data.examples import (
    Example,
    draw,
    draw_again,
    first_look,
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


@given(
    st.lists(st.sampled_from([0.1, 0.5, 1.0, 2.0, 30.0]), min_size=1, max_size=20),
    st.integers(0, 300),
    st.integers(0, 9),
)
def test_again_and_again_each_is_drawn_as_its_weight_says(
    weights: list[float], count: int, seed: int
) -> None:
    """There is a time in which each has had its turns, to less than one more or less."""
    drawn = draw_again(weights, count, seed=seed)
    assert len(drawn) == count
    assert drawn == draw_again(weights, count, seed=seed)
    turns = Counter(drawn)
    begun = max((turns[place] - 1) / weight for place, weight in enumerate(weights))
    ended = min((turns[place] + 1) / weight for place, weight in enumerate(weights))
    assert begun <= ended * (1 + 1e-9)


def test_the_first_of_many_draws_go_by_weights_too() -> None:
    """Fewer draws than there are texts: a sample in which a text of twice the weight is twice as
    often; another seed draws others.
    """
    weights = [4.0] * 500 + [1.0] * 4500
    samples = [draw_again(weights, 600, seed=seed) for seed in range(8)]
    assert all(len(set(drawn)) == 600 for drawn in samples)
    rare = [sum(place < 500 for place in drawn) / 600 for drawn in samples]
    assert sum(rare) / len(rare) == pytest.approx(2000 / 6500, abs=0.02)
    assert len(set(map(tuple, samples))) == 8


@given(
    st.lists(st.tuples(st.text(max_size=6), st.sampled_from("abc")), max_size=80),
    st.integers(1, 1000),
    st.integers(1, 1000),
)
def test_a_first_look_is_a_part_of_the_selection_split(
    rows: list[tuple[str, str]], share: int, other: int
) -> None:
    """Nothing of the confirmation split, each label in proportion, the same texts in any order of
    the file, and a smaller share within a larger one.
    """
    examples = [Example(text=text, label=label) for text, label in dict(rows).items()]
    selected = [e for e in examples if in_selection(e.text, 500)]

    def look(some: list[Example], permille: int) -> list[Example]:
        indices = first_look(some, selection=500, share=permille)
        assert indices == sorted(set(indices))
        return [some[index] for index in indices]

    chosen = look(examples, share)

    assert all(example in selected for example in chosen)
    for label in "abc":
        whole = sum(example.label == label for example in selected)
        assert sum(e.label == label for e in chosen) == math.ceil(whole * share / 1000)
    assert {e.text for e in look(examples[::-1], share)} == {e.text for e in chosen}
    small, large = sorted([share, other])
    assert {e.text for e in look(examples, small)} <= {e.text for e in look(examples, large)}


def test_a_first_look_is_no_biased_part_of_its_split() -> None:
    """The split follows from a hash of the text, the part from another."""
    examples = [Example(text=f"sentence number {i}", label="a") for i in range(4000)]
    part = first_look(examples, selection=250, share=500)
    within = {i for i in part if in_selection(examples[i].text, 125)}
    assert 0.4 < len(within) / len(part) < 0.6
