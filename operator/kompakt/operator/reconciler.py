# SPDX-License-Identifier: Apache-2.0
"""Plans and acts, object by object.

Invariants:

- actions are carried out in the order of the plan, and the first that fails ends it: the next plan
  is made from what is then observed. Other objects are not held up by it;
- a policy and its rollouts write the same route, so none of them observes, plans or acts while
  another of them does: what a plan has seen of the route is so until it has written it.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Final
from weakref import WeakValueDictionary

from kompakt.api.base import Condition
from kompakt.controllers.conditions import condition, merge
from kompakt.controllers.plan import Plan
from kompakt.operator import logs, telemetry
from kompakt.operator.actions import Actor
from kompakt.operator.errors import InvalidObject, NotLeader, OperatorError
from kompakt.operator.resources import POLICY, ROLLOUT, Ref
from kompakt.operator.store import Store
from kompakt.operator.workqueue import WorkQueue

log = logging.getLogger(__name__)
_LONGEST: Final = 120.0
Planner = Callable[[Ref], Awaitable[Plan]]


class Reconciler:
    """Works on keys from the queue."""

    def __init__(
        self,
        *,
        store: Store,
        queue: WorkQueue[Ref],
        planners: Mapping[str, Planner],
        actor: Actor,
    ) -> None:
        self._store = store
        self._queue = queue
        self._planners = planners
        self._actor = actor
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def work(self) -> None:
        """Take keys for ever."""
        while True:
            ref = await self._queue.take()
            try:
                await self._one(ref)
            finally:
                self._queue.done(ref)

    async def reconcile(self, ref: Ref) -> float | None:
        """Plan and act once. Returns after how many seconds to look again."""
        async with self._turn(ref):
            return await self._reconcile(ref)

    async def _reconcile(self, ref: Ref) -> float | None:
        if self._store.get(ref) is None:
            return None
        try:
            plan = await self._planners[ref.kind](ref)
        except InvalidObject as error:
            await self._stall(ref, error)
            return None
        for action in plan.actions:
            await self._actor.carry_out(ref, action)
        return plan.requeue_after

    def _turn(self, ref: Ref) -> AbstractAsyncContextManager[object]:
        """The turn of an object among those that write the same route."""
        policy: str | None = ref.name if ref.kind == POLICY else None
        if ref.kind == ROLLOUT:
            spec = (self._store.get(ref) or {}).get("spec") or {}
            policy = (spec.get("policyRef") or {}).get("name")
        if policy is None:
            return nullcontext()
        return self._turns.setdefault((ref.namespace, policy), asyncio.Lock())

    async def _one(self, ref: Ref) -> None:
        """One key: done, or another try later."""
        metadata = (self._store.get(ref) or {}).get("metadata", {})
        started = time.monotonic()
        with logs.fields(
            kind=ref.kind,
            namespace=ref.namespace,
            name=ref.name,
            uid=metadata.get("uid"),
            generation=metadata.get("generation"),
            reconcile_id=uuid.uuid4().hex[:8],
        ):
            try:
                async with asyncio.timeout(_LONGEST):
                    requeue = await self.reconcile(ref)
            except NotLeader:
                raise
            except Exception as error:  # noqa: BLE001 -- whatever it is, other objects go on
                self._failed(ref, error)
                return
        self._queue.succeeded(ref)
        if requeue is not None:
            self._queue.add_after(ref, requeue)
        telemetry.RECONCILES.labels(ref.kind, "ok").inc()
        telemetry.RECONCILE_SECONDS.labels(ref.kind).observe(time.monotonic() - started)

    def _failed(self, ref: Ref, error: Exception) -> None:
        delay = self._queue.failed(ref)
        reason = error.reason if isinstance(error, OperatorError) else type(error).__name__
        telemetry.RECONCILES.labels(ref.kind, "error").inc()
        telemetry.RECONCILE_ERRORS.labels(ref.kind, reason).inc()
        extra = {"reason": reason, "retry_seconds": round(delay, 1)}
        if isinstance(error, OperatorError):
            log.warning("not carried out: %s", error.message, extra=extra)
        else:
            log.error("not carried out", exc_info=error, extra=extra)

    async def _stall(self, ref: Ref, error: InvalidObject) -> None:
        """Say on the object itself what does not parse; keep the rest of its status as it is."""
        live = self._store.get(ref)
        if live is None:
            return
        status = live.get("status") or {}
        generation, now = live["metadata"].get("generation", 1), time.time()
        old = [Condition.model_validate(c) for c in status.get("conditions") or ()]
        new = [
            condition(
                type_,
                word,
                reason=error.reason,
                message=error.message,
                generation=generation,
                now=now,
            )
            for type_, word in (("Ready", False), ("Stalled", True))
        ]
        merged = merge(old, new)
        if merged != old:
            log.warning("stalled: %s", error.message)
            conditions = [c.to_wire() for c in merged]
            await self._actor.put_status(ref, {**status, "conditions": conditions})
