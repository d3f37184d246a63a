# SPDX-License-Identifier: Apache-2.0
"""Progress lines on stdout, one every few seconds, so that `kubectl logs -f` shows what a Job does
and how long yet.
"""

from __future__ import annotations

import sys
import time

INTERVAL_SECONDS = 5.0


def say(text: str) -> None:
    """One line."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Progress:
    """Counts towards a known total."""

    def __init__(self, what: str, total: int, *, unit: str = "texts") -> None:
        self._what = what
        self._total = total
        self._unit = unit
        self._done = 0
        self._started = self._said = time.monotonic()

    def advance(self, count: int = 1, *, note: str = "") -> None:
        """Some more are done; says so when the last line is old enough."""
        self._done += count
        now = time.monotonic()
        if now - self._said < INTERVAL_SECONDS:
            return
        self._said = now
        rate = self._done / (now - self._started)
        left = (self._total - self._done) / rate
        say(
            f"{self._what}: {self._done:,} of {self._total:,} {self._unit}, {rate:.0f}/s,"
            f" {left:.0f} s left" + (f", {note}" if note else "")
        )
