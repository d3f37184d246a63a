# SPDX-License-Identifier: Apache-2.0
"""One control group per node, with CPUs of its own, and one for the cluster's own processes.

It knows cgroup v1 and v2.

Invariants: the nodes' CPUs are disjoint wherever the machine has more than one, so that work on one
node does not slow what is measured on another; the cluster's own processes outweigh the pods, and
the pods outweigh single processes of a busy machine, so that neither starves what must answer in
time.
"""

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from kompakt.localcluster.errors import OTHER_CLUSTER, LocalClusterError
from kompakt.localcluster.settings import CGROUP, NODES

NEEDED = ("cpu", "cpuset", "memory", "pids")
CONFINE_SECONDS = 5.0
SYSTEM = f"{CGROUP}-system"
WEIGHTS = {CGROUP: (4096, 400), SYSTEM: (16384, 1600)}
"""`cpu.shares` of v1 and `cpu.weight` of v2. What else is on the machine has 1024 (on v1 each
process, on v2 usually the user's session as a whole: 100).
"""

WANTED = (*NEEDED, "io", "hugetlb")


@dataclass(frozen=True)
class Hierarchies:
    """The mounted cgroup file systems.

    Attributes:
        roots: the one of v2; or those of v1, with one or more controllers each.
        unified: whether it is v2 that controls.
        idle: a v2 without controllers beside v1; container runtimes make groups in it all the same.
    """

    roots: tuple[Path, ...]
    unified: bool
    idle: tuple[Path, ...] = ()

    def root_of(self, controller: str) -> Path | None:
        if self.unified:
            return self.roots[0]
        return next((root for root in self.roots if controller in root.name.split(",")), None)


def parse_cpus(text: str) -> tuple[int, ...]:
    """Reads the kernel's list format, such as `0-3,6`."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cpus.extend(range(int(first), int(last or first) + 1))
    return tuple(cpus)


def format_cpus(cpus: tuple[int, ...]) -> str:
    """Writes the kernel's list format."""
    return ",".join(map(str, cpus))


def split_cpus(cpus: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Gives each node its CPUs: every tainted node one from the end, the others the rest; on a
    machine with too few of them they all share.
    """
    reserved = [node.name for node in NODES if node.tainted]
    if len(cpus) <= len(reserved):
        return {node.name: cpus for node in NODES}
    own = {name: (cpus[-1 - index],) for index, name in enumerate(reserved)}
    rest = cpus[: len(cpus) - len(reserved)]
    return {node.name: own.get(node.name, rest) for node in NODES}


def hierarchies(mountinfo: str | None = None) -> Hierarchies:
    """Finds the cgroup file systems among the mounts of this process."""
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    version_1: list[Path] = []
    version_2: list[Path] = []
    for line in text.splitlines():
        fields, _, rest = line.partition(" - ")
        kind, mount = rest.split(" ", 1)[0], Path(fields.split()[4])
        if kind == "cgroup":
            version_1.append(mount)
        elif kind == "cgroup2":
            version_2.append(mount)
    if Path("/sys/fs/cgroup") in version_2:
        found = Hierarchies(roots=(Path("/sys/fs/cgroup"),), unified=True)
    else:
        found = Hierarchies(roots=tuple(version_1), unified=False, idle=tuple(version_2))
    return found


def check(found: Hierarchies) -> None:
    """Refuses a machine without the controllers that a kubelet needs."""
    if found.unified:
        there = (found.roots[0] / "cgroup.controllers").read_text().split()
    else:
        there = [name for name in NEEDED if found.root_of(name)]
    missing = [name for name in NEEDED if name not in there]
    if missing:
        raise LocalClusterError(
            "CgroupMissing",
            f"this machine has no cgroup controller {', '.join(missing)}, and a kubelet needs it",
            remedy=f"enable it in the kernel's command line or in the container, {OTHER_CLUSTER}",
        )


def create(found: Hierarchies) -> None:
    """Makes every group."""
    groups = [CGROUP, SYSTEM, *(f"{CGROUP}/{node.name}" for node in NODES)]
    for group in groups:
        for root in found.roots:
            (root / group).mkdir(parents=True, exist_ok=True)
    cpuset, cpu = _root_of("cpuset", found), _root_of("cpu", found)
    if found.unified:
        _delegate(cpuset)
        _delegate(cpuset / CGROUP)
        confine(found)
    else:
        # A new group of v1 has no CPUs and no memory nodes, and refuses every process until it has.
        for group in groups:
            for name in ("cpuset.mems", "cpuset.cpus"):
                (cpuset / group / name).write_text((cpuset / name).read_text())
    for group, (shares, weight) in WEIGHTS.items():
        if found.unified:
            (cpu / group / "cpu.weight").write_text(str(weight))
        else:
            (cpu / group / "cpu.shares").write_text(str(shares))


def adopt(found: Hierarchies, pid: int) -> None:
    """Puts one of the cluster's own processes into their group; its future children follow."""
    with contextlib.suppress(ProcessLookupError):
        (_root_of("cpu", found) / SYSTEM / "cgroup.procs").write_text(str(pid))


def confine(found: Hierarchies) -> None:
    """Leaves to every node its share of the CPUs.

    On v1 this waits for the kubelets to have started: a kubelet gives all CPUs of the machine to
    its group `kubepods`, and ends if it may not. What it creates later inherits.
    """
    cpuset = _root_of("cpuset", found)
    cpus_file = "cpuset.cpus.effective" if found.unified else "cpuset.cpus"
    shares = split_cpus(parse_cpus((cpuset / cpus_file).read_text()))
    for node, cpus in shares.items():
        top = cpuset / CGROUP / node
        if found.unified:
            (top / "cpuset.cpus").write_text(format_cpus(cpus))
            continue
        deadline = time.monotonic() + CONFINE_SECONDS
        while not _confine_tree(top / "kubepods", format_cpus(cpus)):
            if time.monotonic() > deadline:
                raise LocalClusterError(
                    "CpusNotSplit",
                    f"the pods of {node} could not be kept on the CPUs {format_cpus(cpus)}",
                    remedy="run up again; if it stays so, the kernel refuses it: see dmesg",
                )
            time.sleep(0.02)


def _confine_tree(top: Path, cpus: str) -> bool:
    """Sets the CPUs of a group and all below it, innermost first: a group may not have fewer than
    those below it. False when a group appeared meanwhile, with the CPUs that its parent had.
    """
    done = True
    for folder, _, _ in os.walk(top, topdown=False):
        try:
            (Path(folder) / "cpuset.cpus").write_text(cpus)
        except FileNotFoundError:
            continue  # the pod has gone
        except OSError:
            done = False
    return done


def _root_of(controller: str, found: Hierarchies) -> Path:
    root = found.root_of(controller)
    assert root is not None  # noqa: S101  (check() has looked)
    return root


def _delegate(group: Path) -> None:
    available = (group / "cgroup.controllers").read_text().split()
    for controller in WANTED:
        if controller in available:
            (group / "cgroup.subtree_control").write_text(f"+{controller}")


def holds(pid: int) -> bool:
    """Whether a process is in one of the cluster's groups."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return False
    groups = (f"{line.split(':', 2)[2]}/" for line in lines)
    return any(group.startswith((f"/{CGROUP}/", f"/{SYSTEM}/")) for group in groups)


def remove(found: Hierarchies) -> list[Path]:
    """Removes the groups, innermost first; returns those that would not go."""
    tops = [root / group for root in (*found.roots, *found.idle) for group in (CGROUP, SYSTEM)]
    for top in tops:
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()
    return [top for top in tops if top.exists()]
