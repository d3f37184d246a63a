# SPDX-License-Identifier: Apache-2.0
"""The model and the data on their way into the cluster: a tar stream through `kubectl exec`.

It needs nothing but a claim and an image with Python, so it works in any cluster. (In production
they come from a hub or an object store: `hf://…`, `s3://…`.)
"""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
import time
from pathlib import Path
from typing import Any, Final

from examples.demo.cluster import PodImage
from examples.demo.errors import DemoError
from examples.demo.kube import Kube, Kubectl

_POD: Final = "loader"
_MOUNT: Final = "/inputs"
_UNPACK: Final = (
    "import sys, tarfile;"
    f"tarfile.open(fileobj=sys.stdin.buffer, mode='r|').extractall({_MOUNT!r}, filter='data')"
)
_START_SECONDS: Final = 90.0
_LIFETIME_SECONDS: Final = 600


async def load(
    kube: Kube, kubectl: Kubectl, *, namespace: str, claim: str, image: PodImage, files: list[Path]
) -> int:
    """Copy files and folders into a claim; returns how many bytes.

    Raises DemoError when the loader does not start or the copy fails.
    """
    pods = f"/api/v1/namespaces/{namespace}/pods"
    await kube.create(pods, loader(claim, image))
    archive = await asyncio.to_thread(pack, files)
    await _wait_until_running(kube, f"{pods}/{_POD}")
    await kubectl(
        *("exec", "--stdin", "--namespace", namespace, _POD, "--", "python", "-c", _UNPACK),
        stdin=archive,
        timeout=300,
    )
    await kubectl("delete", "pod", _POD, "--namespace", namespace, "--now", "--wait=false")
    return len(archive)


def loader(claim: str, image: PodImage) -> dict[str, Any]:
    """The pod that receives: it sleeps, and ends by itself."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": _POD},
        "spec": {
            **image.pod(),
            "restartPolicy": "Never",
            "activeDeadlineSeconds": _LIFETIME_SECONDS,
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "runAsGroup": 65532,
                "fsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "loader",
                    **image.container(),
                    "command": ["python", "-c", f"import time; time.sleep({_LIFETIME_SECONDS})"],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [{"name": "inputs", "mountPath": _MOUNT}],
                }
            ],
            "volumes": [{"name": "inputs", "persistentVolumeClaim": {"claimName": claim}}],
        },
    }


def pack(files: list[Path]) -> bytes:
    """A tar archive of files and folders, each under its own name, readable by everybody."""

    def readable(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.mode = 0o755 if entry.isdir() else 0o644
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return entry

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in files:
            archive.add(path, arcname=path.name, filter=readable)
    return buffer.getvalue()


async def _wait_until_running(kube: Kube, path: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    status: dict[str, Any] = {}
    while time.monotonic() < deadline:
        status = (await kube.get(path) or {}).get("status", {})
        if status.get("phase") == "Running":
            return
        await asyncio.sleep(0.2)
    waits = [s.get("state", {}) for s in status.get("containerStatuses", [])]
    conditions = [c["message"] for c in status.get("conditions", []) if c.get("message")]
    msg = (
        f"the loader pod did not start within {_START_SECONDS:.0f} s: "
        f"{'; '.join(conditions) or json.dumps(waits)}"
    )
    raise DemoError(msg)
