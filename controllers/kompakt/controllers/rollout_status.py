# SPDX-License-Identifier: Apache-2.0
"""What the status of a rollout says, and when it is worth writing.

    stage: Canary, step: 1, weightPermille: 250
    conditions: [Ready=False Canary "312 of 500 requests answered", Reconciling=True,
                 GatewayReady=True, Promoted=False]
    verdicts: [{slo: latency, verdict: Undecided, total: 312, bad: 2, …}]
    decisions: [{fromStage: Shadow, toStage: Canary/0, reason: ShadowPassed, …}]

Invariants:

- a transition is written before anything is done about it;
- counts alone are written every 10 s at most: in between they follow from the last written ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kompakt.api import names
from kompakt.api.base import Condition
from kompakt.api.rollout import Decision, SloVerdict, VariantRolloutStatus
from kompakt.controllers import evidence
from kompakt.controllers.conditions import condition, find, merge
from kompakt.controllers.evidence import Ledger
from kompakt.controllers.plan import RolloutObserved
from kompakt.controllers.render.route import FULL
from kompakt.controllers.rollout_case import OVER, Case, obeyed, remembered
from kompakt.controllers.rollout_progress import Seen
from kompakt.controllers.rollout_stages import Move

CHECKPOINT_SECONDS = 10
_DECISIONS_MAX = 50
_MESSAGE_MAX = 1024


def milliseconds(now: float) -> int:
    """Unix time in milliseconds."""
    return int(now * 1000)


def with_ledger(status: VariantRolloutStatus, ledger: Ledger) -> VariantRolloutStatus:
    """The status with what was counted."""
    return status.evolve(
        pods=list(ledger.pods), evidence=list(ledger.evidence), stage_samples=ledger.samples
    )


def begun(case: Case, ledger: Ledger, *, restarted: bool = False) -> VariantRolloutStatus:
    """The status when the evidence of a stage begins."""
    stage = case.stage_name
    started = case.status.evolve(stage_started_unix_milliseconds=milliseconds(case.now))
    if stage == "RollingBack":
        # What was seen stays to be read.
        return started
    fresh = evidence.begin(
        ledger,
        case.observed.samples,
        stage=f"Held in {stage}" if case.status.stage == "Held" else stage,
        slos=case.strategy.slos,
        digests=case.digests,
    )
    restarts = (started.restarts or 0) + int(restarted)
    return with_ledger(started, fresh).evolve(restarts=restarts)


def moved(case: Case, move: Move, seen: Seen) -> VariantRolloutStatus:
    """The status after a transition; what was counted so far is in it."""
    old = with_ledger(case.status, seen.ledger)
    held = move.stage == "Held"
    resumed = old.stage == "Held" and move.stage in {"Shadow", "Canary"}
    starts = old.stage == "Pending" and move.stage in {"Shadow", "Canary"}
    keeps = {*obeyed(old), *([move.obeys] if move.obeys else [])}
    goes_on = move.stage in {"Held", *OVER}
    return old.evolve(
        stage=move.stage,
        step=old.step if held else move.step,
        started_unix_milliseconds=milliseconds(case.now)
        if starts
        else old.started_unix_milliseconds,
        stage_started_unix_milliseconds=old.stage_started_unix_milliseconds if goes_on else None,
        stage_samples=old.stage_samples if goes_on else 0,
        verdicts=_merged(old.verdicts, seen),
        held_stage=case.stage_name if held else None,
        held_reason=move.reason if held else None,
        restarts=(old.restarts or 0) + int(resumed),
        obeyed_action=remembered(keeps),
        decisions=[*old.decisions, _decision(case, move)][-_DECISIONS_MAX:],
    )


def measured(case: Case, seen: Seen) -> VariantRolloutStatus:
    """The status with the newest counts and verdicts."""
    status = with_ledger(case.status, seen.ledger) if case.running else case.status
    return status.evolve(verdicts=_merged(status.verdicts, seen))


def told(
    status: VariantRolloutStatus, observed: RolloutObserved, *, reason: str, message: str
) -> VariantRolloutStatus:
    """The status with its conditions."""
    generation, now = observed.rollout.meta.generation, observed.now

    def said(type_: str, holds: bool, why: str, text: str = "") -> Condition:  # noqa: FBT001
        return condition(type_, holds, reason=why, message=text, generation=generation, now=now)

    stage = status.stage or "Pending"
    stuck = stage in {"Held", "RolledBack"}
    promoted = stage in {"Watching", "Succeeded"}
    found = [said("Ready", stage == "Succeeded", reason, message)]
    if not stuck and stage != "Succeeded":
        found.append(said("Reconciling", True, reason, message))
    if stuck:
        found.append(said("Stalled", True, reason, message))
    found.append(said("Promoted", promoted, "Promoted" if promoted else "NotPromoted"))
    if stage in {"RollingBack", "RolledBack"}:
        found.append(said("RolledBack", stage == "RolledBack", reason, message))
    if stage == "Held":
        found.append(said("Held", True, reason, message))
    if status.held_reason == "EnvironmentDegraded":
        found.append(said("EnvironmentDegraded", True, reason, message))
    gateway = observed.gateway
    works = gateway is not None and gateway.programmed
    why = "" if works else (gateway.message if gateway is not None else "it is gone")
    if stage not in OVER:
        found.append(said("GatewayReady", works, "Programmed" if works else "GatewayNotReady", why))
    return status.evolve(
        conditions=merge(status.conditions, found),
        observed_generation=generation,
        weight_permille=_weight(status, observed),
    )


def stalled(
    status: VariantRolloutStatus,
    observed: RolloutObserved,
    *,
    reason: str,
    message: str,
    for_good: bool,
) -> VariantRolloutStatus:
    """The status of a rollout that cannot begin."""
    generation, now = observed.rollout.meta.generation, observed.now
    types = ("Ready", "Stalled" if for_good else "Reconciling")
    found = [
        condition(
            type_,
            type_ != "Ready",
            reason=reason,
            message=message,
            generation=generation,
            now=now,
        )
        for type_ in types
    ]
    return status.evolve(
        stage="Pending",
        conditions=merge(status.conditions, found),
        observed_generation=generation,
    )


def reason_of(status: VariantRolloutStatus) -> str:
    """Why Ready is as it is."""
    ready = find(status.conditions, "Ready")
    return ready.reason if ready is not None else ""


def due(old: VariantRolloutStatus, new: VariantRolloutStatus, *, now: float) -> bool:
    """Whether a status is worth writing now."""
    if _essence(old) != _essence(new):
        return True
    last = old.checkpoint_unix_milliseconds or 0
    changed = old != new.evolve(checkpoint_unix_milliseconds=old.checkpoint_unix_milliseconds)
    return changed and now - last / 1000 >= CHECKPOINT_SECONDS


def _merged(before: Sequence[SloVerdict], seen: Seen) -> list[SloVerdict]:
    """The newest verdicts; where nothing was judged, those before."""
    return [a.verdict for a in seen.assessed] if seen.assessed else list(before)


def _decision(case: Case, move: Move) -> Decision:
    to_stage = f"Canary/{move.step}" if move.stage == "Canary" else move.stage
    if move.stage == "Held":
        weight = case.weight
    elif move.stage in {"Promoting", "Watching", "Succeeded"}:
        weight = FULL
    else:
        weight = case.intent_of(move.stage, move.step or 0).traffic.candidate_permille
    held = case.status.stage == "Held"
    return Decision(
        unix_milliseconds=milliseconds(case.now),
        from_stage=f"Held in {case.stage_name}" if held else case.stage_name,
        to_stage=to_stage,
        weight_permille=weight,
        reason=move.reason,
        message=move.message[:_MESSAGE_MAX],
        actor=move.actor,
    )


def _weight(status: VariantRolloutStatus, observed: RolloutObserved) -> int | None:
    """The candidate's share, when the gateway has taken it."""
    route = observed.route
    if route is None or not route.accepted or status.candidate_digest is None:
        return status.weight_permille
    told_stable = route.annotations.get(names.STABLE_ANNOTATION)
    return FULL if told_stable == status.candidate_variant else route.candidate_permille


def _essence(status: VariantRolloutStatus) -> Any:
    """Everything but counts and messages."""
    return (
        status.evolve(
            evidence=[],
            pods=[],
            stage_samples=None,
            checkpoint_unix_milliseconds=None,
            verdicts=[],
            conditions=[],
        ),
        [(v.slo, v.verdict, v.certified) for v in status.verdicts],
        [(c.type, c.status, c.reason, c.observed_generation) for c in status.conditions],
    )
