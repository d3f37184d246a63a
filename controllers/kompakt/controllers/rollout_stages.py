# SPDX-License-Identifier: Apache-2.0
"""Where a rollout goes next, and why.

    Pending → Shadow → Canary (step by step) → Promoting → Watching → Succeeded
                 ↓         ↓↑ Held                ↓           ↓
                 └─────────┴───── RollingBack ────┴───────────┘ → RolledBack

Rules are asked in the order of `_RULES`, the stage itself last: what ends a rollout comes before
what moves it on. Each looks at the facts alone, so a plan made again after a crash comes to the
same end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kompakt.api.rollout import Stage
from kompakt.controllers.objectives import FAIL_REASONS
from kompakt.controllers.rollout_case import Case, asked, is_under_way, obeyed
from kompakt.controllers.rollout_objects import can_take
from kompakt.controllers.rollout_progress import (
    ACCEPT_SECONDS,
    Seen,
    cannot_begin,
    lacking,
    progress,
    recovered,
    untaken,
    verdicts,
)

DRAIN_SECONDS = 5
"""From the moment that a gateway has taken a route to the end of the pods that it left: proxies
learn of it a little later, and requests under way are to end."""
RECOVERY_SECONDS = 30
"""How long the stable variant must keep its objectives before a degraded environment is good."""


@dataclass(frozen=True)
class Move:
    """A transition: recorded, and told in an Event."""

    stage: Stage
    reason: str
    message: str
    step: int | None = None
    actor: str = ""
    warning: bool = False
    obeys: str | None = None
    """Key of the person's wish that it fulfils."""


@dataclass(frozen=True)
class Wait:
    """Nothing to decide yet."""

    reason: str
    message: str


@dataclass(frozen=True)
class Again:
    """The evidence of this stage begins anew."""

    reason: str
    message: str


Outcome = Move | Wait | Again


def decide(case: Case, seen: Seen) -> Outcome:
    """What follows from the facts."""
    stage = case.status.stage or "Pending"
    if stage != "RollingBack":
        for rule in _RULES:
            move = rule(case, seen)
            if move is not None:
                return move
    return _STAGES[stage](case, seen)


# --- what ends a stage, whatever it has reached -------------------------------------------------


def _leave(case: Case, _: Seen) -> Outcome | None:
    """Someone wants it to end: by deleting it or its policy, by another candidate, by an abort."""
    cause = _cause(case)
    if cause is None:
        return None
    settles = case.promoted and case.candidate.ready and not cause.obeys
    if settles and case.status.stage == "Promoting":
        return None
    if settles and case.status.stage == "Watching":
        return _settle(case, reason=cause.reason, message=cause.message)
    return cause


def _cause(case: Case) -> Move | None:
    meta, spec = case.observed.rollout.meta, case.observed.rollout.spec
    for wish in asked(case.observed):
        if wish.action == "Abort" and wish.key not in obeyed(case.status):
            text = f"aborted by {wish.actor}"
            return Move(
                "RollingBack", "Aborted", text, actor=wish.actor, warning=True, obeys=wish.key
            )
    if meta.deleting:
        return Move("RollingBack", "Deleted", "the rollout is being deleted")
    if case.policy is None:
        text = f"policy {spec.policy_ref.name} is gone, or serves nothing any more"
        return Move("RollingBack", "PolicyDeleted", text, warning=True)
    if spec.candidate_ref.name != case.candidate.name:
        text = f"the candidate is now {spec.candidate_ref.name}: starting over"
        return Move("RollingBack", "CandidateChanged", text)
    for other in case.observed.others:
        elder = (other.meta.created_unix_seconds, other.meta.name)
        if is_under_way(other) and elder < (meta.created_unix_seconds, meta.name):
            text = f"rollout {other.meta.name} of the same policy is under way, and is older"
            return Move("RollingBack", "Superseded", text, warning=True)
    return None


def _unready(case: Case, _: Seen) -> Outcome | None:
    """The candidate answers nobody: it must have no weight."""
    if case.stage not in {"Canary", "Promoting", "Watching"} or case.candidate.ready:
        return None
    state = case.candidate.state
    why = "its Deployment is gone" if state is None else state.message or "none of its pods is"
    text = f"{case.candidate.name} is not ready any more: {why}"
    return Move("RollingBack", "CandidateUnready", text, warning=True)


