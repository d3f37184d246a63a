# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.shell_world import Api, FakeClient, Reply

from kompakt.operator.access import Access
from kompakt.operator.client import Client


@pytest.fixture
def fake() -> FakeClient:
    """A client on a dictionary."""
    return FakeClient()


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    """A server that answers as its script says, then with `{}`."""
    requests: list[tuple[str, str]] = []
    script: list[Reply] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        await request.read()
        requests.append((request.method, request.path_qs))
        return script.pop(0)(request) if script else web.json_response({})

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handle)
    server = TestServer(application)
    await server.start_server()
    access = SimpleNamespace(
        server=f"http://127.0.0.1:{server.port}",
        headers=dict,
        ssl_context=lambda: True,
        proxy=None,
    )
    try:
        async with Client(cast("Access", access)) as client:
            yield Api(client, requests, script)
    finally:
        with contextlib.suppress(Exception):
            await server.close()
