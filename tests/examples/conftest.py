# SPDX-License-Identifier: Apache-2.0
"""A made-up demo: a run with two trials, a promotion, a rollback, and the users' records of it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

# The examples are scripts of the checkout, not part of the package.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from examples.demo.history import History
from examples.demo.observe import Route, Seen, SeenRollout, SeenVariant, Snapshot
from examples.demo.records import Response, TrafficLog, variant_tag

from kompakt.api.base import LocalRef
from kompakt.api.job import ImportResult
from kompakt.api.measure import Benchmark, Evaluation, Hardware, LatencyFigures, PairedCounts
from kompakt.api.policy import CompressionPolicyStatus
from kompakt.api.rollout import (
    Decision,
    SloVerdict,
    Stage,
    VariantRolloutSpec,
    VariantRolloutStatus,
)
from kompakt.api.run import Choice, CompressionRunStatus, TargetResult, Trial
from kompakt.api.source import Store
from kompakt.api.variant import Lineage, ModelVariantSpec, ModelVariantStatus

BASE, SMALL, BROKEN = (f"sha256:{c * 64}" for c in "abc")
SOURCE = f"sha256:{'d' * 64}"
START = 1_000_000.0


def counts(examples: int, *, base: int, lost: int, gained: int) -> PairedCounts:
    """Paired outcomes."""
    return PairedCounts(
        examples=examples,
        baseline_correct=base,
        candidate_correct=base - lost + gained,
        lost=lost,
        gained=gained,
        disagreements=lost + gained,
    )


def figures() -> TargetResult:
    """Of a variant that is 2.5 times as fast."""
    latency = LatencyFigures(p50_microseconds=4000, p99_microseconds=9000)
    return TargetResult(
        target="edge",
        state="Measured",
        evaluation=Evaluation(
            data_digest=SOURCE,
            selection=counts(2000, base=1500, lost=40, gained=30),
            confirmation=counts(5500, base=4200, lost=100, gained=80),
        ),
        benchmark=Benchmark(
            rounds=15,
            requests=1500,
            baseline=latency,
            candidate=latency.evolve(p50_microseconds=1600),
            speedup_permille=2500,
            speedup_low_permille=2400,
            speedup_high_permille=2600,
            hardware=Hardware(cpu_model="Test CPU", cpu_millis=500, memory_mebibytes=768),
        ),
    )


def the_run() -> Seen[CompressionRunStatus]:
    """One trial that worked, one that did not."""
    trial = Trial(
        number=0,
        recipe="prune-distill-int8",
        origin="Recipe",
        state="Complete",
        digest=SMALL,
        size_bytes=20_000_000,
        targets=[figures()],
    )
    lost = Trial(number=1, recipe="hopeless", origin="Recipe", state="Failed", reason="Broken")
    status = CompressionRunStatus(
        baseline=ImportResult(
            source_digest=SOURCE,
            artifact_digest=BASE,
            size_bytes=90_000_000,
            parameters=22_700_000,
            labels=["negative", "neutral", "positive"],
            max_absolute_error_nanos=10,
        ),
        trials=[trial, lost],
        choices=[
            Choice(target="edge", trial=0, reason="Chosen", message="cheapest", pareto_front=[0])
        ],
    )
    return Seen("sentiment-1", "2026-01-01T00:00:00Z", status)


def variant(name: str, digest: str, recipe: str) -> SeenVariant:
    """A variant as it is seen."""
    spec = ModelVariantSpec(
        digest=digest,
        store=Store(uri="s3://bucket/x"),
        labels=["a", "b"],
        size_bytes=1,
        lineage=Lineage(recipe=recipe),
    )
    return SeenVariant(name, "2026-01-01T00:00:00Z", ModelVariantStatus(), spec)


@dataclass
class World:
    """Builds the looks at the cluster one after the other."""

    time: float = START
    rollouts: dict[str, SeenRollout] = field(default_factory=dict)

    def rollout(
        self, name: str, digest: str, stage: Stage, *, step: int | None = None, verdict: str = ""
    ) -> None:
        """Bring a rollout into a stage, with the decision for it."""
        old = self.rollouts.get(name)
        decisions = old.status.decisions if old else []
        before = old.status.stage if old else None
        decision = Decision(
            unix_milliseconds=int(self.time * 1000),
            from_stage=before or "",
            to_stage=stage,
            weight_permille=0,
            reason="Because",
            message=f"now {stage}",
        )
        verdicts = []
        if verdict:
            verdicts = [
                SloVerdict.model_validate(
                    {"slo": "latency", "verdict": verdict, "total": 100, "bad": 3}
                )
            ]
        status = VariantRolloutStatus(
            stage=stage,
            step=step,
            stable_digest=BASE,
            candidate_digest=digest,
            verdicts=verdicts,
            decisions=[*decisions, decision],
        )
        spec = VariantRolloutSpec(
            policy_ref=LocalRef(name="sentiment"), candidate_ref=LocalRef(name="v")
        )
        created = old.created if old else f"2026-01-01T00:00:{len(self.rollouts):02d}Z"
        self.rollouts[name] = SeenRollout(name, created, status, spec)

    def look(self, *, permille: int = 0, mirror: int = 0) -> Snapshot:
        """What is seen half a second later."""
        self.time += 0.5
        return Snapshot(
            time=self.time,
            policy=Seen("sentiment", "", CompressionPolicyStatus()),
            runs=(the_run(),),
            variants=(
                variant("sentiment-b", SMALL, "prune-distill-int8"),
                variant("sentiment-a", BASE, "Source"),
            ),
            rollouts=tuple(self.rollouts.values()),
            route=Route(permille, mirror),
        )


@dataclass
class MadeUp:
    """A whole demo."""

    history: History
    log: TrafficLog
    world: World
    bad_started: float
    """When the rollout of the broken variant was made."""


@pytest.fixture
def demo() -> MadeUp:
    """A promotion through shadow and canary, then a candidate that goes back from its canary."""
    world, history, log = World(), History(), TrafficLog()

    def pass_time(looks: int, *, permille: int = 0, mirror: int = 0, tag: str = BASE) -> None:
        for _ in range(looks):
            history.add(world.look(permille=permille, mirror=mirror))
            for i in range(10):
                log.add(Response(world.time + i / 20, 0.004, 200, variant_tag(tag)))

    pass_time(4)
    world.rollout("good", SMALL, "Shadow", verdict="Undecided")
    pass_time(6, mirror=100)
    world.rollout("good", SMALL, "Canary", step=0, verdict="Pass")
    pass_time(6, permille=500)
    world.rollout("good", SMALL, "Watching", verdict="Pass")
    pass_time(6, tag=SMALL)
    world.rollout("good", SMALL, "Succeeded")
    pass_time(4, tag=SMALL)
    bad_started = world.time
    world.rollout("bad", BROKEN, "Shadow", verdict="Undecided")
    pass_time(4, mirror=100, tag=SMALL)
    world.rollout("bad", BROKEN, "Canary", step=0, verdict="Undecided")
    pass_time(4, permille=200, tag=SMALL)
    log.add(Response(world.time, 0.1, 200, variant_tag(BROKEN)))
    world.rollout("bad", BROKEN, "RollingBack", verdict="Fail")
    pass_time(2, tag=SMALL)
    world.rollout("bad", BROKEN, "RolledBack", verdict="Fail")
    pass_time(2, tag=SMALL)
    return MadeUp(history, log, world, bad_started)
