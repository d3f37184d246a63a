# SPDX-License-Identifier: Apache-2.0
"""Brings the state of the cluster in: kopf's watch streams for changes, complete lists for
everything they may miss.

kopf runs in a thread with an event loop of its own: it takes the process's signals where it can,
and at its end cancels every task that was born after it. Only low-level event handlers are
registered: no annotations and no finalizers of kopf appear on anybody's objects, and nothing is
kept twice.

A watch does not tell what was deleted while it was disconnected, so everything is listed again
every few minutes.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from typing import Any, Final

import kopf

from kompakt.api import names
from kompakt.operator.access import Access
from kompakt.operator.client import Client
from kompakt.operator.errors import ApiError, NotFound, OperatorError
from kompakt.operator.intake import Intake
from kompakt.operator.resources import (
    BY_NAME,
    MADE,
    OURS,
    PLANNED,
    RECIPE,
    WATCHED,
    Kind,
    Manifest,
    Ref,
    ref_of,
)
from kompakt.operator.store import Store
from kompakt.operator.workqueue import WorkQueue

log = logging.getLogger(__name__)
SELECTOR: Final = f"{names.MANAGED_BY_LABEL}={names.MANAGED_BY}"
_FIRST_RESYNC: Final = 15.0
_LIST_AGAIN: Final = 5.0


def settings() -> kopf.OperatorSettings:
    """Kopf as a mere informer."""
    chosen = kopf.OperatorSettings()
    # Events are written by the reconciler, on transitions; every log line of kopf would be one
    # more.
    chosen.posting.enabled = False
    chosen.posting.loggers = False
    # We lead by a Lease. Else any ClusterKopfPeering `default` in the cluster would pause us.
    chosen.peering.standalone = True
    # The default of five minutes for one request would blind us for as long.
    chosen.networking.request_timeout = 60
    chosen.networking.connect_timeout = 10
    # Ended by the server well before the streams of load balancers are cut silently.
    chosen.watching.server_timeout = 300
    chosen.watching.connect_timeout = 10
    # No right to see all CRDs and namespaces come and go is asked for: the lists do as well.
    chosen.scanning.disabled = True
    # Others' Jobs and pods never cross the network.
    for name in MADE:
        kind = BY_NAME[name]
        chosen.watching.label_selectors[kind.group, kind.version, kind.plural] = SELECTOR
    return chosen


class Informer:
    """Feeds the intake."""

    def __init__(
        self,
        access: Access,
        client: Client,
        *,
        intake: Intake,
        store: Store,
        queue: WorkQueue[Ref],
        own_namespace: str,
        namespaces: Sequence[str] = (),
    ) -> None:
        """`namespaces`: those that are served; empty for all. Recipes of the own one are for
        everybody.
        """
        self._access = access
        self._client = client
        self._intake = intake
        self._store = store
        self._queue = queue
        self._own_namespace = own_namespace
        self._namespaces = tuple(namespaces)
        self._absent: set[str] = set()
        self._stop = threading.Event()

    # --- lists ------------------------------------------------------------------------------------

    async def list_all(self) -> None:
        """List everything that is watched. After it the store is whole."""
        for name in WATCHED:
            for namespace in self._scopes(BY_NAME[name]):
                await self._list(BY_NAME[name], namespace)

    def _scopes(self, kind: Kind) -> Sequence[str | None]:
        if not kind.namespaced or not self._namespaces:
            return (None,)
        if kind.kind == RECIPE:
            return tuple({*self._namespaces, self._own_namespace})
        return self._namespaces

    async def _list(self, kind: Kind, namespace: str | None) -> None:
        name = kind.kind
        try:
            labels = SELECTOR if name in MADE else ""
            items, version = await self._client.list(kind, namespace, labels=labels)
        except NotFound as error:
            if name in OURS:
                message = f"{error.message}; install the CRDs of Kompakt"
                raise NotFound(error.status, "CrdNotFound", message) from error
            # Without the Gateway API models can still be compressed, and policies say what is
            # missing.
            if name not in self._absent:
                log.warning("the cluster has no kind %s", name)
                self._absent.add(name)
            return
        if name in self._absent:
            raise OperatorError(
                "KindAppeared", f"the cluster has {name} now: a new start watches it"
            )
        self._intake.replace(name, namespace, items=items, version=version)

    async def resync(self, seconds: float) -> None:
        """List again and plan again, every so often. The first time soon: kopf's own first list
        comes after ours, and what was deleted between the two is in neither.
        """
        await asyncio.sleep(min(_FIRST_RESYNC, seconds))
        while True:
            try:
                await self.list_all()
            except ApiError as error:
                log.warning("not listed: %s", error.message)
                await asyncio.sleep(min(_LIST_AGAIN, seconds))
                continue
            for name in PLANNED:
                for obj in self._store.all(name):
                    self._queue.add(ref_of(obj))
            await asyncio.sleep(seconds)

    # --- watches ----------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Run kopf until it fails or this is cancelled."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def settle(error: BaseException | None) -> None:
            if ended.done():
                return
            if error is None:
                ended.set_result(None)
            else:
                ended.set_exception(error)

        def body() -> None:
            error: BaseException | None = None
            try:
                asyncio.run(self._kopf(loop))
            except BaseException as caught:  # noqa: BLE001 -- it ends the operator, whatever it is
                error = caught
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, error)

        thread = threading.Thread(target=body, name="kopf", daemon=True)
        thread.start()
        try:
            await ended
        finally:
            self._stop.set()

    async def _kopf(self, loop: asyncio.AbstractEventLoop) -> None:
        namespaces: dict[str, Any] = (
            {"namespaces": self._namespaces} if self._namespaces else {"clusterwide": True}
        )
        await kopf.operator(
            registry=self._registry(loop), settings=settings(), stop_flag=self._stop, **namespaces
        )

    def _registry(self, loop: asyncio.AbstractEventLoop) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        access = self._access

        @kopf.on.login(registry=registry)
        async def login(**_: Any) -> kopf.ConnectionInfo:
            return access.kopf_login()

        for name in WATCHED:
            self._register(registry, BY_NAME[name], loop)
        return registry

    def _register(
        self, registry: kopf.OperatorRegistry, kind: Kind, loop: asyncio.AbstractEventLoop
    ) -> None:
        @kopf.on.event(kind.group, kind.version, kind.plural, registry=registry, id=kind.plural)
        async def on_event(event: Any, **_: Any) -> None:
            obj: Manifest = {
                "apiVersion": kind.api_version,
                "kind": kind.kind,
                **event["object"],
            }
            take = self._intake.deleted if event["type"] == "DELETED" else self._intake.put
            loop.call_soon_threadsafe(take, obj)
