# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kompakt.jobs.evaluate.tags import compare, entities
from kompakt.jobs.models.session import Logits

LABELS = ["O", "B-A", "I-A", "E-A", "S-A", "B-B", "I-B", "E-B", "S-B"]
indices = st.integers(0, len(LABELS) - 1)


def ends(previous: str, tag: str, former: str, kind: str) -> bool:
    """`endOfChunk` of the published conlleval script, condition by condition."""
    return (
        (previous == "B" and tag in {"B", "S", "O"})
        or (previous == "I" and tag in {"B", "S", "O"})
        or previous in {"E", "S"}
        or (previous != "O" and former != kind)
    )


def starts(previous: str, tag: str, former: str, kind: str) -> bool:
    """`startOfChunk` of the same."""
    return (
        tag in {"B", "S"}
        or (previous in {"E", "S", "O"} and tag in {"E", "I"})
        or (tag != "O" and former != kind)
    )


def reference(tags: list[str]) -> set[tuple[int, int, str]]:
    """Chunks by those two."""
    found = set()
    previous, former, begin = "O", "", 0
    for place, whole in enumerate([*tags, "O"]):
        tag, kind = whole[0], whole[2:]
        if previous != "O" and ends(previous, tag, former, kind):
            found.add((begin, place - 1, former))
        if starts(previous, tag, former, kind):
            begin = place
        previous, former = tag, kind
    return found


@given(st.lists(st.sampled_from(LABELS), max_size=12))
def test_entities_are_those_of_conlleval(tags: list[str]) -> None:
    """Whatever a model makes of the scheme."""
    assert entities(tags) == reference(tags)


def test_entities_of_known_sentences() -> None:
    """BIO, a label that goes on where nothing began, IOBES and BILOU."""
    assert entities(["B-A", "I-A", "O", "B-A"]) == {(0, 1, "A"), (3, 3, "A")}
    assert entities(["I-A", "I-B"]) == {(0, 0, "A"), (1, 1, "B")}
    assert entities(["S-A", "B-B", "E-B"]) == {(0, 0, "A"), (1, 2, "B")}
    assert entities(["U-A", "B-B", "L-B"]) == {(0, 0, "A"), (1, 2, "B")}


def logits(tags: list[int]) -> Logits:
    """Of words that are given these labels; -1 is a word that has no token."""
    rows = np.zeros((len(tags), len(LABELS)), dtype=np.float32)
    for row, tag in zip(rows, tags, strict=True):
        if tag < 0:
            row[:] = -np.inf
        else:
            row[tag] = 1.0
    return rows


@given(st.lists(st.lists(st.tuples(indices, indices, indices), max_size=6), min_size=1, max_size=8))
def test_a_text_is_right_when_all_of_its_words_are(texts: list[list[tuple[int, int, int]]]) -> None:
    """Counted text by text and entity by entity, in plain Python."""
    truth = [tuple(word[0] for word in text) for text in texts]
    before, after = ([[word[i] for word in text] for text in texts] for i in (1, 2))
    found = compare(
        truth, LABELS, baseline=logits([*chain(*before)]), candidate=logits([*chain(*after)])
    )
    assert found.baseline_right.tolist() == [
        list(t) == b for t, b in zip(truth, before, strict=True)
    ]
    assert found.candidate_right.tolist() == [
        list(t) == a for t, a in zip(truth, after, strict=True)
    ]
    assert found.disagree.tolist() == [a != b for a, b in zip(after, before, strict=True)]
    wanted = [reference([LABELS[i] for i in t]) for t in truth]
    given_ = [reference([LABELS[i] for i in a]) for a in after]
    correct = sum(len(w & g) for w, g in zip(wanted, given_, strict=True))
    figures = found.candidate
    assert figures.words == sum(map(len, texts))
    assert figures.correct_words == sum(w[0] == w[2] for text in texts for w in text)
    assert figures.entities == sum(map(len, wanted))
    assert figures.found_entities == sum(map(len, given_))
    assert figures.correct_entities == correct
    both = sum(map(len, wanted)) + sum(map(len, given_))
    if both:
        assert figures.entity_f1_basis_points == pytest.approx(2 * correct / both * 1e4, abs=0.5)
    else:
        assert figures.entity_f1_basis_points is None


def test_words_that_neither_reads_do_not_count() -> None:
    """Behind the end of what a model reads; one that only one of both reads is wrong for the
    other.
    """
    found = compare(
        [(1, 2, 0), (0, 0)],
        LABELS,
        baseline=logits([1, 2, -1, 0, 0]),
        candidate=logits([1, 2, -1, 0, -1]),
    )
    assert found.baseline_right.tolist() == [True, True]
    assert found.candidate_right.tolist() == [True, False]
    assert (found.baseline.words, found.candidate.correct_words) == (4, 3)


def test_labels_that_are_no_spans_have_no_entities() -> None:
    """Parts of speech are words' own."""
    found = compare([(0, 1)], ["NOUN", "VERB"], baseline=ONE, candidate=ONE)
    assert (found.baseline.words, found.baseline.correct_words) == (2, 1)
    assert found.baseline.entities is None


ONE: Logits = np.array([[1, 0], [1, 0]], dtype=np.float32)
