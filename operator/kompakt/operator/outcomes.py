# SPDX-License-Identifier: Apache-2.0
"""Counts what came out of runs, Jobs and rollouts, when a status first says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kompakt.api import names
from kompakt.controllers.conditions import find
from kompakt.operator import telemetry
from kompakt.operator.resources import ROLLOUT, RUN
from kompakt.operator.states import condition, unix_seconds


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


def time_job(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> None:
    """Note how long a Job took, when it is first seen to have ended."""
    result = _result(after)
    # One that had ended before we looked was counted by whoever looked then.
    if before is None or result is None or _result(before) is not None:
        return
    status = after["status"]
    found = condition(status, "Complete") or condition(status, "Failed") or {}
    ended = status.get("completionTime") or found.get("lastTransitionTime")
    seconds = unix_seconds(ended) - unix_seconds(status.get("startTime"))
    task = (after["metadata"].get("labels") or {}).get(names.TASK_LABEL, "unknown")
    telemetry.JOB_SECONDS.labels(task, result).observe(seconds)


def _result(job: Mapping[str, Any]) -> str | None:
    status = job.get("status") or {}
    for type_, result in (("Complete", "succeeded"), ("Failed", "failed")):
        if (condition(status, type_) or {}).get("status") == "True":
            return result
    return None
