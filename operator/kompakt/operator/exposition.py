# SPDX-License-Identifier: Apache-2.0
"""A fast reader of Prometheus text for the series between serving pods and the judge.

Pods are scraped every second and write the same series each time, so what stands left of the value
is parsed once and remembered. Counters, gauges and bucket counts of the names in
`kompakt.api.telemetry` are kept, as whole numbers; everything else (sums, other metrics) is passed
over.
"""

from __future__ import annotations

import re
from typing import Final

from kompakt.api import telemetry

_PLAIN: Final = (
    telemetry.REQUESTS_STARTED,
    telemetry.REQUESTS_FINISHED,
    telemetry.PREDICTIONS,
    telemetry.SHADOW_RECEIVED,
    telemetry.SHADOW_DROPPED,
    telemetry.SHADOW_PAIRS,
    telemetry.SHADOW_DISAGREEMENTS,
    telemetry.SHADOW_ERRORS,
    telemetry.SHADOW_CALLS,
    telemetry.GOLDEN_PASS,
    telemetry.GOLDEN_PAIRS,
    telemetry.GOLDEN_LOST,
    telemetry.GOLDEN_GAINED,
)
_HISTOGRAMS: Final = (telemetry.REQUEST_DURATION, telemetry.SHADOW_DURATION)
KEPT: Final = frozenset(
    [*_PLAIN, *(f"{name}{end}" for name in _HISTOGRAMS for end in ("_bucket", "_count"))]
)
VARIANT: Final = "variant"

_NAME: Final = r"[a-zA-Z_][a-zA-Z0-9_]*"
_PAIR: Final = rf'{_NAME}\s*=\s*"(?:[^"\\]|\\.)*"'
_LINE: Final = re.compile(
    r"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)"
    rf"(?:\{{\s*(?P<labels>(?:{_PAIR}\s*,\s*)*(?:{_PAIR})?)\s*\}})?"
    r"[ \t]+(?P<value>\S+)(?:[ \t]+-?\d+)?[ \t]*"
)
_LABEL: Final = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*("(?:[^"\\]|\\.)*")')
_REMEMBERED: Final = 20_000


class Reader:
    """Parses texts; remembers what it has seen."""

    def __init__(self) -> None:
        self._keys: dict[str, str | None] = {}

    def read(self, text: str) -> dict[str, int]:
        """Series key → value.

        A key is the series in exposition form without the label `variant`, labels sorted by name:
        `kompakt_requests_finished_total{outcome="ok"}`, or a bare name. Series that differ in the
        variant alone are added up.

        Raises ValueError for what is no exposition text.
        """
        found: dict[str, int] = {}
        for line in text.split("\n"):  # not splitlines: labels may hold its other ends of line
            if not line or line[0] == "#":
                continue
            series, _, value = line.rpartition(" ")
            if series in self._keys:
                key = self._keys[series]
            else:
                key, value = self._learn(series, line)
            if key is not None:
                found[key] = found.get(key, 0) + int(float(value))
        return found

    def _learn(self, series: str, line: str) -> tuple[str | None, str]:
        match = _LINE.fullmatch(line)
        if match is None:
            msg = f"not a line of Prometheus text: {line[:80]!r}"
            raise ValueError(msg)
        key = None
        if match["name"] in KEPT:
            labels = sorted(
                f"{name}={value}"
                for name, value in _LABEL.findall(match["labels"] or "")
                if name != VARIANT
            )
            key = match["name"] + (f"{{{','.join(labels)}}}" if labels else "")
        # With a timestamp at its end, what was cut off was not the value.
        if match.end("value") == len(line.rstrip()):
            if len(self._keys) >= _REMEMBERED:
                self._keys.clear()
            self._keys[series] = key
        return key, match["value"]
