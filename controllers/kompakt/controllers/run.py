# SPDX-License-Identifier: Apache-2.0
"""The plan of a CompressionRun: import, trials, measurements, choices.

The status is the memory: each plan records what Jobs ended, decides what runs next, writes both,
and only then creates the Jobs that the status now names. A Job that the status names and nobody
sees (never created, or deleted before its outcome was recorded) is created again.

    Proposed → Compressing → Measuring → Complete
                           ↘ Infeasible | Failed

After the choice the run has ended; what is asked about the chosen chain (`ablation`) goes on beside
its rollout.

Invariants:

- a trial is in the status before its Job exists, its outcome before its Job may vanish;
- a pool of nodes runs one Measure Job of a run at a time, and no Compress Job beside it: a
  benchmark has its nodes for itself;
- every trial ends, whatever happens to the others; a wrong input ends the run.
"""

from __future__ import annotations

from collections.abc import Iterable

from kompakt.api.base import Condition
from kompakt.api.run import CompressionRunStatus, TargetResult, Trial
from kompakt.controllers import ablation, family, halving, ranges, search, tasks
from kompakt.controllers.conditions import ConditionStatus, condition, find, merge
from kompakt.controllers.halving import lead_target
from kompakt.controllers.outcomes import ENDED, RunFailedError, candidates, record
from kompakt.controllers.plan import (
    Action,
    Create,
    Delete,
    Emit,
    Plan,
    Run,
    RunObserved,
    WriteStatus,
)
from kompakt.controllers.render.variants import source_variant, trial_variant
from kompakt.controllers.select import choose
from kompakt.controllers.told import Goal

LOOK_AGAIN_SECONDS = 60.0
_CURRENT_MAX = 256
_Pool = tuple[tuple[str, str], ...]


def plan_run(observed: RunObserved) -> Plan:
    """What to do now for one run."""
    run = observed.run
    if run.meta.deleting:
        return Plan()
    if has_ended(run):
        return _ablate(observed)
    status = run.status
    if status.started_unix_seconds is None:
        status = status.evolve(started_unix_seconds=int(observed.now))
    profiles = tasks.profile_names(run.spec.policy)
    missing = [name for name in profiles if name not in observed.profiles]
    try:
        _check_recipes(run)
        status = record(observed, status)
        if status.baseline is not None and not missing:
            status = _start(observed, _proposed(observed, status))
    except RunFailedError as failure:
        return _fail(observed, status, failure)
    if missing:
        text = f"HardwareProfile {', '.join(missing)} not found: create it, or name another"
        return _go_on(observed, status, reason="HardwareProfileNotFound", message=text)
    if status.baseline is not None and all(trial.state in ENDED for trial in status.trials):
        return _finish(observed, status)
    return _go_on(observed, status, jobs=_jobs(observed, status))


def has_ended(run: Run) -> bool:
    """Whether nothing more will happen to a run."""
    succeeded = find(run.status.conditions, "Succeeded")
    return succeeded is not None and succeeded.status != "Unknown"


def _check_recipes(run: Run) -> None:
    """A run that nobody's policy made may name what it does not hold."""
    policy = run.spec.policy
    recipes = {named.name: named.spec for named in run.spec.recipes}
    searched = [ref.name for ref in policy.search.recipes] if policy.search else []
    for name in [ref.name for ref in policy.recipes] + searched:
        if name not in recipes:
            raise RunFailedError("RecipeNotFound", f"spec.recipes of the run lacks {name}")
    for ref in policy.recipes:
        if (problem := family.problem(recipes[ref.name])) is not None:
            raise RunFailedError("RecipeInvalid", f"CompressionRecipe {ref.name}: {problem}")
    for name in searched:
        if (problem := ranges.recipe_problem(recipes[name])) is not None:
            raise RunFailedError("RecipeInvalid", f"CompressionRecipe {name}: {problem}")


# --- what is next --------------------------------------------------------------------------------


