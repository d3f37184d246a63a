# SPDX-License-Identifier: Apache-2.0
"""build/demo/report.html: one file with everything in it, of the same values as report.json."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from examples.demo.charts import Band, Dot, Lane, pareto_plot, timeline
from examples.demo.history import History, VerdictPoint
from examples.demo.narrate import describe_verdict
from examples.demo.observe import Seen
from examples.demo.records import TrafficLog, variant_tag
from examples.demo.report import Report, pooled
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from kompakt.api.run import CompressionRunStatus

_TEMPLATE: Final = "report.html.j2"
_MEBI: Final = 1 << 20
_BUCKETS: Final = 150
_BEFORE_SECONDS: Final = 15.0


@dataclass(frozen=True)
class Mark:
    """Something that happened, for the time line. Unix seconds."""

    time: float
    text: str
    title: str = ""
    css: str = ""


@dataclass(frozen=True)
class Story:
    """What the page tells."""

    report: Report
    history: History
    log: TrafficLog
    run: Seen[CompressionRunStatus]
    target: str
    threshold_ms: float | None
    """The latency objective."""
    started: float
    ended: float
    marks: tuple[Mark, ...] = ()


def render(story: Story) -> str:
    """The page as HTML."""
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    names = variant_names(story)
    colours = {tag: index for index, tag in enumerate(names)}
    first = _first_of_interest(story)
    width = max(1.0, (story.ended - first) / _BUCKETS)
    chart = timeline(
        story.log.buckets(start=first, end=story.ended, seconds=width),
        list(_lanes(story, first)),
        [
            Band(m.text, m.time - first, m.time - first, m.css, m.title)
            for m in story.marks
            if m.time >= first
        ],
        colours=colours,
        threshold_ms=story.threshold_ms,
    )
    plot = pareto_plot(_dots(story, colours))
    return environment.get_template(_TEMPLATE).render(
        r=story.report,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(story.ended)),
        plot=Markup(plot),  # noqa: S704 -- charts escape what they are given
        timeline=Markup(chart),  # noqa: S704
        legend=[(names[tag], f"v{index}") for tag, index in colours.items()],
        rollouts=list(_rollouts(story, names)),
        hardware=_hardware(story),
        latency_objective=story.threshold_ms,
        notes=[(_clock(n.time - story.started), n) for n in story.history.notes],
    )


def variant_names(story: Story) -> dict[str, str]:
    """The response header's tag of each variant → what people call it, oldest first."""
    variants = sorted(story.history.snapshot.variants, key=lambda v: (v.created, v.name))
    # The source is the first of its run, though all may be of the same second.
    variants.sort(key=lambda v: v.spec.lineage.recipe != "Source")
    return {variant_tag(v.spec.digest): v.spec.lineage.recipe or v.name for v in variants}


def _first_of_interest(story: Story) -> float:
    """Shortly before the first rollout; before it, nothing happens to the users for minutes."""
    users = min((r.sent for r in story.log.responses), default=story.started)
    rollouts = min((s.start for s in story.history.spans), default=users)
    return max(users, rollouts - _BEFORE_SECONDS)


def _dots(story: Story, colours: dict[str, int]) -> list[Dot]:
    dots: list[Dot] = []
    baseline = story.run.status.baseline
    front = next((c.pareto_front for c in story.run.status.choices if c.target == story.target), [])
    for trial in story.run.status.trials:
        figures = next((t for t in trial.targets if t.target == story.target), None)
        if not (figures and figures.evaluation and figures.benchmark and trial.size_bytes):
            continue
        counts, bench = pooled(figures.evaluation), figures.benchmark
        if baseline and not dots:
            dots.append(
                Dot(
                    "unchanged",
                    bench.baseline.p50_microseconds / 1000,
                    counts.baseline_correct / counts.examples,
                    baseline.size_bytes / _MEBI,
                    colours.get(variant_tag(baseline.artifact_digest), 0),
                )
            )
        chosen = trial.digest == story.report.promoted.digest
        dots.append(
            Dot(
                trial.recipe,
                bench.candidate.p50_microseconds / 1000,
                counts.candidate_correct / counts.examples,
                trial.size_bytes / _MEBI,
                colours.get(variant_tag(trial.digest or ""), len(dots)),
                note="promoted" if chosen else "",
                on_front=trial.number in front,
            )
        )
    # The operator's front is among its trials; the unchanged model is on it if none is as accurate.
    return [
        replace(dots[0], on_front=all(d.accuracy < dots[0].accuracy for d in dots[1:])),
        *dots[1:],
    ]


