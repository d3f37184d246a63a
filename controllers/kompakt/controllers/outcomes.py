# SPDX-License-Identifier: Apache-2.0
"""What finished Jobs mean for the status of their run.

Invariant: each outcome is taken once. A trial moves on with it, so the same Job is not looked at
again, and may be deleted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from kompakt.api.base import Model
from kompakt.api.measure import LatencyFigures, PairedCorrelation, PairedCounts
from kompakt.api.recipe import CompressionRecipeSpec
from kompakt.api.run import CompressionRunStatus, FirstLook, TargetResult, Trial
from kompakt.controllers import family, halving, objects, tasks
from kompakt.controllers.cost import cost_micros_per_million
from kompakt.controllers.halving import lead_target
from kompakt.controllers.plan import JobState, RunObserved
from kompakt.controllers.select import Candidate

PayloadT = TypeVar("PayloadT", bound=Model)
CountsT = TypeVar("CountsT", bound=PairedCounts)

ENDED = frozenset({"Complete", "Stopped", "Infeasible", "Failed"})
"""States of a trial that it does not leave."""
_INFEASIBLE_REASONS = frozenset({"TrainingDiverged"})
"""Failures that the same task would meet again: it cannot be, rather than could not be tried."""
_OUT_OF_MEMORY = "OutOfMemory"
_PAR_PERMILLE = 1000


class RunFailedError(Exception):
    """The run ends here, and nothing is retried: whoever wrote the policy must change something."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True)
class _Failure:
    """Why a Job gave nothing."""

    reason: str
    message: str

    @property
    def infeasible(self) -> bool:
        return self.reason == _OUT_OF_MEMORY or self.reason in _INFEASIBLE_REASONS


def record(observed: RunObserved, status: CompressionRunStatus) -> CompressionRunStatus:
    """The status with the outcome of every Job that has finished.

    Raises:
        RunFailedError: An input is wrong, or there is no baseline to compare with.
    """
    if status.baseline is None:
        return _imported(observed, status)
    trials = [_advanced(observed, trial) for trial in status.trials]
    trials = halving.decided(trials, observed.run.spec.policy)
    return status.evolve(
        trials=trials,
        baseline_targets=_baseline_figures(observed, status, trials),
        trials_complete=sum(trial.state in ENDED for trial in trials),
    )


def _imported(observed: RunObserved, status: CompressionRunStatus) -> CompressionRunStatus:
    run = observed.run
    policy = run.spec.policy
    work = tasks.import_work(run)
    job = _finished(observed, work)
    if job is None:
        return status
    outcome = _outcome(job, job.result.imported if job.result else None)
    if isinstance(outcome, _Failure):
        hint = ""
        if outcome.reason == _OUT_OF_MEMORY:
            hint = f": give HardwareProfile {work.profile} more jobMemoryMebibytes"
        raise RunFailedError(outcome.reason, outcome.message + hint)
    recipes = {named.name: named.spec for named in run.spec.recipes}
    wanted = [member for ref in policy.recipes for member in _members(recipes[ref.name], ref.name)]
    trials = [member.evolve(number=number) for number, member in enumerate(wanted)]
    return status.evolve(
        baseline=outcome,
        baseline_variant=objects.variant_name(run.spec.policy_ref.name, outcome.artifact_digest),
        trials=trials,
        trials_complete=0,
        trials_total=len(trials) + (policy.search.max_trials if policy.search else 0),
    )


def _members(recipe: CompressionRecipeSpec, name: str) -> list[Trial]:
    """The trials of a recipe: one, or one for each member of its family."""
    because = ["the policy's recipes name it"]
    if recipe.family:
        because = [f"{share} permille of the latency, of its family" for share in recipe.family]
    return [
        Trial(
            number=0,
            recipe=name,
            origin="Recipe",
            steps=steps,
            state="Proposed",
            proposed_because=why,
        )
        for steps, why in zip(family.chains(recipe), because, strict=True)
    ]


def _advanced(observed: RunObserved, trial: Trial) -> Trial:
    if trial.state == "Compressing":
        return _compressed(observed, trial)
    if trial.state == "Measuring":
        return _measured(observed, trial)
    return trial


def _compressed(observed: RunObserved, trial: Trial) -> Trial:
    job = _finished(observed, tasks.compress_work(observed.run, trial))
    if job is None:
        return trial
    try:
        outcome = _outcome(job, job.result.compressed if job.result else None)
    except RunFailedError as wrong:
        if trial.origin == "Recipe":
            raise
        # Nobody asked for just these steps: a search has learnt a bound.
        return trial.evolve(state="Infeasible", reason=wrong.reason, message=wrong.message)
    if isinstance(outcome, _Failure):
        state = "Infeasible" if outcome.infeasible else "Failed"
        return trial.evolve(state=state, reason=outcome.reason, message=outcome.message)
    return trial.evolve(
        state="Measuring",
        digest=outcome.artifact_digest,
        runtime=outcome.runtime,
        size_bytes=outcome.size_bytes,
        parameters_count=outcome.parameters,
        compress_seconds=outcome.seconds,
        summary=outcome.summary,
        targets=[
            TargetResult(target=target.name)
            for target in observed.run.spec.policy.targets
            if trial.origin != "Ablation" or target == lead_target(observed.run.spec.policy)
        ],
    )


