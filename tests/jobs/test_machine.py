# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kompakt.jobs import machine


@pytest.fixture(autouse=True)
def four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node with four CPUs, whatever the tests run on."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3})


def write(root: Path, files: dict[str, str]) -> Path:
    """A root folder with some files of /sys and /proc."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "millis", "threads"),
    [
        pytest.param({"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2000, 2, id="version 2"),
        pytest.param({"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 500, 1, id="half a CPU"),
        pytest.param({"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1500, 1, id="a CPU and a half"),
        pytest.param({"sys/fs/cgroup/cpu.max": "max 100000\n"}, 4000, 4, id="no limit"),
        pytest.param({"sys/fs/cgroup/cpu.max": "900000 100000\n"}, 4000, 4, id="above the node"),
        pytest.param(
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            3000,
            3,
            id="version 1",
        ),
        pytest.param(
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            4000,
            4,
            id="version 1 without a limit",
        ),
        pytest.param({}, 4000, 4, id="no cgroup"),
    ],
)
def test_threads_follow_the_limit(
    tmp_path: Path, files: dict[str, str], millis: int, threads: int
) -> None:
    """As many threads as whole CPUs of the limit, at least one, never more than the node has."""
    root = write(tmp_path, files)
    assert machine.cpu_millis(root) == millis
    assert machine.threads(root) == threads


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sys/fs/cgroup/memory.max": "268435456\n"}, 256),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "536870912\n"}, 512),
    ],
    ids=["version 2", "version 1"],
)
def test_memory_follows_the_limit(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    """The memory limit of the container, in mebibytes."""
    assert machine.memory_mebibytes(write(tmp_path, files)) == expected


@pytest.mark.parametrize("text", ["max", "9223372036854771712"], ids=["version 2", "version 1"])
def test_no_memory_limit_is_the_nodes_memory(tmp_path: Path, text: str) -> None:
    """Both ways in which cgroups say "no limit" give the node's memory."""
    name = "memory.max" if text == "max" else "memory/memory.limit_in_bytes"
    root = write(tmp_path, {f"sys/fs/cgroup/{name}": text})
    everything = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    assert machine.memory_mebibytes(root) == everything


def test_features_decide_the_key(tmp_path: Path) -> None:
    """CPUs that compute int8 differently have other keys, other kernels too; other flags do not."""
    plain = write(tmp_path / "a", {"proc/cpuinfo": "flags\t: fpu avx2 sse\n"})
    same = write(tmp_path / "b", {"proc/cpuinfo": "flags\t: avx2 mmx\n"})
    vnni = write(tmp_path / "c", {"proc/cpuinfo": "flags\t: avx2 avx512_vnni\n"})
    assert machine.cpu_features(vnni) == ["avx2", "avx512_vnni"]
    keys = [machine.feature_key(root=root) for root in (plain, same, vnni)]
    assert keys[0] == keys[1] != keys[2]
    assert machine.feature_key(("1.0",), root=plain) != machine.feature_key(("1.1",), root=plain)


def test_the_node_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark names the node that the pod was told it runs on."""
    root = write(tmp_path, {"proc/cpuinfo": "model name\t: Example CPU\nflags\t: avx2\n"})
    monkeypatch.setenv("NODE_NAME", "edge-0")
    hardware = machine.hardware(threads_used=2, root=root)
    assert (hardware.node, hardware.cpu_model, hardware.threads) == ("edge-0", "Example CPU", 2)


@pytest.mark.slow
def test_peak_memory_is_the_processs_own() -> None:
    """A small program started by a large one reports little, although getrusage would inherit."""
    hog = bytearray(300 << 20)
    hog[::4096] = b"x" * len(hog[::4096])
    program = (
        "from kompakt.jobs import machine, errors; import resource;"
        "print(machine.peak_memory_mebibytes())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert 5 < int(done.stdout) < 150
    assert machine.peak_memory_mebibytes() > 300
