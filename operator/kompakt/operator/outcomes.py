# SPDX-License-Identifier: Apache-2.0
"""Counts what came out of runs and rollouts, when a status first says so."""

from __future__ import annotations

from typing import Any

from kompakt.controllers.conditions import find
from kompakt.operator import telemetry
from kompakt.operator.resources import ROLLOUT, RUN


def count(kind: str, before: Any, after: Any) -> None:
    """Count the transition between two statuses of an object, if it is one of those that are
    counted.
    """
    if kind == ROLLOUT and before.stage != after.stage:
        if after.stage == "Succeeded":
            telemetry.ROLLOUTS.labels("promoted").inc()
        elif after.stage == "RolledBack":
            telemetry.ROLLOUTS.labels("rolled_back").inc()
            # Reasons are words of the program: there are few.
            why = [d.reason for d in after.decisions if d.to_stage in {"RollingBack", "RolledBack"}]
            telemetry.ROLLBACKS.labels(why[-1] if why else "Unknown").inc()
    if kind == RUN:
        now, then = find(after.conditions, "Succeeded"), find(before.conditions, "Succeeded")
        settled = now is not None and now.status != "Unknown"
        if settled and now is not None and (then is None or then.status != now.status):
            telemetry.RUNS.labels("succeeded" if now.status == "True" else "failed").inc()
