# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io

import pytest
from examples.demo.history import History
from examples.demo.live import View
from examples.demo.records import TrafficLog
from rich.console import Console

from .conftest import MadeUp, World


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    """A console that writes into a buffer."""
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=120, height=50), out


def test_plain_lines_where_there_is_no_terminal(demo: MadeUp) -> None:
    """A log of a demo has each note once, with its source, and no control characters."""
    screen, out = console(terminal=False)
    view = View(screen, demo.history, demo.log, ["one act"])

    with view.shown(), view.act("one act"):
        view.tell(demo.history.notes)
        view.say("hello")

    said = out.getvalue()
    assert "\x1b" not in said
    assert said.count("Shadow → Canary") == 2
    assert "demo  hello" in said
    assert "✓ one act" in said
    assert "users  " in said


def test_the_picture_shows_where_it_is(demo: MadeUp) -> None:
    """Acts, users, the rollout with its verdicts, and the last decisions are on the screen."""
    screen, out = console(terminal=True)
    view = View(screen, demo.history, demo.log, ["first act", "second act"])

    with view.act("first act"):
        screen.print(view.picture())

    said = out.getvalue()
    for text in ("first act", "second act", "users", "bad: RolledBack", "Fail", "Because"):
        assert text in said


def test_a_failed_act_is_not_ticked_off() -> None:
    """An act that raises stays unfinished."""
    screen, out = console(terminal=False)
    view = View(screen, History(), TrafficLog(), ["act"])

    with pytest.raises(ValueError, match="no"), view.act("act"):
        raise ValueError("no")

    assert "✓" not in out.getvalue()


def test_there_is_a_picture_before_anything_is_seen() -> None:
    """The first frame comes before the first look at the cluster."""
    screen, out = console(terminal=True)
    history = History()
    view = View(screen, history, TrafficLog(), ["act"])
    screen.print(view.picture())
    history.add(World().look())
    screen.print(view.picture())

    assert "act" in out.getvalue()
