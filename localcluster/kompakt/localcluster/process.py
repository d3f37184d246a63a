# SPDX-License-Identifier: Apache-2.0
"""Processes that outlive the launcher, and how it knows them again.

Invariants: a process is ours if and only if its environment carries the mark of this state folder,
which containerd hands on to its shims, and which no shell ever sets. A pid alone is never trusted:
it is looked at, and signalled, through a pidfd, or compared with its start time. The launcher does
not supervise: `up` again starts what died.
"""

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kompakt.localcluster.errors import LocalClusterError
from kompakt.localcluster.settings import MARK

PROC = Path("/proc")


@dataclass(frozen=True)
class Command:
    """A process to start: its name in `status` and `logs`, and its command line."""

    name: str
    argv: tuple[str, ...]


@dataclass(frozen=True)
class Process:
    """A process that was started; `started` is its start time in clock ticks since boot."""

    name: str
    pid: int
    started: int
    argv: tuple[str, ...]

    def alive(self) -> bool:
        return start_time(self.pid) == self.started


def start_time(pid: int) -> int | None:
    """The start time of a running process in clock ticks; None if it is gone or a zombie."""
    try:
        # The second field is the command in parentheses, which may itself hold parentheses.
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def spawn(command: Command, *, state: Path, log: Path) -> Process:
    """Starts a process in a session of its own, which neither Ctrl-C nor the launcher's end
    reaches.
    """
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(state),
        MARK: str(state),
    }
    with log.open("ab") as output:
        child = subprocess.Popen(
            command.argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=state,
            env=environment,
            start_new_session=True,
        )
    started = start_time(child.pid)
    # Popen would warn, when it is collected, that the process still runs. That is the point of it.
    child.returncode = 0
    return Process(name=command.name, pid=child.pid, started=started or 0, argv=command.argv)


def is_marked(pid: int, state: Path) -> bool:
    """Whether a process carries the mark of this state folder."""
    try:
        environment = (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return False
    return f"{MARK}={state}".encode() in environment.split(b"\0")


def kill_all(ours: Callable[[int], bool], *, timeout_seconds: float) -> list[int]:
    """Kills every process that is `ours` until there is none; returns what is left in the end."""
    deadline = time.monotonic() + timeout_seconds
    dying: dict[int, int] = {}
    try:
        while True:
            known = len(dying)
            for pid in _pids():
                if pid not in dying and ours(pid) and start_time(pid) is not None:
                    _kill(pid, ours, dying)
            # A dying process loses its environment before its sockets: only its descriptor, which
            # becomes readable, tells when it has ended.
            left = [pid for pid, descriptor in dying.items() if not _ended(descriptor)]
            if (not left and len(dying) == known) or time.monotonic() > deadline:
                return left
            time.sleep(0.02)
    finally:
        for descriptor in dying.values():
            os.close(descriptor)


def _kill(pid: int, ours: Callable[[int], bool], dying: dict[int, int]) -> None:
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        # Asked again of what the descriptor holds: since the last look, the pid may have become
        # somebody else's.
        if not ours(pid):
            os.close(descriptor)
            return
        dying[pid] = descriptor
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)


def _ended(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])


def _pids() -> list[int]:
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdecimal()]


def run(
    argv: Sequence[str],
    *,
    what: str,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    cwd: Path | None = None,
) -> str:
    """Runs a short command to its end; its failure is an error that carries what it said."""
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            capture_output=True,
            text=True,
            env=env,
            cwd=cwd,
            check=False,
        )
    except FileNotFoundError as error:
        raise LocalClusterError(
            "CommandMissing",
            f"cannot {what}: there is no command {argv[0]}",
            remedy=f"install it, and see that it is on the PATH ({os.environ.get('PATH', '')})",
        ) from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout or "nothing").split())
        raise LocalClusterError(
            "CommandFailed",
            f"cannot {what}: {' '.join(argv[:3])} … said: {said}",
            remedy="mend that, then run it again",
        )
    return done.stdout