def _failed(_: Case, seen: Seen) -> Outcome | None:
    for one in seen.assessed:
        if one.failed:
            reason = FAIL_REASONS[one.slo.type]
            return Move("RollingBack", reason, one.verdict.message, warning=True)
    return None


def _by_hand(case: Case, _: Seen) -> Outcome | None:
    """A person promotes what the judge has not decided."""
    if case.stage not in {"Shadow", "Canary"} or not case.candidate.available:
        return None
    for wish in asked(case.observed):
        if wish.action == "Promote" and wish.key not in obeyed(case.status):
            text = f"promoted by {wish.actor} in {case.stage_name}"
            return Move("Promoting", "PromotedByHand", text, actor=wish.actor, obeys=wish.key)
    return None


def _gateway(case: Case, _: Seen) -> Outcome | None:
    if case.status.stage not in {"Shadow", "Canary"} or case.gateway_works:
        return None
    gateway = case.observed.gateway
    why = "it is gone" if gateway is None else gateway.message or "it is not programmed"
    text = f"the gateway does not work: {why}; traffic stays as it is"
    return Move("Held", "GatewayNotReady", text, warning=True)


def _environment(case: Case, seen: Seen) -> Outcome | None:
    if case.status.stage not in {"Shadow", "Canary"}:
        return None
    for one in seen.assessed:
        if one.environment:
            return Move("Held", "EnvironmentDegraded", one.verdict.message, warning=True)
    return None


def _deadline(case: Case, seen: Seen) -> Outcome | None:
    if case.status.stage not in {"Shadow", "Canary", "Held"}:
        return None
    held_for_good = case.status.held_reason == "DeadlineExceeded"
    if held_for_good or case.under_way <= case.strategy.deadline_seconds:
        return None
    still = lacking(case, seen)
    if not still and case.strategy.approval == "Automatic" and case.status.stage != "Held":
        return None
    why = "; ".join(still) or "waiting for approval"
    text = f"undecided after {case.strategy.deadline_seconds} s: {why}"
    if case.strategy.on_inconclusive == "Rollback":
        return Move("RollingBack", "DeadlineExceeded", text, warning=True)
    hint = "decide with the annotation kompakt.dev/action: promote or abort"
    return Move("Held", "DeadlineExceeded", f"{text}; {hint}", warning=True)


def _untaken_for_long(case: Case, _: Seen) -> Outcome | None:
    """A working gateway refuses the route: users may be getting errors."""
    if case.status.stage not in {"Shadow", "Canary", "Promoting"} or not case.gateway_works:
        return None
    written = case.intent.is_in(case.route)
    if not written or case.taken or case.since_decision <= ACCEPT_SECONDS:
        return None
    return Move("RollingBack", "RouteNotAccepted", untaken(case), warning=True)


_Rule = Callable[[Case, Seen], Outcome | None]
_RULES: tuple[_Rule, ...] = (
    _leave,
    _unready,
    _failed,
    _by_hand,
    _gateway,
    _untaken_for_long,
    _environment,
    _deadline,
)


# --- the stages themselves -----------------------------------------------------------------------


def _pending(case: Case, _: Seen) -> Outcome:
    """The pods of the candidate, the reference and the comparator are being made."""
    waits = can_take(case, case.intent_of("Canary", 0))
    for name, state in (("reference", case.reference), ("comparator", case.comparator)):
        if case.needs_comparator and not waits and (state is None or not state.available):
            why = f": {state.message}" if state is not None and state.message else ""
            waits = f"waiting for the pods of the {name}{why}"
    if not waits and not case.gateway_works:
        return Wait("GatewayNotReady", "waiting for the gateway")
    if not waits and case.mirrors:
        text = f"copies of {case.strategy.shadow.percent} % of all requests go to the candidate"
        return Move("Shadow", "ShadowStarted", text)
    if not waits:
        return Move("Canary", "CanaryStarted", _step_text(case, 0), step=0)
    if case.in_stage > case.strategy.deadline_seconds:
        return Move("RollingBack", "CandidateNotReady", waits, warning=True)
    return Wait("Preparing", waits)


