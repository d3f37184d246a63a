# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kompakt.localcluster import process
from kompakt.localcluster.errors import LocalClusterError
from kompakt.localcluster.process import Command


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[process.Process]:
    """A process with the mark of `tmp_path`, and a child of its own."""
    command = Command(name="sleeper", argv=("sh", "-c", "echo started; sleep 60 & wait"))
    yield process.spawn(command, state=tmp_path, log=tmp_path / "log")
    process.kill_all(lambda pid: process.is_marked(pid, tmp_path), timeout_seconds=5)


def test_a_process_is_known_by_its_mark(sleeper: process.Process, tmp_path: Path) -> None:
    """The mark is that of one state folder; it runs in a session of its own, and logs to its
    file.
    """
    deadline = time.monotonic() + 5
    while not (tmp_path / "log").read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (tmp_path / "log").read_text() == "started\n"
    assert sleeper.alive()
    assert process.is_marked(sleeper.pid, tmp_path)
    assert not process.is_marked(sleeper.pid, tmp_path / "other")
    assert not process.is_marked(os.getpid(), tmp_path)
    assert os.getsid(sleeper.pid) == sleeper.pid


def test_only_our_processes_are_killed(sleeper: process.Process, tmp_path: Path) -> None:
    """Children inherit the mark and go too; a process without it is not touched."""
    with subprocess.Popen(["sleep", "60"]) as bystander:
        left = process.kill_all(lambda pid: process.is_marked(pid, tmp_path), timeout_seconds=5)
        assert left == []
        assert not sleeper.alive()
        assert not any(process.is_marked(pid, tmp_path) for pid in process._pids())
        assert bystander.poll() is None
        bystander.kill()


def test_a_process_that_will_not_end_is_named(
    sleeper: process.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the deadline the caller gets the pid, and can say so."""
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda *_: None)
    assert process.kill_all(lambda pid: pid == sleeper.pid, timeout_seconds=0.1) == [sleeper.pid]
    monkeypatch.undo()


def test_the_end_of_a_process_is_seen(tmp_path: Path) -> None:
    """A zombie counts as ended."""
    command = Command(name="short", argv=("true",))
    short = process.spawn(command, state=tmp_path, log=tmp_path / "log")
    deadline = time.monotonic() + 5
    while short.alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not short.alive()


def test_a_failed_command_says_what_it_said() -> None:
    """The error has the purpose, the command and its last words in one sentence."""
    with pytest.raises(LocalClusterError, match=r"cannot make tea: sh -c .* said: no water"):
        process.run(["sh", "-c", "echo no water >&2; exit 3"], what="make tea")


def test_a_missing_command_is_named() -> None:
    """The PATH that was searched is part of the advice."""
    with pytest.raises(LocalClusterError, match="there is no command kettle") as caught:
        process.run(["kettle"], what="make tea")
    assert "PATH" in caught.value.remedy
