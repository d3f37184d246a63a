# SPDX-License-Identifier: Apache-2.0
"""Which trials of a search are worth measuring on all the data, after a look at a part of it.

Successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943) in two rungs, a part of the
selection split and everything, decided as each look comes in, without waiting for a whole rung (Li
et al. 2020, arXiv:1810.05934). A trial stops

- when the paired drop on the part is beyond a gate even by its lower bound at the gate's
  confidence; or
- when it is not among the best share of the trials so far: beside those that keep gates and limits
  as far as they were seen, so that no trial stops for one that is fast and wrong.

Invariants:

- the confirmation split is neither looked at nor decided upon: gates are not judged twice on it;
- the selection split is used twice, for this decision and, in whole, for the later choice and its
  ranking: both are searches among trials, and the confirmation split is there to make up for them;
- a decision, once written, stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from kompakt.api.measure import PairedCorrelation
from kompakt.api.policy import CompressionPolicySpec, Gate, Halving, Target
from kompakt.api.run import FirstLook, Trial
from kompakt.controllers.bounds import (
    correlation_bound_basis_points,
    correlation_drop_basis_points,
    drop_basis_points,
    upper_bound_basis_points,
)
from kompakt.controllers.gates import drops_seen
from kompakt.controllers.select import Evidence, limits, objective
from kompakt.controllers.told import seen

_FRONT = frozenset({"NSGAII", "GaussianProcess"})
"""Samplers that look for more than the best by one objective."""
_MESSAGE_MOST = 1000


def lead_target(policy: CompressionPolicySpec) -> Target:
    """The target that is served, or else the first: a search looks at one of them."""
    served = policy.serving.target if policy.serving is not None else None
    return next((t for t in policy.targets if t.name == served), policy.targets[0])


def first_look_permille(policy: CompressionPolicySpec, trial: Trial, target: Target) -> int | None:
    """The share of the selection split that a trial's next measurement is about; None: all data."""
    halved = _halved(policy, trial)
    if halved is None or trial.first_look is not None or target != lead_target(policy):
        return None
    return halved.selection_permille


def may_measure(policy: CompressionPolicySpec, trial: Trial, target: str) -> bool:
    """Whether a measurement may start: other targets wait for the look on the one that leads."""
    first = _halved(policy, trial) is not None and trial.first_look is None
    return not first or target == lead_target(policy).name


def decided(trials: Sequence[Trial], policy: CompressionPolicySpec) -> list[Trial]:
    """The trials, with a decision for each look that has none, in the order of their numbers."""
    found = list(trials)
    for index, trial in enumerate(found):
        halved, look = _halved(policy, trial), trial.first_look
        if halved is None or look is None or look.decision is not None:
            continue
        others = [t for t in found if t.number != trial.number and _halved(policy, t) is not None]
        found[index] = _with(trial, _decide(trial, look, others, policy, halved))
    return found


def _halved(policy: CompressionPolicySpec, trial: Trial) -> Halving | None:
    """Only the search's own trials: what a policy names is always measured whole."""
    return policy.search.halving if policy.search and trial.origin == "Search" else None


def _decide(
    trial: Trial,
    look: FirstLook,
    others: Sequence[Trial],
    policy: CompressionPolicySpec,
    halved: Halving,
) -> FirstLook:
    lead = lead_target(policy)
    for gate in policy.gates:
        if (text := _hopeless(look, gate)) is not None:
            return look.evolve(decision="Stop", reason="DropTooLarge", message=text)
    mine = Evidence(look.evaluation, look.benchmark, trial.size_bytes or 0)
    rivals = []
    for other in others:
        found = seen(other, lead.name)
        if found is not None and not limits(found, target=lead) + drops_seen(
            found.evaluation, policy.gates
        ):
            rivals.append((other.number, found))
    better = [number for number, found in rivals if _better(found, mine, policy)]
    room = math.ceil((len(rivals) + 1) * halved.keep_permille / 1000)
    text = _words(mine, policy, better=better, rivals=len(rivals), room=room)
    if len(better) < room:
        return look.evolve(decision="GoOn", reason="Promising", message=text)
    return look.evolve(decision="Stop", reason="NotPromising", message=text)


