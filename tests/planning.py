# SPDX-License-Identifier: Apache-2.0
"""Values that the tests of the planners share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from kompakt.api import names
from kompakt.api.measure import (
    Benchmark,
    Evaluation,
    Hardware,
    LatencyFigures,
    Measurement,
    PairedCounts,
    SliceCounts,
)
from kompakt.api.policy import CompressionPolicySpec, CompressionPolicyStatus
from kompakt.api.profile import HardwareProfileSpec
from kompakt.api.recipe import CompressionRecipeSpec
from kompakt.api.run import CompressionRunSpec, CompressionRunStatus, TargetResult
from kompakt.api.variant import ModelVariantSpec, ModelVariantStatus
from kompakt.controllers.plan import (
    Meta,
    Policy,
    Resource,
    Run,
    Settings,
    Variant,
)

NAMESPACE = "team"
NOW = 1_800_000_000.0
SETTINGS = Settings(jobs_image="jobs:1", serving_image="serving:1")

PRUNE = {"prune": {"ffnKeepPermille": 350}}
QUANTIZE: dict[str, Any] = {"quantize": {}}
RECIPES: dict[str, CompressionRecipeSpec] = {
    name: CompressionRecipeSpec.model_validate(spec)
    for name, spec in {
        "dynamic-int8": {"steps": [QUANTIZE]},
        "prune-int8": {
            "steps": [PRUNE, QUANTIZE],
            "ranges": [
                {
                    "step": "prune",
                    "parameter": "ffnKeepPermille",
                    "minimum": 200,
                    "maximum": 950,
                    "increment": 50,
                }
            ],
        },
    }.items()
}


def digest_of(*parts: object) -> str:
    """A content address that follows from some values."""
    return f"sha256:{hashlib.sha256(repr(parts).encode()).hexdigest()}"


BASELINE_DIGEST = digest_of("baseline")
DATA_DIGEST = digest_of("data")


def profile(pool: str = "edge", **changes: Any) -> HardwareProfileSpec:
    """A profile of a pool."""
    wire = {
        "nodeLabels": [{"key": "pool", "value": pool}],
        "cpuMillis": 500,
        "memoryMebibytes": 512,
        "price": {"microsPerHour": 40_000},
    }
    return HardwareProfileSpec.model_validate(wire | changes)


PROFILES: dict[str, HardwareProfileSpec] = {
    "edge-small": profile("edge"),
    "cpu-large": profile("cpu", cpuMillis=4000, memoryMebibytes=8192),
}


def policy_spec(**changes: Any) -> CompressionPolicySpec:
    """A policy with one target, two recipes and one gate."""
    wire: dict[str, Any] = {
        "model": {"uri": "pvc://models/sentiment"},
        "data": {
            "evaluation": {
                "uri": "pvc://data/eval.jsonl",
                "labelField": "label",
                "sliceFields": ["domain"],
            }
        },
        "store": {"persistentVolumeClaim": {"name": "store"}},
        "recipes": [{"name": "dynamic-int8"}, {"name": "prune-int8"}],
        "targets": [{"name": "edge", "hardwareProfileRef": {"name": "edge-small"}}],
        "gates": [{"name": "quality", "maxDropBasisPoints": 200}],
        "serving": {"target": "edge", "gatewayRef": {"name": "public", "namespace": "gateways"}},
        "jobs": {"hardwareProfileRef": {"name": "cpu-large"}},
    }
    return CompressionPolicySpec.model_validate(wire | changes)


def policy(
    spec: CompressionPolicySpec | None = None,
    *,
    status: CompressionPolicyStatus | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Policy:
    """A CompressionPolicy."""
    meta = Meta("sentiment", NAMESPACE, uid="uid-policy", annotations=annotations or {})
    return Resource(meta, spec or policy_spec(), status or CompressionPolicyStatus())


def run_object(
    spec: CompressionPolicySpec | None = None,
    *,
    status: CompressionRunStatus | None = None,
    name: str = "sentiment-0a1b2c3d",
    recipes: Mapping[str, CompressionRecipeSpec] = RECIPES,
) -> Run:
    """A CompressionRun of that policy."""
    run_spec = CompressionRunSpec.model_validate(
        {
            "policyRef": {"name": "sentiment"},
            "inputsDigest": digest_of("inputs"),
            "policy": (spec or policy_spec()).to_wire(),
            "recipes": [{"name": n, "spec": r.to_wire()} for n, r in recipes.items()],
        }
    )
    labels = {names.MANAGED_BY_LABEL: names.MANAGED_BY}
    meta = Meta(name, NAMESPACE, uid=f"uid-{name}", labels=labels)
    return Resource(meta, run_spec, status or CompressionRunStatus())


def variant(digest: str = BASELINE_DIGEST, **changes: Any) -> Variant:
    """A ModelVariant of that policy."""
    wire: dict[str, Any] = {
        "policyRef": {"name": "sentiment"},
        "digest": digest,
        "store": {"persistentVolumeClaim": {"name": "store"}},
        "labels": ["negative", "positive"],
        "sizeBytes": 90_000_000,
    }
    name = f"sentiment-{digest.removeprefix('sha256:')[:8]}"
    spec = ModelVariantSpec.model_validate(wire | changes)
    return Resource(Meta(name, NAMESPACE, uid=f"uid-{name}"), spec, ModelVariantStatus())


# --- measurements --------------------------------------------------------------------------------


def counts(examples: int, *, lost: int = 0, gained: int = 0) -> PairedCounts:
    """Paired outcomes of a baseline that is right in nine of ten."""
    right = examples * 9 // 10
    return PairedCounts(
        examples=examples,
        baseline_correct=right,
        candidate_correct=right - lost + gained,
        lost=lost,
        gained=gained,
        disagreements=lost + gained,
    )


def latency_figures(mean: int) -> LatencyFigures:
    """Latencies around a mean in microseconds."""
    return LatencyFigures(
        p50_microseconds=mean,
        p90_microseconds=mean * 6 // 5,
        p95_microseconds=mean * 13 // 10,
        p99_microseconds=mean * 3 // 2,
        mean_microseconds=mean,
    )


def measurement(
    candidate: str,
    *,
    target: str = "edge",
    mean: int = 4000,
    baseline_mean: int = 10_000,
    lost: int = 0,
    gained: int = 0,
    selection_lost: int | None = None,
) -> Measurement:
    """1,000 examples select, 3,000 confirm."""
    seen = lost // 3 if selection_lost is None else selection_lost
    whole = counts(3000, lost=lost, gained=gained)
    return Measurement(
        target=target,
        baseline_digest=BASELINE_DIGEST,
        candidate_digest=candidate,
        evaluation=Evaluation(
            data_digest=DATA_DIGEST,
            selection=counts(1000, lost=seen, gained=gained // 3),
            confirmation=whole,
            slices=[SliceCounts(field="domain", value="film", **whole.model_dump())],
        ),
        benchmark=Benchmark(
            rounds=15,
            requests=900,
            baseline=latency_figures(baseline_mean),
            candidate=latency_figures(mean),
            speedup_permille=1000 * baseline_mean // mean,
            speedup_low_permille=990 * baseline_mean // mean,
            speedup_high_permille=1010 * baseline_mean // mean,
            hardware=Hardware(),
        ),
    )


def measured(**figures: Any) -> TargetResult:
    """The same as a trial keeps it."""
    found = measurement(digest_of("candidate"), **figures)
    return TargetResult(
        target=found.target,
        state="Measured",
        evaluation=found.evaluation,
        benchmark=found.benchmark,
        cost_micros_per_million=figures.get("mean", 4000) * 18,
    )


def recipe(**ranges: tuple[int, int, int]) -> CompressionRecipeSpec:
    """Prune, distill and quantize, with ranges `step__parameter=(minimum, maximum, increment)`."""
    return CompressionRecipeSpec.model_validate(
        {
            "steps": [{"prune": {}}, {"distill": {}}, {"quantize": {}}],
            "ranges": [
                {
                    "step": key.split("__")[0],
                    "parameter": key.split("__")[1],
                    "minimum": low,
                    "maximum": high,
                    "increment": increment,
                }
                for key, (low, high, increment) in ranges.items()
            ],
        }
    )
