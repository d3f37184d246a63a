# SPDX-License-Identifier: Apache-2.0
"""What this pod may use, read from its cgroup and the kernel: CPUs, memory, CPU features, peak
memory.

Libraries count the node's CPUs, not the container's share; as many threads as the node has, on a
quota of one CPU, throttle each other (a distillation of 62 s took 468 s so).
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable
from pathlib import Path

from kompakt.api.device import given
from kompakt.api.measure import Hardware
from kompakt.api.names import NODE_NAME_VARIABLE

INT8_FEATURES = (
    # x86
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "amx_bf16",
    # arm64
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
"""CPU features on which the speed and the very results of int8 arithmetic depend."""

_UNLIMITED_BYTES = 1 << 60
"""cgroup v1 writes a number near 2**63 for "no limit"."""


def threads(root: Path = Path("/")) -> int:
    """How many threads may run at once without throttling each other; at least one."""
    return max(1, cpu_millis(root) // 1000)


def cpu_millis(root: Path = Path("/")) -> int:
    """CPU time that this container may use, in thousandths of a CPU."""
    available = len(os.sched_getaffinity(0)) * 1000
    quota = _cpu_quota(root)
    return min(available, quota) if quota else available


def memory_mebibytes(root: Path = Path("/")) -> int:
    """Memory that this container may use."""
    cgroup = root / "sys/fs/cgroup"
    limits = []
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        text = _read(cgroup / name)
        if text.isdigit() and int(text) < _UNLIMITED_BYTES:
            limits.append(int(text))
    if not limits:
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    return min(limits) >> 20


def cpu_features(root: Path = Path("/")) -> list[str]:
    """Those of `INT8_FEATURES` that the CPU has."""
    flags: set[str] = set()
    for line in _read(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in {"flags", "features"}:
            flags.update(value.split())
            break
    return [name for name in INT8_FEATURES if name in flags]


def feature_key(versions: Iterable[str] = (), root: Path = Path("/")) -> str:
    """A short name for "hardware that gives the same int8 results"; `versions` of kernels belong to
    it.
    """
    parts = [platform.machine(), *cpu_features(root), *versions]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def hardware(*, threads_used: int, root: Path = Path("/")) -> Hardware:
    """The machine as a benchmark names it."""
    return Hardware(
        cpu_model=_cpu_model(root)[:256],
        cpu_features=cpu_features(root),
        cpu_millis=cpu_millis(root),
        memory_mebibytes=memory_mebibytes(root),
        threads=threads_used,
        accelerator=gpu_model(root)[:256] if given() == "Cuda" else None,
        node=os.environ.get(NODE_NAME_VARIABLE, platform.node())[:256],
    )


def gpu_model(root: Path = Path("/")) -> str:
    """The first GPU that the driver shows to this container; `unknown` where it shows none."""
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        for line in _read(path).splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "Model":
                return value.strip()
    return "unknown"


def peak_memory_mebibytes(root: Path = Path("/")) -> int:
    """The largest resident memory of this process so far.

    From `VmHWM`, which starts anew with each program. `getrusage` does not: a child inherits its
    parent's maximum.
    """
    for line in _read(root / "proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return -(-int(line.split()[1]) // 1024)
    import resource

    return -(-resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def _cpu_quota(root: Path) -> int | None:
    """CPU quota in thousandths of a CPU; absent when there is none."""
    cgroup = root / "sys/fs/cgroup"
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")  # version 2
    if not quota:
        quota = _read(cgroup / "cpu/cpu.cfs_quota_us")  # version 1
        period = _read(cgroup / "cpu/cpu.cfs_period_us")
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return max(1, int(quota) * 1000 // int(period))


def _cpu_model(root: Path) -> str:
    for line in _read(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
