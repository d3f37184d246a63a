# SPDX-License-Identifier: Apache-2.0
"""A small cluster with one run in it, in which the plans of the run are carried out.

It keeps what plans write, may die between any two actions, and runs Jobs whose results follow from
their tasks alone: so two histories of one run can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests.planning import (
    BASELINE_DIGEST,
    DATA_DIGEST,
    NAMESPACE,
    NOW,
    PROFILES,
    SETTINGS,
    counts,
    digest_of,
    measurement,
    profile,
    run_object,
)

from kompakt.api.job import CompressResult, ImportResult, MeasureResult, TaskResult, TaskSpec
from kompakt.api.measure import PairedCounts
from kompakt.api.policy import CompressionPolicySpec
from kompakt.api.profile import HardwareProfileSpec
from kompakt.api.run import CompressionRunStatus
from kompakt.api.variant import ModelVariantSpec, ModelVariantStatus
from kompakt.controllers.conditions import find
from kompakt.controllers.plan import (
    Create,
    Delete,
    Emit,
    JobState,
    Meta,
    Plan,
    Resource,
    Run,
    RunObserved,
    Variant,
    WriteStatus,
)
from kompakt.controllers.run import plan_run

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
            # By what was set alone: a step's new parameter gives nobody other figures.
            artifact_digest=digest_of(
                [step.model_dump(exclude_defaults=True) for step in task.compress.steps]
            ),
            runtime="OpenVino",
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
        baseline_mean=10_000 + noise % 100,
        lost=noise % 50,
        gained=noise % 20,
    )
    if task.measure.first_look_permille is not None:
        # As the Job does: a part of the selection split, and nothing of the other.
        seen = found.evaluation.evolve(selection=counts(500, lost=noise % 11))
        seen = seen.evolve(confirmation=PairedCounts())
        found = found.evolve(evaluation=seen)
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


# --- what tests of runs begin with ---------------------------------------------------------------

RUN = "sentiment-0a1b2c3d"
SEARCH = {"recipes": [{"name": "prune-int8"}], "maxTrials": 2, "maxDurationSeconds": 86_400}
HALVING = SEARCH | {"maxTrials": 8, "halving": {"selectionPermille": 500}}
TWO_TARGETS = [
    {"name": "edge", "hardwareProfileRef": {"name": "edge-small"}},
    {"name": "cloud", "hardwareProfileRef": {"name": "cloud"}},
]
TWO_POOLS = PROFILES | {"cloud": profile("cloud", cpuMillis=2000)}


def world(spec: CompressionPolicySpec | None = None, **changes: Any) -> RunWorld:
    """A cluster with a new run."""
    return RunWorld(run_object(spec), **changes)


def settled(spec: CompressionPolicySpec | None = None, **changes: Any) -> RunWorld:
    """A cluster in which the run has ended."""
    made = world(spec, **changes)
    made.settle()
    return made


def broken(kind: str, outcome: Callable[[TaskSpec], Outcome]) -> Callable[[TaskSpec], Outcome]:
    """Work in which all Jobs of a kind end otherwise."""
    return lambda task: outcome(task) if task.kind == kind else succeed(task)


def succeeded(status: CompressionRunStatus) -> tuple[str, str]:
    """Status and reason of the condition Succeeded."""
    found = find(status.conditions, "Succeeded")
    assert found is not None
    return found.status, found.reason


def advance_to_trials(made: RunWorld) -> None:
    """Let the import end, and plan what follows."""
    made.plan()
    made.finish(f"{RUN}-import")
    made.plan()
