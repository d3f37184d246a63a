# SPDX-License-Identifier: Apache-2.0
"""Counters, gauges and histograms in the Prometheus text format, as exact whole numbers.

Everything happens on the event loop's thread: no locks, and a scrape sees a state between two
requests, never half of one (a histogram's count equals the number of requests that finished `ok`).
Each family has at most one label besides the constant ones. An observation costs well under a
microsecond.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, Literal

from kompakt.api.telemetry import LATENCY_EDGES_MICROSECONDS

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
_EDGES_NS: Final = tuple(edge * 1000 for edge in LATENCY_EDGES_MICROSECONDS)
_EDGES_TEXT: Final = tuple(repr(edge / 1_000_000) for edge in LATENCY_EDGES_MICROSECONDS)


class Family:
    """A counter or a gauge; with a label, one series for each of its values seen so far."""

    def __init__(
        self,
        name: str,
        kind: Literal["counter", "gauge"],
        description: str,
        *,
        label: str | None = None,
        values: Iterable[str] = (),
    ) -> None:
        self.name: Final = name
        self._kind = kind
        self._description = description
        self._label = label
        self._series: dict[str, float] = dict.fromkeys(values, 0)
        if label is None:
            self._series[""] = 0

    def add(self, value: str = "", amount: float = 1) -> None:
        """Count up."""
        self._series[value] = self._series.get(value, 0) + amount

    def set(self, number: float, value: str = "") -> None:
        """Set a gauge."""
        self._series[value] = number

    def get(self, value: str = "") -> float:
        """The current number."""
        return self._series.get(value, 0)

    def render(self, constant: str) -> Iterator[str]:
        """Lines of the text format."""
        yield from _header(self.name, self._kind, self._description)
        for value, number in self._series.items():
            yield f"{self.name}{_labels(constant, self._label, value)} {number}"


class Histogram:
    """Durations over the shared bucket edges.

    A duration is counted below an edge only when it was not longer, to the nanosecond: nothing is
    rounded down.
    """

    def __init__(
        self, name: str, description: str, *, label: str | None = None, values: Iterable[str] = ()
    ) -> None:
        self.name: Final = name
        self._description = description
        self._label = label
        self._buckets: dict[str, list[int]] = {}
        self._sums_ns: dict[str, int] = {}
        for value in values if label is not None else ("",):
            self._start(value)

    def _start(self, value: str) -> None:
        self._buckets[value] = [0] * (len(_EDGES_NS) + 1)
        self._sums_ns[value] = 0

    def observe(self, nanoseconds: int, value: str = "") -> None:
        """Count one duration."""
        if value not in self._buckets:
            self._start(value)
        self._buckets[value][bisect_left(_EDGES_NS, nanoseconds)] += 1
        self._sums_ns[value] += nanoseconds

    def render(self, constant: str) -> Iterator[str]:
        """Lines of the text format."""
        yield from _header(self.name, "histogram", self._description)
        for value, buckets in self._buckets.items():
            labels = _labels(constant, self._label, value)
            prefix = f"{self.name}_bucket{labels[:-1]}," if labels else f"{self.name}_bucket{{"
            total = 0
            for edge, count in zip(_EDGES_TEXT, buckets, strict=False):
                total += count
                yield f'{prefix}le="{edge}"}} {total}'
            total += buckets[-1]
            yield f'{prefix}le="+Inf"}} {total}'
            yield f"{self.name}_sum{labels} {self._sums_ns[value] / 1e9}"
            yield f"{self.name}_count{labels} {total}"


class Sampled:
    """One series without a label, read when it is scraped."""

    def __init__(
        self,
        name: str,
        description: str,
        read: Callable[[], float],
        *,
        kind: Literal["counter", "gauge"] = "gauge",
    ) -> None:
        self.name: Final = name
        self._description = description
        self._read = read
        self._kind = kind

    def render(self, constant: str) -> Iterator[str]:
        """Lines of the text format."""
        yield from _header(self.name, self._kind, self._description)
        yield f"{self.name}{_labels(constant, None, '')} {self._read()}"


class Registry:
    """The families of one process, and labels that all their series carry."""

    def __init__(self, constant_labels: Mapping[str, str] | None = None) -> None:
        pairs = (constant_labels or {}).items()
        self._constant = ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs)
        self._families: list[Family | Histogram | Sampled] = []

    def add(self, *families: Family | Histogram | Sampled) -> None:
        """Expose families, in this order."""
        self._families.extend(families)

    def render(self) -> bytes:
        """The whole exposition, the process's own series last."""
        lines = [line for family in self._families for line in family.render(self._constant)]
        for sampled in PROCESS:
            lines.extend(sampled.render(""))
        return ("\n".join(lines) + "\n").encode()


def _header(name: str, kind: str, description: str) -> Iterator[str]:
    yield f"# HELP {name} {description}"
    yield f"# TYPE {name} {kind}"


def _labels(constant: str, label: str | None, value: str) -> str:
    own = "" if label is None else f'{label}="{_escaped(value)}"'
    both = ",".join(part for part in (constant, own) if part)
    return f"{{{both}}}" if both else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


# --- the process
# -------------------------------------------------------------------------------------------------

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES


_STARTED: Final = time.time()
PROCESS: Final = (
    Sampled(
        "process_start_time_seconds", "Unix time at which the process started.", lambda: _STARTED
    ),
    Sampled("process_resident_memory_bytes", "Resident memory.", _resident_bytes),
    Sampled(
        "process_cpu_seconds_total", "User and system time.", time.process_time, kind="counter"
    ),
)
