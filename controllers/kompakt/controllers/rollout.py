# SPDX-License-Identifier: Apache-2.0
"""The plan of a VariantRollout: from shadow to production, or back.

What is decided is in `rollout_stages`, what it does to the status in `rollout_status`, to objects
and route in `rollout_objects`. This module puts them in order.

Invariants:

- a transition is in the status before anything is done about it, so a plan made after a crash goes
  on from there: after a Fail or an abort, the next route that is written gives the candidate 0;
- what a stage wants of the route is compared with the route at every plan, and written again where
  it differs;
- the way back is written at least once more than seems needed, before anything is deleted that the
  route may still lead to: what is read may be old;
- our finalizer is there before the first pod, and goes last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kompakt.api import names
from kompakt.api.rollout import Decision, VariantRolloutStatus
from kompakt.controllers import evidence
from kompakt.controllers.evidence import Ledger, Role, counted
from kompakt.controllers.objectives import Assessment, assess, offline_disagreement
from kompakt.controllers.plan import (
    Action,
    Emit,
    Plan,
    RolloutObserved,
    SetFinalizer,
    WriteStatus,
)
from kompakt.controllers.rollout_admission import Problem, admit, recovered, serves_already
from kompakt.controllers.rollout_case import (
    OVER,
    Case,
    asked,
    case_of,
    has_begun,
    obeyed,
    remembered,
    target_of,
)
from kompakt.controllers.rollout_objects import can_take, missing, remove, write_route
from kompakt.controllers.rollout_progress import Seen, cannot_begin
from kompakt.controllers.rollout_stages import Again, Move, Wait, decide
from kompakt.controllers.rollout_status import (
    begun,
    due,
    measured,
    milliseconds,
    moved,
    reason_of,
    stalled,
    told,
)

ACTIVE_SECONDS = 1.0
WAITING_SECONDS = 15.0


def plan_rollout(observed: RolloutObserved) -> Plan:
    """What to do now for one rollout."""
    status = observed.rollout.status
    if status.stage in OVER:
        return _at_rest(observed)
    if not has_begun(status):
        found = recovered(observed)
        if found is None:
            return _not_begun(observed)
        status = found
    if observed.rollout.meta.deleting and not _has_finalizer(observed):
        return Plan()
    return _under_way(case_of(observed, status))


# --- before and after ----------------------------------------------------------------------------


def _at_rest(observed: RolloutObserved) -> Plan:
    """Nothing to do, unless the candidate is another one now."""
    rollout = observed.rollout
    if rollout.meta.deleting or rollout.spec.candidate_ref.name == rollout.status.candidate_variant:
        return Plan((SetFinalizer(False),) if _has_finalizer(observed) else ())
    return Plan((WriteStatus(_started_over(observed)),), requeue_after=ACTIVE_SECONDS)


def _started_over(observed: RolloutObserved) -> VariantRolloutStatus:
    """An empty status: of the past only the decisions, and what was asked for and is not again."""
    status = observed.rollout.status
    empty = VariantRolloutStatus(
        decisions=status.decisions,
        obeyed_action=remembered({wish.key for wish in asked(observed)}),
    )
    text = f"starting over with {observed.rollout.spec.candidate_ref.name}"
    return stalled(empty, observed, reason="CandidateChanged", message=text, for_good=False)


def _not_begun(observed: RolloutObserved) -> Plan:
    rollout = observed.rollout
    if rollout.meta.deleting:
        return Plan((SetFinalizer(False),) if _has_finalizer(observed) else ())
    for wish in asked(observed):
        if wish.action == "Abort" and wish.key not in obeyed(rollout.status):
            return _ended_early(
                observed, stage="RolledBack", reason="Aborted", message=f"aborted by {wish.actor}"
            )
    candidate = serves_already(observed)
    if candidate is not None:
        text = f"{candidate.meta.name} serves already: nothing to roll out"
        return _ended_early(observed, stage="Succeeded", reason="AlreadyServing", message=text)
    found = admit(observed)
    if isinstance(found, Problem):
        return _refused(observed, found)
    status = rollout.status.evolve(
        stage="Pending",
        stable_variant=found.stable.meta.name,
        stable_digest=found.stable.spec.digest,
        candidate_variant=found.candidate.meta.name,
        candidate_digest=found.candidate.spec.digest,
        stage_started_unix_milliseconds=milliseconds(observed.now),
    )
    text = f"making the pods of {found.candidate.meta.name}"
    status = told(status, observed, reason="Preparing", message=text)
    return Plan(
        (
            *_finalizer(observed),
            WriteStatus(status),
            *missing(case_of(observed, status)),
            Emit("Preparing", f"{text}; {found.stable.meta.name} stays stable"),
        ),
        requeue_after=ACTIVE_SECONDS,
    )


def _refused(observed: RolloutObserved, problem: Problem) -> Plan:
    old = observed.rollout.status
    new = stalled(
        old,
        observed,
        reason=problem.reason,
        message=problem.message,
        for_good=problem.for_good,
    )
    actions: list[Action] = [WriteStatus(new)] if new != old else []
    if problem.for_good and reason_of(old) != problem.reason:
        actions.append(Emit(problem.reason, problem.message, warning=True))
    return Plan(tuple(actions), requeue_after=WAITING_SECONDS)


def _ended_early(observed: RolloutObserved, *, stage: str, reason: str, message: str) -> Plan:
    """The end of a rollout that has not touched anything."""
    old = observed.rollout.status
    decision = Decision(
        unix_milliseconds=milliseconds(observed.now),
        from_stage="Pending",
        to_stage=stage,
        weight_permille=0,
        reason=reason,
        message=message,
    )
    status = old.evolve(
        stage=stage,
        candidate_variant=observed.rollout.spec.candidate_ref.name,
        decisions=[*old.decisions, decision][-50:],
    )
    status = told(status, observed, reason=reason, message=message)
    actions: list[Action] = [WriteStatus(status), Emit(reason, message)]
    if _has_finalizer(observed):
        actions.append(SetFinalizer(False))
    return Plan(tuple(actions))


# --- under way -----------------------------------------------------------------------------------


def _under_way(case: Case) -> Plan:
    seen = _see(case)
    outcome = decide(case, seen)
    if isinstance(outcome, Move):
        return _move(case, outcome, seen)
    return _stay(case, outcome, seen)


def _see(case: Case) -> Seen:
    """The newest measurements, counted in and judged."""
    status, observed = case.status, case.observed
    written = Ledger(pods=status.pods, evidence=status.evidence, samples=status.stage_samples or 0)
    fresh = evidence.fresh_roles(observed.samples, case.digests, now=case.now)
    if not case.running or case.stage not in {"Shadow", "Canary", "Watching"}:
        return Seen(written, fresh)
    slos = case.strategy.slos
    ledger = evidence.fold(
        written,
        observed.samples,
        shadow=case.scope.shadow,
        slos=slos,
        digests=case.digests,
    )
    same = {e.slo: e.counted for e in status.evidence}
    still = {slo.name for slo in slos if same.get(slo.name) == counted(slo)}
    return Seen(ledger, fresh, _assessed(case, ledger, fresh, still))


def _assessed(
    case: Case, ledger: Ledger, fresh: Mapping[Role, int], still: set[str]
) -> list[Assessment]:
    offline = None
    policy, ours, theirs = case.observed.policy, case.candidate.variant, case.stable.variant
    target = target_of(policy) if policy is not None else None
    if ours is not None and theirs is not None and target is not None:
        offline = offline_disagreement(ours, theirs, target=target.name)
    return assess(
        case.strategy,
        ledger,
        scope=case.scope,
        fresh=fresh,
        before=[v for v in case.status.verdicts if v.slo in still],
        restarts=case.status.restarts or 0,
        offline=offline,
    )


def _move(case: Case, move: Move, seen: Seen) -> Plan:
    status = moved(case, move, seen)
    if move.stage == "Watching" or move.reason == "EnvironmentDegraded":
        # Their evidence begins at once: the traffic is there already.
        status = begun(_with(case, status), seen.ledger, restarted=move.stage == "Held")
    after = _with(case, _written(case, status, reason=move.reason, message=move.message))
    emit = Emit(move.reason, move.message, warning=move.warning)
    if move.stage == "RolledBack":
        text = f"all traffic is on {case.stable.name}: {move.message}"
        return _end(case, after, move, Emit("RolledBack", text))
    if move.stage == "Succeeded":
        return _end(case, after, move, emit)
    return Plan(
        (
            *_finalizer(case.observed),
            WriteStatus(after.status),
            *_route(after, always=move.stage == "RollingBack"),
            *missing(after),
            emit,
        ),
        requeue_after=ACTIVE_SECONDS,
    )


def _end(case: Case, after: Case, move: Move, emit: Emit) -> Plan:
    """The last actions; a plan that is cut short in between makes them all again."""
    actions: list[Action] = []
    if move.stage == "Succeeded":
        # The former stable variant is not kept warm any more: the route says so before it goes.
        actions += write_route(case, case.intent_of("Succeeded", 0))
        actions += remove(case, side=case.stable)
    else:
        actions += remove(case, side=case.candidate)
    if case.observed.rollout.spec.candidate_ref.name != case.candidate.name and not (
        case.observed.rollout.meta.deleting
    ):
        again = _started_over(_observed_with(case, after.status))
        return Plan((*actions, WriteStatus(again), emit), requeue_after=ACTIVE_SECONDS)
    return Plan((*actions, WriteStatus(after.status), SetFinalizer(False), emit))


def _stay(case: Case, outcome: Wait | Again, seen: Seen) -> Plan:
    """Nothing to decide: see to it that traffic and objects are as they should be, count on."""
    returns = case.status.stage == "RollingBack"
    route = _route(case, always=returns and not case.running)
    status = measured(case, seen)
    if isinstance(outcome, Again):
        status = begun(_with(case, status), seen.ledger, restarted=True)
    elif case.awaits_traffic and not cannot_begin(case, seen):
        status = begun(_with(case, status), seen.ledger)
    new = _written(case, status, reason=outcome.reason, message=outcome.message)
    written: list[Action] = []
    if seen.ledger.turned or due(case.observed.rollout.status, new, now=case.now):
        written = [WriteStatus(new)]
    return Plan(
        (*_finalizer(case.observed), *route, *missing(case), *written),
        requeue_after=ACTIVE_SECONDS,
    )


def _route(case: Case, *, always: bool) -> list[Action]:
    """Write the route where it differs from what the stage wants, and may be written."""
    if case.status.stage == "Pending" or (not always and case.intent.is_in(case.route)):
        return []
    return [] if can_take(case, case.intent) else write_route(case, case.intent)


def _with(case: Case, status: VariantRolloutStatus) -> Case:
    return case_of(case.observed, status)


def _observed_with(case: Case, status: VariantRolloutStatus) -> RolloutObserved:
    rollout = replace(case.observed.rollout, status=status)
    return replace(case.observed, rollout=rollout)


def _written(
    case: Case, status: VariantRolloutStatus, *, reason: str, message: str
) -> VariantRolloutStatus:
    status = told(status, case.observed, reason=reason, message=message)
    return status.evolve(checkpoint_unix_milliseconds=milliseconds(case.now))


def _has_finalizer(observed: RolloutObserved) -> bool:
    return names.FINALIZER in observed.rollout.meta.finalizers


def _finalizer(observed: RolloutObserved) -> list[Action]:
    """Put it on where it is not: without it, deleting would leave traffic where it is."""
    absent = not _has_finalizer(observed) and not observed.rollout.meta.deleting
    return [SetFinalizer(True)] if absent else []
