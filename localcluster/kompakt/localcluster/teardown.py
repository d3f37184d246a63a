# SPDX-License-Identifier: Apache-2.0
"""Takes a cluster away, whatever state it is in.

Invariants: it needs no lease, no Go and none of the cluster's processes, so it works on what a
killed launcher left; it is idempotent; only processes that carry the mark of the state folder, or
that are in the nodes' control groups, are killed; no file is removed below a mount, nor from a
folder that is not a cluster's.
"""

import contextlib
import shutil
import subprocess
import time
from pathlib import Path

from kompakt.localcluster import cgroups, network, state
from kompakt.localcluster.errors import LocalClusterError
from kompakt.localcluster.process import is_marked, kill_all
from kompakt.localcluster.settings import Settings

KILL_SECONDS = 10.0
UNMOUNT_SECONDS = 5.0
CONTAINER_LOGS = Path("/var/log/containers")
CNI_RESULTS = Path("/var/lib/cni/results")
SHIM_SOCKETS = Path("/run/containerd/s")
DEVICE_PLUGINS = Path("/var/lib/kubelet/device-plugins")


def down(settings: Settings) -> None:
    """Ends every process of the cluster, and removes all that it made."""
    lease = None
    with contextlib.suppress(LocalClusterError):
        lease = state.read(settings.lease)
    left = kill_all(
        lambda pid: is_marked(pid, settings.state) or cgroups.holds(pid),
        timeout_seconds=KILL_SECONDS,
    )
    if left:
        raise LocalClusterError(
            "ProcessesLeft",
            f"the processes {', '.join(map(str, left))} of the local cluster do not end",
            remedy="wait for their input or output to finish, and run down again",
        )
    _remove_traces(settings.state)
    _unmount(settings.state)
    network.remove()
    groups = cgroups.remove(cgroups.hierarchies())
    if lease is not None:
        network.restore(lease.kernel_settings)
    if settings.lease.exists():
        shutil.rmtree(settings.state)
    with contextlib.suppress(OSError):
        if settings.pointer.readlink() == settings.state:
            settings.pointer.unlink()
    leftovers = [*network.leftovers(), *map(str, groups)]
    if leftovers:
        raise LocalClusterError(
            "NotRemoved",
            f"the local cluster is down, but this is left: {', '.join(leftovers)}",
            remedy="see what uses it, and run down again",
        )


def mounts_below(folder: Path, mountinfo: str) -> list[str]:
    """The mount points below a folder, innermost first."""
    points = [_unescape(line.split()[4]) for line in mountinfo.splitlines()]
    return sorted((p for p in points if p.startswith(f"{folder}/")), reverse=True)


def _unescape(path: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, character)
    return path


def _unmount(folder: Path) -> None:
    """Unmounts what containers and pods had; one that just ended may hold a mount a little
    while.
    """
    deadline = time.monotonic() + UNMOUNT_SECONDS
    while points := mounts_below(folder, Path("/proc/self/mountinfo").read_text()):
        late = time.monotonic() > deadline
        if late and time.monotonic() > deadline + UNMOUNT_SECONDS:
            raise LocalClusterError(
                "MountsLeft",
                f"{points[0]} cannot be unmounted",
                remedy=f"see who uses it (fuser --mount {points[0]}), and run down again",
            )
        lazily = ["--lazy"] if late else []
        for start in range(0, len(points), 100):
            argv = ["umount", *lazily, *points[start : start + 100]]
            subprocess.run(argv, capture_output=True, check=False)


def _remove_traces(folder: Path) -> None:
    """Removes what containerd, its shims, CNI and kubelets leave outside the state folder."""
    sandboxes = list(folder.glob("*/run/io.containerd.runtime.v2.task/k8s.io/*"))
    for sandbox in sandboxes:
        with contextlib.suppress(FileNotFoundError):
            socket = Path((sandbox / "address").read_text().strip().removeprefix("unix://"))
            if socket.is_relative_to(SHIM_SOCKETS):
                socket.unlink(missing_ok=True)
        for result in CNI_RESULTS.glob(f"*-{sandbox.name}-*"):
            result.unlink(missing_ok=True)
    for link in CONTAINER_LOGS.glob("*"):
        if link.is_symlink() and link.readlink().is_relative_to(folder):
            link.unlink()
    (DEVICE_PLUGINS / "kubelet.sock").unlink(missing_ok=True)
    for place in (SHIM_SOCKETS, CNI_RESULTS, DEVICE_PLUGINS, CONTAINER_LOGS):
        for empty in (place, place.parent):
            with contextlib.suppress(OSError):
                empty.rmdir()
