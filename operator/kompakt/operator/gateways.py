# SPDX-License-Identifier: Apache-2.0
"""The Gateways that policies name, polled.

They belong to others and may be in any namespace: reading just those by name needs the verb `get`
alone, and a cluster without the Gateway API, where a watch would fail, gives a state with a
message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kompakt.controllers.plan import GatewayState
from kompakt.operator import owners
from kompakt.operator.client import Client
from kompakt.operator.errors import ApiError, NotFound
from kompakt.operator.resources import BY_NAME, POLICY
from kompakt.operator.states import gateway_state
from kompakt.operator.store import Store

GATEWAY = BY_NAME["Gateway"]
_NO_SUCH_KIND = "the server could not find the requested resource"
Key = tuple[str, str]


class Gateways:
    """The last known state of each Gateway in use."""

    def __init__(
        self,
        client: Client,
        store: Store,
        *,
        changed: Callable[[str, str], None],
        seconds: float = 3.0,
    ) -> None:
        """`changed` is called with namespace and name of a Gateway whose state is another."""
        self._client = client
        self._store = store
        self._changed = changed
        self._seconds = seconds
        self._states: dict[Key, GatewayState | None] = {}

    async def state(self, namespace: str, name: str) -> GatewayState | None:
        """A Gateway's state; None when there is no such Gateway."""
        key = (namespace, name)
        if key not in self._states:
            self._states[key] = await self._read(key)
        return self._states[key]

    async def run(self) -> None:
        """Look again every few seconds at those that are in use."""
        while True:
            await asyncio.sleep(self._seconds)
            await self.refresh()

    async def refresh(self) -> None:
        """Look at all in use once."""
        used = {key for policy in self._store.all(POLICY) if (key := owners.gateway(policy))}
        for key in set(self._states) - used:
            del self._states[key]
        for key in used:
            state = await self._read(key)
            known = key in self._states
            if not known or self._states[key] != state:
                self._states[key] = state
                if known:
                    self._changed(*key)

    async def _read(self, key: Key) -> GatewayState | None:
        namespace, name = key
        try:
            return gateway_state(await self._client.get(GATEWAY, namespace, name))
        except NotFound as error:
            if _NO_SUCH_KIND not in error.message:
                return None
            why = "the cluster has no Gateway API: install its CRDs and an implementation"
        except ApiError as error:
            why = error.message
        return GatewayState(
            name=name, namespace=namespace, programmed=False, address=None, message=why
        )
