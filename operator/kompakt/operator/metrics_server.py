# SPDX-License-Identifier: Apache-2.0
"""/metrics for Prometheus, /livez and /readyz for the kubelet.

Alive means that the queue makes progress: a process whose event loop answers, but whose work stands
still, is restarted. Ready means that this replica leads and has seen the cluster, or stands by for
its turn.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from kompakt.operator import owners, telemetry
from kompakt.operator.resources import POLICY, ROLLOUT, Ref
from kompakt.operator.states import condition
from kompakt.operator.store import Store
from kompakt.operator.workqueue import WorkQueue

_STUCK_SECONDS: Final = 180.0


@dataclass
class Health:
    """What the probes look at."""

    queue: WorkQueue[Ref]
    store: Store
    standing_by: bool = True
    """Not the leader yet."""
    synced: bool = False

    def stuck(self) -> str:
        """Why the work stands still; empty when it does not."""
        waited, worked = self.queue.oldest(), self.queue.longest_taken()
        if waited > _STUCK_SECONDS:
            return f"an object has waited {waited:.0f} s for a worker"
        if worked > _STUCK_SECONDS:
            return f"a worker has been at one object for {worked:.0f} s"
        return ""

    def refresh(self) -> None:
        """Bring the gauges up to date."""
        telemetry.QUEUE_DEPTH.set(self.queue.depth())
        telemetry.QUEUE_OLDEST.set(self.queue.oldest())
        ready = Counter(
            (condition(policy.get("status") or {}, "Ready") or {}).get("status", "Unknown")
            for policy in self.store.all(POLICY)
        )
        for word in ("True", "False", "Unknown"):
            telemetry.POLICIES.labels(word).set(ready[word])
        telemetry.ROLLOUTS_ACTIVE.clear()
        for obj in self.store.all(ROLLOUT):
            if not owners.ended(obj):
                stage = (obj.get("status") or {}).get("stage") or "Pending"
                telemetry.ROLLOUTS_ACTIVE.labels(stage).inc()


async def serve(health: Health, host: str, port: int, *, bound: Callable[[int], None]) -> None:
    """Serve until cancelled. `bound` learns the port."""

    async def metrics(_: web.Request) -> web.Response:
        health.refresh()
        body = generate_latest(telemetry.REGISTRY)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def live(_: web.Request) -> web.Response:
        stuck = health.stuck()
        return web.Response(text=stuck or "ok", status=500 if stuck else 200)

    async def ready(_: web.Request) -> web.Response:
        waits = not health.standing_by and not health.synced
        return web.Response(
            text="listing the cluster" if waits else "ok", status=503 if waits else 200
        )

    application = web.Application()
    application.add_routes(
        [web.get("/metrics", metrics), web.get("/livez", live), web.get("/readyz", ready)]
    )
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        bound(runner.addresses[0][1])
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
