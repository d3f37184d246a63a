# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from kompakt.api.measure import PairedCounts
from kompakt.controllers.bounds import (
    drop_basis_points,
    examples_needed,
    upper_bound_basis_points,
)

SAMPLES = 3000

outcomes = st.integers(1, 3000).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(0, n)).flatmap(
        lambda nl: st.tuples(st.just(nl[0]), st.just(nl[1]), st.integers(0, nl[0] - nl[1]))
    )
)


def counts(examples: int, lost: int, gained: int) -> PairedCounts:
    """Paired outcomes, as far as a bound looks at them."""
    return PairedCounts(examples=examples, lost=lost, gained=gained)


def bound(examples: int, lost: int, gained: int, *, confidence: float = 0.95) -> int:
    """The upper bound, which is there."""
    found = upper_bound_basis_points(counts(examples, lost, gained), confidence=confidence)
    assert found is not None
    return found


def independent_bound(examples: int, lost: int, gained: int, *, confidence: float) -> float:
    """The same bound by other means: the likeliest gain under a drop is searched numerically, and
    the drop by a general root finder.
    """
    same = examples - lost - gained

    def likeliest_gain(drop: float) -> float:
        def improbability(gain: float) -> float:
            cells = ((lost, gain + drop), (gained, gain), (same, 1 - 2 * gain - drop))
            return -sum(n * math.log(max(p, 1e-300)) for n, p in cells if n)

        low, high = max(0.0, -drop), (1 - drop) / 2
        found = optimize.minimize_scalar(
            improbability, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
        )
        return float(min((low, high, found.x), key=improbability))

    def distance(drop: float) -> float:
        variance = (2 * likeliest_gain(drop) + drop - drop * drop) / examples
        seen = (lost - gained + 0.5) / examples
        return float(seen - drop + stats.norm.ppf(confidence) * math.sqrt(max(variance, 0)))

    # Beyond the root the score is negative; at a drop of 1 the variance is none.
    start = (lost - gained) / examples
    return 1.0 if distance(1.0) >= 0 else float(optimize.brentq(distance, start, 1.0))


@pytest.mark.parametrize(
    ("examples", "lost", "gained", "confidence"),
    [
        (50, 0, 0, 0.95),
        (44, 1, 0, 0.95),
        (100, 3, 1, 0.99),
        (200, 0, 5, 0.9),
        (1000, 12, 7, 0.95),
        (6000, 90, 60, 0.9958),
        (6000, 400, 390, 0.5),
    ],
)
def test_agrees_with_an_independent_implementation(
    examples: int, lost: int, gained: int, confidence: float
) -> None:
    """Numerical optimization of the likelihood finds the same bound as the closed form."""
    expected = independent_bound(examples, lost, gained, confidence=confidence)

    assert bound(examples, lost, gained, confidence=confidence) == pytest.approx(
        10_000 * expected, abs=1.01
    )


@pytest.mark.parametrize("lost_share", [0.005, 0.015, 0.03, 0.06])
@pytest.mark.parametrize("gained_share", [0.0, 0.005, 0.02, 0.05])
@pytest.mark.parametrize("examples", [60, 600])
def test_covers(examples: int, lost_share: float, gained_share: float) -> None:
    """In 95 of 100 samples the bound is above the true drop, for few examples and for many."""
    rng = np.random.default_rng(20260101)
    shares = [lost_share, gained_share, 1 - lost_share - gained_share]
    samples = rng.multinomial(examples, shares, size=SAMPLES)
    drawn, times = np.unique(samples, axis=0, return_counts=True)
    drop = 10_000 * (lost_share - gained_share)

    covered = sum(
        int(n) * (bound(examples, int(lost), int(gained)) >= drop)
        for (lost, gained, _), n in zip(drawn, times, strict=True)
    )

    # Two standard errors of the simulation below the promise, and half a point of the interval's.
    assert covered / SAMPLES >= 0.95 - 2 * math.sqrt(0.95 * 0.05 / SAMPLES) - 0.005


@pytest.mark.parametrize(("lost", "gained"), [(60, 30), (0, 0), (150, 150)])
def test_is_not_vacuous(lost: int, gained: int) -> None:
    """With 6,000 examples the bound is within a percentage point of what was seen."""
    seen = 10_000 * (lost - gained) / 6000

    assert seen < bound(6000, lost, gained) < seen + 100


@given(outcomes)
def test_order(outcome: tuple[int, int, int]) -> None:
    """The bound is never below what was seen, never above everything, grows with the confidence and
    with each loss.
    """
    examples, lost, gained = outcome
    at_95 = bound(examples, lost, gained)

    assert (lost - gained) / examples * 10_000 <= at_95 <= 10_000
    assert at_95 <= bound(examples, lost, gained, confidence=0.999)
    if lost + gained < examples:
        assert at_95 <= bound(examples, lost + 1, gained)
        assert bound(examples, lost, gained + 1) <= at_95


def test_nothing_measured_is_no_bound() -> None:
    """Without examples there is neither a drop nor a bound: nothing may be concluded from it."""
    assert drop_basis_points(PairedCounts()) is None
    assert upper_bound_basis_points(PairedCounts(), confidence=0.95) is None


def test_the_drop_that_was_seen() -> None:
    """Losses less gains, in basis points; a better candidate has a negative drop."""
    assert drop_basis_points(counts(1000, 12, 7)) == 50
    assert drop_basis_points(counts(1000, 0, 7)) == -70


@pytest.mark.parametrize("limit", [10, 50, 150, 400, 2000])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.995])
def test_examples_needed(limit: int, confidence: float) -> None:
    """So many examples without a loss show that a drop is within a limit, and one fewer do not."""
    needed = examples_needed(limit, confidence=confidence)

    assert needed is not None
    assert bound(needed, 0, 0, confidence=confidence) <= limit
    assert bound(needed - 1, 0, 0, confidence=confidence) > limit


def test_no_drop_at_all_cannot_be_shown() -> None:
    """No finite number of examples shows that a variant loses nothing."""
    assert examples_needed(0, confidence=0.95) is None