def _proposed(observed: RunObserved, status: CompressionRunStatus) -> CompressionRunStatus:
    """The status with new trials of the search, as many as there is room for."""
    policy = observed.run.spec.policy
    started = status.started_unix_seconds or 0
    wanted = policy.search
    if wanted is None or observed.now - started >= wanted.max_duration_seconds:
        return status
    goal = Goal(
        lead_target(policy),
        tuple(policy.gates),
        policy.optimize_for,
        source_bytes=status.baseline.size_bytes if status.baseline else None,
    )
    recipes = {named.name: named.spec for named in observed.run.spec.recipes}
    trials = list(status.trials)
    prior = observed.run.spec.prior
    same_size = (
        prior is not None
        and status.baseline is not None
        and (prior.model_parameters == status.baseline.parameters)
    )
    while (
        sum(trial.state not in ENDED for trial in trials) < wanted.max_parallel_trials
        and sum(trial.origin == "Search" for trial in trials) < wanted.max_trials
    ):
        found = search.propose(
            wanted,
            recipes,
            trials=trials,
            goal=goal,
            run_uid=observed.run.meta.uid,
            prior=prior.trials if prior is not None and same_size else (),
        )
        if found is None:
            break
        trials.append(
            Trial(
                number=len(trials),
                recipe=found.recipe,
                origin="Search",
                parameters=list(found.parameters),
                steps=list(found.steps),
                state="Proposed",
                proposed_because=found.because,
            )
        )
    return status.evolve(trials=trials)


def _start(observed: RunObserved, status: CompressionRunStatus) -> CompressionRunStatus:
    """The status with the Jobs that may start now: measurements first, they end trials."""
    policy = observed.run.spec.policy
    pools = {t.name: _pool(observed, t.hardware_profile_ref.name) for t in policy.targets}
    workshop = _pool(observed, tasks.compress_profile(policy))
    slots = policy.search.max_parallel_trials if policy.search else 1
    compressing = sum(trial.state == "Compressing" for trial in status.trials)
    busy = {
        pools[result.target]
        for trial in status.trials
        for result in trial.targets
        if result.state == "Measuring"
    }
    trials = []
    for trial in status.trials:
        results: list[TargetResult] = []
        for result in trial.targets:
            pool = pools[result.target]
            free = pool not in busy and not (pool == workshop and compressing)
            ready = trial.state == "Measuring" and result.state == "Pending"
            if ready and free and halving.may_measure(policy, trial, result.target):
                busy.add(pool)
                results.append(result.evolve(state="Measuring"))
            else:
                results.append(result)
        trials.append(trial.evolve(targets=results))
    for index, trial in enumerate(trials):
        if trial.state == "Proposed" and compressing < slots and workshop not in busy:
            compressing += 1
            trials[index] = trial.evolve(state="Compressing")
    return status.evolve(trials=trials)


def _pool(observed: RunObserved, profile: str) -> _Pool:
    """The nodes of a profile: two profiles may be limits for the same ones."""
    labels = observed.profiles[profile].node_labels
    return tuple(sorted((label.key, label.value) for label in labels))


def _works(run: Run, status: CompressionRunStatus) -> list[tasks.Work]:
    """The Jobs that the status names."""
    if status.baseline is None:
        return [tasks.import_work(run)]
    targets = {target.name: target for target in run.spec.policy.targets}
    works = []
    for trial in status.trials:
        if trial.state == "Compressing":
            works.append(tasks.compress_work(run, trial))
        works += [
            tasks.measure_work(run, trial, targets[result.target])
            for result in trial.targets
            if trial.state == "Measuring" and result.state == "Measuring"
        ]
    return works


def _jobs(observed: RunObserved, status: CompressionRunStatus) -> list[Create]:
    """The creation of the Jobs that the status names and nobody sees."""
    return [
        creation
        for work in _works(observed.run, status)
        if work.name not in observed.jobs
        for creation in tasks.creations(
            work,
            observed.run,
            baseline=status.baseline,
            profile=observed.profiles[work.profile],
            settings=observed.settings,
        )
    ]


