# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from tests.planning import policy_spec, recipe

from kompakt.api.policy import Target
from kompakt.api.recipe import CompressionRecipeSpec
from kompakt.controllers.hypervolume import hypervolume
from kompakt.controllers.space import Point, shuffled
from kompakt.controllers.surrogate import propose
from kompakt.controllers.told import Goal, Told

SOURCE = 100e6


def quantized(method: dict[str, Any]) -> CompressionRecipeSpec:
    """The same ranges before each method."""
    found = recipe(prune__ffnKeepPermille=(100, 900, 100), distill__examples=(1000, 4000, 1000))
    return found.evolve(steps=[*found.steps[:2], found.steps[2].model_validate(method)])


SPACE = {
    "dynamic": quantized({"quantize": {"method": "DynamicInt8"}}),
    "static": quantized({"quantize": {"method": "StaticInt8"}}),
    "openvino": quantized({"quantize": {"method": "OpenVinoInt8"}}),
}
GOAL = Goal(policy_spec().targets[0], tuple(policy_spec().gates), "Cost", source_bytes=int(SOURCE))
"""Lose at most 200 basis points."""


def outcome(point: Point) -> Told:
    """Less of the model is faster, smaller and worse; more examples mend some of it."""
    keep, examples = point.values[0] / 1000, point.values[1] / 4000
    speed = {"dynamic": 2.0, "static": 1.6, "openvino": 3.0}[point.recipe]
    harm = {"dynamic": 30, "static": 90, "openvino": 20}[point.recipe]
    drop = harm + 600 * (1 - keep) ** 2 * (1 - 0.5 * examples)
    return Told(
        point,
        value=(0.2 + 0.8 * keep) / speed,
        time=(0.2 + 0.8 * keep) / speed,
        size=SOURCE * (0.5 + 0.5 * keep) / 4,
        drop=drop,
        violation=max(0.0, drop - 200) / 100,
    )


def volume(told: Sequence[Told]) -> float:
    """What the trials dominate, as the module's docstring says."""
    rows = [[math.log(one.time), math.log(one.size / SOURCE), one.drop] for one in told]
    return hypervolume(np.array(rows), np.array([0.0, 0.0, 201.0]))


def search(
    count: int, *, seed: int, finish: Callable[[Point], Told] = outcome, goal: Goal = GOAL
) -> list[Told]:
    """So many trials, one after the other."""
    told: list[Told] = []
    while len(told) < count:
        points = (p for p, _ in propose(SPACE, told, goal=goal, starts=5, seed=seed + len(told)))
        told.append(finish(next(p for p in points if p not in {one.point for one in told})))
    return told


@pytest.mark.slow
def test_the_front_is_found_in_a_fifth_of_the_space() -> None:
    """20 of 108 trials dominate 95 % of what all do; 20 at random do not."""
    every = [outcome(point) for point in shuffled(SPACE, 0)]
    shares = [volume(search(20, seed=seed)) / volume(every) for seed in (0, 100, 200)]
    by_chance = [
        volume([outcome(p) for p in list(shuffled(SPACE, seed))[:20]]) / volume(every)
        for seed in range(20)
    ]

    assert min(shares) > 0.95
    assert np.median(by_chance) < 0.95


def test_what_one_recipe_shows_is_known_for_the_others() -> None:
    """After trials of two recipes, and one of the third, it is right about its rest."""
    told = [outcome(p) for p in shuffled(SPACE, 0) if p.recipe != "openvino"][:30]
    told.append(outcome(Point("openvino", (900, 1000))))

    ranked = list(propose(SPACE, told, goal=GOAL, starts=5, seed=0))

    best = ranked[0][0]
    assert best.recipe == "openvino"
    assert outcome(best).violation == 0
    assert outcome(best).time < 0.8 * outcome(Point("openvino", (900, 1000))).time


def test_the_first_trials_fill_the_space() -> None:
    """Each recipe is among the first five, and the corners of the ranges before their middle."""
    told = search(5, seed=3)

    assert {one.point.recipe for one in told} == set(SPACE)
    assert {100, 900} <= {one.point.values[0] for one in told}
    _, why = next(propose(SPACE, told[:2], goal=GOAL, starts=5, seed=0))
    assert why == "fills the space: 2 of 5 measured trials are there"


@pytest.mark.slow
def test_limits_of_the_target_are_kept() -> None:
    """Where only slow ones are allowed, later trials crowd there although they are worse."""

    def finish(point: Point) -> Told:
        one = outcome(point)
        bound = 0.35  # the made-up target takes nothing that is faster
        return Told(
            point,
            value=one.value,
            time=one.time,
            size=one.size,
            drop=one.drop,
            tightness=math.log(bound / one.time),
        )

    late = search(24, seed=0, finish=finish)[12:]
    by_chance = [finish(p).tightness <= 0 for p in shuffled(SPACE, 0)]

    kept = np.mean([one.tightness <= 0 for one in late])
    assert kept > 1.5 * np.mean(by_chance)


def test_what_did_not_fit_is_avoided() -> None:
    """A recipe whose trials are killed for memory is left."""

    def finish(point: Point) -> Told:
        return Told(point, violation=1.0) if point.recipe == "openvino" else outcome(point)

    late = search(24, seed=0, finish=finish)[12:]

    assert sum(one.point.recipe == "openvino" for one in late) <= 2


def test_trials_under_way_are_not_proposed_beside() -> None:
    """Four at once are four different guesses, as are those that nobody has told apart."""
    told = search(10, seed=0)
    for _ in range(4):
        best = next(
            p
            for p, _ in propose(SPACE, told, goal=GOAL, starts=5, seed=0)
            if p not in {one.point for one in told}
        )
        told.append(Told(best, running=True))

    neighbours = [
        sum(abs(a - b) / step for a, b, step in zip(p.values, q.values, (100, 1000), strict=True))
        for one, other in ((a, b) for a in told[10:] for b in told[10:] if a is not b)
        for p, q in ((one.point, other.point),)
        if p.recipe == q.recipe
    ]
    assert min(neighbours, default=9) >= 1
    assert len({one.point for one in told[10:]}) == 4


def test_a_proposal_says_what_is_expected() -> None:
    """Speed, size and drop, as they then come out."""
    told = search(14, seed=0)
    point, why = next(
        (p, why)
        for p, why in propose(SPACE, told, goal=GOAL, starts=5, seed=1)
        if p not in {one.point for one in told}
    )
    words = why.replace(",", "").split()
    slow, fast = float(words[1]), float(words[3])

    assert slow * 0.8 < 1 / outcome(point).time < fast * 1.25
    assert float(words[7]) == pytest.approx(outcome(point).size / 1e6, rel=0.2)
    assert why.endswith("%")


def test_only_trials_that_failed_are_no_trouble() -> None:
    """Nothing measured: it goes on filling the space."""
    told = [Told(p, violation=1.0) for p in list(shuffled(SPACE, 0))[:8]]
    _, why = next(propose(SPACE, told, goal=GOAL, starts=5, seed=0))
    assert why.startswith("fills the space: 0 of 5")


def test_without_gates_accuracy_still_counts() -> None:
    """The reference is then the worst that was seen, and a source whose size is not known."""
    told = search(8, seed=0, goal=Goal(GOAL.target, (), "Size"))
    target = Target.model_validate({"name": "edge", "hardwareProfileRef": {"name": "x"}})
    point, _ = next(propose(SPACE, told, goal=Goal(target, (), "Size"), starts=5, seed=0))
    assert point.recipe in SPACE
