# SPDX-License-Identifier: Apache-2.0
"""The kinds that the operator reads and writes, with their addresses in the API.

Nothing outside this table is ever touched; `rbac.py` says with which verbs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from typing_extensions import override

from kompakt.api import GROUP, KINDS, VERSION

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A kind and its place in the API."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """As manifests write it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, sub: str = "") -> str:
        """Path of the collection or of an object. Without a namespace: of all namespaces."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, sub) if part]
        return "/" + "/".join(parts)


@dataclass(frozen=True, order=True)
class Ref:
    """The name of one object. `namespace` is empty for what is cluster-scoped."""

    kind: str
    namespace: str
    name: str

    @override
    def __str__(self) -> str:
        return "/".join(part for part in (self.kind, self.namespace, self.name) if part)


POLICY: Final = "CompressionPolicy"
RECIPE: Final = "CompressionRecipe"
PROFILE: Final = "HardwareProfile"
RUN: Final = "CompressionRun"
VARIANT: Final = "ModelVariant"
ROLLOUT: Final = "VariantRollout"

_GATEWAY_API: Final = "gateway.networking.k8s.io"
_TABLE: Final = (
    *(Kind(GROUP, VERSION, info.kind, info.plural, namespaced=info.namespaced) for info in KINDS),
    Kind("", "v1", "Pod", "pods"),
    Kind("", "v1", "Service", "services"),
    Kind("", "v1", "ConfigMap", "configmaps"),
    Kind("apps", "v1", "Deployment", "deployments"),
    Kind("batch", "v1", "Job", "jobs"),
    Kind(_GATEWAY_API, "v1", "HTTPRoute", "httproutes"),
    Kind(_GATEWAY_API, "v1", "Gateway", "gateways"),
    Kind("coordination.k8s.io", "v1", "Lease", "leases"),
    Kind("events.k8s.io", "v1", "Event", "events"),
)
BY_NAME: Final[Mapping[str, Kind]] = {kind.kind: kind for kind in _TABLE}

OURS: Final = (POLICY, RECIPE, PROFILE, RUN, VARIANT, ROLLOUT)
PLANNED: Final = (POLICY, RUN, VARIANT, ROLLOUT)
"""The kinds that have a plan."""
MADE: Final = ("Job", "Pod", "Deployment", "Service", "HTTPRoute")
"""Kinds of others of which we watch our own objects, by the label app.kubernetes.io/managed-by."""
WATCHED: Final = (*OURS, *MADE)


def kind_of(manifest: Mapping[str, Any]) -> Kind:
    """The kind of a manifest. Raises KeyError for one outside the table: a defect of a planner."""
    kind = BY_NAME[manifest["kind"]]
    if manifest.get("apiVersion", kind.api_version) != kind.api_version:
        msg = f"{manifest['apiVersion']} {manifest['kind']}"
        raise KeyError(msg)
    return kind


def ref_of(obj: Mapping[str, Any]) -> Ref:
    """The name of a live object or a manifest."""
    metadata = obj["metadata"]
    return Ref(obj["kind"], metadata.get("namespace", ""), metadata["name"])
