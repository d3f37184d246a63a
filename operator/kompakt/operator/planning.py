# SPDX-License-Identifier: Apache-2.0
"""From a key to its plan: what is observed, given to the decision of its kind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from kompakt.controllers.plan import Plan
from kompakt.controllers.policy import plan_policy
from kompakt.controllers.rollout import plan_rollout
from kompakt.controllers.run import plan_run
from kompakt.controllers.variant import plan_variant
from kompakt.operator.observe import Observer
from kompakt.operator.reconciler import Planner
from kompakt.operator.resources import POLICY, ROLLOUT, RUN, VARIANT, Ref


def planners(observer: Observer) -> Mapping[str, Planner]:
    """Kind → the way to its plan."""
    return {
        POLICY: _planner(observer.policy, plan_policy),
        RUN: _planner(observer.run, plan_run),
        VARIANT: _planner(observer.variant, plan_variant),
        ROLLOUT: _planner(observer.rollout, plan_rollout),
    }


def _planner(observe: Callable[[Ref], Awaitable[Any]], decide: Callable[[Any], Plan]) -> Planner:
    async def plan(ref: Ref) -> Plan:
        observed = await observe(ref)
        # In a thread: a search thinks for a second, and the Lease must be renewed meanwhile.
        return await asyncio.to_thread(decide, observed)

    return plan
