# SPDX-License-Identifier: Apache-2.0
"""What the launcher tells while it works: a live line in a terminal, plain lines elsewhere.

Invariants: it writes to standard error only, so that standard output holds results; one stage at a
time; a stage's seconds are recorded even where nothing is shown.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.status import Status

PLAIN_INTERVAL_SECONDS = 15.0
"""How often a long stage says a word where there is no terminal."""


@dataclass
class Progress:
    """Reports stages and remembers how long each took."""

    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))
    seconds: dict[str, float] = field(default_factory=dict)
    _stage: str = ""
    _detail: str = ""
    _started: float = 0.0
    _said: float = 0.0
    _status: Status | None = None

    @contextmanager
    def stage(self, name: str, description: str) -> Iterator[None]:
        """Shows `description` with the elapsed time, and keeps the seconds under `name`."""
        self._stage, self._detail = description, ""
        self._started = self._said = time.monotonic()
        done = threading.Event()
        ticker = threading.Thread(target=self._tick, args=(done,), daemon=True)
        if self.console.is_terminal:
            self._status = self.console.status(escape(description))
            self._status.start()
        ticker.start()
        try:
            yield
        finally:
            done.set()
            ticker.join()
            if self._status is not None:
                self._status.stop()
                self._status = None
            elapsed = time.monotonic() - self._started
            self.seconds[name] = round(elapsed, 1)
            if sys.exc_info()[0] is None:
                self.say(f"[green]✓[/] {escape(description)} [dim]{elapsed:.1f} s[/]")

    def detail(self, text: str) -> None:
        """Says what is being done within the stage."""
        self._detail = text

    def say(self, markup: str) -> None:
        self.console.print(markup, soft_wrap=True)

    def _tick(self, done: threading.Event) -> None:
        while not done.wait(0.2):
            elapsed = time.monotonic() - self._started
            line = f"{self._stage}: {self._detail}" if self._detail else self._stage
            if self._status is not None:
                self._status.update(f"{escape(line)} [dim]{elapsed:.0f} s[/]")
            elif time.monotonic() - self._said >= PLAIN_INTERVAL_SECONDS:
                self._said = time.monotonic()
                self.say(f"  {escape(line)} [dim]{elapsed:.0f} s[/]")
