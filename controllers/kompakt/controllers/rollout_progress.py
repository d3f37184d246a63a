# SPDX-License-Identifier: Apache-2.0
"""What a stage has reached, what it still lacks, and how that is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kompakt.controllers.evidence import Ledger, Role
from kompakt.controllers.objectives import Assessment, limit, shortfall
from kompakt.controllers.render.route import FULL
from kompakt.controllers.rollout_case import Case
from kompakt.controllers.rollout_objects import can_take

ACCEPT_SECONDS = 30
"""A route that a working gateway has not taken by then is wrong."""
GONE_SECONDS = 300
"""A gateway that may be gone has not answered by then."""
RECOVERY_REQUESTS = 20
"""Least evidence of a variant that keeps again what both missed."""
_RATE_SECONDS = 10
_MESSAGE_MAX = 1024


@dataclass(frozen=True)
class Seen:
    """What the measurements say."""

    ledger: Ledger
    fresh: Mapping[Role, int]
    assessed: Sequence[Assessment] = ()


def cannot_begin(case: Case, seen: Seen) -> str:
    """Why the evidence of the stage cannot begin yet; empty when it can."""
    if case.stage == "RollingBack":
        if case.route is None and case.policy is None:
            return ""
        # Proxies go on as they were while their gateway is down, so the candidate's pods stay. But
        # a gateway that is gone will not answer, and without a policy we cannot know which it is.
        patience = ACCEPT_SECONDS if case.policy is not None else GONE_SECONDS
        gone = case.observed.gateway is None and case.since_decision > patience
        heard = case.taken or (gone and case.intent.is_in(case.route))
        return can_take(case, case.intent) or ("" if heard else untaken(case))
    if case.stage == "Watching":
        return "" if case.taken else untaken(case)
    if not case.taken or case.observed.probe_ok is False:
        return untaken(case)
    silent = [role for role, pods in _expected(case).items() if seen.fresh.get(role, 0) < pods]
    return f"waiting for figures of the {' and the '.join(silent).lower()}" if silent else ""


def _expected(case: Case) -> dict[Role, int]:
    """How many pods of each role must tell their figures before a stage begins."""
    if case.stage == "Shadow":
        return {"Comparator": 1}
    sides: tuple[tuple[Role, int], ...] = (
        ("Candidate", case.candidate.state.ready if case.candidate.state else 1),
        ("Stable", case.stable.state.ready if case.stable.state and case.scope.compares else 0),
    )
    return {role: pods for role, pods in sides if pods}


def lacking(case: Case, seen: Seen) -> list[str]:
    """What keeps a stage from passing."""
    if not case.running:
        return [can_take(case, case.intent) or cannot_begin(case, seen) or "about to begin"]
    shadow = case.stage == "Shadow"
    steps = case.strategy.canary.steps
    wanted = case.strategy.shadow.minimum_pairs if shadow else steps[case.step].minimum_requests
    found = []
    if seen.ledger.samples < wanted:
        what = "answers compared" if shadow else "requests answered"
        found.append(f"{seen.ledger.samples} of {wanted} {what}")
    if not seen.fresh.get("Comparator" if shadow else "Candidate"):
        found.append("no fresh figures")
    if not case.candidate.available:
        found.append(f"not all pods of {case.candidate.name} are ready")
    if not case.stable.ready:
        found.append(f"no pod of {case.stable.name} is ready")
    promotes = not shadow and case.step == len(steps) - 1
    for one in seen.assessed:
        only_here = shadow and one.slo.type == "Disagreement"
        if one.broken:
            found.append(f"{one.slo.name}: {one.verdict.message}")
        elif (promotes or only_here) and not one.certified:
            found.append(f"{one.slo.name} is not certified: {one.verdict.message}")
        looked = seen.ledger.of(one.slo).pooled.total > 0
        if promotes and one.slo.type == "Accuracy" and not looked:
            found.append(f"{one.slo.name}: {one.verdict.message}")
    return found


def progress(case: Case, seen: Seen, lacking: Sequence[str]) -> str:
    """What is waited for, and what waiting cannot bring."""
    hopeless = []
    if case.running and case.in_stage >= _RATE_SECONDS:
        left = max(0.0, case.strategy.deadline_seconds - case.under_way)
        share = case.strategy.canary.steps[-1].weight_permille / FULL
        for one in seen.assessed:
            expected = _requests_per_second(case, seen, one) * left * share
            if not one.certified:
                text = shortfall(one.slo, case.strategy, seen.ledger, expected=expected)
                hopeless += [text] if text else []
    return "; ".join([*hopeless, *lacking])[:_MESSAGE_MAX]


def _requests_per_second(case: Case, seen: Seen, one: Assessment) -> float:
    """All users' requests, as this objective sees them."""
    evidence = seen.ledger.of(one.slo)
    if case.stage == "Shadow":
        mirrored = evidence.candidate.total / case.in_stage
        return 100 * mirrored / case.strategy.shadow.percent
    return (evidence.candidate.total + evidence.reference.total) / case.in_stage


def recovered(case: Case, seen: Seen) -> bool:
    """Whether one of the two, seen for a while, keeps what both missed.

    Not the stable variant alone: it may miss its objective always, and be replaced for that.
    """
    compared = [slo for slo in case.strategy.slos if slo.type in {"Latency", "Availability"}]
    for slo in compared:
        evidence = seen.ledger.of(slo)
        keeps = (
            one.total >= RECOVERY_REQUESTS and one.bad / one.total <= limit(slo, offline=None)
            for one in (evidence.reference, evidence.candidate)
        )
        if not any(keeps):
            return False
    return True


def untaken(case: Case) -> str:
    """What the gateway has not done yet."""
    if not case.intent.is_in(case.route):
        return "waiting for the route to be written"
    if case.route is not None and not case.route.accepted:
        return f"the gateway has not taken the route: {case.route.message or 'no answer yet'}"
    return "a request through the gateway is not answered"


def verdicts(seen: Seen) -> str:
    """`latency Pass, errors Undecided`."""
    return ", ".join(f"{a.slo.name} {a.verdict.verdict}" for a in seen.assessed) or "no objectives"
