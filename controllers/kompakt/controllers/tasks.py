# SPDX-License-Identifier: Apache-2.0
"""The tasks of a run: what each Job is called, where it runs, and what it is told.

Invariants:

- names follow from the run, the trial and the target alone: creating twice is the same Job;
- after the import every task demands the digests that were imported: a run never mixes two states
  of the same data.
"""

from __future__ import annotations

from dataclasses import dataclass

from kompakt.api import names
from kompakt.api.job import CompressTask, ImportResult, ImportTask, MeasureTask, TaskKind, TaskSpec
from kompakt.api.policy import CompressionPolicySpec, Target
from kompakt.api.profile import HardwareProfileSpec
from kompakt.api.run import Trial
from kompakt.api.source import DataSource
from kompakt.api.steps import Prune
from kompakt.controllers import halving
from kompakt.controllers.plan import Create, Run, Settings
from kompakt.controllers.render.jobs import job_manifests
from kompakt.controllers.render.pods import owner_reference, store_root

ANALYSIS_EXAMPLES = Prune().samples
"""Texts that an analysis looks at: those that a prune step would look at, which then need not."""


@dataclass(frozen=True)
class Work:
    """A Job that should exist."""

    name: str
    kind: TaskKind
    profile: str
    """Name of the HardwareProfile where it runs."""
    trial: Trial | None = None
    target: Target | None = None
    first_look_permille: int | None = None
    """What is measured is only such a part of the selection split."""


def compress_profile(policy: CompressionPolicySpec) -> str:
    """Where models are imported and compressed."""
    return (policy.jobs.hardware_profile_ref or policy.targets[0].hardware_profile_ref).name


def profile_names(policy: CompressionPolicySpec) -> list[str]:
    """All HardwareProfiles that a run needs, each once."""
    targets = [target.hardware_profile_ref.name for target in policy.targets]
    return list(dict.fromkeys([compress_profile(policy), *targets]))


def import_work(run: Run) -> Work:
    """The Job that imports model and data."""
    return Work(f"{run.meta.name}-import", "Import", compress_profile(run.spec.policy))


def compress_work(run: Run, trial: Trial) -> Work:
    """The Job that makes a trial's artifact."""
    name = f"{run.meta.name}-compress-{trial.number}"
    return Work(name, "Compress", compress_profile(run.spec.policy), trial)


def measure_work(run: Run, trial: Trial, target: Target) -> Work:
    """The Job that measures a trial on a target."""
    # The target's place instead of its name: a Job's name has room for 63 characters.
    place = [t.name for t in run.spec.policy.targets].index(target.name)
    look = halving.first_look_permille(run.spec.policy, trial, target)
    kind = "measure" if look is None else "look"
    name = f"{run.meta.name}-{kind}-{trial.number}-{place}"
    profile = target.hardware_profile_ref.name
    return Work(name, "Measure", profile, trial, target, first_look_permille=look)


def creations(
    work: Work,
    run: Run,
    *,
    baseline: ImportResult | None,
    profile: HardwareProfileSpec,
    settings: Settings,
) -> list[Create]:
    """The creation of a Job and of what it reads."""
    policy = run.spec.policy
    labels = {
        names.POLICY_LABEL: run.spec.policy_ref.name,
        names.RUN_LABEL: run.meta.name,
        names.TASK_LABEL: work.kind,
    }
    if work.trial is not None:
        labels[names.TRIAL_LABEL] = str(work.trial.number)
    if work.target is not None:
        labels[names.TARGET_LABEL] = work.target.name
    manifests = job_manifests(
        name=work.name,
        namespace=run.meta.namespace,
        labels=labels,
        owner=owner_reference("CompressionRun", run.meta),
        task=_task(work, run, baseline=baseline),
        store=policy.store,
        profile=profile,
        jobs=policy.jobs,
        settings=settings,
    )
    return [Create(manifest) for manifest in manifests]


def _task(work: Work, run: Run, *, baseline: ImportResult | None) -> TaskSpec:
    policy = run.spec.policy
    spec = TaskSpec(
        kind=work.kind,
        store=store_root(policy.store),
        # Namespaces may share a store.
        report_name=f"{run.meta.namespace}.{work.name}",
    )
    if work.kind == "Import":
        imported = ImportTask(
            model=policy.model,
            data=policy.data.by_role(),
            analysis_examples=ANALYSIS_EXAMPLES if policy.analysis == "Enabled" else 0,
            seed=policy.jobs.seed,
        )
        return spec.evolve(import_model=imported)
    if baseline is None or work.trial is None:
        raise ValueError(f"{work.name} needs an imported baseline and a trial")
    sources = {role: _bound(s, role, baseline) for role, s in policy.data.by_role().items()}
    if work.kind == "Compress":
        return spec.evolve(
            compress=CompressTask(
                recipe=work.trial.recipe,
                checkpoint_digest=baseline.source_digest,
                baseline_digest=baseline.artifact_digest,
                steps=work.trial.steps,
                training=sources.get("training"),
                calibration=sources.get("calibration"),
                seed=policy.jobs.seed,
            )
        )
    if work.target is None or work.trial.digest is None:
        raise ValueError(f"{work.name} needs a target and an artifact")
    return spec.evolve(
        measure=MeasureTask(
            target=work.target.name,
            baseline_digest=baseline.artifact_digest,
            candidate_digest=work.trial.digest,
            evaluation=sources["evaluation"],
            first_look_permille=work.first_look_permille,
            seed=policy.jobs.seed,
        )
    )


def _bound(source: DataSource, role: str, baseline: ImportResult) -> DataSource:
    return source.evolve(digest=baseline.data_digests.get(role, source.digest))
