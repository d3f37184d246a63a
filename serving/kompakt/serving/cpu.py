# SPDX-License-Identifier: Apache-2.0
"""How many threads this container may keep busy.

`os.cpu_count` sees the node's cores; a pod that starts one thread for each of them is throttled by
its own limit.
"""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP_ROOT = Path("/sys/fs/cgroup")


def usable_threads(root: Path = _CGROUP_ROOT) -> int:
    """Whole cores within the CPU limit and the affinity mask, at least 1."""
    cores = len(os.sched_getaffinity(0))
    limit = _cpu_limit(root)
    # A fraction of a core does not feed a thread: 1500m runs one at full speed.
    return cores if limit is None else max(1, min(cores, int(limit)))


def _cpu_limit(root: Path) -> float | None:
    """Cores of the cgroup's quota (version 2, then 1); None without a limit."""
    unified = _read(root / "cpu.max").split()
    if len(unified) == 2:  # noqa: PLR2004 -- "quota period"
        quota, period = unified
        return None if quota == "max" else int(quota) / int(period)
    for controller in ("cpu", "cpu,cpuacct"):
        quota = _read(root / controller / "cpu.cfs_quota_us")
        period = _read(root / controller / "cpu.cfs_period_us")
        if quota and period and int(quota) > 0:
            return int(quota) / int(period)
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
