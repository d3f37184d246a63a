# SPDX-License-Identifier: Apache-2.0
"""The Pod Security Standard `restricted`, and this project's additions to it: a read-only root
filesystem, no credentials of the cluster, limits for every container.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Spec = Mapping[str, Any]
_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "name",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
_SECCOMP = {"RuntimeDefault", "Localhost"}


def _effective(pod: Spec, container: Spec, field: str) -> Any:
    """A container's own setting, or else its pod's."""
    own, whole = container.get("securityContext", {}), pod.get("securityContext", {})
    return own.get(field, whole.get(field))


def _own(container: Spec, *path: str) -> Any:
    found: Any = container.get("securityContext", {})
    for key in path:
        found = (found or {}).get(key)
    return found


_OF_PODS: dict[str, Callable[[Spec], bool]] = {
    "host namespaces": lambda pod: (
        not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
    ),
    "automountServiceAccountToken": lambda pod: pod.get("automountServiceAccountToken") is False,
    "volumes": lambda pod: all(set(volume) <= _VOLUMES for volume in pod.get("volumes", ())),
}
_OF_CONTAINERS: dict[str, Callable[[Spec, Spec], bool]] = {
    "privileged": lambda _, c: not _own(c, "privileged"),
    "allowPrivilegeEscalation": lambda _, c: _own(c, "allowPrivilegeEscalation") is False,
    "capabilities.drop": lambda _, c: _own(c, "capabilities", "drop") == ["ALL"],
    "capabilities.add": lambda _, c: (
        set(_own(c, "capabilities", "add") or ()) <= {"NET_BIND_SERVICE"}
    ),
    "runAsNonRoot": lambda p, c: _effective(p, c, "runAsNonRoot") is True,
    "runAsUser": lambda p, c: _effective(p, c, "runAsUser") != 0,
    "seccompProfile": lambda p, c: (
        (_effective(p, c, "seccompProfile") or {}).get("type") in _SECCOMP
    ),
    "hostPort": lambda _, c: not any("hostPort" in port for port in c.get("ports", ())),
    "readOnlyRootFilesystem": lambda _, c: _own(c, "readOnlyRootFilesystem") is True,
    "limits": lambda _, c: {"cpu", "memory"} <= set(c.get("resources", {}).get("limits", ())),
}


def violations(pod: Spec) -> list[str]:
    """The rules that a pod's spec breaks, with the container that breaks them."""
    containers = [*pod.get("initContainers", ()), *pod["containers"]]
    return [name for name, keeps in _OF_PODS.items() if not keeps(pod)] + [
        f"{container['name']}: {name}"
        for container in containers
        for name, keeps in _OF_CONTAINERS.items()
        if not keeps(pod, container)
    ]
