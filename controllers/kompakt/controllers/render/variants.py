# SPDX-License-Identifier: Apache-2.0
"""ModelVariants of a run: the source, and each trial that was measured.

Create them once: their spec is immutable. They have no owner, for they outlive run and policy: what
they describe is in the store.
"""

from __future__ import annotations

from collections.abc import Sequence

from kompakt.api import API_VERSION, names
from kompakt.api.base import Runtime
from kompakt.api.job import ImportResult
from kompakt.api.run import TargetResult, Trial
from kompakt.api.variant import Lineage, ModelVariantSpec
from kompakt.controllers import objects
from kompakt.controllers.plan import Manifest, Run
from kompakt.controllers.render.pods import metadata

SOURCE_RECIPE = "Source"


def source_variant(run: Run, baseline: ImportResult) -> Manifest:
    """The source model, exported unchanged."""
    return _variant(
        run,
        baseline,
        digest=baseline.artifact_digest,
        runtime="OnnxRuntime",
        size_bytes=baseline.size_bytes,
        lineage=Lineage(
            source_digest=baseline.source_digest, run=run.meta.name, recipe=SOURCE_RECIPE
        ),
    )


def trial_variant(run: Run, baseline: ImportResult, trial: Trial) -> Manifest:
    """What a trial made, with its figures."""
    if trial.digest is None or trial.size_bytes is None:
        raise ValueError(f"trial {trial.number} of {run.meta.name} has no artifact")
    return _variant(
        run,
        baseline,
        digest=trial.digest,
        runtime=trial.runtime or "OnnxRuntime",
        size_bytes=trial.size_bytes,
        lineage=Lineage(
            source_digest=baseline.source_digest,
            baseline_digest=baseline.artifact_digest,
            run=run.meta.name,
            trial=trial.number,
            recipe=trial.recipe,
            steps=trial.steps,
        ),
        figures=trial.targets,
    )


def _variant(
    run: Run,
    baseline: ImportResult,
    *,
    digest: str,
    runtime: Runtime,
    size_bytes: int,
    lineage: Lineage,
    figures: Sequence[TargetResult] = (),
) -> Manifest:
    policy = run.spec.policy_ref.name
    spec = ModelVariantSpec(
        policy_ref=run.spec.policy_ref,
        digest=digest,
        store=run.spec.policy.store,
        task=run.spec.policy.model.task,
        labels=baseline.labels,
        runtime=runtime,
        size_bytes=size_bytes,
        lineage=lineage,
        figures=list(figures),
    )
    labels = {
        names.POLICY_LABEL: policy,
        names.RUN_LABEL: run.meta.name,
        names.DIGEST_LABEL: objects.digest_label(digest),
    }
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelVariant",
        "metadata": metadata(objects.variant_name(policy, digest), run.meta.namespace, labels),
        "spec": spec.to_wire(),
    }
