# SPDX-License-Identifier: Apache-2.0
"""Values that the tests of the planners share, and a small cluster in which plans are carried out.

The cluster keeps what plans write, may die between any two actions, and runs Jobs whose results
follow from their tasks alone: so two histories of one run can be compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kompakt.api import names
from kompakt.api.job import CompressResult, ImportResult, MeasureResult, TaskResult, TaskSpec
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
    Create,
    Delete,
    Emit,
    JobState,
    Meta,
    Plan,
    Policy,
    Resource,
    Run,
    RunObserved,
    Settings,
    Variant,
    WriteStatus,
)
from kompakt.controllers.run import plan_run

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
) -> Run:
    """A CompressionRun of that policy."""
    run_spec = CompressionRunSpec.model_validate(
        {
            "policyRef": {"name": "sentiment"},
            "inputsDigest": digest_of("inputs"),
            "policy": (spec or policy_spec()).to_wire(),
            "recipes": [{"name": n, "spec": r.to_wire()} for n, r in RECIPES.items()],
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


# --- what Jobs give ------------------------------------------------------------------------------

OUT_OF_MEMORY = "OutOfMemory"
LOST_NODE = "LostNode"
Outcome = TaskResult | str


def succeed(task: TaskSpec) -> TaskResult:
    """What a Job finds, as a function of its task."""
    well: dict[str, Any] = {"kind": task.kind, "outcome": "Succeeded", "reason": "Succeeded"}
    if task.import_model is not None:
        imported = ImportResult(
            source_digest=digest_of("source"),
            artifact_digest=BASELINE_DIGEST,
            size_bytes=90_000_000,
            parameters=22_700_000,
            labels=["negative", "positive"],
            data_digests=dict.fromkeys(task.import_model.data, DATA_DIGEST),
            data_examples=dict.fromkeys(task.import_model.data, 4000),
            max_absolute_error_nanos=10,
        )
        return TaskResult(**well, imported=imported)
    if task.compress is not None:
        pruned = [step.prune for step in task.compress.steps if step.prune is not None]
        kept = pruned[0].ffn_keep_permille if pruned else 1000
        made = CompressResult(
            artifact_digest=digest_of([step.to_wire() for step in task.compress.steps]),
            size_bytes=10_000_000 + 12_000 * kept,
            parameters=1000 * kept,
            seconds=60,
            summary=f"kept {kept} permille",
        )
        return TaskResult(**well, compressed=made)
    assert task.measure is not None
    noise = int(task.measure.candidate_digest[-4:], 16)
    found = measurement(
        task.measure.candidate_digest,
        target=task.measure.target,
        mean=3000 + noise % 2000,
        lost=noise % 50,
        gained=noise % 20,
    )
    return TaskResult(**well, measured=MeasureResult(measurement=found))


def fail(
    task: TaskSpec, reason: str, *, outcome: str = "Failed", message: str = "it broke"
) -> TaskResult:
    """What a Job says that did not succeed."""
    return TaskResult.model_validate(
        {"kind": task.kind, "outcome": outcome, "reason": reason, "message": message}
    )


@dataclass
class _Job:
    task: TaskSpec
    labels: Mapping[str, str]
    suspended: bool
    done: bool = False


@dataclass
class RunWorld:
    """A cluster with one run in it."""

    run: Run
    work: Callable[[TaskSpec], Outcome] = succeed
    profiles: Mapping[str, HardwareProfileSpec] = field(default_factory=lambda: PROFILES)
    now: float = NOW
    jobs: dict[str, _Job] = field(default_factory=dict)
    tasks: dict[str, TaskSpec] = field(default_factory=dict)
    """ConfigMaps."""
    variants: dict[str, Variant] = field(default_factory=dict)
    events: list[Emit] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    """Names of Jobs in the order of their creation, again when created again."""
    at_creation: dict[str, CompressionRunStatus] = field(default_factory=dict)
    """What the status was when a Job was created."""

    @property
    def status(self) -> CompressionRunStatus:
        """Of the run."""
        return self.run.status

    def observe(self) -> RunObserved:
        """What the next plan sees."""
        return RunObserved(
            now=self.now,
            run=self.run,
            settings=SETTINGS,
            jobs={name: self._state(name, job) for name, job in self.jobs.items()},
            profiles=self.profiles,
            variants=tuple(self.variants.values()),
        )

    def plan(self, *, die_after: int | None = None) -> Plan:
        """Plan, and carry out all actions or the first few."""
        plan = plan_run(self.observe())
        for action in plan.actions[:die_after]:
            self._carry_out(action)
        self.now += 1
        return plan

    def running(self) -> list[str]:
        """Jobs that have not ended."""
        return [name for name, job in self.jobs.items() if not job.done]

    def finish(self, name: str) -> None:
        """Let a Job end."""
        self.jobs[name].done = True

    def remove(self, name: str) -> None:
        """Delete a Job and its task, as the time to live or a person does."""
        self.jobs.pop(name, None)
        self.tasks.pop(name, None)

    def settle(self, *, rounds: int = 300) -> None:
        """Plan and let Jobs end, one after the other, until nothing happens any more."""
        for _ in range(rounds):
            plan = self.plan()
            running = self.running()
            if running:
                self.finish(running[0])
            elif not plan.actions:
                return
        raise AssertionError("the run never comes to rest")

    def _carry_out(self, action: object) -> None:
        match action:
            case WriteStatus(status):
                assert isinstance(status, CompressionRunStatus)
                # Through JSON, as the API server keeps it.
                parsed = CompressionRunStatus.model_validate(status.to_wire())
                self.run = replace(self.run, status=parsed)
            case Create(manifest):
                self._create(manifest)
            case Delete(_, "Job", _, name):
                self.remove(name)
            case Emit():
                self.events.append(action)
            case _:
                raise AssertionError(f"no such action here: {action}")

    def _create(self, manifest: dict[str, Any]) -> None:
        name = manifest["metadata"]["name"]
        match manifest["kind"]:
            case "ConfigMap":
                (text,) = manifest["data"].values()
                self.tasks.setdefault(name, TaskSpec.model_validate_json(text))
            case "Job":
                if name not in self.jobs:
                    suspended = manifest["spec"].get("suspend", False)
                    labels = manifest["metadata"]["labels"]
                    self.jobs[name] = _Job(self.tasks[name], labels, suspended)
                    self.started.append(name)
                    self.at_creation[name] = self.status
            case "ModelVariant":
                spec = ModelVariantSpec.model_validate(manifest["spec"])
                meta = Meta(name, NAMESPACE, uid=f"uid-{name}")
                self.variants.setdefault(name, Resource(meta, spec, ModelVariantStatus()))
            case kind:
                raise AssertionError(f"a run creates no {kind}")

    def _state(self, name: str, job: _Job) -> JobState:
        outcome = self.work(job.task) if job.done else None
        result = outcome if isinstance(outcome, TaskResult) else None
        return JobState(
            name=name,
            labels=job.labels,
            finished=job.done,
            succeeded=result is not None and result.outcome == "Succeeded",
            suspended=job.suspended,
            result=result,
            out_of_memory=outcome == OUT_OF_MEMORY,
            message="the node is gone" if outcome == LOST_NODE else "",
        )


def essence(status: CompressionRunStatus) -> dict[str, Any]:
    """A run's status without the times in it."""
    wire = status.to_wire()
    wire.pop("startedUnixSeconds", None)
    for condition in wire.get("conditions", ()):
        condition.pop("lastTransitionTime")
    return wire
