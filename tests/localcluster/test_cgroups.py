# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kompakt.localcluster import cgroups
from kompakt.localcluster.errors import LocalClusterError

V1 = """\
30 23 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
34 30 0:30 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
35 30 0:31 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
"""


@given(st.sets(st.integers(0, 300), min_size=1))
def test_every_cpu_belongs_to_one_node(cpus: set[int]) -> None:
    """Nodes share CPUs only where there is but one; no CPU is left out."""
    shares = cgroups.split_cpus(tuple(sorted(cpus)))
    assert set().union(*shares.values()) == cpus
    assert all(shares.values())
    if len(cpus) > 1:
        assert not set(shares["cpu-0"]) & set(shares["edge-0"])
        assert shares["edge-0"] == (max(cpus),)
    else:
        assert shares["cpu-0"] == shares["edge-0"]


@given(st.sets(st.integers(0, 300)))
def test_the_kernels_lists_are_read_and_written(cpus: set[int]) -> None:
    """What is written for the kernel is read back as it was."""
    ordered = tuple(sorted(cpus))
    assert cgroups.parse_cpus(cgroups.format_cpus(ordered)) == ordered


def test_ranges_are_read() -> None:
    """The kernel writes neighbours as a range."""
    assert cgroups.parse_cpus("0-2,5,7-8\n") == (0, 1, 2, 5, 7, 8)


def test_controllers_are_found_on_v1() -> None:
    """A hierarchy may have several controllers, and a v2 without any may lie beside them."""
    found = cgroups.hierarchies(V1)
    assert not found.unified
    assert found.root_of("cpu") == Path("/sys/fs/cgroup/cpu,cpuacct")
    assert found.idle == (Path("/sys/fs/cgroup/unified"),)


def test_a_missing_controller_is_named() -> None:
    """The sentence names what the kernel lacks, and the way to another cluster."""
    without = "\n".join(line for line in V1.splitlines() if "pids" not in line)
    with pytest.raises(LocalClusterError, match="no cgroup controller pids") as caught:
        cgroups.check(cgroups.hierarchies(without))
    assert "KUBECONTEXT=" in caught.value.remedy


@pytest.fixture
def version_1(tmp_path: Path) -> cgroups.Hierarchies:
    """Folders that look like cgroup v1 on a machine with three CPUs."""
    for name in ("cpu", "cpuset"):
        (tmp_path / name).mkdir()
    (tmp_path / "cpuset/cpuset.cpus").write_text("0-2\n")
    (tmp_path / "cpuset/cpuset.mems").write_text("0\n")
    return cgroups.Hierarchies(roots=(tmp_path / "cpu", tmp_path / "cpuset"), unified=False)


def cpus(found: cgroups.Hierarchies, group: str) -> str:
    """The CPUs that a group was given."""
    root = found.root_of("cpuset")
    assert root
    return (root / "kompakt" / group / "cpuset.cpus").read_text().strip()


def test_v1_waits_for_the_kubelet(version_1: cgroups.Hierarchies) -> None:
    """A node's group has all CPUs until its kubelet has made `kubepods`; then all below has its
    own.
    """
    cgroups.create(version_1)
    assert cpus(version_1, "edge-0") == "0-2"
    weights = version_1.root_of("cpu")
    assert weights
    outweighs = int((weights / "kompakt-system/cpu.shares").read_text())
    assert outweighs > int((weights / "kompakt/cpu.shares").read_text()) > 1024
    root = version_1.root_of("cpuset")
    assert root
    for node in ("cpu-0", "edge-0"):
        (root / "kompakt" / node / "kubepods/burstable/pod1").mkdir(parents=True)
    cgroups.confine(version_1)
    assert cpus(version_1, "edge-0/kubepods/burstable/pod1") == "2"
    assert cpus(version_1, "cpu-0/kubepods") == "0,1"


def test_v2_confines_a_node_as_a_whole(tmp_path: Path) -> None:
    """On v2 the kernel cuts what a kubelet asks for, so the node's own group is enough."""
    (tmp_path / "cpuset.cpus.effective").write_text("0-3\n")
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu memory pids\n")
    (tmp_path / "kompakt").mkdir()
    (tmp_path / "kompakt/cgroup.controllers").write_text("cpuset cpu memory pids\n")
    found = cgroups.Hierarchies(roots=(tmp_path,), unified=True)
    cgroups.create(found)
    assert cpus(found, "edge-0") == "3"
    assert cpus(found, "cpu-0") == "0,1,2"
    assert (tmp_path / "kompakt/cgroup.subtree_control").exists()
    outweighs = int((tmp_path / "kompakt-system/cpu.weight").read_text())
    assert outweighs > int((tmp_path / "kompakt/cpu.weight").read_text()) > 100


def test_groups_are_removed_from_every_hierarchy(tmp_path: Path) -> None:
    """Innermost first, and of the idle v2 too; a group that is used is named."""
    for name in ("cpu/kompakt/cpu-0/kubepods", "unified/kompakt/x", "memory/kompakt"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "memory/kompakt/in-use").touch()
    found = cgroups.Hierarchies(
        roots=(tmp_path / "cpu", tmp_path / "memory"), unified=False, idle=(tmp_path / "unified",)
    )
    assert cgroups.remove(found) == [tmp_path / "memory/kompakt"]
    assert not (tmp_path / "cpu/kompakt").exists()
    assert not (tmp_path / "unified/kompakt").exists()


def test_processes_of_the_machine_are_not_ours() -> None:
    """What is not in one of the cluster's groups is nothing that `down` may kill."""
    assert not cgroups.holds(os.getpid())
    assert not cgroups.holds(2**22 + 1)