def _variants(observed: RunObserved, status: CompressionRunStatus) -> list[Create]:
    """The creation of the ModelVariants that there should be and are not."""
    run, baseline = observed.run, status.baseline
    if baseline is None:
        return []
    wanted = [source_variant(run, baseline)]
    wanted += [
        trial_variant(run, baseline, trial)
        for trial in status.trials
        # A part of a chain is nothing to be served.
        if trial.state == "Complete" and trial.origin != "Ablation"
    ]
    known = {variant.meta.name for variant in observed.variants}
    by_name = {manifest["metadata"]["name"]: manifest for manifest in wanted}
    return [Create(manifest) for name, manifest in by_name.items() if name not in known]


# --- after the choice ----------------------------------------------------------------------------


def _ablate(observed: RunObserved) -> Plan:
    """Measure what each step of the served chain brought, when the policy asks for it.

    The run has ended, and its choice is rolled out meanwhile: whatever comes out changes nothing.
    """
    run = observed.run
    policy = run.spec.policy
    if policy.ablation == "Disabled" or run.status.contributions:
        return Plan()
    lead = lead_target(policy).name
    chosen = next((c.trial for c in run.status.choices if c.target == lead), None)
    chain = next((t for t in run.status.trials if t.number == chosen), None)
    if chain is None or any(name not in observed.profiles for name in tasks.profile_names(policy)):
        return Plan()
    status = _start(observed, ablation.proposed(record(observed, run.status), chain))
    parts = ablation.parts(status.trials, chain)
    if all(trial.state in ENDED for trial in parts):
        found = ablation.contributions(parts, target=lead)
        status = status.evolve(contributions=found, current=None)
        text = "; ".join(ablation.describe(one) for one in found)
        return Plan((WriteStatus(status), Emit("Ablated", text[:1024])))
    status = status.evolve(
        current=_current(observed, status)[:_CURRENT_MAX], trials_total=len(status.trials)
    )
    written = [] if status == run.status else [WriteStatus(status)]
    return Plan((*written, *_jobs(observed, status)), requeue_after=LOOK_AGAIN_SECONDS)


# --- the three ends of a plan --------------------------------------------------------------------


def _go_on(
    observed: RunObserved,
    status: CompressionRunStatus,
    *,
    jobs: Iterable[Create] = (),
    reason: str = "Running",
    message: str = "",
) -> Plan:
    """Write what is known, then do what follows from it."""
    text = message or _current(observed, status)
    status = status.evolve(current=text[:_CURRENT_MAX])
    conditions = [
        *_imported(observed, status),
        _condition(observed, "Succeeded", "Unknown", reason=reason, message=text),
        _condition(observed, "Ready", "False", reason=reason, message=text),
        _condition(observed, "Reconciling", "True", reason=reason, message=text),
    ]
    actions = [
        *_write(observed, status, conditions),
        *_variants(observed, status),
        *jobs,
    ]
    return Plan(tuple(actions), requeue_after=LOOK_AGAIN_SECONDS)


def _fail(observed: RunObserved, status: CompressionRunStatus, failure: RunFailedError) -> Plan:
    """Stop what still runs, and say why; the status comes last, it ends the run."""
    reason, text = failure.reason, failure.message
    conditions = [
        *_imported(observed, status, failed=failure),
        _condition(observed, "Succeeded", "False", reason=reason, message=text),
        _condition(observed, "Ready", "False", reason=reason, message=text),
        _condition(observed, "Stalled", "True", reason=reason, message=text),
    ]
    stopped = [
        Delete("batch/v1", "Job", observed.run.meta.namespace, job.name)
        for job in observed.jobs.values()
        if not job.finished
    ]
    written = _write(observed, status.evolve(current=None), conditions)
    variants = _variants(observed, status)
    told = Emit("RunFailed", f"{reason}: {text}"[:1024], warning=True)
    return Plan((*stopped, *variants, *written, told))


