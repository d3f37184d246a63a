# SPDX-License-Identifier: Apache-2.0
"""What the operator's ServiceAccount must be allowed, and nothing more. The chart's roles equal
this.

No Secrets: Jobs and pods mount them by name. No pods but to read: Jobs and Deployments make them.
"""

from __future__ import annotations

from typing import Any, Final

from kompakt.api import GROUP, KINDS

Rule = dict[str, Any]
_READ: Final = ["get", "list", "watch"]
_GATEWAY_API: Final = "gateway.networking.k8s.io"


OWNERS: Final = ("compressionpolicies", "compressionruns", "variantrollouts")


def _rule(group: str, resources: list[str], verbs: list[str]) -> Rule:
    return {"apiGroups": [group], "resources": resources, "verbs": verbs}


NAMESPACED: Final[list[Rule]] = [
    # patch: the finalizer of a rollout. Specs are never written.
    _rule(GROUP, ["compressionpolicies", "compressionrecipes"], _READ),
    _rule(
        GROUP,
        ["compressionruns", "modelvariants", "variantrollouts"],
        [*_READ, "create", "patch", "delete"],
    ),
    _rule(
        GROUP,
        [f"{info.plural}/status" for info in KINDS if info.status is not None],
        ["patch"],
    ),
    # Owner references with blockOwnerDeletion need this where they are enforced.
    _rule(
        GROUP,
        [f"{owner}/finalizers" for owner in OWNERS],
        ["update"],
    ),
    _rule("batch", ["jobs"], [*_READ, "create", "delete"]),
    _rule("apps", ["deployments"], [*_READ, "create", "patch", "delete"]),
    _rule("", ["services"], [*_READ, "create", "patch", "delete"]),
    _rule("", ["configmaps"], ["get", "create", "patch", "delete"]),
    _rule("", ["pods"], _READ),
    _rule(_GATEWAY_API, ["httproutes"], [*_READ, "create", "patch", "delete"]),
    _rule("events.k8s.io", ["events"], ["create"]),
]
"""In each namespace that is served; in a ClusterRole when that is the whole cluster."""

CLUSTER: Final[list[Rule]] = [
    _rule(GROUP, ["hardwareprofiles"], _READ),
    # Policies name Gateways in any namespace; each is read by its name.
    _rule(_GATEWAY_API, ["gateways"], ["get"]),
]
"""Always in a ClusterRole."""

OWN: Final[list[Rule]] = [
    _rule("coordination.k8s.io", ["leases"], ["get", "create", "update"]),
    _rule(GROUP, ["compressionrecipes"], _READ),
]
"""In the operator's own namespace: the Lease, and the recipes of the catalogue."""
