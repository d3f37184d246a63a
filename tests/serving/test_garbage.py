# SPDX-License-Identifier: Apache-2.0
"""Whatever bytes arrive: an answer in JSON, and a worker that lives."""

from __future__ import annotations

import asyncio
import json
import string
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kompakt.serving.asgi import read_body

INFER = "/v2/models/sentiment/infer"
KEYS = st.sampled_from(
    ["inputs", "outputs", "id", "name", "shape", "datatype", "data", "parameters", "text"]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(["text", "BYTES", "label", "scores"])
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=8,
)
# Requests that are almost right reach the code behind the first checks.
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("text") | SCALARS,
        "datatype": st.just("BYTES") | SCALARS,
        "shape": st.just([1]) | TREES,
        "data": st.lists(st.text(max_size=30) | SCALARS, max_size=3) | TREES,
        "parameters": TREES,
    },
)
NEARLY = st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS, max_size=2) | TREES}, optional={"outputs": TREES, "id": SCALARS}
)
PATHS = st.sampled_from([INFER, "/v2/models/sentiment", "/v2/models/x/infer", "/metrics"]) | (
    st.text(alphabet=string.printable, max_size=40).map("/".__add__)
)


@pytest.fixture(scope="module")
def loop_runner() -> Any:
    """One event loop for all examples of a test."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def served(loop_runner: Any, make_artifact: Any, serve_model: Any) -> Any:
    """A loaded endpoint on that loop."""
    context = serve_model(make_artifact())
    loaded = loop_runner.run(context.__aenter__())
    yield loaded
    loop_runner.run(context.__aexit__(None, None, None))


def _check(answer: Any, allowed: set[int]) -> None:
    assert answer.status in allowed, answer
    if answer.status != 200:
        assert answer.json()["error"]


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunks=st.lists(st.binary(max_size=200), max_size=4))
def test_bytes(served: Any, loop_runner: Any, chunks: list[bytes]) -> None:
    """Bytes that are nothing get 400."""
    _check(loop_runner.run(served.call("POST", INFER, chunks=chunks or [b""])), {400})


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=NEARLY | st.dictionaries(KEYS, TREES, max_size=4))
def test_nearly_right_documents(served: Any, loop_runner: Any, document: Any) -> None:
    """JSON of every form gets 200 or 400, never 500."""
    body = json.dumps(document).encode()  # the standard one: it writes numbers of any size
    _check(loop_runner.run(served.call("POST", INFER, body)), {200, 400})


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(min_size=1, max_size=300),
    more=st.lists(st.text(max_size=20), max_size=3),
)
def test_any_text(served: Any, loop_runner: Any, text: str, more: list[str]) -> None:
    """Any text that UTF-8 can write is classified, or has no tokens."""
    texts = [text, *more]
    tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": texts}
    _check(loop_runner.run(served.call("POST", INFER, {"inputs": [tensor]})), {200, 400})


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "BREW"]),
    path=PATHS,
    body=st.binary(max_size=50),
)
def test_any_route(served: Any, loop_runner: Any, method: str, path: str, body: bytes) -> None:
    """Any method on any path gets an answer that says what it is."""
    _check(loop_runner.run(served.call(method, path, body)), {200, 400, 404, 405})


async def test_bytes_that_are_no_http_get_400_and_the_server_lives(
    make_artifact: Any, serve_model: Any, serve_http: Any
) -> None:
    """On a real connection: garbage, a torn request, a hang-up; then a request is answered."""
    async with serve_model(make_artifact()) as served, serve_http(served.endpoint) as url:
        port = int(url.rsplit(":", 1)[1])
        for garbage in (b"\x16\x03\x01\x02\x00\x01\x00", b"POST\r\n\r\n", b"\x00" * 4096):
            answer = await _raw(port, garbage + b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
            assert b'{"error":' in answer
        # Torn: 100 bytes announced, 3 sent, then the line is cut.
        _reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST %s HTTP/1.1\r\ncontent-length: 100\r\n\r\nabc" % INFER.encode())
        await writer.drain()
        writer.transport.abort()
        answer = await _raw(port, b"GET /v2/health/ready HTTP/1.1\r\nconnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        metrics = (await served.call("GET", "/metrics")).body.decode()
        assert 'outcome="invalid"} 1\n' in metrics
        assert "kompakt_requests_started_total" in metrics


async def _raw(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    await writer.drain()
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return answer


async def test_a_body_that_never_comes_gets_408(
    make_artifact: Any, serve_model: Any, serve_http: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stalled caller holds its connection for a bounded time only."""
    monkeypatch.setitem(read_body.__kwdefaults__ or {}, "within_seconds", 0.05)
    async with serve_model(make_artifact()) as served, serve_http(served.endpoint) as url:
        port = int(url.rsplit(":", 1)[1])
        head = b"POST %s HTTP/1.1\r\ncontent-length: 100\r\n\r\nabc" % INFER.encode()
        answer = await _raw(port, head)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in answer
