# SPDX-License-Identifier: Apache-2.0
"""What surrounds the operator's shell in its unit tests.

Enough of an API server for the paths that a real one does not show on request: lost answers,
conflicts, a busy server. What a real one can show is tested on a real one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from kompakt.operator.client import Client
from kompakt.operator.errors import Conflict, NotFound
from kompakt.operator.resources import Kind, Manifest, Ref, kind_of, ref_of

Reply = Callable[[web.Request], web.StreamResponse]


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


@dataclass
class Api:
    """A scripted HTTP server, and the client that talks to it."""

    client: Client
    requests: list[tuple[str, str]]
    script: list[Reply]
