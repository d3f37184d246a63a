# SPDX-License-Identifier: Apache-2.0
"""What the terminal shows while the demo runs: a live picture, or plain lines where there is none.

Invariant: everything shown is in the history or in the users' records; the view decides nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from examples.demo.history import History
from examples.demo.narrate import Note, Tone, stage_name
from examples.demo.records import TrafficLog, Window, variant_tag
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

_STYLES: Final[dict[Tone, str]] = {"plain": "", "good": "green", "bad": "bold red", "dim": "dim"}
_VERDICT_STYLES: Final = {"Pass": "green", "Fail": "bold red", "Undecided": "dim"}
_SHARE_STYLES: Final = ("white", "dodger_blue1", "cyan3", "dark_orange", "medium_purple", "magenta")
_WINDOW_SECONDS: Final = 5.0
_USERS_LINE_SECONDS: Final = 15.0
_NOTES_SHOWN: Final = 14
_BAR_WIDTH: Final = 40


@dataclass
class Act:
    """One step of the demo."""

    title: str
    started: float | None = None
    ended: float | None = None


class View:
    """Shows the acts, the users, the rollout that is under way, and the latest notes."""

    def __init__(
        self, console: Console, history: History, log: TrafficLog, acts: list[str]
    ) -> None:
        self.started = time.time()
        self.acts = [Act(title) for title in acts]
        self._console = console
        self._history = history
        self._log = log
        self._users_said = 0.0
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draw the picture while the block runs; plain lines need no preparation."""
        if not self._console.is_terminal:
            yield
            return
        with Live(
            get_renderable=self.picture, console=self._console, refresh_per_second=4
        ) as self._live:
            yield
        self._live = None

    @contextmanager
    def act(self, title: str) -> Iterator[None]:
        """Mark an act as under way, then as done."""
        act = next(a for a in self.acts if a.title == title)
        act.started = time.time()
        self._line(f"— {title}", "bold")
        yield
        act.ended = time.time()
        self._line(f"✓ {title}, {act.ended - act.started:.1f} s", "green")

    def say(self, text: str, tone: Tone = "plain") -> None:
        """Tell something of the demo's own."""
        note = Note(time.time(), "demo", text, tone)
        self._history.say(note)
        self.tell([note])

    def tell(self, notes: list[Note]) -> None:
        """Tell what is new; on a terminal the picture shows it by itself."""
        for note in notes:
            self._line(f"{note.source}  {note.text}", _STYLES[note.tone])
        now = time.time()
        if self._log.total and now - self._users_said >= _USERS_LINE_SECONDS:
            self._users_said = now
            self._line(f"users  {self._users_text(self._window(now))}", "cyan")

    def picture(self) -> RenderableType:
        """All of it, as it is now."""
        now = time.time()
        parts: list[RenderableType] = [self._acts_table(now)]
        if self._log.total:
            parts.append(self._users_panel(self._window(now)))
        if (rollout := self._rollout_panel()) is not None:
            parts.append(rollout)
        parts.append(self._notes_panel())
        return Group(*parts)

    def _line(self, text: str, style: str) -> None:
        if self._live is None:
            clock = f"{time.time() - self.started:6.1f}"
            self._console.print(Text.assemble((clock, "dim"), "  ", (text, style)), soft_wrap=True)

    def _window(self, now: float) -> Window:
        return self._log.window(now=now, seconds=_WINDOW_SECONDS)

    def _acts_table(self, now: float) -> Table:
        table = Table.grid(padding=(0, 1))
        for act in self.acts:
            if act.started is None:
                table.add_row(Text("○", "dim"), Text(act.title, "dim"), "")
            elif act.ended is None:
                seconds = f"{now - act.started:.0f} s"
                table.add_row(Text("●", "bold yellow"), Text(act.title, "bold"), seconds)
            else:
                seconds = f"{act.ended - act.started:.0f} s"
                table.add_row(Text("✓", "green"), act.title, Text(seconds, "dim"))
        return table

    def _names(self) -> dict[str, str]:
        variants = self._history.snapshot.variants
        return {variant_tag(v.spec.digest): v.spec.lineage.recipe or v.name for v in variants}

    def _users_text(self, window: Window) -> str:
        latency = "no answers"
        if window.p50 is not None and window.p99 is not None:
            latency = f"median {1000 * window.p50:.1f} ms, 99 % {1000 * window.p99:.1f} ms"
        names = self._names()
        shares = ", ".join(
            f"{names.get(tag, tag or 'unknown')} {share:.0%}"
            for tag, share in sorted(window.shares.items())
        )
        return (
            f"{window.per_second:.0f} requests/s, {latency}, "
            f"{self._log.failed} of {self._log.total:,} failed; {shares}"
        )

    def _users_panel(self, window: Window) -> Panel:
        bar = Text()
        order = list(self._names())
        for tag, share in sorted(window.shares.items()):
            style = _SHARE_STYLES[order.index(tag) % len(_SHARE_STYLES) if tag in order else 0]
            bar.append("█" * max(1, round(_BAR_WIDTH * share)), style)
        return Panel(Group(Text(self._users_text(window)), bar), title="users", title_align="left")

    def _rollout_panel(self) -> Panel | None:
        rollout = self._history.snapshot.rollout()
        if rollout is None or not rollout.status.stage:
            return None
        table = Table.grid(padding=(0, 2))
        for v in rollout.status.verdicts:
            limit = "" if v.limit_basis_points is None else f"≤ {v.limit_basis_points / 100:.1f} %"
            bounds = ""
            if v.low_basis_points is not None and v.high_basis_points is not None:
                bounds = f"{v.low_basis_points / 100:.1f}–{v.high_basis_points / 100:.1f} %"
            counts = f"{v.bad:,} of {v.total:,} bad"
            verdict = Text(v.verdict, _VERDICT_STYLES[v.verdict])
            table.add_row(v.slo, verdict, counts, bounds, limit)
        route = self._history.snapshot.route
        weight = f"{route.candidate_permille / 10:g} % of the users" if route else ""
        if route and route.mirror_percent:
            weight = f"copies of {route.mirror_percent} % of the requests"
        title = f"{rollout.name}: {stage_name(rollout)}, {weight}"
        return Panel(table, title=title, title_align="left")

    def _notes_panel(self) -> Panel:
        table = Table.grid(padding=(0, 1))
        table.add_column(justify="right", style="dim")
        table.add_column(style="dim", no_wrap=True, max_width=28)
        table.add_column()
        for note in self._history.notes[-_NOTES_SHOWN:]:
            clock = f"{max(0.0, note.time - self.started):.0f}"
            table.add_row(clock, note.source, Text(note.text, _STYLES[note.tone]))
        return Panel(table, title="what the operator does, and why", title_align="left")
