# SPDX-License-Identifier: Apache-2.0
"""Just enough of a Kubernetes client for a start: authenticated requests, and a poll with a
deadline.

A poll through kubectl would start a process of 140 MB ten times a second.
"""

import http.client
import json
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kompakt.localcluster.settings import API_PORT, CONTROL_PLANE_ADDRESS

POLL_SECONDS = 0.05
OK, CREATED, CONFLICT = 200, 201, 409
SYSTEM_NAMESPACE = "/api/v1/namespaces/kube-system"


@dataclass
class Client:
    """Reads from the API server as the cluster's administrator."""

    pki: Path
    timeout_seconds: float = 10.0

    def get(self, path: str) -> tuple[int, bytes]:
        """The status and body of a GET; raises OSError where no API server answers."""
        return self._request("GET", path)

    def create(self, path: str, body: bytes) -> tuple[int, bytes]:
        """The status and body of a POST of JSON; raises OSError where no API server answers."""
        return self._request("POST", path, body)

    def _request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        context = ssl.create_default_context(cafile=str(self.pki / "ca.crt"))
        context.load_cert_chain(str(self.pki / "admin.crt"), str(self.pki / "admin.key"))
        connection = http.client.HTTPSConnection(
            CONTROL_PLANE_ADDRESS, API_PORT, context=context, timeout=self.timeout_seconds
        )
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()

    def ready(self) -> bool:
        """Whether the API server says that it is ready, and has made the first namespaces."""
        try:
            return self.get("/readyz")[0] == OK and self.get(SYSTEM_NAMESPACE)[0] == OK
        except OSError:
            return False

    def read(self, path: str) -> dict[str, Any] | None:
        """The object or list at `path`; None where there is none, or no API server."""
        try:
            status, body = self.get(path)
        except OSError:
            return None
        if status != OK:
            return None
        found: dict[str, Any] = json.loads(body)
        return found


def wait_until(
    done: Callable[[], bool], *, timeout_seconds: float, meanwhile: Callable[[], None]
) -> bool:
    """Polls until `done`; calls `meanwhile` between, which may raise. False at the deadline."""
    deadline = time.monotonic() + timeout_seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        meanwhile()
        time.sleep(POLL_SECONDS)
    return True


def condition(obj: Mapping[str, Any] | None, kind: str) -> bool:
    """Whether an object's condition `kind` is True."""
    conditions = (obj or {}).get("status", {}).get("conditions", [])
    return any(c["type"] == kind and c["status"] == "True" for c in conditions)
