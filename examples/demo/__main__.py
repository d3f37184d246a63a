# SPDX-License-Identifier: Apache-2.0
"""`make demo`: a model's whole way, from policy to production, and two regressions sent back.

Leaves build/demo/report.html and build/demo/report.json. Exit code 0 when the lifecycle ended as
promised, 1 with a sentence when it did not. KUBECONTEXT and REGISTRY choose a cluster that is there
already; without them the embedded one is started.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from examples.demo.cluster import ROOT, from_environment, install, kubernetes_version
from examples.demo.errors import DemoError
from examples.demo.history import History
from examples.demo.kube import connect, run_command
from examples.demo.live import View
from examples.demo.page import Story, render
from examples.demo.records import TrafficLog
from examples.demo.report import (
    Kubernetes,
    Regression,
    Report,
    Requests,
    Seconds,
    baseline_and_promoted,
    to_wire,
)
from examples.demo.scenario import MANIFESTS, Declared, Demo
from examples.sentiment.prepare import Example, prepared
from rich.console import Console
from rich.table import Table

OUTPUT: Final = ROOT / "build" / "demo"
_PREPARE_SECONDS: Final = 7200.0

INSTALL: Final = "install Kompakt by its chart, and copy model and data into the cluster"
SERVE: Final = "apply the policy; the unchanged model answers users"
COMPRESS: Final = "compress, measure, choose"
PROMOTE: Final = "shadow, canary, promotion"
ACCURACY: Final = "regression 1: an over-pruned variant"
LATENCY: Final = "regression 2: a starved canary"


@dataclass(frozen=True)
class Outcome:
    """What the acts brought."""

    promoted: str
    """Digest."""
    regressions: tuple[Regression, ...]


async def perform(demo: Demo) -> Outcome:
    """All acts, one after the other; only what does not disturb a measurement runs beside."""
    view = demo.view
    async with asyncio.TaskGroup() as background:
        watching = background.create_task(demo.watch())
        with view.act(SERVE):
            await demo.declare()
            client = await demo.serve()
        users = background.create_task(client.run())
        over_pruned = background.create_task(demo.make_over_pruned())
        with view.act(COMPRESS):
            await demo.compress()
        with view.act(PROMOTE):
            rollout = await demo.promote()
            promoted = await demo.succeed(rollout)
        with view.act(ACCURACY):
            accuracy = await demo.accuracy_regression(await over_pruned)
        with view.act(LATENCY):
            latency = await demo.latency_regression(promoted)
        users.cancel()
        with suppress(asyncio.CancelledError):
            await users
        watching.cancel()
    return Outcome(promoted, (accuracy, latency))


async def run(console: Console) -> Report:
    """The demo, from the first check to the report."""
    started = time.time()
    example = await _example(console)
    cluster = await from_environment(lambda text: console.print(text, soft_wrap=True))
    history, log = History(), TrafficLog()
    view = View(console, history, log, [INSTALL, SERVE, COMPRESS, PROMOTE, ACCURACY, LATENCY])
    declared = Declared.read(MANIFESTS / "30-policy.yaml")
    async with connect(cluster.kubectl) as kube:
        version, nodes = await kubernetes_version(kube)
        demo = Demo(cluster, kube, example, declared, view, history, log)
        with view.shown():
            with view.act(INSTALL):
                await _both(install(cluster), _fresh_inputs(demo))
            try:
                outcome = await perform(demo)
            except BaseExceptionGroup as group:
                raise _first(group) from None
    ended = time.time()
    source = history.snapshot.run()
    if source is None:
        raise demo.broken("the run is gone")
    baseline, promoted = baseline_and_promoted(
        source, target=declared.target, digest=outcome.promoted
    )
    report = Report(
        kubernetes=Kubernetes(version, nodes),
        baseline=baseline,
        promoted=promoted,
        requests=Requests(log.total, log.failed),
        regressions=outcome.regressions,
        seconds=Seconds(
            build=round(cluster.build_seconds),
            cluster=round(cluster.start_seconds),
            total=round(ended - started),
        ),
    )
    story = Story(
        report=report,
        history=history,
        log=log,
        run=source,
        target=declared.target,
        threshold_ms=1000 * declared.latency_seconds,
        started=view.started,
        ended=ended,
        marks=tuple(demo.marks),
    )
    _write(report, story)
    _show(console, report, log)
    return report


def main() -> int:
    """Perform the demo; returns the exit code."""
    console = Console(highlight=False)
    try:
        asyncio.run(run(console))
    except DemoError as error:
        console.print(f"\ndemo: {error}", style="bold red", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("\nstopped; the cluster goes on (kompakt-localcluster down takes it away)")
        return 130
    return 0


async def _example(console: Console) -> Example:
    """The example's model and data, made now if they are not in the cache."""
    if (example := prepared()) is not None:
        return example
    console.print("preparing the example's model and data, once; it is cached afterwards")
    command = [sys.executable, "-m", "examples.sentiment.prepare"]
    await run_command(command, seconds=_PREPARE_SECONDS, watch=True)
    example = prepared()
    if example is None:
        msg = "the example was prepared, but it is not in the cache"
        raise DemoError(msg)
    return example


async def _fresh_inputs(demo: Demo) -> None:
    await demo.empty_namespace()
    await demo.load_inputs()


async def _both(*jobs: Coroutine[Any, Any, None]) -> None:
    """Run side by side; the first error ends both."""
    try:
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(job)
    except BaseExceptionGroup as errors:
        raise _first(errors) from None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that a group of tasks failed by."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        told = (e for e in found.exceptions if isinstance(e, DemoError))
        found = next(told, found.exceptions[0])
    return found


def _write(report: Report, story: Story) -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("report.json", json.dumps(to_wire(report), indent=1, ensure_ascii=False) + "\n"),
        ("report.html", render(story)),
    ):
        partial = OUTPUT / f".{name}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(OUTPUT / name)


def _show(console: Console, report: Report, log: TrafficLog) -> None:
    """The table at the end."""
    p, speedup = report.promoted, report.promoted.speedup
    table = Table(title="measured in this run", title_justify="left", show_header=False)
    table.add_row("promoted", f"{p.recipe} ({p.digest[:19]}…)")
    table.add_row("speed-up", f"{speedup.value:.2f}× [{speedup.low:.2f}–{speedup.high:.2f}]")
    table.add_row(
        "size", f"{report.baseline.size_bytes / 1e6:.1f} MB, {p.size_ratio:.1f} times smaller now"
    )
    table.add_row(
        "accuracy",
        f"{report.baseline.accuracy:.2%}, {p.accuracy_drop_basis_points / 100:.2f} points lost, "
        f"surely less than {p.accuracy_drop_upper_bound_basis_points / 100:.2f}",
    )
    table.add_row("user requests", f"{report.requests.total:,}, {report.requests.failed} failed")
    for r in report.regressions:
        table.add_row(
            f"{r.kind} regression",
            f"back from {r.stage} after {r.seconds_to_rollback:.1f} s, "
            f"{r.user_requests_to_candidate} user requests: {r.reason}",
        )
    seconds = report.seconds
    table.add_row(
        "seconds", f"{seconds.total} in all; build {seconds.build}, cluster {seconds.cluster}"
    )
    console.print(table)
    for cause, count in log.failures().most_common(5):
        console.print(f"  {count} failed: {cause}", style="bold red", markup=False)
    shown = [_relative(OUTPUT / name) for name in ("report.html", "report.json")]
    console.print(f"{shown[0]} has the whole story, {shown[1]} the numbers")


def _relative(path: Path) -> str:
    with suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


if __name__ == "__main__":
    sys.exit(main())
