# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from kompakt.jobs.data.examples import (
    Dataset,
    Example,
    draw,
    in_selection,
    known_labels,
    resolve_labels,
    texts_digest,
)
from kompakt.jobs.errors import DataInvalid, LabelUnknown

LABELS = ("negative", "neutral", "positive")


def dataset(*labels: str | None) -> Dataset:
    """One example for each label."""
    examples = tuple(
        Example(text=f"text {i}", label=label, line=i + 1) for i, label in enumerate(labels)
    )
    return Dataset(uri="file:///data.jsonl", digest="sha256:" + "0" * 64, examples=examples)


def test_labels_are_names_or_indices() -> None:
    """A label is found by its name, else by its number."""
    assert resolve_labels(dataset("positive", "0", "neutral", "2"), LABELS) == [2, 0, 1, 2]


def test_a_name_that_looks_like_a_number_is_a_name() -> None:
    """Models whose labels are called 1 and 0 keep their meaning."""
    assert resolve_labels(dataset("1", "0"), ("1", "0")) == [0, 1]


@pytest.mark.parametrize("label", ["mixed", "3", "-1", "Positive", "2.0", "²"])
def test_unknown_labels_name_what_the_model_knows(label: str) -> None:
    """The message has the label, its line, and the model's labels."""
    with pytest.raises(LabelUnknown) as caught:
        resolve_labels(dataset("neutral", label), LABELS)
    assert repr(label) in str(caught.value)
    assert "line 2 of file:///data.jsonl" in str(caught.value)
    assert "negative, neutral, positive" in str(caught.value)


def test_a_model_with_many_labels_does_not_fill_the_message() -> None:
    """Only the first labels are listed."""
    with pytest.raises(LabelUnknown) as caught:
        resolve_labels(dataset("x"), [f"label-{i}" for i in range(4000)])
    assert len(str(caught.value)) < 600


def test_data_without_labels_cannot_be_resolved() -> None:
    """Unlabelled data where labels are needed says which line, and which setting is missing."""
    with pytest.raises(DataInvalid, match=r"line 2 of .* has no label.*set labelField"):
        resolve_labels(dataset("0", None), LABELS)


def test_some_texts_may_be_unlabelled() -> None:
    """Where labels are a help and no must, each text has its own or none; a wrong one is wrong."""
    assert known_labels(dataset("positive", None, "0"), LABELS) == [2, None, 0]
    with pytest.raises(LabelUnknown):
        known_labels(dataset(None, "mixed"), LABELS)


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
