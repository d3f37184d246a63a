# SPDX-License-Identifier: Apache-2.0
"""What samplers are told about trials.

Invariants:

- what did not fit (memory, diverged training) is told as a broken constraint, what could not be
  tried (a bug, a lost node) is not told at all;
- figures are those of the selection split: the confirmation split is never searched on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kompakt.api.policy import Gate, Optimize, Target
from kompakt.api.run import PriorTrial, Trial
from kompakt.controllers.bounds import drop_basis_points
from kompakt.controllers.gates import drops_seen
from kompakt.controllers.select import (
    Evidence,
    evidence,
    latency,
    limits,
    objective,
)
from kompakt.controllers.space import Point, Space, grid, point_of

DID_NOT_FIT = 1.0
"""How far an infeasible trial is beyond its constraint: as far as one that is twice too slow."""

_BY_TIME: tuple[Optimize, ...] = ("Cost", "Latency", "Energy")
"""What is about the time of an answer."""


@dataclass(frozen=True)
class Goal:
    """What the search is for."""

    target: Target
    """Each target gets its own choice; one of them leads the search."""
    gates: tuple[Gate, ...]
    optimize_for: Optimize
    source_bytes: int | None = None
    """Size of the artifact of the source."""


@dataclass(frozen=True)
class Told:
    """What a sampler learns about one trial."""

    point: Point
    value: float | None = None
    """What is optimized for; less is better."""
    drop: float = 0.0
    """Of accuracy, as seen on the selection split, in basis points."""
    violation: float = 0.0
    """How far it is beyond gates and limits, all together; 0 when it keeps them."""
    running: bool = False
    time: float = 1.0
    """Of an answer, relative to the baseline's: what is optimized for, if that is about time."""
    size: float = 1.0
    """Of the artifact, in bytes."""
    tightness: float = -math.inf
    """Logarithm of latency or size over its limit, the larger of them; below 0 when it keeps both,
    −∞ when the target has neither."""


def tell(trials: Sequence[Trial], space: Space, goal: Goal) -> list[Told]:
    """What this run's trials say."""
    told = []
    for trial in trials:
        point = point_of(trial, space)
        if point is None or trial.state == "Failed":
            continue
        if trial.state == "Infeasible":
            told.append(Told(point, violation=DID_NOT_FIT))
            continue
        if trial.state not in {"Complete", "Stopped"}:
            told.append(Told(point, running=True))
            continue
        found = seen(trial, goal.target.name)
        if found is not None:
            told.append(_measured(point, found, goal))
    return told


def seen(trial: Trial, target: str) -> Evidence | None:
    """All that is known of a trial on a target: of its first look, where it had no other."""
    figures = next((t for t in trial.targets if t.target == target), None)
    found = evidence(figures, size_bytes=trial.size_bytes)
    look = trial.first_look
    if found is not None or look is None:
        return found
    return Evidence(look.evaluation, look.benchmark, trial.size_bytes or 0)


def tell_before(prior: Sequence[PriorTrial], space: Space, goal: Goal) -> list[Told]:
    """What an earlier run's trials say, as far as they lie in this space."""
    told = []
    for trial in prior:
        recipe = space.get(trial.recipe)
        if recipe is None:
            continue
        known = {(p.step, p.name): p.value for p in trial.parameters}
        values = [known.get((r.step, r.parameter)) for r in recipe.ranges]
        if any(v not in grid(r) for v, r in zip(values, recipe.ranges, strict=True)):
            continue  # the ranges are others now
        point = Point(trial.recipe, tuple(v for v in values if v is not None))
        if trial.state == "Infeasible":
            told.append(Told(point, violation=DID_NOT_FIT))
        elif (found := evidence(trial.figures, size_bytes=trial.size_bytes)) is not None:
            told.append(_measured(point, found, goal))
    return told


def _measured(point: Point, found: Evidence, goal: Goal) -> Told:
    excesses = [*limits(found, target=goal.target), *drops_seen(found.evaluation, goal.gates)]
    by_time = goal.optimize_for if goal.optimize_for in _BY_TIME else "Cost"
    return Told(
        point,
        value=objective(found, optimize_for=goal.optimize_for, target=goal.target),
        drop=drop_basis_points(found.evaluation.selection) or 0,
        violation=sum(e.relative for e in excesses),
        time=objective(found, optimize_for=by_time, target=goal.target),
        size=found.size_bytes,
        tightness=_tightness(found, goal.target),
    )


def _tightness(found: Evidence, target: Target) -> float:
    shares = []
    if target.latency is not None:
        seen = latency(found.benchmark.candidate, target.latency.percentile)
        shares.append(seen / target.latency.threshold_microseconds)
    if target.max_size_mebibytes is not None:
        shares.append(found.size_bytes / (target.max_size_mebibytes * 2**20))
    return max((math.log(max(share, 1e-6)) for share in shares), default=-math.inf)
