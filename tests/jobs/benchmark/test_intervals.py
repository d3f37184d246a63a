# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kompakt.jobs.benchmark.intervals import (
    binomial_cdf,
    median_interval,
    quantile,
    quantile_upper_bound,
)


@given(st.integers(1, 3000), st.floats(0.001, 0.999), st.data())
def test_the_binomial_is_that_of_scipy(
    trials: int, probability: float, data: st.DataObject
) -> None:
    """The sum in logarithms equals scipy's, for many trials and extreme shares too."""
    successes = data.draw(st.integers(0, trials))
    expected = stats.binom.cdf(successes, trials, probability)
    assert binomial_cdf(successes, trials, probability) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ("count", "low", "high"),
    [(5, 0, 4), (6, 0, 5), (9, 1, 7), (15, 3, 11), (30, 9, 20), (100, 39, 60)],
)
def test_intervals_take_the_known_ranks(count: int, low: int, high: int) -> None:
    """The order statistics are those of the usual tables (15 values: the 4th and the 12th)."""
    values = list(range(count))
    random.Random(0).shuffle(values)
    found = median_interval(values)
    assert (found.low, found.high) == (low, high)
    assert found.median == (count - 1) / 2


def test_intervals_cover_the_median() -> None:
    """Over many samples of a skewed law, 95 % of the intervals hold the true median."""
    rng = random.Random(1)
    true_median = 0.6931
    hits = 0
    for _ in range(2000):
        found = median_interval([rng.expovariate(1.0) for _ in range(15)])
        hits += found.low <= true_median <= found.high
    assert 0.94 < hits / 2000 < 0.985


@pytest.mark.parametrize(
    ("count", "rank"), [(458, None), (459, 459), (661, 661), (662, 661), (2010, 2000)]
)
def test_p99_bounds_take_the_known_ranks(count: int, rank: int | None) -> None:
    """459 values for any bound, 662 for the second largest, 2010 for the eleventh."""
    bound = quantile_upper_bound(range(1, count + 1), 0.99)
    assert bound == rank


def test_p99_bounds_hold() -> None:
    """Over many samples, the bound is below the true p99 in at most 1 % of them."""
    rng = random.Random(2)
    misses = 0
    for _ in range(1500):
        bound = quantile_upper_bound(sorted(rng.random() for _ in range(800)), 0.99)
        assert bound is not None
        misses += bound < 0.99
    assert misses / 1500 <= 0.018


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50), (0.9, 90), (0.99, 99), (1.0, 100), (0.001, 1)]
)
def test_quantiles_are_values_that_occurred(share: float, expected: int) -> None:
    """The smallest value that the share of the values does not exceed."""
    assert quantile(range(1, 101), share) == expected
