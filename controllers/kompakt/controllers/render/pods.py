# SPDX-License-Identifier: Apache-2.0
"""What all pods of Kompakt have in common: restricted security, placement, limits, the store.

Invariant: every pod that is built from these parts satisfies the Pod Security Standard
`restricted`, has a read-only root filesystem, and gets no credentials of the cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from kompakt.api import API_VERSION, names
from kompakt.api.profile import ExtendedResource, HardwareProfileSpec
from kompakt.api.source import DataSource, ModelSource, Store
from kompakt.controllers import objects
from kompakt.controllers.plan import Manifest, Meta, Settings

Source = DataSource | ModelSource
UID = 65532
"""A numeric user, so that a kubelet can see that it is not root."""
_MILLIS = 1000
_TMP = "/tmp"  # noqa: S108 -- a path in a container, backed by a volume of its own

CONTAINER_SECURITY: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
POD_SECURITY: dict[str, Any] = {
    "runAsNonRoot": True,
    "runAsUser": UID,
    "runAsGroup": UID,
    "fsGroup": UID,
    # Without it every start changes the owner of each file of a large store.
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}


class Volumes:
    """The volumes of one pod: each claim is one volume, however many paths it is mounted at."""

    def __init__(self) -> None:
        self._volumes: dict[str, dict[str, Any]] = {}

    def empty(self, name: str, path: str) -> dict[str, Any]:
        """A mount of a folder that lives as long as the pod."""
        self._volumes[name] = {"name": name, "emptyDir": {}}
        return {"name": name, "mountPath": path}

    def tmp(self) -> dict[str, Any]:
        """A mount of the only place where any program may write."""
        return self.empty("tmp", _TMP)

    def config(self, name: str, config_map: str, path: str) -> dict[str, Any]:
        """A mount of a ConfigMap's keys as files."""
        self._volumes[name] = {"name": name, "configMap": {"name": config_map}}
        return {"name": name, "mountPath": path, "readOnly": True}

    def claim(self, claim: str, path: str, *, read_only: bool) -> dict[str, Any]:
        """A mount of a PersistentVolumeClaim."""
        name = f"claim-{objects.short_hash(claim)}"
        self._volumes[name] = {"name": name, "persistentVolumeClaim": {"claimName": claim}}
        return {"name": name, "mountPath": path, "readOnly": read_only}

    def store(self, store: Store, *, read_only: bool) -> list[dict[str, Any]]:
        """The mounts that a store needs: none for an object store."""
        claim = store_claim(store)
        if claim is None:
            return []
        return [self.claim(claim, names.STORE_MOUNT, read_only=read_only)]

    def sources(self, sources: Iterable[Source]) -> list[dict[str, Any]]:
        """The mounts that `pvc://claim/path` sources need, each claim once."""
        claims = {urlsplit(s.uri).netloc for s in sources if s.uri.startswith("pvc://")}
        return [
            self.claim(claim, f"{names.VOLUMES_MOUNT}/{claim}", read_only=True)
            for claim in sorted(claims)
        ]

    def to_list(self) -> list[dict[str, Any]]:
        """The volumes as a pod lists them."""
        return [self._volumes[name] for name in sorted(self._volumes)]


def store_claim(store: Store) -> str | None:
    """The PersistentVolumeClaim that a store is on."""
    if store.persistent_volume_claim is not None:
        return store.persistent_volume_claim.name
    if store.uri is not None and store.uri.startswith("pvc://"):
        return urlsplit(store.uri).netloc
    return None


def store_root(store: Store) -> str:
    """Root of the store as a pod sees it."""
    if store.uri is None:
        return f"file://{names.STORE_MOUNT}"
    if store.uri.startswith("pvc://"):
        return f"file://{names.STORE_MOUNT}{urlsplit(store.uri).path}".rstrip("/")
    return store.uri


def secrets(*referrers: Source | Store | None) -> list[dict[str, Any]]:
    """Environment from the Secrets that sources and stores name, each Secret once."""
    found = dict.fromkeys(
        r.secret_ref.name for r in referrers if r is not None and r.secret_ref is not None
    )
    return [{"secretRef": {"name": name}} for name in found]


def threads(cpu_millis: int) -> int:
    """Threads that fit a CPU limit: more than that only wait for each other."""
    return max(1, cpu_millis // _MILLIS)


def environment(*, thread_count: int | None = None, cuda: bool = False) -> list[dict[str, Any]]:
    """Environment of every container.

    A numeric user has no entry in /etc/passwd, and libraries that cache ask for home and name.
    """
    entries = {"HOME": _TMP, "TMPDIR": _TMP, "USER": "kompakt"}
    if thread_count is not None:
        # Libraries count the node's cores, not the container's limit.
        entries["OMP_NUM_THREADS"] = str(thread_count)
    if cuda:
        # Said, not guessed: who was given a GPU and cannot use it must fail.
        entries[names.DEVICE_VARIABLE] = names.CUDA
    return [{"name": name, "value": value} for name, value in sorted(entries.items())]


def resources(
    *, cpu_millis: int, memory_mebibytes: int, devices: Sequence[ExtendedResource] = ()
) -> dict[str, Any]:
    """Requests equal to limits: what is measured in a pod must not depend on its neighbours."""
    amounts = {"cpu": f"{cpu_millis}m", "memory": f"{memory_mebibytes}Mi"}
    # Whole numbers: no device can be overcommitted.
    amounts |= {device.name: str(device.count) for device in devices}
    return {"requests": dict(amounts), "limits": amounts}


def placement(profile: HardwareProfileSpec | None, settings: Settings) -> dict[str, Any]:
    """Fields of a pod that bring it to the pool of a profile."""
    fields: dict[str, Any] = {}
    if profile is not None and profile.node_labels:
        fields["nodeSelector"] = {label.key: label.value for label in profile.node_labels}
    if profile is not None and profile.tolerations:
        fields["tolerations"] = [
            {"key": t.key, "operator": t.operator}
            | ({"value": t.value} if t.operator == "Equal" else {})
            | ({"effect": t.effect} if t.effect else {})
            for t in profile.tolerations
        ]
    runtime_class = (profile and profile.runtime_class_name) or settings.runtime_class_name
    if runtime_class:
        fields["runtimeClassName"] = runtime_class
    return fields


def pod_defaults() -> dict[str, Any]:
    """Fields that every pod has."""
    return {
        "automountServiceAccountToken": False,
        # Variables for each Service of the namespace slow a start down and clash with ours.
        "enableServiceLinks": False,
        "securityContext": dict(POD_SECURITY),
    }


def metadata(
    name: str,
    namespace: str,
    labels: Mapping[str, str],
    *,
    owner: Manifest | None = None,
) -> dict[str, Any]:
    """Metadata of an object that is ours."""
    meta: dict[str, Any] = {
        "name": name,
        "namespace": namespace,
        "labels": {names.MANAGED_BY_LABEL: names.MANAGED_BY, **labels},
    }
    if owner is not None:
        meta["ownerReferences"] = [owner]
    return meta


def owner_reference(kind: str, owner: Meta) -> Manifest:
    """A reference to an object of one of our kinds, with which the dependent is deleted."""
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "name": owner.name,
        "uid": owner.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
