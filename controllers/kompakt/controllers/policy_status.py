# SPDX-License-Identifier: Apache-2.0
"""The status of a policy: is it fine, what serves, what was chosen and why.

    conditions: [Ready=True Serving "m-3f2a… answers at http://…", VariantChosen=True, Serving=True]
    chosen: [{target: edge, variant: m-3f2a…, speedupPermille: 3120, …}]

Ready is True when the run of the present inputs has ended with a choice, and what that led to has
come to rest: it serves, or was rolled back. An Event tells of each change of Ready's reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kompakt.api import names
from kompakt.api.base import Condition
from kompakt.api.policy import ChosenVariant, CompressionPolicyStatus
from kompakt.api.run import Choice, TargetResult
from kompakt.controllers import objects
from kompakt.controllers.conditions import ConditionStatus, condition, find, is_true, merge
from kompakt.controllers.plan import (
    Action,
    Emit,
    PolicyObserved,
    RolloutObject,
    Run,
    Variant,
    WriteStatus,
)
from kompakt.controllers.production import Production
from kompakt.controllers.render.variants import SOURCE_RECIPE
from kompakt.controllers.rollout_case import OVER, is_under_way
from kompakt.controllers.select import NO_VARIANT


@dataclass(frozen=True)
class Problem:
    """What somebody must mend before anything new starts."""

    reason: str
    message: str


@dataclass(frozen=True)
class _Ready:
    """The condition Ready, and which of its two companions is there."""

    status: ConditionStatus
    reason: str
    message: str
    reconciling: bool = False
    stalled: bool = False

    @property
    def warns(self) -> bool:
        """A person should look."""
        return self.stalled or self.reason == "RolledBack"


def is_done(status: CompressionPolicyStatus, inputs_digest: str | None) -> bool:
    """Whether the run of these inputs has ended with a choice, be it the source. If it is gone
    then, somebody tidied up; deleting a run that failed starts it again.
    """
    return inputs_digest == status.run_inputs_digest and bool(status.chosen)


def chosen_variant(observed: PolicyObserved, choice: Choice | None) -> Variant | None:
    """The ModelVariant of a choice, if it exists."""
    name = choice.variant if choice is not None else None
    return next((v for v in observed.variants if v.meta.name == name), None)


def served_choice(observed: PolicyObserved, run: Run) -> Choice | None:
    """What a run chose for the target that is served."""
    serving = observed.policy.spec.serving
    if serving is None or not _succeeded(run):
        return None
    return next((c for c in run.status.choices if c.target == serving.target), None)


def write(
    observed: PolicyObserved,
    *,
    problems: Sequence[Problem],
    run: Run | None,
    run_name: str | None,
    inputs_digest: str | None,
    served: Production,
    new_rollout: str | None,
) -> list[Action]:
    """The new status, if it is new, and an Event for each transition in it."""
    old = observed.policy.status
    status = old
    asked = run_name is not None and (run is not None or not observed.policy.spec.suspended)
    if asked and inputs_digest != old.run_inputs_digest:
        trigger = observed.policy.meta.annotations.get(names.TRIGGER_ANNOTATION)
        status = status.evolve(
            run=run_name,
            run_inputs_digest=inputs_digest,
            last_trigger=trigger and trigger[:256],
            # What was chosen for other inputs is no choice for these.
            chosen=[],
        )
    if run is not None and run.status.baseline is not None:
        baseline = run.status.baseline
        status = status.evolve(
            source_digest=baseline.source_digest, data_digests=baseline.data_digests
        )
    if run is not None and _succeeded(run):
        status = status.evolve(chosen=[_chosen(run, choice) for choice in run.status.choices])
    known = _own_rollout(observed, run) if run is not None else None
    if new_rollout is not None or known is not None:
        # Also one that was made just before the operator died.
        status = status.evolve(rollout=known.meta.name if known is not None else new_rollout)
    if observed.route is not None and served.stable is not None:
        status = status.evolve(
            serving_variant=served.stable.meta.name, serving_digest=served.stable.spec.digest
        )
    if problems:
        ready = _broken(problems)
    elif run is None:
        ready = _without_run(observed, served, done=is_done(old, inputs_digest))
    elif not is_true(run.status.conditions, "Succeeded"):
        ready = _with_run(observed, run, served)
    else:
        ready = _after_run(observed, run, served, new_rollout=new_rollout)
    status = status.evolve(
        url=served.url or old.url,
        observed_generation=observed.policy.meta.generation,
        conditions=merge(old.conditions, _conditions(observed, ready, run=run, served=served)),
    )
    if status == old:
        return []
    return [WriteStatus(status), *_events(old, status, warns=ready.warns)]


# --- Ready ---------------------------------------------------------------------------------------


def _broken(problems: Sequence[Problem]) -> _Ready:
    text = "; ".join(problem.message for problem in problems)
    return _Ready("False", problems[0].reason, text, stalled=True)


def _without_run(observed: PolicyObserved, served: Production, *, done: bool) -> _Ready:
    rollout = next((r for r in observed.rollouts if is_under_way(r)), None)
    if rollout is not None:
        return _rolling_out(rollout)
    if done:
        text = f"the run {observed.policy.status.run} has chosen, and was deleted; {served.message}"
        return _Ready("True", "Chosen", text)
    if observed.policy.spec.suspended:
        text = f"spec.suspend is Enabled: no run starts; {served.message}"
        return _Ready("False", "Suspended", text)
    return _Ready("False", "Compressing", "a run starts", reconciling=True)


def _with_run(observed: PolicyObserved, run: Run, served: Production) -> _Ready:
    ended = find(run.status.conditions, "Succeeded")
    if ended is not None and ended.status == "False":
        text = f"{run.meta.name}: {ended.message}"
        return _Ready("False", ended.reason, text, stalled=True)
    text = f"{run.meta.name}: {run.status.current or 'starting'}"
    if observed.policy.spec.serving is not None:
        text += f"; {served.message}"
    return _Ready("False", "Compressing", text, reconciling=True)


def _after_run(
    observed: PolicyObserved, run: Run, served: Production, *, new_rollout: str | None
) -> _Ready:
    if observed.policy.spec.serving is None:
        ended = find(run.status.conditions, "Succeeded")
        return _Ready("True", "Published", ended.message if ended else "")
    rollout = _current_rollout(observed, run)
    if rollout is not None and rollout.status.stage not in OVER:
        return _rolling_out(rollout)
    if not served.serves:
        stalled = served.reason in {"RouteExists", "VariantNotFound"}
        return _Ready(
            "False", served.reason, served.message, reconciling=not stalled, stalled=stalled
        )
    if new_rollout is not None:
        return _Ready("False", "RollingOut", f"{new_rollout}: starting", reconciling=True)
    return _at_rest(observed, run, served)


def _current_rollout(observed: PolicyObserved, run: Run) -> RolloutObject | None:
    """The rollout that moves traffic, whoever made it, or else that of what the run chose."""
    under_way = next((r for r in observed.rollouts if is_under_way(r)), None)
    return under_way or _own_rollout(observed, run)


def _own_rollout(observed: PolicyObserved, run: Run) -> RolloutObject | None:
    """The rollout of what the run chose."""
    chosen = chosen_variant(observed, served_choice(observed, run))
    if chosen is None:
        return None
    name = objects.rollout_name(observed.policy.meta.name, run.meta.name, chosen.spec.digest)
    return next((r for r in observed.rollouts if r.meta.name == name), None)


def _rolling_out(rollout: RolloutObject) -> _Ready:
    told = find(rollout.status.conditions, "Ready")
    text = f"{rollout.meta.name}: {told.message if told else 'starting'}"
    if is_true(rollout.status.conditions, "Stalled"):
        return _Ready("False", "RolloutHeld", text, stalled=True)
    return _Ready("False", "RollingOut", text, reconciling=True)


def _at_rest(observed: PolicyObserved, run: Run, served: Production) -> _Ready:
    """The run has ended, no rollout is under way, and users are answered."""
    choice = served_choice(observed, run)
    if choice is None or served.stable is None or choice.variant == served.stable.meta.name:
        reason = "Serving" if choice is None or choice.trial is not None else choice.reason
        why = f": {choice.message}" if choice is not None else ""
        return _Ready("True", reason, f"{served.message}{why}")
    if chosen_variant(observed, choice) is None:
        text = f"ModelVariant {choice.variant} was chosen, but is gone; {served.message}"
        return _Ready("False", "VariantNotFound", text, stalled=True)
    rollout = _current_rollout(observed, run)
    back = find(rollout.status.conditions, "RolledBack") if rollout is not None else None
    if back is not None and back.status == "True":
        text = f"{choice.variant} was rolled back: {back.message}; {served.message}"
        return _Ready("True", "RolledBack", text)
    if observed.policy.spec.suspended and rollout is None:
        text = f"spec.suspend is Enabled: {choice.variant} is not rolled out; {served.message}"
        return _Ready("False", "Suspended", text)
    text = f"{choice.variant} was chosen and has had its rollout; {served.message}"
    return _Ready("True", "ServingAnother", text)


# --- the rest ------------------------------------------------------------------------------------


def _succeeded(run: Run) -> bool:
    return is_true(run.status.conditions, "Succeeded")


def _conditions(
    observed: PolicyObserved, ready: _Ready, *, run: Run | None, served: Production
) -> list[Condition]:
    def said(type_: str, status: ConditionStatus, *, reason: str, message: str) -> Condition:
        return condition(
            type_,
            status,
            reason=reason,
            message=message,
            generation=observed.policy.meta.generation,
            now=observed.now,
        )

    conditions = [said("Ready", ready.status, reason=ready.reason, message=ready.message)]
    if ready.reconciling:
        conditions.append(said("Reconciling", "True", reason=ready.reason, message=ready.message))
    if ready.stalled:
        conditions.append(said("Stalled", "True", reason=ready.reason, message=ready.message))
    if (chosen := _variant_chosen(observed, run)) is not None:
        status, reason, message = chosen
        conditions.append(said("VariantChosen", status, reason=reason, message=message))
    if observed.policy.spec.serving is not None:
        state: ConditionStatus = "True" if served.serves else "False"
        conditions.append(said("Serving", state, reason=served.reason, message=served.message))
    return conditions


def _variant_chosen(
    observed: PolicyObserved, run: Run | None
) -> tuple[ConditionStatus, str, str] | None:
    """Status, reason and message of the condition VariantChosen."""
    if run is None:
        kept = find(observed.policy.status.conditions, "VariantChosen")
        return None if kept is None else (kept.status, kept.reason, kept.message)
    ended = find(run.status.conditions, "Succeeded")
    if ended is None or ended.status == "Unknown":
        return "Unknown", "Compressing", f"{run.meta.name} is not at its end"
    choice = served_choice(observed, run) or next(iter(run.status.choices), None)
    if choice is None:
        return "False", ended.reason, ended.message
    return ("False" if choice.reason == NO_VARIANT else "True"), choice.reason, choice.message


def _chosen(run: Run, choice: Choice) -> ChosenVariant:
    """A choice with its figures."""
    if choice.reason == NO_VARIANT:
        return ChosenVariant(target=choice.target, reason=choice.reason, message=choice.message)
    trial = next((t for t in run.status.trials if t.number == choice.trial), None)
    results: Sequence[TargetResult] = trial.targets if trial else run.status.baseline_targets
    figures = next((r for r in results if r.target == choice.target), None)
    benchmark = figures.benchmark if figures else None
    baseline = run.status.baseline
    source = baseline.artifact_digest if baseline else None
    source_bytes = baseline.size_bytes if baseline else None
    return ChosenVariant(
        target=choice.target,
        variant=choice.variant,
        digest=trial.digest if trial else source,
        recipe=trial.recipe if trial else SOURCE_RECIPE,
        speedup_permille=benchmark.speedup_permille if benchmark else None,
        accuracy_drop_basis_points=choice.accuracy_drop_basis_points,
        accuracy_drop_upper_bound_basis_points=choice.accuracy_drop_upper_bound_basis_points,
        p99_microseconds=benchmark.candidate.p99_microseconds if benchmark else None,
        cost_micros_per_million=figures.cost_micros_per_million if figures else None,
        size_bytes=trial.size_bytes if trial else source_bytes,
        reason=choice.reason,
        message=choice.message,
    )


def _events(
    old: CompressionPolicyStatus, new: CompressionPolicyStatus, *, warns: bool
) -> list[Emit]:
    events = []
    for type_ in ("VariantChosen", "Ready"):
        before, after = find(old.conditions, type_), find(new.conditions, type_)
        if after is None or (
            before is not None and (before.status, before.reason) == (after.status, after.reason)
        ):
            continue
        if type_ == "Ready":
            events.append(Emit(after.reason, after.message, warning=warns))
        elif after.status == "True":
            events.append(Emit("VariantChosen", after.message))
    return events
