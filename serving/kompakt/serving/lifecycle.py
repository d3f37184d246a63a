# SPDX-License-Identifier: Apache-2.0
"""From exec to exit 0: listen at once, start behind it, drain on SIGTERM, lose no request.

The end of a pod: the kubelet sends SIGTERM while endpoints and gateways still send traffic here,
for seconds. So readiness turns false at once, requests are served on with `Connection: close` for
`drain_seconds`, then new connections are refused, what is in flight is answered, and the process
exits. A second signal skips the wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Final, Protocol

import orjson
import uvicorn
import uvloop
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from kompakt.serving.arrival import waited_ns
from kompakt.serving.asgi import FIRST_BYTE, Health, Receive, Scope, Send

KEEP_ALIVE_SECONDS: Final = 3900
"""Longer than gateways keep idle connections (Envoy: one hour): whoever closes first loses no
request of the other.
"""
GRACEFUL_SECONDS: Final = 20
"""What is still in flight after that long is cut off; drain and this fit in a pod's default grace
of 30 s.
"""
BACKLOG: Final = 2048

LAST_CALL_SECONDS: Final = 0.2
"""Between ignoring new connections and closing: for those just made, to bring their request."""

Application = Callable[[Scope, Receive, Send], Awaitable[None]]
_SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h; the socket module has no name for it
_log = logging.getLogger(__name__)


class StartupError(Exception):
    """The process cannot do its work; the message says why and what to do."""


class Service(Protocol):
    """What runs behind the application."""

    async def start(self) -> None:
        """Get ready; raises StartupError. Health is answered meanwhile."""

    async def stop(self) -> None:
        """Release what start took; called when the last request has been answered."""


class _Connection(HttpToolsProtocol):
    """Notes when a request begins, and answers bytes that are no HTTP in JSON."""

    _in_headers = False

    @override
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True
        self.scope["state"][FIRST_BYTE] = time.monotonic_ns() - waited_ns(self.transport)

    @override
    def on_headers_complete(self) -> None:
        self._in_headers = False
        super().on_headers_complete()

    @override
    def shutdown(self) -> None:
        # A request of which only a part has been read is in flight too: its answer will close the
        # connection.
        if not self._in_headers:
            super().shutdown()

    @override
    def send_400_response(self, msg: str) -> None:
        body = orjson.dumps({"error": f"{msg} Send HTTP/1.1 as RFC 9112 says."})
        head = (
            b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            % len(body)
        )
        self.transport.write(STATUS_LINE[400] + head + body)
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: the drain comes first, and the exit status is 0."""

    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def make_server(application: Application) -> Server:
    """A server with the settings that pods need."""
    config = uvicorn.Config(
        application,
        http=_Connection,
        loop="none",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
        backlog=BACKLOG,
    )
    return Server(config)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises StartupError.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server(
            (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=host == "::"
        )
    except socket.gaierror as error:
        raise StartupError(f"--host {host} is no address ({error.strerror})") from error
    except OSError as error:
        raise StartupError(
            f"cannot listen on {host}:{port} ({os.strerror(error.errno or 0)}): "
            "choose another --host or --port"
        ) from error


def ignore_new_connections(listener: socket.socket) -> None:
    """Drop the SYN of whoever connects from now on; connections already made are still accepted.

    Closing a listening socket resets the connections that wait in its queue, requests and all.
    Behind this filter the queue runs dry first. Who was ignored tries again a second later, by
    TCP's own rules, and is refused: nothing of its request was sent.
    """
    # load tcp[13], the flags; keep SYN and ACK of it; SYN alone → drop, anything else → pass.
    program = (
        (0x30, 0, 0, 13),
        (0x54, 0, 0, 0x12),
        (0x15, 0, 1, 0x02),
        (0x06, 0, 0, 0),
        (0x06, 0, 0, 0xFFFFFFFF),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    attachment = struct.pack("HP", len(program), ctypes.addressof(code))
    # A sandbox without socket filters only has the race back that others live with.
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, attachment)


def run(
    application: Application,
    service: Service,
    health: Health,
    *,
    host: str,
    port: int,
    drain_seconds: float,
) -> int:
    """Serve until a signal; the process's exit status."""
    try:
        listener = listen(host, port)
    except StartupError as error:
        _log.error("%s", error)
        return 1
    _log.info("listening on %s:%d", *listener.getsockname()[:2])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(make_server(application), listener, service, health, drain_seconds))


async def _run(
    server: Server, listener: socket.socket, service: Service, health: Health, drain_seconds: float
) -> int:
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if server.should_exit or not health.drain():
            server.should_exit = True
            return
        _log.info("%s: draining for %g s", number.name, drain_seconds)
        loop.call_later(drain_seconds, stop_listening)

    def stop_listening() -> None:
        ignore_new_connections(listener)
        loop.call_later(LAST_CALL_SECONDS, setattr, server, "should_exit", True)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    serving: asyncio.Task[Any] = asyncio.create_task(server.serve(sockets=[listener]))
    starting = asyncio.create_task(service.start())
    await asyncio.wait((serving, starting), return_when=asyncio.FIRST_COMPLETED)
    status = 0
    if starting.done() and (error := starting.exception()) is not None:
        if not isinstance(error, StartupError):
            raise error
        _log.error("%s", error)
        status = 1
        server.should_exit = True
    await serving
    if not starting.done():
        starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await service.stop()
    _log.info("stopped")
    return status
