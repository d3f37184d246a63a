# SPDX-License-Identifier: Apache-2.0
"""A small API server in memory: enough of one for the paths that a real cluster does not show on
request (lost answers, conflicts, a busy server). What a real one can show is tested on a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from kompakt.operator.access import Access
from kompakt.operator.client import Client
from kompakt.operator.errors import Conflict, NotFound
from kompakt.operator.resources import Kind, Manifest, Ref, kind_of, ref_of

Reply = Callable[[web.Request], web.StreamResponse]


def make(kind: str, name: str, *, namespace: str = "team", **parts: Any) -> Manifest:
    """A live object. `labels`, `uid`, `version` go to its metadata, the rest is as given."""
    metadata = {
        "name": name,
        "uid": parts.pop("uid", f"uid-{kind}-{name}"),
        "resourceVersion": str(parts.pop("version", 1)),
        "generation": parts.pop("generation", 1),
        "labels": parts.pop("labels", {}),
        **parts.pop("metadata", {}),
    }
    if namespace:
        metadata["namespace"] = namespace
    return {"kind": kind, "metadata": metadata, **parts}


@dataclass
class FakeClient:
    """What the actor needs of a client, on a dictionary. Each write is noted."""

    objects: dict[Ref, Manifest] = field(default_factory=dict)
    writes: list[tuple[str, str]] = field(default_factory=list)
    version: int = 100

    def stamp(self, obj: Manifest, verb: str) -> Manifest:
        """Store a new version."""
        self.version += 1
        ref = ref_of(obj)
        old = self.objects.get(ref, {})
        merged = {**old, **obj}
        merged["metadata"] = {
            "uid": f"uid-{ref.kind}-{ref.name}",
            "generation": 1,
            **old.get("metadata", {}),
            **obj["metadata"],
            "resourceVersion": str(self.version),
        }
        self.objects[ref] = merged
        self.writes.append((verb, str(ref)))
        return merged

    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest:
        """One object."""
        try:
            return self.objects[Ref(kind.kind, namespace, name)]
        except KeyError:
            raise NotFound(404, "NotFound", f"{name} not found") from None

    async def apply(self, manifest: Manifest, *, subresource: str = "") -> Manifest:
        """Server-side apply; of a subresource only to what exists."""
        if subresource:
            await self.get(
                kind_of(manifest), manifest["metadata"]["namespace"], manifest["metadata"]["name"]
            )
        return self.stamp(manifest, f"apply {subresource}".strip())

    async def create(self, manifest: Manifest) -> Manifest | None:
        """Create once."""
        if ref_of(manifest) in self.objects:
            return None
        return self.stamp(manifest, "create")

    async def delete(self, kind: Kind, namespace: str, name: str) -> None:
        """Delete at once."""
        self.objects.pop(Ref(kind.kind, namespace, name), None)
        self.writes.append(("delete", f"{kind.kind}/{namespace}/{name}"))

    async def json_patch(
        self, kind: Kind, namespace: str, name: str, *, patch: list[dict[str, Any]]
    ) -> Manifest:
        """The two operations that are used."""
        live = await self.get(kind, namespace, name)
        test, add = patch
        if live["metadata"]["resourceVersion"] != test["value"]:
            raise Conflict(409, "Conflict", "changed")
        field_name = add["path"].rpartition("/")[2]
        return self.stamp(
            {**live, "metadata": {**live["metadata"], field_name: add["value"]}}, "patch"
        )


@pytest.fixture
def fake() -> FakeClient:
    """A client on a dictionary."""
    return FakeClient()


@dataclass
class Api:
    """A scripted HTTP server, and the client that talks to it."""

    client: Client
    requests: list[tuple[str, str]]
    script: list[Reply]


def reply(status: int = 200, body: object = None, **headers: str) -> Reply:
    """A JSON answer."""

    def respond(_: web.Request) -> web.StreamResponse:
        return web.Response(
            status=status,
            text=json.dumps(body or {}),
            headers=headers,
            content_type="application/json",
        )

    return respond


def lost(request: web.Request) -> web.StreamResponse:
    """A connection that breaks before the answer."""
    transport = cast("asyncio.Transport", request.transport)
    transport.abort()
    return web.Response()


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
