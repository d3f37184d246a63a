# SPDX-License-Identifier: Apache-2.0
"""The operator's process: wait for the Lease, see the cluster, work, and let go.

It ends with 0 after SIGTERM or SIGINT, the Lease given up; with 1 when the Lease is lost or a part
fails: whoever runs it starts it anew, and everything that it must know is in the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Coroutine, Sequence
from typing import Any

from kompakt.operator import access, gateways, logs, metrics_server, options, owners, telemetry
from kompakt.operator.actions import Actor
from kompakt.operator.client import Client
from kompakt.operator.errors import OperatorError
from kompakt.operator.faults import Fault
from kompakt.operator.informer import Informer
from kompakt.operator.intake import Intake
from kompakt.operator.lease import Elector
from kompakt.operator.meter import ScrapingMeter
from kompakt.operator.observe import Observer
from kompakt.operator.planning import planners
from kompakt.operator.reconciler import Reconciler
from kompakt.operator.resources import Manifest, Ref
from kompakt.operator.store import Store
from kompakt.operator.workqueue import WorkQueue

log = logging.getLogger("kompakt.operator")


class Operator:
    """All parts of one process, wired together."""

    def __init__(self, chosen: options.Options, fault: Fault) -> None:
        self._options = chosen
        self._fault = fault
        self._store = Store()
        self._queue: WorkQueue[Ref] = WorkQueue()
        self._intake = Intake(self._store, self._queue)
        self._health = metrics_server.Health(self._queue, self._store)

    async def run(self) -> None:
        """Run until cancelled. Raises when the Lease is lost or a part fails."""
        entry = access.load(self._options.kubeconfig, self._options.context)
        async with Client(entry) as client, asyncio.TaskGroup() as group:
            group.create_task(self._serve(), name="metrics server")
            elector = Elector(client, self._options.lease)
            await elector.acquire()
            try:
                await self._lead(entry, client, elector)
            finally:
                telemetry.LEADER.set(0)
                await asyncio.shield(elector.release())

    async def _serve(self) -> None:
        def bound(port: int) -> None:
            log.info("serving /metrics, /livez and /readyz", extra={"port": port})

        chosen = self._options
        await metrics_server.serve(
            self._health, chosen.metrics_host, chosen.metrics_port, bound=bound
        )

    async def _lead(self, entry: access.Access, client: Client, elector: Elector) -> None:
        """Everything that only the leader does."""
        chosen, store, queue = self._options, self._store, self._queue
        self._health.standing_by = False
        telemetry.LEADER.set(1)
        guarded = client.guarded(elector.leading)

        def gateway_changed(namespace: str, name: str) -> None:
            for key in owners.of_gateway(store, namespace, name):
                queue.add(key)

        watched_gateways = gateways.Gateways(guarded, store, changed=gateway_changed)

        async def gateway_address(policy: Manifest) -> str | None:
            key = owners.gateway(policy)
            state = await watched_gateways.state(*key) if key else None
            return state.address if state else None

        meter = ScrapingMeter(
            store, address=gateway_address, measured=queue.add, seconds=chosen.scrape_seconds
        )
        observer = Observer(
            store, guarded, gateways=watched_gateways, meter=meter, settings=chosen.pods
        )
        actor = Actor(store=store, intake=self._intake, client=guarded, fault=self._fault)
        reconciler = Reconciler(store=store, queue=queue, planners=planners(observer), actor=actor)
        informer = Informer(
            entry,
            guarded,
            intake=self._intake,
            store=store,
            queue=queue,
            own_namespace=chosen.pods.operator_namespace,
            namespaces=chosen.namespaces,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(_ends("the Lease is lost", elector.hold()), name="lease")
            # Workers start with a whole store: a plan must not take for missing what is only not
            # listed yet.
            await informer.list_all()
            self._health.synced = True
            log.info("synced", extra={"objects": queue.depth()})
            group.create_task(_ends("the watch has ended", informer.watch()), name="watch")
            group.create_task(informer.resync(chosen.resync_seconds), name="resync")
            group.create_task(watched_gateways.run(), name="gateways")
            group.create_task(meter.run(), name="meter")
            for number in range(chosen.workers):
                group.create_task(reconciler.work(), name=f"worker {number}")


async def _ends(what: str, part: Coroutine[Any, Any, None]) -> None:
    """A part that runs as long as the operator: its end is the operator's."""
    await part
    raise OperatorError("Ended", what)


async def _until_signalled(operator: Operator) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    work = asyncio.create_task(operator.run(), name="operator")
    stopped = asyncio.create_task(stop.wait(), name="signals")
    await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if not work.done():
        log.info("stopping")
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
        return 0
    stopped.cancel()
    try:
        await work
    except* OperatorError as group:
        for error in _leaves(group):
            log.critical("%s", error)
    except* Exception:
        log.critical("the operator failed", exc_info=True)
    return 1


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the operator. Returns the exit code."""
    chosen = options.parse(arguments, os.environ)
    logs.configure(chosen.log_level, chosen.log_format)
    fault = Fault.from_environment(os.environ)

    async def body() -> int:
        return await _until_signalled(Operator(chosen, fault))

    return asyncio.run(body())
