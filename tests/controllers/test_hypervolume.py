# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kompakt.controllers.hypervolume import (
    Array,
    cumulative,
    expected_improvement,
    front,
    hypervolume,
)

COORDINATES = st.integers(0, 6).map(float)


def points(directions: int, most: int) -> st.SearchStrategy[Array]:
    """Few points with many equal coordinates."""
    row = st.lists(COORDINATES, min_size=directions, max_size=directions)
    return st.lists(row, min_size=1, max_size=most).map(np.array)


def by_inclusion_and_exclusion(some: Array, reference: Array) -> float:
    """The volume of a union of boxes."""
    total = 0.0
    for count in range(1, len(some) + 1):
        for chosen in combinations(some, count):
            corner = np.max(chosen, axis=0)
            total -= (-1) ** count * float(np.prod(np.maximum(reference - corner, 0)))
    return total


@given(points(3, 6))
def test_the_volume_is_that_of_the_union_of_boxes(some: Array) -> None:
    """Points beyond the reference, equal ones and dominated ones included."""
    reference = np.array([5.0, 4.0, 6.0])
    assert hypervolume(some, reference) == pytest.approx(
        by_inclusion_and_exclusion(some, reference)
    )


@given(points(2, 8))
def test_the_front_has_what_nothing_dominates(some: Array) -> None:
    """Each point once; no other is as good everywhere and better somewhere."""
    expected = {tuple(p) for p in some if not any((q <= p).all() and (q < p).any() for q in some)}
    found = [tuple(row) for row in front(some)]
    assert len(found) == len(set(found))
    assert set(found) == expected


@pytest.mark.slow
@pytest.mark.parametrize("directions", [2, 3])
def test_the_expected_improvement_is_the_mean_improvement(directions: int) -> None:
    """Beside 4,000 draws of each guess; one guess is beyond the reference, one is hopeless."""
    rng = np.random.default_rng(0)
    known = rng.uniform(0, 2, (6, directions))
    reference = np.full(directions, 2.0)
    mean = np.vstack([rng.uniform(-0.5, 2, (3, directions)), np.full((1, directions), 3.0)])
    deviation = np.vstack([rng.uniform(0.1, 1, (3, directions)), np.full((1, directions), 0.2)])
    before = hypervolume(known, reference)

    found = expected_improvement(known, reference, mean=mean, deviation=deviation)

    for guess in range(len(mean)):
        draws = rng.normal(mean[guess], deviation[guess], (4000, directions))
        gains = [hypervolume(np.vstack([known, draw]), reference) - before for draw in draws]
        error = np.std(gains) / np.sqrt(len(gains))
        assert found[guess] == pytest.approx(np.mean(gains), abs=4 * error + 1e-6)


def test_with_nothing_known_the_whole_box_counts() -> None:
    """A guess that is nearly sure adds the box between it and the reference."""
    found = expected_improvement(
        np.zeros((0, 3)), np.ones(3), mean=np.zeros((1, 3)), deviation=np.full((1, 3), 1e-6)
    )
    assert found[0] == pytest.approx(1.0, abs=1e-4)


def test_the_normal_distribution() -> None:
    """Its tails too, where one less something would be nothing."""
    from scipy.stats import norm

    z = np.linspace(-9, 9, 37)
    np.testing.assert_allclose(cumulative(z), norm.cdf(z), rtol=1e-12)
