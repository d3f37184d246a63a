# SPDX-License-Identifier: Apache-2.0
"""What the operator shows of itself: its objects, read twice a second, as typed values.

Invariant: everything that the demo tells of the operator is in the objects that `kubectl get` shows
too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from examples.demo.kube import KOMPAKT, ROUTES, Kube, Object

from kompakt.api.base import Model
from kompakt.api.policy import CompressionPolicyStatus
from kompakt.api.rollout import VariantRolloutSpec, VariantRolloutStatus
from kompakt.api.run import CompressionRunStatus
from kompakt.api.variant import ModelVariantSpec, ModelVariantStatus

StatusT = TypeVar("StatusT", bound=Model)


@dataclass(frozen=True)
class Seen(Generic[StatusT]):
    """One object."""

    name: str
    created: str
    status: StatusT


@dataclass(frozen=True)
class SeenVariant(Seen[ModelVariantStatus]):
    """A ModelVariant."""

    spec: ModelVariantSpec


@dataclass(frozen=True)
class SeenRollout(Seen[VariantRolloutStatus]):
    """A VariantRollout."""

    spec: VariantRolloutSpec


@dataclass(frozen=True)
class Route:
    """How the gateway was told to divide the traffic."""

    candidate_permille: int = 0
    mirror_percent: int = 0

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Route:
        """Read from an HTTPRoute whose first backend is the stable variant."""
        rule = (manifest.get("spec", {}).get("rules") or [{}])[0]
        weights = [int(b.get("weight", 1)) for b in rule.get("backendRefs", [])]
        mirrors = [f["requestMirror"] for f in rule.get("filters", []) if "requestMirror" in f]
        total = sum(weights)
        return cls(
            candidate_permille=round(1000 * sum(weights[1:]) / total) if total else 0,
            mirror_percent=int(mirrors[0].get("percent", 100)) if mirrors else 0,
        )


@dataclass(frozen=True)
class Warn:
    """A Warning event on an object."""

    uid: str
    object: str
    reason: str
    message: str


@dataclass(frozen=True)
class Snapshot:
    """Everything at one time (Unix seconds)."""

    time: float
    policy: Seen[CompressionPolicyStatus] | None = None
    runs: tuple[Seen[CompressionRunStatus], ...] = ()
    variants: tuple[SeenVariant, ...] = ()
    rollouts: tuple[SeenRollout, ...] = ()
    route: Route | None = None
    warnings: tuple[Warn, ...] = field(default=())

    def run(self) -> Seen[CompressionRunStatus] | None:
        """The newest run."""
        return max(self.runs, key=lambda r: (r.created, r.name), default=None)

    def rollout(self, name: str | None = None) -> SeenRollout | None:
        """A rollout by its name; the newest without one."""
        if name is not None:
            return next((r for r in self.rollouts if r.name == name), None)
        return max(self.rollouts, key=lambda r: (r.created, r.name), default=None)

    def variant(self, name: str) -> SeenVariant | None:
        """A variant by its name."""
        return next((v for v in self.variants if v.name == name), None)


async def observe(kube: Kube, namespace: str, policy: str) -> Snapshot:
    """Read everything once."""
    base = f"{KOMPAKT}/namespaces/{namespace}"
    found, runs, variants, rollouts, route, events = await asyncio.gather(
        kube.get(f"{base}/compressionpolicies/{policy}"),
        kube.items(f"{base}/compressionruns"),
        kube.items(f"{base}/modelvariants"),
        kube.items(f"{base}/variantrollouts"),
        kube.get(f"{ROUTES}/namespaces/{namespace}/httproutes/{policy}"),
        kube.items(f"/api/v1/namespaces/{namespace}/events"),
    )
    return Snapshot(
        time=time.time(),
        policy=None if found is None else _seen(found, CompressionPolicyStatus),
        runs=tuple(_seen(r, CompressionRunStatus) for r in runs),
        variants=tuple(_variant(v) for v in variants),
        rollouts=tuple(_rollout(r) for r in rollouts),
        route=None if route is None else Route.of(route),
        warnings=tuple(_warnings(events)),
    )


def _name(found: Object) -> tuple[str, str]:
    return found["metadata"]["name"], found["metadata"].get("creationTimestamp", "")


def _seen(found: Object, kind: type[StatusT]) -> Seen[StatusT]:
    return Seen(*_name(found), kind.model_validate(found.get("status", {})))


def _variant(found: Object) -> SeenVariant:
    status = ModelVariantStatus.model_validate(found.get("status", {}))
    return SeenVariant(*_name(found), status, ModelVariantSpec.model_validate(found["spec"]))


def _rollout(found: Object) -> SeenRollout:
    status = VariantRolloutStatus.model_validate(found.get("status", {}))
    return SeenRollout(*_name(found), status, VariantRolloutSpec.model_validate(found["spec"]))


def _warnings(events: list[Object]) -> list[Warn]:
    def about(event: Object) -> dict[str, str]:
        return {"kind": "", "name": "", "apiVersion": "", **event["involvedObject"]}

    return [
        Warn(
            uid=event["metadata"]["uid"],
            object=f"{about(event)['kind']}/{about(event)['name']}",
            reason=event.get("reason", ""),
            message=event.get("message") or event.get("note", ""),
        )
        for event in events
        if event.get("type") == "Warning" and about(event)["apiVersion"].startswith("kompakt.dev/")
    ]
