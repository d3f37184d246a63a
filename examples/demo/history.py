# SPDX-License-Identifier: Apache-2.0
"""The demo's memory: what was seen of the operator over time, for the live view, the accounts and
the report.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

from examples.demo.narrate import Note, narrate, stage_name
from examples.demo.observe import Route, Snapshot

from kompakt.api.rollout import SloVerdict


@dataclass(frozen=True)
class Span:
    """A stage of a rollout. Times are Unix seconds."""

    rollout: str
    stage: str
    start: float
    end: float


@dataclass(frozen=True)
class VerdictPoint:
    """The judge's word on an objective, from this time on."""

    time: float
    rollout: str
    stage: str
    verdict: SloVerdict


@dataclass(frozen=True)
class RoutePoint:
    """The route as it was seen at a time. `previous` is when it was looked at before."""

    time: float
    previous: float
    route: Route


@dataclass
class History:
    """Everything that was seen."""

    snapshot: Snapshot = field(default_factory=lambda: Snapshot(time=0.0))
    """The newest."""
    notes: list[Note] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    verdicts: list[VerdictPoint] = field(default_factory=list)
    routes: list[RoutePoint] = field(default_factory=list)
    """Changes of the route."""

    def say(self, note: Note) -> None:
        """Add a line of the demo's own."""
        self.notes.append(note)

    def add(self, snapshot: Snapshot) -> list[Note]:
        """Take in a new look, and return what is new in it."""
        before, self.snapshot = self.snapshot, snapshot
        notes = narrate(before, snapshot)
        self.notes += notes
        self._remember_route(before, snapshot)
        for rollout in snapshot.rollouts:
            stage = stage_name(rollout)
            if stage:
                self._extend_span(rollout.name, stage, snapshot.time)
            for verdict in rollout.status.verdicts:
                self._remember_verdict(VerdictPoint(snapshot.time, rollout.name, stage, verdict))
        return notes

    def spans_of(self, rollout: str) -> list[Span]:
        """The stages of one rollout, in order."""
        return [span for span in self.spans if span.rollout == rollout]

    def stage_reached(self, rollout: str, stage: str) -> float | None:
        """When a stage was first seen."""
        return next((s.start for s in self.spans_of(rollout) if s.stage == stage), None)

    def mirror_started(self, *, after: float) -> float | None:
        """The latest time at which the route surely did not mirror yet, before it first did so
        after `after`.
        """
        return next(
            (
                point.previous
                for point in self.routes
                if point.time > after and point.route.mirror_percent > 0
            ),
            None,
        )

    def traffic_returned(self, *, after: float) -> float | None:
        """When the route was first seen without weight and mirror for a candidate, having had one
        after `after`.
        """
        later = [point for point in self.routes if point.time > after]
        start = next((p for p in reversed(self.routes) if p.time <= after), None)
        for earlier, point in pairwise([start, *later] if start else later):
            if _shares(earlier.route) and not _shares(point.route):
                return point.time
        return None

    def _remember_route(self, before: Snapshot, now: Snapshot) -> None:
        if now.route is not None and now.route != before.route:
            self.routes.append(RoutePoint(now.time, before.time or now.time, now.route))

    def _extend_span(self, rollout: str, stage: str, time: float) -> None:
        last = next(
            (i for i in reversed(range(len(self.spans))) if self.spans[i].rollout == rollout), None
        )
        if last is not None:
            self.spans[last] = replace(self.spans[last], end=time)
            if self.spans[last].stage == stage:
                return
        self.spans.append(Span(rollout, stage, time, time))

    def _remember_verdict(self, point: VerdictPoint) -> None:
        known = next(
            (
                p
                for p in reversed(self.verdicts)
                if p.rollout == point.rollout and p.verdict.slo == point.verdict.slo
            ),
            None,
        )
        if known is None or (known.stage, known.verdict) != (point.stage, point.verdict):
            self.verdicts.append(point)


def _shares(route: Route) -> bool:
    """Whether a candidate gets users' requests or copies of them."""
    return route.candidate_permille > 0 or route.mirror_percent > 0