def _hopeless(look: FirstLook, gate: Gate) -> str | None:
    """Why a trial cannot be expected to pass a gate; None when it may."""
    counts = look.evaluation.selection
    if gate.slice is not None:
        return None  # slices are of the confirmation split
    confidence = gate.confidence_percent / 100
    if gate.metric == "SpearmanCorrelation":
        return _uncorrelated(look.evaluation.selection_correlation, gate, confidence=confidence)
    swapped = counts.evolve(lost=counts.gained, gained=counts.lost)
    bound = upper_bound_basis_points(swapped, confidence=confidence)
    if bound is None or -bound <= gate.max_drop_basis_points:
        return None
    return (
        f"gate {gate.name}: on {counts.examples} examples of the selection split it loses"
        f" {drop_basis_points(counts)} basis points, at least {-bound} at {confidence:.0%}"
        f" confidence; {gate.max_drop_basis_points} are allowed"
    )


def _uncorrelated(found: PairedCorrelation | None, gate: Gate, *, confidence: float) -> str | None:
    """The same of a gate on a correlation."""
    if found is None:
        return None
    swapped = found.evolve(drop_micros=-found.drop_micros)
    bound = correlation_bound_basis_points(swapped, confidence=confidence)
    if bound is None or -bound <= gate.max_drop_basis_points:
        return None
    return (
        f"gate {gate.name}: on {found.pairs} pairs of the selection split Spearman's correlation"
        f" drops by {correlation_drop_basis_points(found)} ten-thousandths, at least {-bound} at"
        f" {confidence:.0%} confidence; {gate.max_drop_basis_points} are allowed"
    )


def _better(theirs: Evidence, mine: Evidence, policy: CompressionPolicySpec) -> bool:
    """Whether another trial is better by what is optimized for; where a sampler looks for a front,
    in nothing worse as well.
    """
    ours, others = _coordinates(mine, policy), _coordinates(theirs, policy)
    if policy.search is not None and policy.search.sampler in _FRONT:
        return others != ours and all(a <= b for a, b in zip(others, ours, strict=True))
    return others[0] < ours[0]


def _coordinates(found: Evidence, policy: CompressionPolicySpec) -> tuple[float, float, int, int]:
    """What is optimized for, time, size, drop; less is better."""
    lead = lead_target(policy)
    return (
        objective(found, optimize_for=policy.optimize_for, target=lead),
        objective(found, optimize_for="Cost", target=lead),
        found.size_bytes,
        drop_basis_points(found.evaluation.selection) or 0,
    )


def _words(
    mine: Evidence,
    policy: CompressionPolicySpec,
    *,
    better: Sequence[int],
    rivals: int,
    room: int,
) -> str:
    counts = mine.evaluation.selection
    among = "in everything" if policy.search and policy.search.sampler in _FRONT else ""
    by = among or f"by {policy.optimize_for}"
    numbers = ", ".join(map(str, better))
    beaten = f"{len(better)} of them are better {by}: {numbers}" if better else "none is better"
    text = (
        f"on {counts.examples} examples of the selection split it loses {drop_basis_points(counts)}"
        f" basis points, at {mine.benchmark.speedup_permille / 1000:.2f} times the speed; beside"
        f" {rivals} trials that keep gates and limits {beaten}; {room - 1} may be"
    )
    return text[:_MESSAGE_MOST]


def _with(trial: Trial, look: FirstLook) -> Trial:
    """The trial with its decision; one that stops has ended on all targets."""
    trial = trial.evolve(first_look=look)
    if look.decision != "Stop":
        return trial
    why = {"state": "Stopped", "reason": look.reason, "message": look.message}
    return trial.evolve(targets=[result.evolve(**why) for result in trial.targets], **why)
