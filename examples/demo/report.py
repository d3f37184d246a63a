# SPDX-License-Identifier: Apache-2.0
"""The demo's result, from what the operator's objects and the users' records say. No number is
written by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final, Literal

from examples.demo.errors import DemoError
from examples.demo.history import History
from examples.demo.observe import Seen, Snapshot
from examples.demo.records import TrafficLog, variant_tag

from kompakt.api.measure import Evaluation, PairedCounts
from kompakt.api.run import CompressionRunStatus, TargetResult, Trial
from kompakt.controllers.bounds import drop_basis_points, upper_bound_basis_points

CONFIDENCE: Final = 0.95
_PERMILLE: Final = 1000


@dataclass(frozen=True)
class Kubernetes:
    """The cluster."""

    version: str
    nodes: int


@dataclass(frozen=True)
class Baseline:
    """The source model, exported unchanged, on the target's hardware."""

    accuracy: float
    size_bytes: int
    latency_p50_milliseconds: float


@dataclass(frozen=True)
class Interval:
    """A measured ratio with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Promoted:
    """The variant that the operator chose and brought to production, against the baseline."""

    digest: str
    recipe: str
    speedup: Interval
    size_ratio: float
    accuracy_drop_basis_points: int
    """Over all evaluation sentences."""
    accuracy_drop_upper_bound_basis_points: int
    """One-sided, 95 %."""


@dataclass(frozen=True)
class Requests:
    """Of all users, from the first answer to the end."""

    total: int
    failed: int


@dataclass(frozen=True)
class Regression:
    """A variant that broke an objective, and what became of it."""

    kind: Literal["Accuracy", "Latency"]
    stage: str
    """Where it was caught."""
    seconds_to_rollback: float
    """From its first bad request until the gateway was seen without it and it had answered its last
    user.
    """
    user_requests_to_candidate: int
    """Requests of users that it answered, good or bad, from its start to the end."""
    reason: str


@dataclass(frozen=True)
class Seconds:
    """How long it took: building what is cached, starting the cluster, everything."""

    build: int
    cluster: int
    total: int


@dataclass(frozen=True)
class Report:
    """build/demo/report.json."""

    kubernetes: Kubernetes
    baseline: Baseline
    promoted: Promoted
    requests: Requests
    regressions: tuple[Regression, ...]
    seconds: Seconds


def to_wire(value: Any) -> Any:
    """Dataclasses as JSON objects with names in camelCase; numbers rounded to what was measured."""
    if is_dataclass(value) and not isinstance(value, type):
        return {_camel(f.name): to_wire(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple | list):
        return [to_wire(item) for item in value]
    if isinstance(value, Mapping):
        return {key: to_wire(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def pooled(evaluation: Evaluation) -> PairedCounts:
    """Both splits together: every example of the evaluation data."""
    one, other = evaluation.selection, evaluation.confirmation
    return PairedCounts(
        **{name: getattr(one, name) + getattr(other, name) for name in PairedCounts.model_fields}
    )


def measured(trial: Trial, target: str) -> TargetResult:
    """A trial's figures on a target.

    Raises DemoError when it has none.
    """
    for result in trial.targets:
        if result.target == target and result.evaluation and result.benchmark:
            return result
    msg = f"trial {trial.number} ({trial.recipe}) has no figures on {target}: {trial.message}"
    raise DemoError(msg)


def baseline_and_promoted(
    run: Seen[CompressionRunStatus], *, target: str, digest: str
) -> tuple[Baseline, Promoted]:
    """The figures of the run that made the variant with this digest."""
    trial = next((t for t in run.status.trials if t.digest == digest), None)
    if trial is None or run.status.baseline is None or trial.size_bytes is None:
        msg = f"run {run.name} has no trial that made {digest}"
        raise DemoError(msg)
    figures = measured(trial, target)
    assert figures.evaluation and figures.benchmark  # noqa: S101,PT018 -- measured() saw to it
    counts, bench = pooled(figures.evaluation), figures.benchmark
    size = run.status.baseline.size_bytes
    return (
        Baseline(
            accuracy=counts.baseline_correct / counts.examples,
            size_bytes=size,
            latency_p50_milliseconds=bench.baseline.p50_microseconds / 1000,
        ),
        Promoted(
            digest=digest,
            recipe=trial.recipe,
            speedup=Interval(
                bench.speedup_permille / _PERMILLE,
                bench.speedup_low_permille / _PERMILLE,
                bench.speedup_high_permille / _PERMILLE,
            ),
            size_ratio=size / trial.size_bytes,
            accuracy_drop_basis_points=drop_basis_points(counts) or 0,
            accuracy_drop_upper_bound_basis_points=upper_bound_basis_points(
                counts, confidence=CONFIDENCE
            )
            or 0,
        ),
    )


def regression(
    kind: Literal["Accuracy", "Latency"],
    *,
    rollout: str,
    started: float,
    first_bad: float,
    history: History,
    log: TrafficLog,
) -> Regression:
    """The account of a rollout that went back.

    `started` is when the rollout was made, `first_bad` when its first bad request was sent (Unix
    seconds).

    Raises DemoError when it did not go back, or when nobody saw the route without it.
    """
    seen = history.snapshot.rollout(rollout)
    returned = history.traffic_returned(after=started)
    if seen is None or seen.status.stage != "RolledBack" or returned is None:
        found = seen.status.stage if seen else "gone"
        msg = f"rollout {rollout} was to be rolled back, but it is {found}"
        raise DemoError(msg)
    tag = variant_tag(seen.status.candidate_digest or "")
    last = log.last_of(tag, after=started)
    end = max(returned, last.arrived if last else returned)
    stage, reason = _why(history.snapshot, rollout)
    return Regression(
        kind=kind,
        stage=stage,
        seconds_to_rollback=max(0.0, end - first_bad),
        user_requests_to_candidate=log.answered_by(tag, start=started, end=history.snapshot.time),
        reason=reason,
    )


def _why(snapshot: Snapshot, rollout: str) -> tuple[str, str]:
    """The stage that a rollout was sent back from, and the operator's reason."""
    seen = snapshot.rollout(rollout)
    for decision in seen.status.decisions if seen else ():
        if decision.to_stage in {"RollingBack", "RolledBack"}:
            stage = decision.from_stage.partition("/")[0]
            return stage, f"{decision.reason}: {decision.message}"
    return "unknown", "the rollout's decisions do not say"


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(word.capitalize() for word in tail)
