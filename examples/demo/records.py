# SPDX-License-Identifier: Apache-2.0
"""What the users of the demo saw: one record for each request, and questions about them.

Invariant: a record is made of what the client itself saw (its clock, the status, a response
header). Nothing in here comes from the operator, so the two can be held against each other.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

OK: Final = 200
VARIANT_DIGITS: Final = 12
"""Hexadecimal digits of the digest in the response header x-kompakt-variant."""


@dataclass(frozen=True, slots=True)
class Response:
    """One request and its answer. Times are Unix seconds."""

    sent: float
    seconds: float
    """Latency as the user has it: connection, gateway, queue, inference."""
    status: int
    """0 when there was no answer: refused, reset, timed out."""
    variant: str = ""
    """The header x-kompakt-variant; empty when the answer has none."""
    detail: str = ""
    """Why it failed."""

    @property
    def ok(self) -> bool:
        """Whether the user got an answer."""
        return self.status == OK

    @property
    def arrived(self) -> float:
        """When the answer was there."""
        return self.sent + self.seconds


def variant_tag(digest: str) -> str:
    """What the response header says for a variant of this digest."""
    return digest.removeprefix("sha256:")[:VARIANT_DIGITS]


@dataclass(frozen=True)
class Window:
    """Figures over some records."""

    requests: int
    failed: int
    per_second: float
    p50: float | None
    """Seconds, of answered requests; None when there are none."""
    p99: float | None
    shares: dict[str, float]
    """Share of each variant among the answered requests."""


@dataclass(frozen=True)
class Bucket:
    """What happened in one interval of a time line."""

    start: float
    seconds: float
    by_variant: dict[str, int]
    """Answered requests."""
    failed: int
    p50: float | None
    p99: float | None


@dataclass
class TrafficLog:
    """All records of a demo, in the order in which the answers arrived."""

    responses: list[Response] = field(default_factory=list)

    def add(self, response: Response) -> None:
        """Record one more."""
        self.responses.append(response)

    @property
    def total(self) -> int:
        """Requests sent."""
        return len(self.responses)

    @property
    def failed(self) -> int:
        """Requests that got no answer, or an error."""
        return sum(not r.ok for r in self.responses)

    def failures(self) -> Counter[str]:
        """Failed requests by their cause."""
        return Counter(r.detail or f"status {r.status}" for r in self.responses if not r.ok)

    def since(self, time: float) -> Iterator[Response]:
        """Records whose answer arrived at that time or later."""
        start = bisect_left(self.responses, time, key=lambda r: r.arrived)
        # Clock steps could break the order; nobody is told of a record that is not asked for.
        return (r for r in self.responses[max(0, start - 1) :] if r.arrived >= time)

    def answered_by(self, variant: str, *, start: float, end: float) -> int:
        """Requests sent in an interval that this variant answered."""
        return sum(r.variant == variant and r.ok and start <= r.sent <= end for r in self.responses)

    def first_slow(self, variant: str, *, after: float, seconds: float) -> Response | None:
        """The first request of a variant, sent after a time, that took longer than `seconds` or
        failed.
        """
        slow = (
            r
            for r in self.responses
            if r.variant == variant and r.sent >= after and (r.seconds > seconds or not r.ok)
        )
        return min(slow, key=lambda r: r.sent, default=None)

    def last_of(self, variant: str, *, after: float) -> Response | None:
        """The last request, sent after a time, that a variant answered."""
        found = (r for r in self.responses if r.variant == variant and r.sent >= after)
        return max(found, key=lambda r: r.sent, default=None)

    def window(self, *, now: float, seconds: float) -> Window:
        """Figures over the last seconds."""
        rows = list(self.since(now - seconds))
        answered = [r for r in rows if r.ok]
        counts = Counter(r.variant for r in answered)
        latencies = sorted(r.seconds for r in answered)
        return Window(
            requests=len(rows),
            failed=len(rows) - len(answered),
            per_second=len(rows) / seconds,
            p50=quantile(latencies, 0.5),
            p99=quantile(latencies, 0.99),
            shares={name: count / len(answered) for name, count in counts.items()},
        )

    def buckets(self, *, start: float, end: float, seconds: float) -> list[Bucket]:
        """A time line: intervals of equal length, by the time of the answer."""
        count = max(1, -int(-(end - start) // seconds))
        rows: list[list[Response]] = [[] for _ in range(count)]
        for response in self.responses:
            index = int((response.arrived - start) // seconds)
            if 0 <= index < count:
                rows[index].append(response)
        return [
            _bucket(start + index * seconds, seconds, interval)
            for index, interval in enumerate(rows)
        ]


def quantile(ordered: list[float], q: float) -> float | None:
    """The smallest value that at least the share `q` of the ordered values does not exceed."""
    if not ordered:
        return None
    index = max(0, -int(-(q * len(ordered)) // 1) - 1)
    return ordered[min(index, len(ordered) - 1)]


def _bucket(start: float, seconds: float, rows: Iterable[Response]) -> Bucket:
    rows = list(rows)
    answered = [r for r in rows if r.ok]
    latencies = sorted(r.seconds for r in answered)
    return Bucket(
        start=start,
        seconds=seconds,
        by_variant=dict(Counter(r.variant for r in answered)),
        failed=len(rows) - len(answered),
        p50=quantile(latencies, 0.5),
        p99=quantile(latencies, 0.99),
    )
