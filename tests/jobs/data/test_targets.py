# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from kompakt.jobs.data.examples import Dataset, Example
from kompakt.jobs.data.targets import Target, Targets, known_labels
from kompakt.jobs.errors import DataInvalid, LabelUnknown

LABELS = ("negative", "neutral", "positive")


def dataset(*labels: str | float | None) -> Dataset:
    """One example for each label."""
    examples = tuple(
        Example(text=f"text {i}", label=label, line=i + 1) for i, label in enumerate(labels)
    )
    return Dataset(uri="file:///data.jsonl", digest="sha256:" + "0" * 64, examples=examples)


def resolve(data: Dataset, labels: Sequence[str] = LABELS) -> list[Target]:
    """Of a classifier with these labels."""
    return Targets("TextClassification", labels).resolve(data)


def test_labels_are_names_or_indices() -> None:
    """A label is found by its name, else by its number."""
    assert resolve(dataset("positive", "0", "neutral", "2")) == [2, 0, 1, 2]


def test_a_name_that_looks_like_a_number_is_a_name() -> None:
    """Models whose labels are called 1 and 0 keep their meaning."""
    assert resolve(dataset("1", "0"), labels=("1", "0")) == [0, 1]


@pytest.mark.parametrize("label", ["mixed", "3", "-1", "Positive", "2.0", "²"])
def test_unknown_labels_name_what_the_model_knows(label: str) -> None:
    """The message has the label, its line, and the model's labels."""
    with pytest.raises(LabelUnknown) as caught:
        resolve(dataset("neutral", label))
    assert repr(label) in str(caught.value)
    assert "line 2 of file:///data.jsonl" in str(caught.value)
    assert "negative, neutral, positive" in str(caught.value)


def test_a_model_with_many_labels_does_not_fill_the_message() -> None:
    """Only the first labels are listed."""
    with pytest.raises(LabelUnknown) as caught:
        resolve(dataset("x"), labels=[f"label-{i}" for i in range(4000)])
    assert len(str(caught.value)) < 600


def test_data_without_labels_cannot_be_resolved() -> None:
    """Unlabelled data where labels are needed says which line, and which setting is missing."""
    with pytest.raises(DataInvalid, match=r"line 2 of .* has no label.*set labelField"):
        resolve(dataset("0", None))


def test_some_texts_may_be_unlabelled() -> None:
    """Where labels are a help and no must, each text has its own or none; a wrong one is wrong."""
    assert known_labels(dataset("positive", None, "0"), LABELS) == [2, None, 0]
    with pytest.raises(LabelUnknown):
        known_labels(dataset(None, "mixed"), LABELS)


def test_targets_of_a_regression_are_numbers() -> None:
    """As JSON has them, or as CSV writes them; data of which a part is unlabelled has gaps."""
    targets = Targets("Regression", ["score"])
    assert targets.resolve(dataset(1, "2", 0.5, " -1e-3 ")) == [1.0, 2.0, 0.5, -0.001]
    assert targets.known(dataset(0.25, None)) == [0.25, None]
    with pytest.raises(DataInvalid, match=r"line 2 of .* has no label"):
        targets.resolve(dataset(0.25, None))


@pytest.mark.parametrize("label", ["positive", "", "nan", math.inf, "1,5", "the bool True"])
def test_what_is_no_number_is_named(label: str | float) -> None:
    """With its line, before anything is computed with it."""
    with pytest.raises(DataInvalid, match=r"line 2 of file:///data\.jsonl is no finite number"):
        Targets("Regression", ["score"]).resolve(dataset(0.0, label))


TAGS = Targets("TokenClassification", ["O", "B-PER", "I-PER"])


def tagged(text: str, label: str | float | tuple[str | float, ...] | None) -> Dataset:
    """One example."""
    example = Example(text=text, label=label, line=7)
    return Dataset(uri="file:///x.jsonl", digest="sha256:" + "0" * 64, examples=(example,))


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (("O", "B-PER", "I-PER"), (0, 1, 2)),
        ((0, "1", "O"), (0, 1, 0)),
        ("O B-PER  O", (0, 1, 0)),
        (None, None),
    ],
)
def test_targets_of_words_are_indices(
    label: str | tuple[str | float, ...] | None, expected: tuple[int, ...] | None
) -> None:
    """From a list, or from a text with spaces between, as in CSV."""
    assert TAGS.known(tagged("hello Ada  Lovelace", label)) == [expected]


@pytest.mark.parametrize(
    ("label", "error", "message"),
    [
        (("O", "O"), DataInvalid, r"line 7 of .* has 2 labels for 3 words; give one for each"),
        ("O", DataInvalid, r"has 1 labels for 3 words"),
        (("O", "O", "B-LOC"), LabelUnknown, r"'B-LOC' in line 7 .* \(O, B-PER, I-PER\)"),
    ],
)
def test_wrong_targets_of_words_are_named(
    label: str | tuple[str | float, ...], error: type[Exception], message: str
) -> None:
    """With the line."""
    with pytest.raises(error, match=message):
        TAGS.known(tagged("hello Ada Lovelace", label))
