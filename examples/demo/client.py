# SPDX-License-Identifier: Apache-2.0
"""The demo's users: real sentences through the gateway, at a steady rate, from the first answer to
the end.

Invariants: requests leave on a clock, whether the answers are back or not (an open loop: a slow
server must not slow its own measurement down; only a queue that grows makes the clock slower); the
number in flight, the time of each, and the time of all are bounded; nothing is sent twice, so a
broken connection counts as a failed request.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import aiohttp
from examples.demo.pace import Pace
from examples.demo.records import OK, Response, TrafficLog

REQUEST_TIMEOUT = 10.0
MAX_IN_FLIGHT = 200
MAX_SECONDS = 3600.0
_CATCH_UP = 1.0
"""The clock forgets what it missed longer ago than this: a machine that slept must not be followed
by a burst.
"""


@dataclass(frozen=True)
class Endpoint:
    """Where a model is reached through the gateway."""

    address: str
    """`host:port` of the gateway."""
    host: str
    """Host name by which the gateway finds the route."""
    model: str

    @property
    def url(self) -> str:
        """The infer path of the Open Inference Protocol."""
        return f"http://{self.address}/v2/models/{self.model}/infer"


def infer_request(text: str) -> bytes:
    """The body of a request for one text (Open Inference Protocol v2)."""
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}
    return json.dumps({"inputs": [tensor]}).encode()


class Client:
    """Sends the texts, shuffled, over and over."""

    def __init__(
        self, endpoint: Endpoint, texts: Sequence[str], log: TrafficLog, *, rate: float
    ) -> None:
        self.pace = Pace(rate)
        self._endpoint = endpoint
        self._log = log
        order = random.Random(0).sample(list(texts), len(texts))
        self._bodies = itertools.cycle([infer_request(text) for text in order])
        self._in_flight: set[asyncio.Task[None]] = set()

    async def answers(self) -> bool:
        """Send one request and say whether it was answered. It is not recorded: it asks if there is
        a service yet.
        """
        async with self._session() as session:
            return (await self._request(session)).ok

    async def run(self) -> None:
        """Send until cancelled, an hour at most; then wait for the answers that are under way."""
        async with self._session() as session:
            try:
                async with asyncio.timeout(MAX_SECONDS):
                    await self._send_on_the_clock(session)
            except TimeoutError:
                pass
            finally:
                with suppress(TimeoutError):
                    async with asyncio.timeout(REQUEST_TIMEOUT):
                        await asyncio.gather(*self._in_flight)

    async def _send_on_the_clock(self, session: aiohttp.ClientSession) -> None:
        due = time.monotonic()
        while True:
            due = max(due + 1 / self.pace.rate, time.monotonic() - _CATCH_UP)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if len(self._in_flight) >= MAX_IN_FLIGHT:
                continue
            task = asyncio.create_task(self._record(session))
            self._in_flight.add(task)
            task.add_done_callback(self._in_flight.discard)

    async def _record(self, session: aiohttp.ClientSession) -> None:
        response = await self._request(session)
        self._log.add(response)
        self.pace.answered(time.monotonic(), response.seconds)

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT),
            headers={"Host": self._endpoint.host, "Content-Type": "application/json"},
        )

    async def _request(self, session: aiohttp.ClientSession) -> Response:
        sent, begin = time.time(), time.monotonic()
        status, variant, detail = 0, "", ""
        try:
            async with session.post(self._endpoint.url, data=next(self._bodies)) as answer:
                body = await answer.read()
                status = answer.status
                variant = answer.headers.get("x-kompakt-variant", "")
                if status != OK:
                    detail = f"status {status}: {body[:120].decode(errors='replace')}"
        except TimeoutError:
            detail = f"no answer within {REQUEST_TIMEOUT:.0f} s"
        except aiohttp.ClientError as error:
            detail = f"{type(error).__name__}: {error}"
        return Response(sent, time.monotonic() - begin, status, variant, detail)
