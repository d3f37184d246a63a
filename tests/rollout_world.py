# SPDX-License-Identifier: Apache-2.0
"""A rollout in a small cluster: people who ask for things, fate that breaks them, and an operator
that may die between any two writes, or read what is old.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tests.planning import NAMESPACE, PROFILES, SETTINGS, digest_of, policy, policy_spec, variant
from tests.rollout_cluster import START, Behaviour, Cluster, Pods

from kompakt.api import names
from kompakt.api.base import LocalRef
from kompakt.api.rollout import VariantRolloutSpec, VariantRolloutStatus
from kompakt.controllers import conditions, objects
from kompakt.controllers.plan import (
    Action,
    Apply,
    Delete,
    DeploymentState,
    Emit,
    GatewayState,
    Manifest,
    Meta,
    Plan,
    Policy,
    Resource,
    RolloutObject,
    RolloutObserved,
    RouteState,
    SetFinalizer,
    Variant,
    WriteStatus,
)
from kompakt.controllers.render.route import TrafficPlan, route_manifest
from kompakt.controllers.rollout import plan_rollout

STABLE, CANDIDATE, OTHER = (digest_of(name) for name in ("old", "new", "other"))
NAME = "sentiment-1"
OVER = ("Succeeded", "RolledBack")

STRATEGY: dict[str, Any] = {
    "shadow": {"percent": 100, "minimumPairs": 60},
    "canary": {
        "steps": [
            {"weightPermille": 100, "minimumRequests": 30},
            {"weightPermille": 500, "minimumRequests": 100},
        ]
    },
    "slos": [
        {
            "name": "latency",
            "type": "Latency",
            "thresholdMicroseconds": 25_000,
            "goodBasisPoints": 9500,
            "mode": "Certify",
        },
        {"name": "errors", "type": "Availability", "goodBasisPoints": 9900},
        {"name": "agreement", "type": "Disagreement", "maxExcessBasisPoints": 500},
        {"name": "accuracy", "type": "Accuracy", "maxDropBasisPoints": 300},
    ],
    "deadlineSeconds": 300,
    "watchSeconds": 20,
}


Watch = Callable[["World", RolloutObserved, Action], None]


class World(Cluster):
    """The cluster, and the one rollout in it."""

    def __init__(
        self,
        *,
        behaviour: Behaviour | None = None,
        stable: Behaviour | None = None,
        seed: int = 0,
        requests_per_second: int = 60,
        deletion_policy: str = "Retain",
        watch: Watch | None = None,
        **strategy: Any,
    ) -> None:
        """`behaviour` is the candidate's; `watch` is shown each action before it is carried out."""
        found = {CANDIDATE: behaviour or Behaviour(), STABLE: stable or Behaviour()}
        super().__init__(
            seed=seed,
            behaviours={objects.digest_label(d): b for d, b in found.items()},
            requests_per_second=requests_per_second,
        )
        self.strategy = STRATEGY | strategy
        self.deletion_policy = deletion_policy
        self.watch = watch
        serving = {
            "target": "edge",
            "gatewayRef": {"name": "public", "namespace": "gateways"},
            "hostnames": ["sentiment.example.com"],
            "deletionPolicy": deletion_policy,
        }
        golden = {"uri": "pvc://data/golden.jsonl", "labelField": "label"}
        data = policy_spec().data.to_wire() | {"goldenSet": golden}
        self.policy: Policy | None = policy(
            policy_spec(serving=serving, data=data, rollout=self.strategy)
        )
        self.variants = {v.meta.name: v for v in map(_ready, (STABLE, CANDIDATE, OTHER))}
        self.probe_ok = True
        self.events: list[Emit] = []
        self.statuses_written = 0
        self.others: tuple[RolloutObject, ...] = ()
        self.past: deque[tuple[RouteState | None, Mapping[str, DeploymentState]]] = deque(maxlen=4)
        meta = Meta(NAME, NAMESPACE, uid="uid-rollout", created_unix_seconds=int(START))
        spec = VariantRolloutSpec(
            policy_ref=LocalRef(name="sentiment"), candidate_ref=LocalRef(name=name_of(CANDIDATE))
        )
        self.rollout: RolloutObject | None = Resource(meta, spec, VariantRolloutStatus())
        self._serve_first()

    # --- what people and fate do -----------------------------------------------------------------

    def annotate(self, action: str, actor: str = "alice") -> None:
        """Ask for an action."""
        if self.rollout is not None:
            wish = {names.ACTION_ANNOTATION: action, names.ACTOR_ANNOTATION: actor}
            self._change(annotations={**self.rollout.meta.annotations, **wish})

    def change_candidate(self, digest: str) -> None:
        """Edit spec.candidateRef."""
        if self.rollout is not None:
            spec = self.rollout.spec.evolve(candidate_ref=LocalRef(name=name_of(digest)))
            self.rollout = replace(self.rollout, spec=spec)
            self._change(generation=self.rollout.meta.generation + 1)

    def delete_rollout(self) -> None:
        """`kubectl delete vro`."""
        if self.rollout is not None:
            self._change(deleting=True)
            self._collect()

    def delete_policy(self) -> None:
        """`kubectl delete cpol`: the owner's dependents follow."""
        self.policy = None
        if self.deletion_policy == "Delete":
            owned = [n for n, pods in self.deployments.items() if _is_owned(pods.manifest)]
            for name in owned:
                self.remove_pods(name)
            self.route = self.taken = None
        self.delete_rollout()

    def lose_status(self) -> None:
        """A restore from a backup without statuses."""
        if self.rollout is not None:
            self.rollout = replace(self.rollout, status=VariantRolloutStatus())

    def break_pods(self, digest: str, *, broken: bool = True) -> None:
        """The pods of a variant stop to answer, or answer again."""
        pods = self.deployments.get(service_of(digest))
        if pods is not None:
            pods.broken = broken

    def restart_pods(self, digest: str) -> None:
        """The process of a variant's pod is restarted: counters begin at 0."""
        pods = self.deployments.get(service_of(digest))
        if pods is not None:
            pods.counters = {}

    def heal(self) -> None:
        """Everything works again."""
        self.gateway_works = self.metrics_work = self.probe_ok = True
        for pods in self.deployments.values():
            pods.broken = False

    # --- the operator ----------------------------------------------------------------------------

    def step(self, *, die_after: int | None = None, stale: bool = False) -> Plan | None:
        """One second, and one plan, of which the operator carries out so many actions."""
        self.tick()
        self.past.append((self.observed_route(), self.observed_deployments()))
        if self.rollout is None:
            return None
        observed = self.observe(stale=stale)
        plan = plan_rollout(observed)
        for action in plan.actions[:die_after]:
            if self.watch is not None:
                self.watch(self, observed, action)
            self._carry_out(action)
        return plan

    def run(self, seconds: int, *, until: tuple[str, ...] = OVER) -> str | None:
        """Steps until the rollout is in one of these stages, or gone."""
        for _ in range(seconds):
            self.step()
            if self.rollout is None or self.stage in until:
                break
        return self.stage

    def observe(self, *, stale: bool = False) -> RolloutObserved:
        """What a plan is made from; stale: route and Deployments as they were a while ago."""
        old = self.past[0] if stale and self.past else None
        route, deployments = old or (self.observed_route(), self.observed_deployments())
        gateway = GatewayState("public", "gateways", self.gateway_works, "10.0.0.1:80")
        return RolloutObserved(
            now=self.now,
            rollout=self._object,
            settings=SETTINGS,
            policy=self.policy,
            variants=self.variants,
            profiles=PROFILES,
            deployments=deployments,
            gateway=gateway if self.policy is not None else None,
            route=route,
            others=self.others,
            samples=(*self.scraped.values(), *self.gone.values()),
            probe_ok=self.probe_ok,
        )

    @property
    def _object(self) -> RolloutObject:
        assert self.rollout is not None
        return self.rollout

    @property
    def status(self) -> VariantRolloutStatus:
        """Of the rollout."""
        return self._object.status

    @property
    def stage(self) -> str | None:
        """Of the rollout; None when it is gone."""
        return self.rollout.status.stage if self.rollout is not None else None

    @property
    def reasons(self) -> list[str]:
        """Of the decisions so far."""
        return [d.reason for d in self.status.decisions]

    def answered_by(self, digest: str) -> int:
        """Users' requests that a variant has answered."""
        return self.answered.get(objects.digest_label(digest), 0)

    def _serve_first(self) -> None:
        """The stable variant serves."""
        assert self.policy is not None
        service = service_of(STABLE)
        labels = objects.selector("sentiment", STABLE, names.ROLE_SERVING)
        meta: Manifest = {"name": service, "namespace": NAMESPACE, "labels": labels}
        if self.deletion_policy == "Delete":
            meta["ownerReferences"] = [{"kind": "CompressionPolicy"}]
        self.deployments[service] = Pods({"kind": "Deployment", "metadata": meta}, self.now)
        self.services.add(service)
        self.route = route_manifest(
            policy=self.policy,
            traffic=TrafficPlan(service),
            stable_variant_name=name_of(STABLE),
        )
        self.generation = 1
        self.taken = self.live

    def _change(self, **changes: Any) -> None:
        self.rollout = replace(self._object, meta=replace(self._object.meta, **changes))

    def _collect(self) -> None:
        """A deleted object without finalizers is gone, and its dependents with it."""
        meta = self._object.meta
        if meta.deleting and not meta.finalizers:
            self.rollout = None
            for name in [n for n in self.deployments if n.startswith(f"{NAME}-")]:
                self.remove_pods(name)

    def _carry_out(self, action: Action) -> None:
        match action:
            case Apply():
                self.apply(action)
            case Delete():
                self.delete(action)
            case WriteStatus(status):
                assert isinstance(status, VariantRolloutStatus)
                parsed = VariantRolloutStatus.model_validate(status.to_wire())
                if (parsed.stage, parsed.step) != (self.status.stage, self.status.step):
                    self.gone.clear()
                self.rollout = replace(self._object, status=parsed)
                self.statuses_written += 1
            case SetFinalizer(present):
                self._change(finalizers=(names.FINALIZER,) if present else ())
                self._collect()
            case Emit():
                self.events.append(action)
            case _:
                raise AssertionError(f"a rollout has no use for {action}")


def name_of(digest: str) -> str:
    """Name of a variant."""
    return objects.variant_name("sentiment", digest)


def service_of(digest: str) -> str:
    """Name of a variant's Deployment and Service."""
    return objects.serving_name("sentiment", digest)


def _is_owned(manifest: Manifest) -> bool:
    owners = manifest["metadata"].get("ownerReferences", [])
    return any(owner["kind"] == "CompressionPolicy" for owner in owners)


def _ready(digest: str) -> Variant:
    found = variant(digest)
    ready = conditions.condition("Ready", True, reason="Registered", generation=1, now=START)
    return replace(found, status=found.status.evolve(conditions=[ready]))
