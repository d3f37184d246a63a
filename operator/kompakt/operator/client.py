# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes API over one HTTP session: server-side apply, create once, delete, read, list.

Invariants:

- every write is idempotent, so a request whose answer was lost is simply sent again;
- no write leaves of a guarded client while its guard says no: a leader that was asleep (a stopped
  process, a paused machine) and has lost its Lease meanwhile does no harm when it wakes up;
- a list is complete or an error.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Self

import aiohttp

from kompakt.api import names
from kompakt.operator import telemetry
from kompakt.operator.access import Access
from kompakt.operator.errors import ApiError, Conflict, NotFound, NotLeader, from_status
from kompakt.operator.resources import Kind, Manifest, kind_of

_APPLY: Final = "application/apply-patch+yaml"  # JSON is YAML
_JSON_PATCH: Final = "application/json-patch+json"
_PAGE: Final = 500
_ATTEMPTS: Final = 4
_RETRIED: Final = frozenset({429, 500, 502, 503, 504})
_LONGEST_PAUSE: Final = 2.0
_TIMEOUT: Final = aiohttp.ClientTimeout(total=20, connect=5)
_TOO_MANY_REQUESTS: Final = 429
_ERROR: Final = 400


class Client:
    """An asynchronous client. Use it as a context manager."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._session: aiohttp.ClientSession | None = None
        self._may_write: Callable[[], bool] = lambda: True

    def guarded(self, may_write: Callable[[], bool]) -> Client:
        """The same client, over the same session, whose writes ask first."""
        other = copy.copy(self)
        other._may_write = may_write  # noqa: SLF001 -- its own class
        return other

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._access.ssl_context(), limit=64)
        self._session = aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    # --- reading ----------------------------------------------------------------------------------

    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest:
        """One object. Raises NotFound."""
        return await self._request("GET", kind.path(namespace, name))

    async def list(
        self, kind: Kind, namespace: str | None = None, *, labels: str = ""
    ) -> tuple[list[Manifest], str]:
        """All objects of a kind that carry the labels, and the resource version of the list."""
        items: list[Manifest] = []
        query = {"limit": str(_PAGE)} | ({"labelSelector": labels} if labels else {})
        while True:
            page = await self._request("GET", kind.path(namespace), query=query)
            # Items of a list do not say what they are.
            defaults = {"apiVersion": kind.api_version, "kind": kind.kind}
            items += [{**defaults, **item} for item in page.get("items") or ()]
            more = page["metadata"].get("continue")
            if not more:
                return items, page["metadata"].get("resourceVersion", "")
            query["continue"] = more

    # --- writing ----------------------------------------------------------------------------------

    async def apply(self, manifest: Manifest, *, subresource: str = "") -> Manifest:
        """Server-side apply; fields that others hold are taken over. Returns the object as it is
        now.
        """
        metadata = manifest["metadata"]
        path = kind_of(manifest).path(metadata.get("namespace"), metadata["name"], subresource)
        query = {"fieldManager": names.FIELD_MANAGER, "force": "true"}
        return await self._request("PATCH", path, query=query, body=manifest, media=_APPLY)

    async def create(self, manifest: Manifest) -> Manifest | None:
        """Create; None when it exists already."""
        path = kind_of(manifest).path(manifest["metadata"].get("namespace"))
        query = {"fieldManager": names.FIELD_MANAGER}
        try:
            return await self._request("POST", path, query=query, body=manifest)
        except Conflict as error:
            if error.reason == "AlreadyExists":
                return None
            raise

    async def replace(self, manifest: Manifest) -> Manifest:
        """Update an object as it was read. Raises Conflict when it has changed since."""
        metadata = manifest["metadata"]
        path = kind_of(manifest).path(metadata.get("namespace"), metadata["name"])
        return await self._request("PUT", path, body=manifest)

    async def json_patch(
        self, kind: Kind, namespace: str, name: str, *, patch: Sequence[Mapping[str, Any]]
    ) -> Manifest:
        """Patch with its own preconditions (`test`). Raises Conflict or Invalid when one is not
        met.
        """
        path = kind.path(namespace, name)
        return await self._request("PATCH", path, body=list(patch), media=_JSON_PATCH)

    async def delete(self, kind: Kind, namespace: str, name: str) -> None:
        """Delete, dependents in the background. That it is gone already is fine."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        try:
            await self._request("DELETE", kind.path(namespace, name), body=body)
        except NotFound:
            return

    # --- transport --------------------------------------------------------------------------------

    async def _request(
        self,
        verb: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        media: str = "application/json",
    ) -> Manifest:
        """Send; on a lost connection or a busy server again, a few times."""
        pause = 0.1
        for attempt in range(1, _ATTEMPTS + 1):
            if verb != "GET" and not self._may_write():
                raise NotLeader
            try:
                return await self._send(verb, path, query=query, body=body, media=media)
            except ApiError as error:
                if attempt == _ATTEMPTS or error.status not in {0, *_RETRIED}:
                    raise
            await asyncio.sleep(pause)
            pause = min(pause * 4, _LONGEST_PAUSE)
        raise AssertionError  # the last attempt returns or raises

    async def _send(
        self,
        verb: str,
        path: str,
        *,
        query: Mapping[str, str] | None,
        body: object,
        media: str,
    ) -> Manifest:
        if self._session is None:
            msg = "the client is used outside its `async with` block"
            raise RuntimeError(msg)
        headers = {**self._access.headers(), "Accept": "application/json", "Content-Type": media}
        code = "lost"
        try:
            async with self._session.request(
                verb,
                self._access.server + path,
                params=query,
                data=None if body is None else json.dumps(body),
                headers=headers,
                proxy=self._access.proxy,
            ) as response:
                payload = await response.read()
                code = str(response.status)
                if response.status >= _ERROR:
                    raise _error(response.status, payload, f"{verb} {path}")
                return dict(json.loads(payload))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            why = str(error) or type(error).__name__
            raise ApiError(
                0, "ApiServerUnreachable", f"{verb} {path}: no answer from the API server: {why}"
            ) from error
        finally:
            telemetry.API_REQUESTS.labels(verb, code).inc()


def _error(status: int, payload: bytes, request: str) -> ApiError:
    """The error in a `Status`, or in whatever else stood between us and the API server."""
    reason, message = "", payload[:500].decode(errors="replace").strip()
    try:
        answer = json.loads(payload)
    except ValueError:
        answer = None
    if isinstance(answer, dict) and answer.get("kind") == "Status":
        reason, message = answer.get("reason") or "", answer.get("message") or message
    if status == _TOO_MANY_REQUESTS:
        reason = reason or "TooManyRequests"
    return from_status(status, reason, f"{request}: {message}")
