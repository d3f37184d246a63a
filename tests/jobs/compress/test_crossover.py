# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kompakt.jobs.compress.crossover import crossed

WORDS = st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=9).map(" ".join)


@given(st.lists(WORDS, min_size=1, max_size=5), st.integers(0, 9))
def test_each_begins_as_one_text_and_ends_as_another(texts: list[str], seed: int) -> None:
    """Nothing is invented, nothing is empty, and cuts are between words."""
    made = crossed(texts, 20, seed=seed)

    assert len(made) == 20
    splits = [text.split() for text in texts]
    for text in made:
        words = text.split()
        assert words
        assert any(
            words[:place] == first[:place] and words[place:] == second[len(second) - rest :]
            for place in range(len(words) + 1)
            for rest in [len(words) - place]
            for first in splits
            for second in splits
            if place <= len(first) and rest <= len(second)
        )


def test_new_texts_are_as_long_as_old_ones() -> None:
    """On average; and most of them are new."""
    texts = [" ".join(f"{n}-{k}" for k in range(n)) for n in range(2, 42)]
    made = crossed(texts, 4000, seed=0)

    mean = sum(len(text.split()) for text in made) / len(made)
    assert mean == pytest.approx(21.5, rel=0.05)
    assert len(set(made) - set(texts)) > 3500


def test_texts_are_crossed_as_often_as_their_weights_say() -> None:
    """Blank ones have weights too, which count for nothing."""
    texts = ["a a a a", " ", "b b b b", "c c c c"]
    made = crossed(texts, 4000, seed=0, weights=[3.0, 5.0, 1.0, 1e-9])

    words = [word for text in made for word in text.split()]
    assert words.count("a") / len(words) == pytest.approx(0.75, abs=0.03)
    assert "c" not in words


def test_texts_follow_from_the_seed() -> None:
    """A Job that runs again shows the same."""
    texts = ["a b c d e", "f g h", "i j k l m n"]

    assert crossed(texts, 9, seed=1) == crossed(texts, 9, seed=1) != crossed(texts, 9, seed=2)


def test_blank_texts_give_nothing() -> None:
    """They are in real data."""
    assert set(crossed(["", "  ", "a"], 5, seed=0)) == {"a"}


def test_only_blank_texts_leave_nothing_to_cross() -> None:
    """Then the same are shown again."""
    assert crossed(["", "  "], 5, seed=0) == []
