# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kompakt.localcluster import cluster, state
from kompakt.localcluster.errors import LocalClusterError
from kompakt.localcluster.process import Process, start_time
from kompakt.localcluster.settings import Settings
from kompakt.localcluster.state import Lease, Owner

GONE = Process(name="etcd", pid=2**22 + 1, started=1, argv=("etcd",))


@pytest.fixture
def here() -> Process:
    """A process that runs: this one."""
    started = start_time(os.getpid())
    assert started
    return Process(name="kubelet", pid=os.getpid(), started=started, argv=("kubelet", "--config=x"))


@pytest.fixture
def lease(owner: Owner, tmp_path: Path, here: Process) -> Lease:
    """The lease of a running cluster."""
    return Lease(
        owner=owner,
        state=str(tmp_path),
        phase="Running",
        processes=(here,),
        kernel_settings={"kernel/panic": "0"},
        gateway_address="10.96.0.7:8000",
    )


def test_a_lease_is_read_as_it_was_written(lease: Lease, tmp_path: Path) -> None:
    """Nothing of it is lost on the disk, and no draft stays."""
    state.write(lease)
    assert state.read(tmp_path / "cluster.json") == lease
    assert [file.name for file in tmp_path.iterdir()] == ["cluster.json"]


def test_no_lease_is_no_error(tmp_path: Path) -> None:
    """A machine without a cluster is the usual case."""
    assert state.read(tmp_path / "cluster.json") is None


@pytest.mark.parametrize("text", ["{", "{}", '{"format": 99}', '{"format": 1, "phase": "Running"}'])
def test_a_damaged_lease_is_told_with_what_to_do(tmp_path: Path, text: str) -> None:
    """Whatever is in it, the answer is one sentence and a command that helps."""
    (tmp_path / "cluster.json").write_text(text)
    with pytest.raises(LocalClusterError, match="cannot be read") as caught:
        state.read(tmp_path / "cluster.json")
    assert caught.value.remedy == "run: kompakt-localcluster down"


def test_a_reused_pid_is_not_our_process(here: Process) -> None:
    """A process that has the pid, but another start time, is somebody else's."""
    assert here.alive()
    assert not dataclasses.replace(here, started=here.started + 1).alive()


def test_the_own_cluster_is_used_again(lease: Lease) -> None:
    """The same checkout, environment and programs: `up` has nothing to do."""
    assert cluster.belongs(lease, lease.owner)


def test_one_dead_process_is_no_reason_to_start_afresh(lease: Lease, here: Process) -> None:
    """What ended can be started again; the objects in the cluster stay."""
    assert cluster.belongs(dataclasses.replace(lease, processes=(here, GONE)), lease.owner)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"phase": "Starting"}, "its start was not finished"),
        ({"processes": (GONE,)}, "none of its processes is running"),
        ({"processes": ()}, "none of its processes is running"),
    ],
    ids=["killed launcher", "after a restart of the machine", "nothing started"],
)
def test_what_nobody_can_use_is_cleaned_up(
    lease: Lease, change: dict[str, object], why: str
) -> None:
    """Even for its own checkout, and even for another one."""
    broken = dataclasses.replace(lease, **change)  # type: ignore[arg-type]
    other = dataclasses.replace(lease.owner, checkout="/elsewhere")
    assert not cluster.belongs(broken, lease.owner)
    assert not cluster.belongs(broken, other)
    assert cluster.reason_to_clean(broken) == why


def test_the_cluster_of_a_removed_checkout_is_cleaned_up(lease: Lease, owner: Owner) -> None:
    """Nobody can want it: its pods see a folder that is gone."""
    removed = dataclasses.replace(owner, checkout="/removed/checkout")
    left = dataclasses.replace(lease, owner=removed)
    assert not cluster.belongs(left, owner)
    assert cluster.reason_to_clean(left) == "its checkout /removed/checkout is gone"


def test_another_checkouts_cluster_is_left_alone(lease: Lease) -> None:
    """The sentence says whose it is, and how to take it down."""
    other = dataclasses.replace(lease.owner, checkout="/elsewhere")
    with pytest.raises(LocalClusterError, match="one local cluster at a time") as caught:
        cluster.belongs(lease, other)
    assert lease.owner.checkout in caught.value.message
    assert "kompakt-localcluster down" in caught.value.remedy


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"venv": "/other/venv"}, "virtual environment"),
        ({"interpreter": "/other/python"}, "the Python of"),
        ({"controlplane": "cccc"}, "another version of its Go programs"),
    ],
    ids=["environment", "interpreter", "programs"],
)
def test_a_cluster_with_other_contents_is_not_used(
    lease: Lease, change: dict[str, str], words: str
) -> None:
    """Its pods would run something else than this checkout's programs."""
    with pytest.raises(LocalClusterError, match=words):
        cluster.belongs(lease, dataclasses.replace(lease.owner, **change))


def test_the_machines_cluster_is_found_from_anywhere(
    settings: Settings, lease: Lease, tmp_path: Path
) -> None:
    """A cluster with another state folder is the machine's one cluster all the same."""
    assert state.current(settings) == settings
    settings.run.mkdir()
    settings.pointer.symlink_to(tmp_path)
    assert state.current(settings) == settings
    state.write(lease)
    assert state.current(settings).state == tmp_path


HOLD = """
import pathlib, sys, time
from kompakt.localcluster.state import locked
with locked(pathlib.Path(sys.argv[1]), on_wait=print):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_holder_lets_go_of_the_lock(tmp_path: Path) -> None:
    """The next one is told who holds it, waits, and has it as soon as that process is dead."""
    path = tmp_path / "lock"
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, env=environment
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        seen: list[int | None] = []

        def waiting(pid: int | None) -> None:
            seen.append(pid)
            holder.send_signal(signal.SIGKILL)

        with state.locked(path, on_wait=waiting):
            assert seen == [holder.pid]
