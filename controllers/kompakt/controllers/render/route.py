# SPDX-License-Identifier: Apache-2.0
"""A policy's HTTPRoute: how traffic is divided between the stable and the candidate variant.

Invariants:

- weights sum to 1000, and every weight is written: an absent one means 1;
- mirror and weight are never on together: a mirror belongs to the whole rule, so the candidate
  would get copies of requests that it answers already, and be compared with itself;
- the route alone tells what serves: its annotations name the variants, its first backend is the
  stable one. While the former stable variant is kept warm, the route names it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kompakt.api import names, telemetry
from kompakt.controllers import objects
from kompakt.controllers.plan import Manifest, Policy, RouteState
from kompakt.controllers.render.pods import metadata, owner_reference
from kompakt.controllers.render.serving import model_name

API_VERSION = "gateway.networking.k8s.io/v1"
KIND = "HTTPRoute"
FULL = 1000
"""Permille of all traffic."""


@dataclass(frozen=True)
class TrafficPlan:
    """Who answers users, and who gets copies of their requests. Backends are names of Services."""

    stable_service: str
    candidate_service: str | None = None
    candidate_permille: int = 0
    mirror_service: str | None = None
    mirror_percent: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.candidate_permille <= FULL:
            raise ValueError(f"a weight of {self.candidate_permille} permille is not a share")
        if self.candidate_permille and self.candidate_service is None:
            raise ValueError("a weight for the candidate needs the name of its Service")
        if self.mirror_percent and self.mirror_service is None:
            raise ValueError("a mirror needs the name of the Service that gets the copies")
        if self.mirror_percent and self.candidate_permille:
            raise ValueError("mirror and weight must never be on together")

    def is_in(self, route: RouteState) -> bool:
        """Whether a live route divides traffic like this."""
        weighted = self.candidate_permille > 0
        return (
            route.stable_backend == self.stable_service
            and route.candidate_permille == self.candidate_permille
            and (not weighted or route.candidate_backend == self.candidate_service)
            and route.mirror_percent == self.mirror_percent
            and (not self.mirror_percent or route.mirror_backend == self.mirror_service)
        )


def route_manifest(
    *,
    policy: Policy,
    traffic: TrafficPlan,
    stable_variant_name: str,
    candidate_variant_name: str | None = None,
    former_variant_name: str | None = None,
) -> Manifest:
    """The HTTPRoute of a policy. `former_variant_name` is the stable variant before a promotion,
    while it is kept warm.
    """
    serving = policy.spec.serving
    if serving is None:
        raise ValueError(f"policy {policy.meta.name} serves nothing: spec.serving is absent")
    gateway = {"name": serving.gateway_ref.name}
    if serving.gateway_ref.namespace is not None:
        gateway["namespace"] = serving.gateway_ref.namespace
    spec: dict[str, Any] = {"parentRefs": [gateway]}
    if serving.hostnames:
        spec["hostnames"] = list(serving.hostnames)
    path = {"type": "PathPrefix", "value": f"/v2/models/{model_name(policy)}"}
    spec["rules"] = [{"matches": [{"path": path}], **_shares(traffic)}]
    owned = serving.deletion_policy == "Delete"
    meta = metadata(
        objects.route_name(policy.meta.name),
        policy.meta.namespace,
        {names.POLICY_LABEL: policy.meta.name},
        owner=owner_reference("CompressionPolicy", policy.meta) if owned else None,
    )
    told = _annotations(stable_variant_name, candidate_variant_name, former_variant_name)
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": meta | {"annotations": told},
        "spec": spec,
    }


def redirected(
    *,
    policy_name: str,
    namespace: str,
    live: RouteState,
    traffic: TrafficPlan,
    stable_variant_name: str,
) -> Manifest:
    """The live route of a policy that is gone, with its traffic on the stable variant: gateway,
    host names, paths and owners stay as they are.
    """
    rules = live.spec.get("rules") or [{}]
    matches = {k: v for k, v in rules[0].items() if k not in {"filters", "backendRefs"}}
    meta = metadata(objects.route_name(policy_name), namespace, {names.POLICY_LABEL: policy_name})
    if live.owners:
        meta["ownerReferences"] = [dict(owner) for owner in live.owners]
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": meta | {"annotations": _annotations(stable_variant_name, None, None)},
        "spec": {**live.spec, "rules": [{**matches, **_shares(traffic)}]},
    }


def parse_route(live: Mapping[str, Any]) -> RouteState:
    """The state of an HTTPRoute as the API server returns it."""
    meta, spec = live.get("metadata", {}), live.get("spec", {})
    rule = (spec.get("rules") or [{}])[0]
    backends = [
        (str(b.get("name", "")), int(b.get("weight", 1))) for b in rule.get("backendRefs", [])
    ]
    stable, stable_weight = backends[0] if backends else ("", 0)
    candidate, candidate_weight = backends[1] if len(backends) > 1 else (None, 0)
    total = stable_weight + candidate_weight
    mirror = next(
        (f["requestMirror"] for f in rule.get("filters", []) if "requestMirror" in f), None
    )
    generation = int(meta.get("generation", 1))
    accepted, message = _taken(live, generation)
    return RouteState(
        annotations=dict(meta.get("annotations", {})),
        stable_backend=stable,
        candidate_backend=candidate,
        candidate_permille=round(FULL * candidate_weight / total) if total else 0,
        mirror_backend=mirror["backendRef"]["name"] if mirror else None,
        mirror_percent=int(mirror.get("percent", 100)) if mirror else 0,
        generation=generation,
        accepted=accepted,
        message=message,
        spec=spec,
        owners=tuple(meta.get("ownerReferences", ())),
    )


def _backend(service: str) -> dict[str, Any]:
    return {"name": service, "port": names.SERVING_PORT}


def _shares(traffic: TrafficPlan) -> dict[str, Any]:
    """Filters and backends of the rule."""
    stable = _backend(traffic.stable_service)
    backends = [stable | {"weight": FULL - traffic.candidate_permille}]
    if traffic.candidate_permille and traffic.candidate_service is not None:
        candidate = _backend(traffic.candidate_service)
        backends.append(candidate | {"weight": traffic.candidate_permille})
    unmarked = {"remove": [telemetry.SHADOW_HEADER]}
    filters: list[dict[str, Any]] = [
        {"type": "RequestHeaderModifier", "requestHeaderModifier": unmarked}
    ]
    if traffic.mirror_percent and traffic.mirror_service is not None:
        mirror = {"backendRef": _backend(traffic.mirror_service), "percent": traffic.mirror_percent}
        filters.append({"type": "RequestMirror", "requestMirror": mirror})
    return {"filters": filters, "backendRefs": backends}


def _annotations(stable: str, candidate: str | None, former: str | None) -> dict[str, str]:
    told = {
        names.STABLE_ANNOTATION: stable,
        names.CANDIDATE_ANNOTATION: candidate,
        names.FORMER_ANNOTATION: former,
    }
    return {key: value for key, value in told.items() if value is not None}


def _taken(live: Mapping[str, Any], generation: int) -> tuple[bool, str]:
    """Whether our gateway has taken this generation, and what it says if not."""
    wanted = live.get("spec", {}).get("parentRefs", [])
    parents = [
        p
        for p in live.get("status", {}).get("parents", [])
        if any(_same_parent(p.get("parentRef", {}), ref, live) for ref in wanted)
    ]
    if not parents:
        return False, "the gateway has not answered yet"
    complaints = []
    for parent in parents:
        conditions = {c["type"]: c for c in parent.get("conditions", [])}
        for type_ in ("Accepted", "ResolvedRefs"):
            found = conditions.get(type_)
            if found is None or int(found.get("observedGeneration", 0)) < generation:
                complaints.append(f"{type_} is not there yet for generation {generation}")
            elif found.get("status") != "True":
                reason = f"{type_} is {found.get('status')} ({found.get('reason', '')})"
                complaints.append(f"{reason}: {found.get('message', '')}")
    return not complaints, "; ".join(complaints)


def _same_parent(one: Mapping[str, Any], other: Mapping[str, Any], live: Mapping[str, Any]) -> bool:
    here = live.get("metadata", {}).get("namespace", "")
    return one.get("name") == other.get("name") and (
        (one.get("namespace") or here) == (other.get("namespace") or here)
    )
