# SPDX-License-Identifier: Apache-2.0
"""The cluster's one image: an OCI archive made from nothing, with no builder and no base image.

It holds the pause process and what a C library wants of /etc, and nothing else: every program of a
pod comes out of the read-only mounts of the RuntimeClass `host-userland`, so changed code runs at
once and a torch of several GB is never copied into a layer.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SOURCE_ROOTS = ("crds", "controllers", "operator", "jobs", "serving")
"""The rooms that a pod may import; each is a source root of the namespace package."""

UNPRIVILEGED = 65532
PASSWD = f"""\
root:x:0:0:root:/:/sbin/nologin
nonroot:x:{UNPRIVILEGED}:{UNPRIVILEGED}:nonroot:/tmp:/sbin/nologin
"""
GROUP = f"root:x:0:\nnonroot:x:{UNPRIVILEGED}:\n"

OCI = "application/vnd.oci.image"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def environment() -> dict[str, str]:
    """The environment that the image gives to every container."""
    return {
        "PATH": "/opt/kompakt/venv/bin:/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": ":".join(f"/opt/kompakt/src/{root}" for root in SOURCE_ROOTS),
        # The mounts are read-only, and a pod's log is read while it runs.
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        # The one folder that a pod with a read-only root usually has.
        "HOME": "/tmp",  # noqa: S108
    }


def write_archive(path: Path, *, pause: Path, tag: str, machine: str) -> None:
    """Writes an OCI image archive with one layer that holds the `pause` binary.

    Args:
        path: the archive to write.
        pause: a static binary.
        tag: the name that a container runtime gives to the image.
        machine: what `uname -m` says.
    """
    blobs: dict[str, bytes] = {}

    def blob(data: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": f"{OCI}.{media_type}", "digest": f"sha256:{digest}", "size": len(data)}

    layer = blob(_layer(pause), "layer.v1.tar")
    config = _json(
        {
            "architecture": ARCHITECTURES[machine],
            "os": "linux",
            "config": {
                "Entrypoint": ["/pause"],
                "Env": [f"{name}={value}" for name, value in environment().items()],
            },
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
        }
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": blob(config, "config.v1+json"),
        "layers": [layer],
    }
    index = {
        "schemaVersion": 2,
        "manifests": [
            blob(_json(manifest), "manifest.v1+json")
            | {"annotations": {"io.containerd.image.name": tag}}
        ],
    }
    with tarfile.open(path, "w") as tar:
        _add(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        _add(tar, "index.json", _json(index))
        for digest, data in blobs.items():
            _add(tar, f"blobs/sha256/{digest}", data)


def _layer(pause: Path) -> bytes:
    folders: Mapping[str, int] = {"etc": 0o755, "opt": 0o755, "tmp": 0o1777}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, mode in folders.items():
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, mode
            tar.addfile(info)
        _add(tar, "etc/passwd", PASSWD.encode())
        _add(tar, "etc/group", GROUP.encode())
        _add(tar, "etc/nsswitch.conf", b"hosts: files dns\n")
        _add(tar, "pause", pause.read_bytes(), mode=0o755)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes, *, mode: int = 0o644) -> None:
    # TarInfo's defaults (root, 1970) make equal content an equal digest.
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    tar.addfile(info, io.BytesIO(data))


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
