# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from kompakt.api.telemetry import edge_for
from kompakt.serving import app
from kompakt.serving.asgi import Health

INFER = "/v2/models/sentiment/infer"
BODY = b'{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["bad"]}]}'
REQUEST = f"POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(BODY)}\r\n\r\n".encode() + BODY


async def _ready(url: str) -> bool:
    async with aiohttp.ClientSession() as session:
        try:
            async with session.get(f"{url}/v2/health/ready") as response:
                return response.status == 200
        except aiohttp.ClientConnectionError:
            return False


async def _until_ready(url: str, *, ready: bool = True) -> None:
    end = time.monotonic() + 30
    while await _ready(url) != ready:
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


@dataclass
class Load:
    """What the clients saw."""

    answered: list[int] = field(default_factory=list)
    closing: int = 0
    lost: list[str] = field(default_factory=list)
    moved: int = 0


async def _client(urls: list[str], body: Any, load: Load, stop: asyncio.Event) -> None:
    """Requests over one kept connection; to the next server when a connection is refused."""
    remaining = list(urls)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        while not stop.is_set():
            try:
                async with session.post(remaining[0] + INFER, json=body) as response:
                    await response.read()
                    load.answered.append(response.status)
                    load.closing += response.headers.get("Connection") == "close"
            except aiohttp.ClientConnectorError:
                # Refused before anything was sent: what a load balancer does too.
                remaining.pop(0)
                load.moved += 1
            except aiohttp.ClientError as error:
                load.lost.append(repr(error))


@pytest.mark.slow
async def test_sigterm_under_load_loses_no_request(
    make_artifact: Any, start_process: Any, infer_body: Any, wait_until: Any
) -> None:
    """Readiness falls at once, answers carry Connection: close, all are 200, and the exit is 0."""
    folder = make_artifact()
    serve = ("serve", "--model-dir", str(folder), "--model-name", "sentiment")
    first, second = await asyncio.gather(
        start_process(*serve, "--drain-seconds", "1"), start_process(*serve)
    )
    await asyncio.gather(_until_ready(first.url), _until_ready(second.url))
    load, stop = Load(), asyncio.Event()
    body = infer_body("good", "so bad")
    clients = [
        asyncio.create_task(_client([first.url, second.url], body, load, stop)) for _ in range(4)
    ]
    torn = [await _torn_request(first.url, at) for at in (10, 150)]  # in the headers, in the body
    await asyncio.sleep(0.5)
    assert load.closing == 0
    before = len(load.answered)

    first.handle.send_signal(signal.SIGTERM)
    await _until_ready(first.url, ready=False)
    # The listener is gone then; the torn requests are not.
    await wait_until(lambda: load.moved == len(clients))
    for reader, writer, rest in torn:
        writer.write(rest)
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"connection: close" in answer
        writer.close()
    assert await first.ended() == 0

    await asyncio.sleep(0.2)
    stop.set()
    await asyncio.gather(*clients)
    assert load.lost == []
    assert set(load.answered) == {200}
    assert load.closing > 0
    assert load.moved == len(clients)
    assert len(load.answered) > before > 0
    messages = [entry["message"] for entry in first.log]
    assert messages[-1] == "stopped"
    assert any(message.startswith("SIGTERM: draining") for message in messages)


async def _torn_request(
    url: str, at: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    """Send the first bytes of a request; the rest is for later."""
    port = int(url.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(REQUEST[:at])
    await writer.drain()
    return reader, writer, REQUEST[at:]


async def _request(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request over a new connection."""
    reader, writer, _ = await _torn_request(url, len(REQUEST))
    return reader, writer


async def _answer(reader: asyncio.StreamReader) -> None:
    """Read one answer; the connection stays open."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    [length] = [line for line in head.split(b"\r\n") if line.startswith(b"content-length: ")]
    await reader.readexactly(int(length.rsplit(b" ", 1)[1]))


@pytest.mark.slow
async def test_a_server_that_gets_no_cpu_counts_the_wait(
    make_artifact: Any, start_process: Any, parse_metrics: Any
) -> None:
    """The clock of a request starts when its bytes arrive, not when a stopped process reads them:
    on a kept connection and on one that nobody has accepted yet.
    """
    process = await start_process(
        "serve", "--model-dir", str(make_artifact()), "--model-name", "sentiment"
    )
    await _until_ready(process.url)
    kept, writer = await _request(process.url)
    await _answer(kept)

    process.handle.send_signal(signal.SIGSTOP)
    again, other = await _request(process.url)
    writer.write(REQUEST)
    await writer.drain()
    await asyncio.sleep(0.4)
    process.handle.send_signal(signal.SIGCONT)
    await asyncio.gather(_answer(kept), _answer(again))

    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{process.url}/metrics") as response,
    ):
        series = parse_metrics(await response.read())
    [(key, count)] = [
        (key, number)
        for key, number in series.items()
        if key.startswith("kompakt_request_duration_seconds_bucket") and 'le="+Inf"' in key
    ]
    fast = series[key.replace("+Inf", str(edge_for(300_000) / 1e6))]
    assert count == 3
    # The first one may have been slow too, on a busy machine.
    assert fast <= 1
    writer.close()
    other.close()


@pytest.mark.slow
async def test_a_folder_that_cannot_be_served_ends_the_process_with_one_sentence(
    tmp_path: Any, start_process: Any
) -> None:
    """Exit 1; the last line of the log says what is wrong and what to do."""
    process = await start_process("serve", "--model-dir", str(tmp_path), "--model-name", "m")
    assert await process.ended() == 1
    errors = [entry["message"] for entry in process.log if entry["level"] == "error"]
    assert len(errors) == 1
    assert "variant.json cannot be read" in errors[0]


def test_a_port_that_is_taken_ends_the_command_with_one_sentence(
    make_artifact: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Not a stack trace."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        where = ["--host", "127.0.0.1", "--port", port]
        assert app.main(["--model-dir", str(make_artifact()), "--model-name", "m", *where]) == 1
    [message] = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"cannot listen on 127.0.0.1:{port} (Address already in use): ")


def test_a_late_start_does_not_make_a_draining_process_ready() -> None:
    """SIGTERM during start-up wins."""
    health = Health()
    assert health.drain()
    health.ready()
    assert not health.is_ready
    assert not health.drain()


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        (
            "kompakt.serving.app",
            ("aiohttp", "torch", "onnx", "onnxruntime", "openvino", "prometheus_client"),
        ),
        (
            "kompakt.serving.comparator_app",
            ("numpy", "onnxruntime", "tokenizers", "torch", "prometheus_client"),
        ),
    ],
)
def test_each_command_imports_only_its_own_half(module: str, absent: tuple[str, ...]) -> None:
    """Start-up time and memory of a pod are paid for in imports."""
    code = f"import sys, {module}; print([m for m in {absent!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