def _finish(observed: RunObserved, status: CompressionRunStatus) -> Plan:
    """Choose for each target; the status comes last, it ends the run."""
    if not any(trial.state in {"Complete", "Stopped"} for trial in status.trials):
        why = "; ".join(f"trial {t.number} ({t.recipe}): {t.message}" for t in status.trials)
        why = why or "the search's time was over before its first trial"
        return _fail(observed, status, RunFailedError("NoVariant", f"no trial ended well: {why}"))
    policy = observed.run.spec.policy
    choices = [
        choose(
            target,
            candidates(status, target.name, policy_name=observed.run.spec.policy_ref.name),
            gates=policy.gates,
            optimize_for=policy.optimize_for,
        )
        for target in policy.targets
    ]
    status = status.evolve(
        choices=choices,
        current=None,
        trials_total=len(status.trials),
    )
    text = "; ".join(f"{choice.target}: {choice.message}" for choice in choices)
    reason = "Chosen" if any(c.trial is not None for c in choices) else choices[0].reason
    conditions = [
        *_imported(observed, status),
        _condition(observed, "Succeeded", "True", reason=reason, message=text),
        _condition(observed, "Ready", "True", reason=reason, message=text),
    ]
    actions = [
        *_variants(observed, status),
        *_write(observed, status, conditions),
        Emit("RunSucceeded", text[:1024]),
    ]
    return Plan(tuple(actions))


# --- what people see -----------------------------------------------------------------------------


def _condition(
    observed: RunObserved, type_: str, status: ConditionStatus, *, reason: str, message: str
) -> Condition:
    return condition(
        type_,
        status,
        reason=reason,
        message=message,
        generation=observed.run.meta.generation,
        now=observed.now,
    )


def _imported(
    observed: RunObserved,
    status: CompressionRunStatus,
    *,
    failed: RunFailedError | None = None,
) -> list[Condition]:
    if status.baseline is not None:
        examples = status.baseline.data_examples
        text = ", ".join(f"{role}: {count} examples" for role, count in sorted(examples.items()))
        return [_condition(observed, "Imported", "True", reason="Imported", message=text)]
    if failed is not None:
        reason, text = failed.reason, failed.message
        return [_condition(observed, "Imported", "False", reason=reason, message=text)]
    return []


def _current(observed: RunObserved, status: CompressionRunStatus) -> str:
    """What runs now, and what it waits for."""
    parts = []
    for work in _works(observed.run, status):
        trial = work.trial
        if trial is None:
            text = f"importing {observed.run.spec.policy.model.uri}"
        elif work.target is None:
            text = f"compressing {trial.recipe} (trial {trial.number})"
        else:
            verb = "measuring" if work.first_look_permille is None else "looking at"
            text = f"{verb} {trial.recipe} (trial {trial.number}) on {work.target.name}"
        job = observed.jobs.get(work.name)
        if job is not None and job.suspended:
            queue = observed.run.spec.policy.jobs.queue_name
            text += f", waiting for quota of queue {queue}" if queue else ", suspended"
        elif job is not None and job.message:
            text += f": {job.message}"
        parts.append(text)
    return "; ".join(parts)


def _write(
    observed: RunObserved, status: CompressionRunStatus, conditions: Iterable[Condition]
) -> list[Action]:
    """The new status, if it is new, and an Event for each transition in it."""
    old = observed.run.status
    status = status.evolve(
        conditions=merge(old.conditions, conditions),
        observed_generation=observed.run.meta.generation,
    )
    if status == old:
        return []
    return [WriteStatus(status), *_events(old, status)]


def _events(old: CompressionRunStatus, new: CompressionRunStatus) -> list[Emit]:
    events = []
    if old.baseline is None and new.baseline is not None:
        text = f"imported {new.baseline.source_digest}, {new.baseline.parameters} parameters"
        events.append(Emit("Imported", text))
    before = {trial.number: trial.state for trial in old.trials}
    for trial in new.trials:
        if trial.state not in ENDED or before.get(trial.number) == trial.state:
            continue
        said = trial.summary if trial.state == "Complete" else trial.message
        text = f"trial {trial.number} ({trial.recipe}): {said}"
        well = trial.state in {"Complete", "Stopped"}
        events.append(Emit(f"Trial{trial.state}", text[:1024], warning=not well))
    return events