def _lanes(story: Story, begin: float) -> Iterator[Lane]:
    """The stages of all rollouts in one row, then a row for each objective."""
    bands = [
        Band(
            span.stage,
            span.start - begin,
            (story.ended if span.end == story.history.snapshot.time else span.end) - begin,
            f"stage-{span.stage.partition('/')[0].lower()}",
            f"{span.rollout}: {span.stage}",
        )
        for rollout in _rollout_names(story)
        for span in _without_endings(story, rollout)
    ]
    yield Lane("rollout", tuple(bands))
    slos = dict.fromkeys(p.verdict.slo for p in story.history.verdicts)
    for slo in slos:
        yield Lane(slo, tuple(_verdict_bands(story, slo, begin)))


def _verdict_bands(story: Story, slo: str, begin: float) -> Iterator[Band]:
    """Intervals of equal verdict: each holds until the next one, or until the rollout ended."""
    for rollout in _rollout_names(story):
        spans = _without_endings(story, rollout)
        over = max((s.end for s in spans), default=begin)
        points = [
            p for p in story.history.verdicts if p.rollout == rollout and p.verdict.slo == slo
        ]
        runs: list[list[VerdictPoint]] = [
            list(group) for _, group in groupby(points, key=lambda p: (p.stage, p.verdict.verdict))
        ]
        for index, points_of_run in enumerate(runs):
            start = points_of_run[0].time
            end = runs[index + 1][0].time if index + 1 < len(runs) else max(over, start)
            last = points_of_run[-1].verdict
            title = f"{points_of_run[-1].stage}: {describe_verdict(last)} {last.message}".strip()
            css = f"verdict-{last.verdict.lower()}"
            yield Band(last.verdict, start - begin, end - begin, css, title)


def _without_endings(story: Story, rollout: str) -> list[Any]:
    """Stages in which something happens: a finished rollout only stays as it is."""
    spans = story.history.spans_of(rollout)
    ended = {"Succeeded", "RolledBack", "Pending"}
    return [s for s in spans if s.stage not in ended]


def _rollout_names(story: Story) -> list[str]:
    return list(dict.fromkeys(span.rollout for span in story.history.spans))


def _rollouts(story: Story, names: dict[str, str]) -> Iterator[dict[str, Any]]:
    """For the tables: each rollout with its decisions and last verdicts."""
    for name in _rollout_names(story):
        seen = story.history.snapshot.rollout(name)
        if seen is None:
            continue
        status = seen.status
        yield {
            "name": name,
            "stage": status.stage,
            "stable": names.get(variant_tag(status.stable_digest or ""), status.stable_variant),
            "candidate": names.get(
                variant_tag(status.candidate_digest or ""), status.candidate_variant
            ),
            "decisions": [
                (_clock(d.unix_milliseconds / 1000 - story.started), d) for d in status.decisions
            ],
            "verdicts": [(v.verdict.lower(), describe_verdict(v)) for v in status.verdicts],
        }


def _hardware(story: Story) -> str:
    for trial in story.run.status.trials:
        for result in trial.targets:
            if result.benchmark:
                h = result.benchmark.hardware
                features = f" ({', '.join(h.cpu_features)})" if h.cpu_features else ""
                return (
                    f"{h.cpu_model}{features}, limited to {h.cpu_millis / 1000:g} cores and "
                    f"{h.memory_mebibytes:,} MiB, {h.threads} threads, node {h.node}"
                )
    return "unknown"


def _clock(seconds: float) -> str:
    seconds = max(0, round(seconds))
    return f"{seconds // 60}:{seconds % 60:02d}"
