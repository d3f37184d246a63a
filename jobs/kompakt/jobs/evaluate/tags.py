# SPDX-License-Identifier: Apache-2.0
"""Labels of words: which texts have all of them right, and the entities that they spell.

Entities are counted as conlleval does (Tjong Kim Sang & De Meulder 2003, arXiv:cs/0306050, section
3), which is what seqeval counts by default: an entity is right when both of its ends and its type
are. A label that goes on where nothing began begins one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kompakt.api.measure import TagFigures
from kompakt.jobs.data.targets import Target
from kompakt.jobs.models.session import Logits

OUTSIDE = "O"
_SPAN = re.compile(r"[BIESLU]-.+")
_GOES_ON, _MAY_GO_ON = frozenset("IEL"), frozenset("BI")
BASIS_POINTS = 10_000

Indices = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class TagAnswers:
    """Who labelled which text how."""

    baseline_right: Flags
    """Of each text, whether all of its words have the right label."""
    candidate_right: Flags
    disagree: Flags
    """Of each text, whether any word has another label."""
    baseline: TagFigures
    candidate: TagFigures


def compare(
    targets: Sequence[Target], labels: Sequence[str], *, baseline: Logits, candidate: Logits
) -> TagAnswers:
    """Looks at the words that either has an answer to.

    Args:
        targets: Of each text, the label's index of each word.
        labels: The model's.
        baseline: Its logits for the words of all texts, [words, labels].
        candidate: The candidate's.
    """
    truth = np.array([tag for tags in targets for tag in _words(tags)], dtype=np.int64)
    texts = np.repeat(np.arange(len(targets)), [len(_words(tags)) for tags in targets])
    before, after = _answers(baseline), _answers(candidate)
    seen = (before >= 0) | (after >= 0)

    def any_of(words: Flags) -> Flags:
        return np.bincount(texts[words & seen], minlength=len(targets)) > 0

    return TagAnswers(
        baseline_right=~any_of(before != truth),
        candidate_right=~any_of(after != truth),
        disagree=any_of(before != after),
        baseline=_figures(texts[seen], truth[seen], before[seen], labels),
        candidate=_figures(texts[seen], truth[seen], after[seen], labels),
    )


def entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """First and last word, and type, of each entity; in BIO, IOB, IOBES or BILOU."""
    found: set[tuple[int, int, str]] = set()
    begin, previous, kind = 0, OUTSIDE, ""
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, _, type_ = tag.partition("-")
        if prefix in _GOES_ON and previous in _MAY_GO_ON and type_ == kind:
            previous = prefix
            continue
        if previous != OUTSIDE:
            found.add((begin, place - 1, kind))
        begin, previous, kind = place, prefix, type_
    return found


def _words(target: Target) -> tuple[int, ...]:
    return target if isinstance(target, tuple) else ()


def _answers(logits: Logits) -> Indices:
    """The label of each word, -1 where it has none."""
    none = np.isneginf(logits).all(axis=1)
    found: Indices = np.where(none, -1, logits.argmax(axis=1))
    return found


def _figures(texts: Indices, truth: Indices, found: Indices, labels: Sequence[str]) -> TagFigures:
    figures = TagFigures(words=len(truth), correct_words=int((truth == found).sum()))
    if not all(label == OUTSIDE or _SPAN.fullmatch(label) for label in labels):
        return figures
    names = np.array([*labels, OUTSIDE])  # the last is that of no answer
    expected = spotted = correct = 0
    borders = np.flatnonzero(np.diff(texts)) + 1
    for ours, theirs in zip(np.split(truth, borders), np.split(found, borders), strict=True):
        wanted, given = entities(names[ours].tolist()), entities(names[theirs].tolist())
        expected += len(wanted)
        spotted += len(given)
        correct += len(wanted & given)
    total = expected + spotted
    return figures.evolve(
        entities=expected,
        found_entities=spotted,
        correct_entities=correct,
        entity_f1_basis_points=round(2 * correct / total * BASIS_POINTS) if total else None,
    )
