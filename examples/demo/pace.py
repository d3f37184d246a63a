# SPDX-License-Identifier: Apache-2.0
"""How often the demo's users come: as often as was asked, unless the service is at its limit.

At a rate beyond its capacity a queue grows without end, and it does not shrink again at a rate just
below. On a machine that is slower than ours, or busy, the demo would then show nothing but the
queue. So the rate is halved when half of all answers have become much slower than they were at
best, and goes up again step by step (additive increase, multiplicative decrease). A canary that is
starved has too few of the answers to move their median.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

LEAST = 5.0
"""Requests a second, however slow the answers are."""
STEP = 1.0
"""Requests a second that are added after a good window."""
SECONDS = 2.0
"""Of a window."""
SLOW = 4.0
"""So many times the best window's median is a queue."""


@dataclass
class Pace:
    """Requests a second, from how long answers take."""

    wanted: float
    """At most; may be changed at any time."""
    best: float | None = None
    """The least median of a window so far, in seconds."""
    _limit: float | None = None
    """What the service was found to bear; None while it bears all that is wanted."""
    _window: list[float] = field(default_factory=list)
    _begin: float | None = None

    @property
    def rate(self) -> float:
        """Requests a second now."""
        return self.wanted if self._limit is None else min(self.wanted, self._limit)

    def answered(self, at: float, seconds: float) -> None:
        """An answer arrived, at a time of a clock that never goes back, after so many seconds."""
        if self._begin is None:
            self._begin = at
        self._window.append(seconds)
        if at - self._begin < SECONDS:
            return
        middle = median(self._window)
        self._window.clear()
        self._begin = at
        self.best = middle if self.best is None else min(self.best, middle)
        if middle > SLOW * self.best:
            self._limit = max(LEAST, self.rate / 2)
        elif self._limit is not None:
            raised = self._limit + STEP
            self._limit = raised if raised < self.wanted else None