def _shadow(case: Case, seen: Seen) -> Outcome:
    if not case.mirrors:
        text = f"shadow.percent is 0; {_step_text(case, 0)}"
        return Move("Canary", "ShadowSkipped", text, step=0)
    if missing := lacking(case, seen):
        return Wait("Shadow", progress(case, seen, missing))
    text = f"{seen.ledger.samples} answers compared; {verdicts(seen)}"
    return Move("Canary", "ShadowPassed", f"{text}; {_step_text(case, 0)}", step=0)


def _canary(case: Case, seen: Seen) -> Outcome:
    last = case.step == len(case.strategy.canary.steps) - 1
    if missing := lacking(case, seen):
        return Wait("Canary", progress(case, seen, missing))
    text = f"{seen.ledger.samples} requests answered at step {case.step}; {verdicts(seen)}"
    if not last:
        step = case.step + 1
        return Move("Canary", "StepPassed", f"{text}; {_step_text(case, step)}", step=step)
    if case.strategy.approval == "Manual":
        hint = "approve with the annotation kompakt.dev/action: promote"
        return Wait("AwaitingApproval", f"{text}; {hint}")
    return Move("Promoting", "CanaryPassed", text)


def _held(case: Case, seen: Seen) -> Outcome:
    why = case.status.held_reason or ""
    step = case.step if case.stage == "Canary" else None
    goes_on: Stage = "Canary" if case.stage == "Canary" else "Shadow"
    if why == "GatewayNotReady" and case.gateway_works:
        return Move(goes_on, "GatewayReady", "the gateway works again", step=step)
    if why == "EnvironmentDegraded" and case.in_stage >= RECOVERY_SECONDS:
        if recovered(case, seen):
            text = "what both variants missed is kept again"
            return Move(goes_on, "EnvironmentRecovered", text, step=step)
        return Again(why, _held_text(case))
    return Wait(why or "Held", _held_text(case))


def _promoting(case: Case, _: Seen) -> Outcome:
    leaving = _cause(case) is not None and case.since_decision > ACCEPT_SECONDS
    if case.taken or (leaving and case.promoted):
        text = f"{case.candidate.name} answers all users"
        warm = f"{case.stable.name} stays warm for {case.strategy.watch_seconds} s"
        return Move("Watching", "Promoted", f"{text}; {warm}")
    return Wait("Promoting", can_take(case, case.intent) or untaken(case))


def _watching(case: Case, seen: Seen) -> Outcome:
    if case.in_stage < case.strategy.watch_seconds:
        left = int(case.strategy.watch_seconds - case.in_stage)
        text = f"{case.stable.name} stays warm for {left} s more"
        return Wait("Watching", f"{text}; {verdicts(seen)}" if seen.assessed else text)
    text = f"{case.candidate.name} has been watched for {case.strategy.watch_seconds} s"
    return _settle(case, reason="Succeeded", message=text)


def _settle(case: Case, *, reason: str, message: str) -> Outcome:
    """What was promoted stays; what was stable before it goes."""
    waits = can_take(case, case.intent_of("Succeeded", 0))
    if waits or case.in_stage < DRAIN_SECONDS:
        return Wait("Watching", waits or "waiting for requests under way")
    return Move("Succeeded", reason, message)


def _rolling_back(case: Case, seen: Seen) -> Outcome:
    decisions = case.status.decisions
    reason = decisions[-1].reason if decisions else "RollingBack"
    message = decisions[-1].message if decisions else ""
    # Asked again at the end: the first answer may have been an old one.
    waits = cannot_begin(case, seen)
    if not waits and (not case.running or case.in_stage < DRAIN_SECONDS):
        waits = "waiting for requests under way"
    if waits:
        return Wait(reason, f"{message}; {waits}")
    return Move("RolledBack", reason, message)


_STAGES: Mapping[str, Callable[[Case, Seen], Outcome]] = {
    "Pending": _pending,
    "Shadow": _shadow,
    "Canary": _canary,
    "Held": _held,
    "Promoting": _promoting,
    "Watching": _watching,
    "RollingBack": _rolling_back,
}


def _step_text(case: Case, step: int) -> str:
    weight = case.strategy.canary.steps[step].weight_permille
    return f"the candidate gets {weight / 10:g} % of all requests"


def _held_text(case: Case) -> str:
    decisions = case.status.decisions
    return decisions[-1].message if decisions else "held"
