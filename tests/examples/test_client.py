# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from aiohttp import web
from examples.demo.client import Client, Endpoint
from examples.demo.records import TrafficLog

TEXTS = [f"sentence {i}" for i in range(5)]


class Gateway:
    """A server that answers as it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.status = 200
        self.delay = 0.0
        self.asked: list[tuple[str, str, str]] = []

    async def answer(self, request: web.Request) -> web.Response:
        """Answer like a variant."""
        body = json.loads(await request.read())
        self.asked.append((request.host, request.path, body["inputs"][0]["data"][0]))
        await asyncio.sleep(self.delay)
        return web.json_response(
            {}, status=self.status, headers={"x-kompakt-variant": "0123456789ab"}
        )

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[Endpoint]:
        """Serve on a free port of this machine."""
        app = web.Application()
        app.router.add_post("/{path:.*}", self.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        yield Endpoint(f"127.0.0.1:{port}", "model.example.com", "sentiment")
        await runner.cleanup()


async def send(endpoint: Endpoint, *, seconds: float, rate: float) -> TrafficLog:
    """Let the users come for a while."""
    log = TrafficLog()
    task = asyncio.create_task(Client(endpoint, TEXTS, log, rate=rate).run())
    await asyncio.sleep(seconds)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return log


async def test_users_reach_the_model_by_its_host_name() -> None:
    """Each request names the route's host and the model, and carries one of the sentences."""
    gateway = Gateway()
    async with gateway.serve() as endpoint:
        log = await send(endpoint, seconds=0.3, rate=100)

    assert {host for host, _, _ in gateway.asked} == {"model.example.com"}
    assert {path for _, path, _ in gateway.asked} == {"/v2/models/sentiment/infer"}
    assert set(Counter(text for _, _, text in gateway.asked)) == set(TEXTS)
    assert {r.variant for r in log.responses} == {"0123456789ab"}
    assert log.failed == 0


@pytest.mark.slow
async def test_a_slow_server_does_not_slow_the_users() -> None:
    """Requests leave on the clock while earlier ones still wait, and every answer is recorded."""
    gateway = Gateway()
    gateway.delay = 0.3
    async with gateway.serve() as endpoint:
        log = await send(endpoint, seconds=0.5, rate=100)

    assert log.total == len(gateway.asked)
    assert log.total > 25
    assert min(r.seconds for r in log.responses) >= 0.3


async def test_errors_are_recorded_and_do_not_stop_the_users() -> None:
    """An error of the server is a failed request with its status."""
    gateway = Gateway()
    gateway.status = 503
    async with gateway.serve() as endpoint:
        log = await send(endpoint, seconds=0.2, rate=50)

    assert log.failed == log.total > 3
    assert {r.status for r in log.responses} == {503}


async def test_a_gateway_that_is_gone_is_a_failed_request() -> None:
    """A refused connection is recorded as a request without an answer."""
    async with Gateway().serve() as endpoint:
        pass

    log = await send(endpoint, seconds=0.2, rate=50)

    assert log.failed == log.total > 3
    assert {r.status for r in log.responses} == {0}


async def test_asking_whether_it_answers_is_not_recorded() -> None:
    """The users' record begins with the first user, not with the wait for the service."""
    gateway, log = Gateway(), TrafficLog()
    async with gateway.serve() as endpoint:
        client = Client(endpoint, TEXTS, log, rate=1)
        assert await client.answers()
        gateway.status = 404
        assert not await client.answers()

    assert log.total == 0


@pytest.mark.slow
async def test_the_rate_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the users neither drifts nor bursts after the machine slept."""
    gateway = Gateway()
    async with gateway.serve() as endpoint:
        begin = time.monotonic()
        log = await send(endpoint, seconds=1.0, rate=40)
        seconds = time.monotonic() - begin

    assert log.total <= 40 * seconds + 2
