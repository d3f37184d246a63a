# SPDX-License-Identifier: Apache-2.0
"""What is remembered about the one cluster of this machine: the lease, and the lock around it.

Invariants: the lease is written before what it speaks of is used, and replaced as a whole, so a
launcher that is killed at any point leaves one that `up` and `down` can clean up by; only the
holder of the lock changes anything; a lease whose checkout is gone, or of which no process runs,
belongs to nobody.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kompakt.localcluster.errors import LocalClusterError
from kompakt.localcluster.process import Process
from kompakt.localcluster.settings import Settings

FORMAT = 1


@dataclass(frozen=True)
class Owner:
    """Whose cluster it is, and what its pods see: two equal owners can share one cluster."""

    checkout: str
    venv: str
    interpreter: str
    controlplane: str
    gateway: str

    def gone(self) -> bool:
        return not Path(self.checkout).exists()


@dataclass(frozen=True)
class Lease:
    """The running cluster, as far as the launcher knows it."""

    owner: Owner
    state: str
    phase: Literal["Starting", "Running"] = "Starting"
    started_at: float = 0.0
    processes: tuple[Process, ...] = ()
    kernel_settings: dict[str, str] = field(default_factory=dict)
    gateway_address: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def dead(self) -> tuple[Process, ...]:
        return tuple(process for process in self.processes if not process.alive())

    def abandoned(self) -> bool:
        """Whether nobody can want it any more: its source is gone, or all its processes are."""
        return self.owner.gone() or len(self.dead()) == len(self.processes)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Lease":
        data: dict[str, Any] = json.loads(text)
        if data.pop("format") != FORMAT:
            raise ValueError("written by another version")
        data["owner"] = Owner(**data["owner"])
        data["processes"] = tuple(
            Process(**{**process, "argv": tuple(process["argv"])}) for process in data["processes"]
        )
        return cls(**data)


def read(path: Path) -> Lease | None:
    """The lease at `path`; None where there is none."""
    try:
        return Lease.from_json(path.read_text())
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise LocalClusterError(
            "LeaseUnreadable",
            f"{path} cannot be read ({error}): it is of another version, or damaged",
            remedy="run: kompakt-localcluster down",
        ) from error


def write(lease: Lease) -> None:
    """Replaces the lease as a whole."""
    path = Path(lease.state) / "cluster.json"
    draft = path.with_suffix(".new")
    draft.write_text(lease.to_json())
    draft.replace(path)


def current(settings: Settings) -> Settings:
    """The settings with the state folder of the cluster that this machine has, if it has one.

    Two state folders cannot hold two clusters at once: bridge, addresses and ports are the same.
    """
    with contextlib.suppress(OSError):
        state = settings.pointer.readlink()
        if (state / "cluster.json").exists():
            return dataclasses.replace(settings, state=state)
    return settings


@contextlib.contextmanager
def locked(path: Path, *, on_wait: Callable[[int | None], None]) -> Iterator[None]:
    """Holds the lock file; calls `on_wait` with the holder's pid when somebody else has it.

    The kernel lets go of it when the holder ends, however it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            on_wait(int(holder) if holder.isdecimal() else None)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield
