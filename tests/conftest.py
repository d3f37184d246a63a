# SPDX-License-Identifier: Apache-2.0
"""What the tests of all rooms share: order, reproducible properties, and the local cluster.

Invariant: a run that includes everything goes from the fast to the slow, so that a broken unit is
seen before a cluster is started for it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The fixtures of the cluster are a plugin of their own: unit tests do not need it.
pytest_plugins = (
    ["cluster_fixture"] if Path(__file__).with_name("cluster_fixture.py").exists() else []
)

# A shared machine is slow at times, which is no defect of the code: no deadlines. `ci` finds the
# same examples each time; HYPOTHESIS_PROFILE=explore looks for new ones, longer.
settings.register_profile(
    "ci", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

ORDER = ("slow", "cluster", "e2e")


def cost(item: pytest.Item) -> int:
    """The rank of a test: 0 for a unit test, then by the dearest of its markers."""
    return max(
        (ORDER.index(mark.name) + 1 for mark in item.iter_markers() if mark.name in ORDER),
        default=0,
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put unit tests first and the whole way through a cluster last, else by file."""
    items.sort(key=cost)
