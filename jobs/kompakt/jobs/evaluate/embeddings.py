# SPDX-License-Identifier: Apache-2.0
"""How near a candidate's embeddings are to the baseline's, and how well both rank pairs of texts
that people have scored.

The standard error of a dropped correlation is that of a paired bootstrap (Efron & Tibshirani 1993,
An Introduction to the Bootstrap, chapters 6 and 7): pairs of texts are drawn anew with replacement,
and both variants are judged on the same ones, so that what makes a draw hard or easy cancels out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kompakt.api.measure import CosineFigures, PairedCorrelation
from kompakt.jobs.data.targets import Target
from kompakt.jobs.evaluate.numbers import BASIS_POINTS, MICROS, Numbers, correlation, ranks
from kompakt.jobs.models.session import Logits

DRAWS = 400
"""An error's own relative error is 1/sqrt(2 * 400), four parts in a hundred."""
FEWEST_PAIRS = 3
"""Of which ranks can correlate at all; `controllers` ask for more."""
_SHORTEST = 1e-12


def cosines(one: Logits, other: Logits) -> Numbers:
    """Of each row of two matrices [texts, width], NaN where either is no vector of numbers."""
    found: Numbers = (_unit(one) * _unit(other)).sum(axis=1)
    return found


def nearest(near: Numbers, examples: int) -> Numbers:
    """For each example the cosine of its text, or the lesser of its two; -1 where there is none."""
    found: Numbers = np.nan_to_num(near, nan=-1.0).reshape(-1, examples).min(axis=0)
    return found


def cosine_figures(near: Numbers) -> CosineFigures:
    """Over all texts, of which there is at least one."""
    known = np.clip(np.nan_to_num(near, nan=-1.0), -1.0, 1.0)
    return CosineFigures(
        mean_basis_points=round(float(known.mean()) * BASIS_POINTS),
        fifth_percentile_basis_points=round(float(np.quantile(known, 0.05)) * BASIS_POINTS),
        least_basis_points=round(float(known.min()) * BASIS_POINTS),
    )


def pairs_of(targets: Sequence[Target], *, baseline: Logits, candidate: Logits) -> Pairs | None:
    """The scored pairs; None where texts stand alone.

    Args:
        targets: The score of each example.
        baseline: Its embeddings, first those of the first texts, then those of the second.
        candidate: The candidate's.
    """
    if len(baseline) == len(targets):
        return None
    scores = np.asarray(targets, dtype=np.float64)
    theirs, ours = (
        np.nan_to_num(cosines(*np.split(vectors, 2)), nan=-1.0) for vectors in (baseline, candidate)
    )
    return Pairs(scores=scores, baseline=theirs, candidate=ours)


@dataclass(frozen=True)
class Pairs:
    """What people and variants say of the similarity of two texts."""

    scores: Numbers
    baseline: Numbers
    """Cosines."""
    candidate: Numbers

    def correlation(
        self, among: NDArray[np.bool_], *, draws: int = DRAWS
    ) -> PairedCorrelation | None:
        """Of some pairs; None where there are too few, or cosines or scores do not vary."""
        some = Pairs(self.scores[among], self.baseline[among], self.candidate[among])
        if among.sum() < FEWEST_PAIRS or (found := some._spearman()) is None:
            return None
        theirs, ours = found
        return PairedCorrelation(
            pairs=int(among.sum()),
            baseline_basis_points=round(theirs * BASIS_POINTS),
            candidate_basis_points=round(ours * BASIS_POINTS),
            drop_micros=round((theirs - ours) * MICROS),
            standard_error_micros=round(some._standard_error(draws) * MICROS),
        )

    def _spearman(self) -> tuple[float, float] | None:
        """The baseline's and the candidate's."""
        scores = ranks(self.scores)
        theirs = correlation(ranks(self.baseline), scores)
        ours = correlation(ranks(self.candidate), scores)
        return None if theirs is None or ours is None else (theirs, ours)

    def _standard_error(self, draws: int) -> float:
        """Of the difference of the two; draws in which nothing varies are left out."""
        draw = np.random.default_rng(0)
        drops = []
        for _ in range(draws):
            chosen = draw.integers(0, len(self.scores), len(self.scores))
            again = Pairs(self.scores[chosen], self.baseline[chosen], self.candidate[chosen])
            if (found := again._spearman()) is not None:
                drops.append(found[0] - found[1])
        return float(np.std(drops, ddof=1)) if len(drops) > 1 else 0.0


def _unit(vectors: Logits) -> Numbers:
    wide = vectors.astype(np.float64)
    lengths = np.sqrt(np.square(wide).sum(axis=1, keepdims=True))
    unit: Numbers = wide / np.maximum(lengths, _SHORTEST)
    return unit
