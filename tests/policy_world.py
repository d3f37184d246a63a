# SPDX-License-Identifier: Apache-2.0
"""A small cluster with one policy in it, in which the plans of the policy are carried out.

Runs and rollouts are made by the plans and go as a test says; pods become ready and gateways take
routes when a test lets them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests.planning import NAMESPACE, NOW, PROFILES, RECIPES, SETTINGS, policy
from tests.run_world import RunWorld

from kompakt.api import names
from kompakt.api.base import Condition
from kompakt.api.policy import CompressionPolicySpec, CompressionPolicyStatus
from kompakt.api.profile import HardwareProfileSpec
from kompakt.api.recipe import CompressionRecipeSpec
from kompakt.api.rollout import VariantRolloutSpec, VariantRolloutStatus
from kompakt.api.run import CompressionRunSpec, CompressionRunStatus
from kompakt.controllers import objects
from kompakt.controllers.conditions import condition, find
from kompakt.controllers.plan import (
    Apply,
    Create,
    Delete,
    DeploymentState,
    Emit,
    GatewayState,
    Manifest,
    Meta,
    Plan,
    Policy,
    PolicyObserved,
    Resource,
    RolloutObject,
    Run,
    Variant,
    WriteStatus,
)
from kompakt.controllers.policy import plan_policy
from kompakt.controllers.render.route import TrafficPlan, parse_route, route_manifest

GATEWAY = GatewayState("public", "gateways", programmed=True, address="10.88.0.1:80")


_ENDED: dict[str, RunWorld] = {}


def _ended(name: str, spec: dict[str, Any]) -> RunWorld:
    """A run that went to its end: as it is a function of its spec, once is enough."""
    if name not in _ENDED:
        run = Resource(
            Meta(name, NAMESPACE, uid=f"uid-{name}"),
            CompressionRunSpec.model_validate(spec),
            CompressionRunStatus(),
        )
        _ENDED[name] = RunWorld(run)
        _ENDED[name].settle()
    return _ENDED[name]


@dataclass
class PolicyWorld:
    """A cluster with one policy."""

    policy: Policy = field(default_factory=policy)
    recipes: Mapping[str, CompressionRecipeSpec] = field(default_factory=lambda: RECIPES)
    profiles: Mapping[str, HardwareProfileSpec] = field(default_factory=lambda: PROFILES)
    gateway: GatewayState | None = GATEWAY
    now: float = NOW
    runs: dict[str, Run] = field(default_factory=dict)
    variants: dict[str, Variant] = field(default_factory=dict)
    rollouts: dict[str, RolloutObject] = field(default_factory=dict)
    deployments: dict[str, DeploymentState] = field(default_factory=dict)
    services: set[str] = field(default_factory=set)
    route: Manifest | None = None
    events: list[Emit] = field(default_factory=list)
    created: list[str] = field(default_factory=list)
    """Kind and name of what was created, again when created again."""
    pods_start: bool = True
    """Whether pods become ready at once."""

    @property
    def status(self) -> CompressionPolicyStatus:
        """Of the policy."""
        return self.policy.status

    @property
    def run(self) -> Run:
        """The only run."""
        (run,) = self.runs.values()
        return run

    def change(self, **fields: Any) -> None:
        """Change the policy's spec as `kubectl apply` does."""
        spec = CompressionPolicySpec.model_validate(self.policy.spec.to_wire() | fields)
        meta = replace(self.policy.meta, generation=self.policy.meta.generation + 1)
        self.policy = replace(self.policy, spec=spec, meta=meta)

    def annotate(self, key: str, value: str) -> None:
        """Annotate the policy."""
        told = {**self.policy.meta.annotations, key: value}
        self.policy = replace(self.policy, meta=replace(self.policy.meta, annotations=told))

    def observe(self) -> PolicyObserved:
        """What the next plan sees."""
        return PolicyObserved(
            now=self.now,
            policy=self.policy,
            settings=SETTINGS,
            recipes=self.recipes,
            profiles=self.profiles,
            runs=tuple(self.runs.values()),
            variants=tuple(self.variants.values()),
            rollouts=tuple(self.rollouts.values()),
            deployments=self.deployments,
            gateway=self.gateway,
            route=None if self.route is None else parse_route(self.route),
        )

    def plan(self, *, die_after: int | None = None) -> Plan:
        """Plan, and carry out all actions or the first few."""
        plan = plan_policy(self.observe())
        for action in plan.actions[:die_after]:
            self._carry_out(action)
        self.now += 1
        return plan

    def settle(self) -> None:
        """Plan until nothing new comes of it."""
        for _ in range(20):
            before = self.all_that_is()
            self.plan()
            if before == self.all_that_is():
                return
        raise AssertionError("the policy never comes to rest")

    def all_that_is(self) -> tuple[Any, ...]:
        """The objects of the cluster, to compare two moments or two histories."""
        objects_ = (self.runs, self.variants, self.rollouts, self.deployments, self.services)
        return (
            self.status,
            *(dict.fromkeys(o) if isinstance(o, set) else dict(o) for o in objects_),
            self.route,
        )

    # --- what others do ---------------------------------------------------------------------------

    def import_run(self, name: str | None = None) -> None:
        """Let a run import the source."""
        made = RunWorld(self._run(name))
        made.plan()
        made.finish(made.running()[0])
        made.plan()
        self._take(made)

    def end_run(self, name: str | None = None, **changes: Any) -> None:
        """Let a run go to its end."""
        run = self._run(name)
        if changes:
            made = RunWorld(run, **changes)
            made.settle()
        else:
            made = _ended(run.meta.name, run.spec.to_wire())
        self._take(made)

    def promote(self, name: str, *, stage: str = "Succeeded") -> None:
        """Let a rollout bring its candidate to production."""
        candidate = self.variants[self.rollouts[name].spec.candidate_ref.name]
        service = objects.serving_name(self.policy.meta.name, candidate.spec.digest)
        self.deployments[service] = DeploymentState(service, {}, desired=1, ready=1)
        self.move_traffic(TrafficPlan(service), stable=candidate.meta.name)
        self.set_stage(name, stage)

    def set_stage(self, name: str, stage: str, *, why: str = "it was decided so") -> None:
        """Let a rollout be at a stage, with the conditions of that stage."""
        rollout = self.rollouts[name]
        ended = stage in {"Succeeded", "RolledBack"}
        said = {
            "Ready": stage == "Succeeded",
            "RolledBack": stage == "RolledBack",
            "Stalled": stage in {"Held", "RolledBack"},
            "Reconciling": not ended and stage != "Held",
        }
        candidate = self.variants[rollout.spec.candidate_ref.name]
        status = VariantRolloutStatus.model_validate(
            {
                "stage": stage,
                "stableDigest": self.status.serving_digest or candidate.spec.digest,
                "candidateVariant": candidate.meta.name,
                "candidateDigest": candidate.spec.digest,
                "conditions": [
                    condition(t, holds, reason=stage, message=why, generation=1, now=self.now)
                    for t, holds in said.items()
                ],
            }
        )
        self.rollouts[name] = replace(rollout, status=status)

    def move_traffic(
        self, traffic: TrafficPlan, *, stable: str, candidate: str | None = None
    ) -> None:
        """Write the route as a rollout does."""
        self._apply(
            route_manifest(
                policy=self.policy,
                traffic=traffic,
                stable_variant_name=stable,
                candidate_variant_name=candidate,
            )
        )

    def _run(self, name: str | None) -> Run:
        return self.run if name is None else self.runs[name]

    def _take(self, made: RunWorld) -> None:
        name = made.run.meta.name
        self.runs[name] = replace(self.runs[name], status=made.status)
        self.variants = {**made.variants, **self.variants}

    # --- what plans do ----------------------------------------------------------------------------

    def _carry_out(self, action: object) -> None:
        match action:
            case WriteStatus(status):
                assert isinstance(status, CompressionPolicyStatus)
                parsed = CompressionPolicyStatus.model_validate(status.to_wire())
                self.policy = replace(self.policy, status=parsed)
            case Apply(manifest):
                self._apply(manifest)
            case Create(manifest):
                self._create(manifest)
            case Delete(_, "CompressionRun", _, name):
                self.runs.pop(name, None)
            case Emit():
                self.events.append(action)
            case _:
                raise AssertionError(f"no such action here: {action}")

    def _apply(self, manifest: Manifest) -> None:
        name = manifest["metadata"]["name"]
        match manifest["kind"]:
            case "Deployment":
                desired = manifest["spec"]["replicas"]
                known = self.deployments.get(name)
                ready = desired if self.pods_start else (known.ready if known else 0)
                labels = manifest["metadata"]["labels"]
                self.deployments[name] = DeploymentState(name, labels, desired, ready)
            case "Service":
                self.services.add(name)
            case "HTTPRoute":
                accepted = [
                    {"type": t, "status": "True", "observedGeneration": 1}
                    for t in ("Accepted", "ResolvedRefs")
                ]
                parents = [
                    {"parentRef": ref, "conditions": accepted}
                    for ref in manifest["spec"]["parentRefs"]
                ]
                self.route = {**manifest, "status": {"parents": parents}}
            case kind:
                raise AssertionError(f"a policy applies no {kind}")

    def _create(self, manifest: Manifest) -> None:
        name, kind = manifest["metadata"]["name"], manifest["kind"]
        labels = manifest["metadata"]["labels"]
        meta = Meta(name, NAMESPACE, uid=f"uid-{name}", labels=labels)
        known: Mapping[str, object] = self.runs if kind == "CompressionRun" else self.rollouts
        if name in known:
            return
        self.created.append(f"{kind}/{name}")
        if kind == "CompressionRun":
            spec = CompressionRunSpec.model_validate(manifest["spec"])
            self.runs[name] = Resource(meta, spec, CompressionRunStatus())
        elif kind == "VariantRollout":
            wanted = VariantRolloutSpec.model_validate(manifest["spec"])
            self.rollouts[name] = Resource(meta, wanted, VariantRolloutStatus())
        else:
            raise AssertionError(f"a policy creates no {kind}")


# --- what tests of policies begin with ----------------------------------------------------------


def said(made: PolicyWorld, type_: str = "Ready") -> Condition:
    """A condition of the policy, which is there."""
    found = find(made.status.conditions, type_)
    assert found is not None
    return found


def ready(made: PolicyWorld) -> tuple[str, str]:
    """Status and reason of Ready."""
    return said(made).status, said(made).reason


def serving_source() -> PolicyWorld:
    """A policy whose source serves, while the run goes on."""
    made = PolicyWorld()
    made.settle()
    made.import_run()
    made.settle()
    return made


def chosen() -> PolicyWorld:
    """A policy whose run has ended with a choice that is being rolled out."""
    made = serving_source()
    made.end_run()
    made.settle()
    return made


def only(found: Any) -> Any:
    """The only one of several."""
    (one,) = found
    return one


def stable_of(made: PolicyWorld) -> str:
    """What the route says serves."""
    assert made.route is not None
    return str(made.route["metadata"]["annotations"][names.STABLE_ANNOTATION])
