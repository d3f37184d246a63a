# SPDX-License-Identifier: Apache-2.0
"""Leader election by a Lease, with the rules of client-go: at most one replica writes.

A replica takes the Lease when it is free, was given up, or has not changed for its duration as
measured by this replica's own clock (clocks of other machines are never compared). The leader
renews it every `retry_period`, and stops when it could not for `renew_deadline`: that is before
anybody else may start.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from kompakt.operator.client import Client
from kompakt.operator.errors import ApiError, Conflict, NotFound
from kompakt.operator.options import LeaseOptions
from kompakt.operator.resources import BY_NAME, Manifest

log = logging.getLogger(__name__)
LEASE = BY_NAME["Lease"]


class Elector:
    """One replica's part in the election."""

    def __init__(
        self,
        client: Client,
        options: LeaseOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._options = options
        self._clock = clock
        self._renewed: float | None = None
        self._seen: tuple[str, float] | None = None
        """Resource version of somebody else's Lease, and when we saw it first."""

    def leading(self) -> bool:
        """Whether we hold the Lease, and renewed it recently enough that nobody else can."""
        return (
            self._renewed is not None
            and self._clock() - self._renewed < self._options.renew_deadline
        )

    async def acquire(self) -> None:
        """Wait until we lead."""
        told: str | None = ""
        while True:
            try:
                holder = await self._try()
            except ApiError as error:
                holder = None
                log.warning("the Lease was not read", extra={"why": error.message})
            if self.leading():
                log.info("leading", extra={"identity": self._options.identity})
                return
            if holder != told:
                log.info("waiting for the Lease", extra={"holder": holder})
                told = holder
            await asyncio.sleep(self._options.retry_period)

    async def hold(self) -> None:
        """Renew for as long as we lead; return when the Lease is lost."""
        while True:
            await asyncio.sleep(self._options.retry_period)
            holder = None
            try:
                remaining = self._options.renew_deadline - self._age()
                async with asyncio.timeout(max(remaining, 0.1)):
                    holder = await self._try()
            except (ApiError, TimeoutError) as error:
                log.warning("the Lease was not renewed", extra={"why": str(error)})
            if holder not in {None, self._options.identity}:
                self._renewed = None
            if not self.leading():
                log.error("the Lease is lost", extra={"holder": holder})
                return

    async def release(self) -> None:
        """Give the Lease up, so that another replica need not wait for it to expire."""
        if not self.leading():
            return
        try:
            lease = await self._client.get(LEASE, self._options.namespace, self._options.name)
            if lease["spec"].get("holderIdentity") == self._options.identity:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
                await self._client.replace(lease)
        except ApiError as error:
            log.warning("the Lease was not released", extra={"why": error.message})
        self._renewed = None

    def _age(self) -> float:
        return self._clock() - (self._renewed if self._renewed is not None else self._clock())

    async def _try(self) -> str | None:
        """Take or renew the Lease if that is allowed. Returns who holds it, None when that is open:
        somebody changed it just now, perhaps ourselves by a request whose answer was lost.
        """
        options = self._options
        # What is promised to others counts from before the request: it may take effect late.
        started = self._clock()
        try:
            lease = await self._client.get(LEASE, options.namespace, options.name)
        except NotFound:
            created = await self._client.create(self._new())
            if created is None:
                return None
            self._renewed = started
            return options.identity
        spec = lease.setdefault("spec", {})
        holder = spec.get("holderIdentity") or ""
        if holder not in {"", options.identity} and not self._expired(lease):
            return str(holder)
        now = _micro_time()
        if holder != options.identity:
            spec["leaseTransitions"] = (spec.get("leaseTransitions") or 0) + 1
            spec["acquireTime"] = now
        spec |= {
            "holderIdentity": options.identity,
            "leaseDurationSeconds": max(1, round(options.duration)),
            "renewTime": now,
        }
        try:
            await self._client.replace(lease)
        except Conflict:
            return None
        self._renewed = started
        return options.identity

    def _expired(self, lease: Manifest) -> bool:
        """Whether somebody else's Lease has stood still for its duration under our eyes."""
        version = lease["metadata"]["resourceVersion"]
        if self._seen is None or self._seen[0] != version:
            self._seen = (version, self._clock())
        duration = lease["spec"].get("leaseDurationSeconds") or self._options.duration
        return self._clock() - self._seen[1] > duration

    def _new(self) -> Manifest:
        now = _micro_time()
        return {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": {"name": self._options.name, "namespace": self._options.namespace},
            "spec": {
                "holderIdentity": self._options.identity,
                "leaseDurationSeconds": max(1, round(self._options.duration)),
                "acquireTime": now,
                "renewTime": now,
                "leaseTransitions": 0,
            },
        }


def _micro_time() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
