# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import copy
from typing import Any, cast

import pytest

from kompakt.operator.client import Client
from kompakt.operator.errors import ApiError, Conflict, NotFound
from kompakt.operator.lease import Elector
from kompakt.operator.options import LeaseOptions
from kompakt.operator.resources import Manifest


class Leases:
    """One Lease, with optimistic locking, and a clock that the tests move."""

    def __init__(self) -> None:
        self.lease: Manifest | None = None
        self.version = 0
        self.now = 1000.0
        self.broken = False

    def elector(self, identity: str) -> Elector:
        """A replica."""
        options = LeaseOptions(
            identity=identity, duration=15, renew_deadline=10, retry_period=0.001
        )
        return Elector(cast("Client", self), options, clock=lambda: self.now)

    async def get(self, *_: Any) -> Manifest:
        """Read it."""
        await asyncio.sleep(0)
        if self.broken:
            raise ApiError(0, "ApiServerUnreachable", "no answer")
        if self.lease is None:
            raise NotFound(404, "NotFound", "no lease")
        return copy.deepcopy(self.lease)

    async def create(self, manifest: Manifest) -> Manifest | None:
        """Make it once."""
        if self.lease is not None:
            return None
        return self.store(manifest)

    async def replace(self, manifest: Manifest) -> Manifest:
        """Update what was read."""
        if self.lease is None or manifest["metadata"]["resourceVersion"] != str(self.version):
            raise Conflict(409, "Conflict", "the object has been modified")
        return self.store(manifest)

    def store(self, manifest: Manifest) -> Manifest:
        """Keep a new version."""
        self.version += 1
        manifest["metadata"]["resourceVersion"] = str(self.version)
        self.lease = copy.deepcopy(manifest)
        return manifest

    @property
    def holder(self) -> str:
        """Who holds it."""
        assert self.lease is not None
        return str(self.lease["spec"]["holderIdentity"])


async def acquire(elector: Elector) -> None:
    """With a time limit."""
    async with asyncio.timeout(5):
        await elector.acquire()


async def waits(elector: Elector) -> asyncio.Task[None]:
    """A replica that is trying, and has not succeeded yet."""
    task = asyncio.create_task(elector.acquire())
    await asyncio.sleep(0.05)
    assert not task.done()
    return task


async def test_the_first_leads_and_the_second_waits() -> None:
    """While one renews, another never gets the Lease, however long it waits."""
    leases = Leases()
    first, second = leases.elector("a"), leases.elector("b")
    await acquire(first)
    holding = asyncio.create_task(first.hold())
    waiting = await waits(second)

    for _ in range(10):
        leases.now += 4
        await asyncio.sleep(0.02)

    assert leases.holder == "a"
    assert not waiting.done()
    assert first.leading()
    holding.cancel()
    waiting.cancel()


async def test_a_dead_leader_is_replaced_after_the_duration_by_the_waiter_s_clock() -> None:
    """The Lease must stand still for its whole duration under the eyes of the one who takes it."""
    leases = Leases()
    await acquire(leases.elector("a"))
    second = leases.elector("b")
    leases.now += 100  # long ago, but the second has not seen it stand still yet
    waiting = await waits(second)

    leases.now += 14
    await asyncio.sleep(0.02)
    assert not waiting.done()
    leases.now += 2
    async with asyncio.timeout(5):
        await waiting

    assert leases.holder == "b"
    assert leases.lease is not None
    assert leases.lease["spec"]["leaseTransitions"] == 1


async def test_a_released_lease_is_taken_at_once() -> None:
    """After a clean stop nobody waits for the duration."""
    leases = Leases()
    first = leases.elector("a")
    await acquire(first)
    await first.release()

    await acquire(leases.elector("b"))

    assert leases.holder == "b"
    assert not first.leading()


async def test_the_same_identity_goes_on_at_once() -> None:
    """A restarted container of the same pod does not wait for itself."""
    leases = Leases()
    await acquire(leases.elector("a"))

    again = leases.elector("a")
    await acquire(again)

    assert again.leading()


async def test_a_leader_that_cannot_renew_stops_before_others_may_start() -> None:
    """It neither leads nor holds once the renew deadline is over, whether it has noticed or not."""
    leases = Leases()
    first = leases.elector("a")
    await acquire(first)
    leases.broken = True
    leases.now += 9.9
    assert first.leading()
    leases.now += 0.2

    assert not first.leading()
    async with asyncio.timeout(5):
        await first.hold()


async def test_a_leader_that_was_replaced_stops() -> None:
    """Whoever finds another name in the Lease holds it no longer."""
    leases = Leases()
    first = leases.elector("a")
    await acquire(first)
    assert leases.lease is not None
    leases.lease["spec"]["holderIdentity"] = "b"

    async with asyncio.timeout(5):
        await first.hold()

    assert not first.leading()


async def test_a_renewal_whose_answer_was_lost_is_no_loss() -> None:
    """A conflict with ourselves is resolved by reading again."""
    leases = Leases()
    first = leases.elector("a")
    await acquire(first)
    leases.version += 1
    assert leases.lease is not None
    stale = copy.deepcopy(leases.lease)
    leases.lease["metadata"]["resourceVersion"] = str(leases.version)
    reads = [stale]
    original = leases.get

    async def get(*arguments: Any) -> Manifest:
        return reads.pop() if reads else await original(*arguments)

    leases.get = get  # type: ignore[method-assign]
    holding = asyncio.create_task(first.hold())
    await asyncio.sleep(0.05)

    assert not holding.done()
    assert first.leading()
    holding.cancel()


@pytest.mark.parametrize("times", [(10, 10, 2), (15, 2, 10), (15, 10, 0)])
def test_times_that_cannot_work_are_refused(times: tuple[int, int, int]) -> None:
    """The order of the three times is what makes two leaders impossible."""
    from kompakt.operator.options import parse

    duration, deadline, retry = times
    with pytest.raises(SystemExit, match="must fall"):
        parse(
            [
                f"--lease-duration={duration}",
                f"--lease-renew-deadline={deadline}",
                f"--lease-retry-period={retry}",
            ],
            {},
        )
