# SPDX-License-Identifier: Apache-2.0
"""The demo's way to a cluster: the commands that a person would type, and a few HTTP requests.

`kubectl proxy` carries the HTTP: it knows every way to log in to a cluster (certificates, tokens,
plug-ins), which therefore nobody has to know here.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from examples.demo.errors import DemoError

Object = dict[str, Any]
KOMPAKT: Final = "/apis/kompakt.dev/v1alpha1"
ROUTES: Final = "/apis/gateway.networking.k8s.io/v1"
GATEWAYS: Final = ROUTES
_NOT_FOUND: Final = 404
_PROXY_START_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Kubectl:
    """kubectl with the options that choose the cluster."""

    command: tuple[str, ...]

    async def __call__(
        self,
        *arguments: str,
        stdin: bytes | None = None,
        timeout: float = 60.0,  # noqa: ASYNC109
    ) -> str:
        """Run it and return what it printed.

        Raises DemoError when it fails or takes longer than `timeout` seconds.
        """
        return await run_command([*self.command, *arguments], stdin=stdin, seconds=timeout)


async def run_command(
    command: Sequence[str],
    *,
    stdin: bytes | None = None,
    seconds: float = 60.0,
    watch: bool = False,
) -> str:
    """Run a program to its end and return its standard output.

    With `watch`, what it says on standard error goes to the terminal as it comes.

    Raises DemoError, with the end of what it said, when it fails or takes too long.
    """
    shown = " ".join([command[0], *(a for a in command[1:] if not a.startswith("--kubeconfig"))])
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=None if watch else asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(seconds):
            out, err = await process.communicate(stdin)
    except TimeoutError:
        msg = f"`{shown}` did not end within {seconds:.0f} s"
        raise DemoError(msg) from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode:
        told = (err or out or b"").decode(errors="replace").strip()[-600:]
        msg = f"`{shown}` failed: {told or f'exit code {process.returncode}'}"
        raise DemoError(msg)
    return out.decode(errors="replace")


class Kube:
    """Reads and writes objects of one cluster."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self._session = session
        self._base = base

    async def get(self, path: str) -> Object | None:
        """The object at a path; None when there is none."""
        return await self._send("GET", path)

    async def items(self, path: str, *, selector: str = "") -> list[Object]:
        """The objects of a collection; none when its kind is unknown."""
        query = {"labelSelector": selector} if selector else {}
        found = await self._send("GET", path, query=query)
        return list((found or {}).get("items", []))

    async def create(self, path: str, manifest: Object) -> Object:
        """Create an object in a collection."""
        return await self._must("POST", path, body=manifest)

    async def patch(self, path: str, change: Object, *, kind: str = "merge") -> Object:
        """Change an object by a patch of the given kind: merge or strategic-merge."""
        return await self._must(
            "PATCH", path, body=change, content_type=f"application/{kind}-patch+json"
        )

    async def _must(
        self, method: str, path: str, *, body: Object, content_type: str = "application/json"
    ) -> Object:
        answer = await self._send(method, path, body=body, content_type=content_type)
        if answer is None:
            msg = f"{method} {path}: there is no such thing in the cluster"
            raise DemoError(msg)
        return answer

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Object | None:
        try:
            async with self._session.request(
                method,
                self._base + path,
                params=query,
                data=None if body is None else json.dumps(body),
                headers={} if body is None else {"Content-Type": content_type},
            ) as answer:
                if answer.status == _NOT_FOUND:
                    return None
                content = await answer.json(content_type=None)
                if not answer.ok:
                    said = content.get("message", answer.reason) if content else answer.reason
                    msg = f"{method} {path}: {said}"
                    raise DemoError(msg)
                return dict(content)
        except (aiohttp.ClientError, TimeoutError, json.JSONDecodeError) as error:
            # A proxy in front of a busy API server answers in plain text.
            msg = f"the cluster does not answer ({method} {path}): {error!r}"
            raise DemoError(msg) from error


@asynccontextmanager
async def connect(kubectl: Kubectl) -> AsyncIterator[Kube]:
    """A connection that lasts as long as the block.

    Raises DemoError when the cluster cannot be reached.
    """
    process = await asyncio.create_subprocess_exec(
        *kubectl.command,
        "proxy",
        "--port=0",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        address = await _proxy_address(process)
        timeout = aiohttp.ClientTimeout(total=15)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            yield Kube(session, f"http://{address}")
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def _proxy_address(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None  # noqa: S101 -- asked for above
    said = ""
    with suppress(TimeoutError):
        async with asyncio.timeout(_PROXY_START_SECONDS):
            while line := (await process.stdout.readline()).decode(errors="replace"):
                said += line
                if found := re.search(r"serve on (\S+)", line):
                    return found[1]
    msg = f"kubectl proxy did not start: {said.strip() or 'it said nothing'}"
    raise DemoError(msg)