def _measured(observed: RunObserved, trial: Trial) -> Trial:
    targets = {target.name: target for target in observed.run.spec.policy.targets}
    results: list[TargetResult] = []
    look = trial.first_look
    for result in trial.targets:
        work = tasks.measure_work(observed.run, trial, targets[result.target])
        job = _finished(observed, work) if result.state == "Measuring" else None
        found = result if job is None else _result(observed, work, result, job)
        if work.first_look_permille is not None and found.state == "Measured":
            look = _look(found)
            found = result.evolve(state="Pending")
        results.append(found)
    trial = trial.evolve(targets=results, first_look=look)
    if any(result.state in {"Pending", "Measuring"} for result in results):
        return trial
    if any(result.state == "Measured" for result in results):
        return trial.evolve(state="Complete")
    worst = next((r for r in results if r.reason == _OUT_OF_MEMORY), results[0])
    state = "Infeasible" if worst.reason == _OUT_OF_MEMORY else "Failed"
    message = f"measured on no target; on {worst.target}: {worst.message}"
    return trial.evolve(state=state, reason=worst.reason, message=message[:1024])


def _look(found: TargetResult) -> FirstLook | None:
    """Figures of a part of the selection split: nobody may take them for the whole."""
    if found.evaluation is None or found.benchmark is None:
        return None
    return FirstLook(evaluation=found.evaluation.evolve(slices=[]), benchmark=found.benchmark)


def _result(
    observed: RunObserved, work: tasks.Work, result: TargetResult, job: JobState
) -> TargetResult:
    outcome = _outcome(job, job.result.measured if job.result else None)
    if isinstance(outcome, _Failure):
        return result.evolve(state="Failed", reason=outcome.reason, message=outcome.message)
    measurement = outcome.measurement
    return result.evolve(
        state="Measured",
        evaluation=measurement.evaluation,
        benchmark=measurement.benchmark,
        cost_micros_per_million=_cost(observed, work.profile, measurement.benchmark.candidate),
    )


def _cost(observed: RunObserved, profile: str, figures: LatencyFigures) -> int | None:
    known = observed.profiles.get(profile)
    return None if known is None else cost_micros_per_million(figures, known)


def _baseline_figures(
    observed: RunObserved, status: CompressionRunStatus, trials: list[Trial]
) -> list[TargetResult]:
    """The baseline's own figures on each target: its side of the first complete measurement."""
    known = {result.target: result for result in status.baseline_targets}
    for target in observed.run.spec.policy.targets:
        measured = (r for trial in trials for r in trial.targets if r.target == target.name)
        first = next((r for r in measured if r.state == "Measured"), None)
        if target.name in known or first is None:
            continue
        evaluation, benchmark = first.evaluation, first.benchmark
        if evaluation is None or benchmark is None:
            continue
        known[target.name] = TargetResult(
            target=target.name,
            state="Measured",
            evaluation=evaluation.evolve(
                selection=_own(evaluation.selection),
                confirmation=_own(evaluation.confirmation),
                slices=[
                    _own(s).evolve(correlation=_unchanged(s.correlation)) for s in evaluation.slices
                ],
                selection_correlation=_unchanged(evaluation.selection_correlation),
                confirmation_correlation=_unchanged(evaluation.confirmation_correlation),
                cosines=None,
                candidate_calibration_error=evaluation.baseline_calibration_error,
            ),
            benchmark=benchmark.evolve(
                candidate=benchmark.baseline,
                speedup_permille=_PAR_PERMILLE,
                speedup_low_permille=_PAR_PERMILLE,
                speedup_high_permille=_PAR_PERMILLE,
            ),
            cost_micros_per_million=_cost(
                observed, target.hardware_profile_ref.name, benchmark.baseline
            ),
        )
    return [known[t.name] for t in observed.run.spec.policy.targets if t.name in known]


def _own(counts: CountsT) -> CountsT:
    """Paired counts of the baseline with itself."""
    return counts.evolve(
        candidate_correct=counts.baseline_correct, lost=0, gained=0, disagreements=0
    )


def _unchanged(found: PairedCorrelation | None) -> PairedCorrelation | None:
    """The baseline's correlation beside itself."""
    if found is None:
        return None
    return found.evolve(
        candidate_basis_points=found.baseline_basis_points, drop_micros=0, standard_error_micros=0
    )


def _finished(observed: RunObserved, work: tasks.Work) -> JobState | None:
    job = observed.jobs.get(work.name)
    return job if job is not None and job.finished else None


def _outcome(job: JobState, payload: PayloadT | None) -> PayloadT | _Failure:
    """What a finished Job gave, or why it gave nothing. Raises RunFailedError for a wrong input."""
    result = job.result
    if result is not None and result.outcome == "InvalidInput":
        raise RunFailedError(result.reason, result.message)
    if job.out_of_memory:
        return _Failure(_OUT_OF_MEMORY, f"Job {job.name} was killed for memory")
    if result is not None and result.outcome == "Failed":
        return _Failure(result.reason, result.message)
    if not job.succeeded:
        why = job.message or "its pod left no result"
        return _Failure("JobFailed", f"Job {job.name} failed: {why}"[:1024])
    if payload is None:
        return _Failure("NoResult", f"Job {job.name} succeeded, but its result is lost")
    return payload


def candidates(status: CompressionRunStatus, target: str, *, policy_name: str) -> list[Candidate]:
    """What can be chosen for a target: the source and every trial, with figures or without."""

    def on_target(results: Iterable[TargetResult]) -> TargetResult | None:
        return next((result for result in results if result.target == target), None)

    found = [
        Candidate(
            name="the source",
            variant=status.baseline_variant,
            size_bytes=status.baseline.size_bytes if status.baseline else None,
            figures=on_target(status.baseline_targets),
        )
    ]
    for trial in status.trials:
        figures = on_target(trial.targets)
        failed = figures if figures is not None and figures.reason is not None else trial
        found.append(
            Candidate(
                name=trial.recipe,
                trial=trial.number,
                variant=objects.variant_name(policy_name, trial.digest) if trial.digest else None,
                size_bytes=trial.size_bytes,
                figures=figures,
                reason=failed.reason or "NotMeasured",
                message=failed.message,
            )
        )
    return found
