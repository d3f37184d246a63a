# SPDX-License-Identifier: Apache-2.0
"""The little of HTTP that both applications share: bodies with a limit, JSON answers, health,
errors in words.

Raw ASGI: a framework would cost several times what the rest of the server does.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from kompakt.serving.metrics import CONTENT_TYPE, Registry

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

MAX_BODY_BYTES: Final = 1024 * 1024
BODY_TIMEOUT_SECONDS: Final = 10.0
FIRST_BYTE: Final = "kompakt.first_byte_ns"
"""Key of the scope's state: when the request's first bytes arrived (`time.monotonic_ns`)."""
_JSON_TYPE: Final = b"application/json"


class Phase(enum.Enum):
    """Where a process is between its start and its end."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


@dataclass
class Health:
    """What the process says of itself. Draining is final: a late start-up does not make it ready
    again.
    """

    phase: Phase = Phase.STARTING

    def ready(self) -> None:
        """Started, unless the end came first."""
        if self.phase is Phase.STARTING:
            self.phase = Phase.READY

    def drain(self) -> bool:
        """Not ready from now on, though requests are still answered. False when that was so
        already.
        """
        first = self.phase is not Phase.DRAINING
        self.phase = Phase.DRAINING
        return first

    @property
    def is_ready(self) -> bool:
        """Whether new traffic should come here."""
        return self.phase is Phase.READY


class HttpError(Exception):
    """An answer other than 200, as `{"error": message}`."""

    def __init__(self, status: int, message: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers


class DisconnectedError(Exception):
    """The caller hung up in the middle of its request."""


class Responder:
    """Writes the one answer to a request."""

    def __init__(self, send: Send, headers: Headers, health: Health) -> None:
        self._send = send
        self._headers = headers
        self._health = health

    async def raw(
        self,
        status: int,
        body: bytes,
        content_type: bytes = _JSON_TYPE,
        *extra: tuple[bytes, bytes],
    ) -> None:
        """Status line, headers and body in one go."""
        headers = [
            (b"content-type", content_type),
            (b"content-length", b"%d" % len(body)),
            *self._headers,
            *extra,
        ]
        if self._health.phase is Phase.DRAINING:
            # The caller's next request must open a connection, and finds another pod by then.
            headers.append((b"connection", b"close"))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def json(self, status: int, payload: Any, *extra: tuple[bytes, bytes]) -> None:
        """A JSON document."""
        await self.raw(status, orjson.dumps(payload), _JSON_TYPE, *extra)

    async def error(self, error: HttpError) -> None:
        """An error in words."""
        await self.json(error.status, {"error": error.message}, *error.headers)

    async def metrics(self, registry: Registry) -> None:
        """A scrape."""
        await self.raw(200, registry.render(), CONTENT_TYPE)

    async def live(self) -> None:
        """The process answers, hence it lives."""
        await self.json(200, {"live": True})

    async def readiness(self) -> None:
        """200 or 503."""
        ready = self._health.is_ready
        await self.json(200 if ready else 503, {"ready": ready, "phase": self._health.phase.value})


def require_method(scope: Scope, *methods: str) -> None:
    """Raise HttpError 405 for any other method."""
    if scope["method"] not in methods:
        allowed = ", ".join(methods)
        raise HttpError(
            405,
            f"{scope['method']} is not possible on {shown_path(scope)}; use {allowed}",
            (b"allow", allowed.encode()),
        )


def shown_path(scope: Scope) -> str:
    """The path as error messages repeat it: the front of it."""
    limit = 200
    path: str = scope["path"]
    return path if len(path) <= limit else f"{path[:limit]}…"


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of a (lower-case) name."""
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None


def first_byte_ns(scope: Scope) -> int:
    """When the request began to arrive; now, under a server that does not say."""
    state: dict[str, int] = scope.get("state") or {}
    return state.get(FIRST_BYTE) or time.monotonic_ns()


async def read_body(
    scope: Scope,
    receive: Receive,
    *,
    limit: int = MAX_BODY_BYTES,
    within_seconds: float = BODY_TIMEOUT_SECONDS,
) -> bytes:
    """The whole body.

    Raises HttpError (413 over the limit, 408 when it does not arrive, 415 when compressed) and
    DisconnectedError.
    """
    encoding = header(scope, b"content-encoding")
    if encoding not in (None, b"identity"):
        raise HttpError(
            415, "content-encoding: compressed bodies are not supported; send plain JSON"
        )
    length = header(scope, b"content-length")
    if length is not None and length.isdigit() and int(length) > limit:
        raise _too_large(limit)
    try:
        async with asyncio.timeout(within_seconds):
            message = await receive()
            if message["type"] != "http.request":
                raise DisconnectedError
            body: bytes = message.get("body", b"")
            if message.get("more_body"):
                body = await _rest(receive, body, limit)
    except TimeoutError:
        raise HttpError(
            408,
            f"the body did not arrive within {within_seconds:g} s; send it without pauses",
            (b"connection", b"close"),
        ) from None
    if len(body) > limit:
        raise _too_large(limit)
    return body


async def _rest(receive: Receive, first: bytes, limit: int) -> bytes:
    chunks = [first]
    size = len(first)
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise DisconnectedError
        chunk: bytes = message.get("body", b"")
        chunks.append(chunk)
        size += len(chunk)
        if size > limit:
            # The rest was never announced: the connection cannot be used for another request.
            raise _too_large(limit, (b"connection", b"close"))
        more = message.get("more_body", False)
    return b"".join(chunks)


def _too_large(limit: int, *headers: tuple[bytes, bytes]) -> HttpError:
    return HttpError(
        413, f"the body is larger than {limit} bytes; send fewer texts in each request", *headers
    )
