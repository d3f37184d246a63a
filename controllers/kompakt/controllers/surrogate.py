# SPDX-License-Identifier: Apache-2.0
"""Proposals of a model of the space: what is expected to widen the front of speed, size and
accuracy most.

One Gaussian process for each figure, over the parameters of the resolved steps; the next trial is
the point with the largest expected improvement of the volume between the front and a reference
point. That point is the source itself, with the drop that the gates allow: what the gates reject
adds nothing. The first trials fill the space: each lies as far from the others as it can.

In numpy alone: Optuna's own sampler by Gaussian processes needs torch and scipy, which the image of
an operator should not hold, and it knows a recipe as a name only, not by its steps.

Pure: the same trials and seed give the same proposals.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from kompakt.controllers import gaussian, hypervolume
from kompakt.controllers.space import Point, Space, features, grid, shuffled
from kompakt.controllers.told import Goal, Told

Array = NDArray[np.float64]

STARTS = 5
"""Trials that fill the space before the processes are asked."""
_NEAR_FRONT = 16
"""Trials whose neighbours are looked at in a space that is too large to be listed."""


def propose(
    space: Space, told: Sequence[Told], *, goal: Goal, starts: int, seed: int
) -> Iterator[tuple[Point, str]]:
    """Points, the most promising first, each with what it is proposed for.

    Args:
        space: The recipes.
        told: Trials so far, running ones too.
        goal: Gives the reference point.
        starts: How many trials fill the space.
        seed: Decides among equals.
    """
    points = list(dict.fromkeys([*shuffled(space, seed), *_neighbours(space, told)]))
    known = [one.point for one in told]
    table = features([*points, *known], space)
    candidates, seen = table[: len(points)], table[len(points) :]
    measured = sum(one.value is not None for one in told)
    if measured < starts:
        text = f"fills the space: {measured} of {starts} measured trials are there"
        for index in _farthest_first(candidates, seen):
            yield points[index], text
        return
    yield from _by_improvement(points, candidates, seen, told=told, goal=goal)


def _farthest_first(candidates: Array, seen: Array) -> Iterator[int]:
    """Each time the candidate that is farthest from all seen and all taken before."""
    distance = np.full(len(candidates), math.inf)
    for row in seen:
        distance = np.minimum(distance, np.abs(candidates - row).sum(axis=1))
    for _ in range(len(candidates)):
        index = int(np.argmax(distance))
        yield index
        distance = np.minimum(distance, np.abs(candidates - candidates[index]).sum(axis=1))
        distance[index] = -math.inf


def _by_improvement(
    points: Sequence[Point], candidates: Array, seen: Array, *, told: Sequence[Told], goal: Goal
) -> Iterator[tuple[Point, str]]:
    ended = np.array([not one.running for one in told])
    figures = _figures([one for one in told if not one.running])
    reference = _reference(told, goal)
    under_way = seen[~ended]
    processes = [
        gaussian.fit(seen[ended], figures[:, column]) for column in range(figures.shape[1])
    ]
    believed = [process.believing(under_way) for process in processes]
    guesses = [process.predict(candidates) for process in believed]
    mean = np.stack([guess[0] for guess in guesses], axis=1)
    deviation = np.stack([guess[1] for guess in guesses], axis=1)
    known = figures
    if len(under_way):
        expected = [process.predict(under_way)[0] for process in processes]
        known = np.vstack([figures, np.stack(expected, axis=1)])
    keeps = known[:, len(reference) :].max(axis=1, initial=-math.inf) <= 0
    front = known[keeps, : len(reference)]
    gain = hypervolume.expected_improvement(
        front,
        reference,
        mean=mean[:, : len(reference)],
        deviation=deviation[:, : len(reference)],
    )
    for column in range(len(reference), mean.shape[1]):
        gain *= hypervolume.cumulative(-mean[:, column] / deviation[:, column])
    volume = hypervolume.hypervolume(front, reference)
    # Where nothing is expected anywhere, what is least known.
    for index in np.lexsort((-deviation.sum(axis=1), -gain)):
        yield points[index], _because(mean[index], deviation[index], gain[index] / (volume or 1.0))


def _figures(told: Sequence[Told]) -> Array:
    """[trials, figures]: logarithms of time and size, drop; tightness, where there are limits.

    What did not fit is as bad as the worst.
    """
    rows = np.array(
        [
            [math.log(max(one.time, 1e-6)), math.log(max(one.size, 1.0)), one.drop, one.tightness]
            if one.value is not None
            else [math.nan] * 4
            for one in told
        ]
    )
    if not np.isfinite(rows[:, 3]).any():
        rows = rows[:, :3]
    worst = np.nanmax(rows, axis=0)
    if rows.shape[1] > 3 and np.isnan(rows).any():  # noqa: PLR2004 -- the fourth figure
        worst[3] = max(worst[3], math.log(2))
    return np.where(np.isnan(rows), worst, rows)


def _reference(told: Sequence[Told], goal: Goal) -> Array:
    """The source, with the drop that is allowed; what is not known is the worst that was seen."""
    measured = [one for one in told if one.value is not None]
    size = goal.source_bytes or max(one.size for one in measured) + 1
    allowed = [gate.max_drop_basis_points for gate in goal.gates if gate.slice is None]
    # A drop as large as the gate keeps it.
    drop = min(allowed) if allowed else max(one.drop for one in measured)
    return np.array([0.0, math.log(size), drop + 1.0])


def _neighbours(space: Space, told: Sequence[Told]) -> Iterator[Point]:
    """Points beside the best trials: a large space is drawn too thinly there."""
    measured = [one for one in told if one.value is not None]
    best = sorted(measured, key=lambda one: (one.violation, one.value))[:_NEAR_FRONT]
    for one in best:
        recipe = space[one.point.recipe]
        moves = [
            [v for v in (value - r.increment, value, value + r.increment) if v in grid(r)]
            for r, value in zip(recipe.ranges, one.point.values, strict=True)
        ]
        for values in itertools.islice(itertools.product(*moves), 81):
            yield Point(one.point.recipe, values)


def _because(mean: Array, deviation: Array, gain: float) -> str:
    slow, fast = (math.exp(-mean[0] + sign * deviation[0]) for sign in (-1, 1))
    return (
        f"expected: {slow:.2f} to {fast:.2f} times as fast, {math.exp(mean[1]) / 1e6:.1f} MB, drop"
        f" {mean[2]:.0f} ± {deviation[2]:.0f} basis points, the front's volume {gain:+.1%}"
    )
