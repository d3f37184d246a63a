# SPDX-License-Identifier: Apache-2.0
"""The facts of one rollout: both variants, strategy, traffic, what people asked for.

Invariants:

- once a rollout has begun, both variants are those pinned in its status, whatever route and spec
  say;
- a backend that is not observed ready is unready: no news is bad news.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from kompakt.api import names
from kompakt.api.policy import Target
from kompakt.api.profile import HardwareProfileSpec
from kompakt.api.rollout import VariantRolloutStatus
from kompakt.api.strategy import Rollout
from kompakt.controllers import objects
from kompakt.controllers.evidence import Digests
from kompakt.controllers.objectives import Scope
from kompakt.controllers.plan import (
    DeploymentState,
    Policy,
    RolloutObject,
    RolloutObserved,
    RouteState,
    Variant,
)
from kompakt.controllers.render.route import FULL, TrafficPlan

OVER = frozenset({"Succeeded", "RolledBack"})
"""Nothing follows these stages, unless the candidate is changed."""
_ACTOR_MAX = 60
_OBEYED_SEPARATOR = ", "


@dataclass(frozen=True)
class Side:
    """One of the two variants."""

    name: str
    digest: str
    variant: Variant | None
    service: str
    """Name of its Deployment and of its Service."""
    state: DeploymentState | None

    @property
    def ready(self) -> bool:
        """Whether any of its pods answers."""
        return self.state is not None and self.state.ready > 0

    @property
    def available(self) -> bool:
        """Whether all of its pods answer."""
        return self.state is not None and self.state.available


@dataclass(frozen=True)
class Intent:
    """What the route is to say."""

    traffic: TrafficPlan
    stable: str
    candidate: str | None = None
    former: str | None = None

    def is_in(self, route: RouteState | None) -> bool:
        """Whether it says so."""
        told = (
            (names.STABLE_ANNOTATION, self.stable),
            (names.CANDIDATE_ANNOTATION, self.candidate),
            (names.FORMER_ANNOTATION, self.former),
        )
        return (
            route is not None
            and self.traffic.is_in(route)
            and all(route.annotations.get(key) == value for key, value in told)
        )


@dataclass(frozen=True)
class Asked:
    """What a person asked for."""

    action: str
    """`Abort` or `Promote`."""
    actor: str
    key: str
    """How it is remembered once it was obeyed."""


@dataclass(frozen=True)
class Case:
    """A rollout that has begun."""

    observed: RolloutObserved
    status: VariantRolloutStatus
    stable: Side
    candidate: Side
    strategy: Rollout

    @property
    def now(self) -> float:
        """Unix time in seconds."""
        return self.observed.now

    @property
    def policy(self) -> Policy | None:
        """The policy, unless it is gone or going."""
        return living_policy(self.observed)

    @property
    def route(self) -> RouteState | None:
        """The live route."""
        return self.observed.route

    @cached_property
    def digests(self) -> Digests:
        """Of both variants."""
        return Digests(candidate=self.candidate.digest, stable=self.stable.digest)

    @property
    def stage(self) -> str:
        """Where the rollout is; for a held one, where it was held."""
        if self.status.stage == "Held":
            return (self.status.held_stage or "Shadow").partition("/")[0]
        return self.status.stage or "Pending"

    @property
    def step(self) -> int:
        """Index of the canary step; the last one, when the strategy has become shorter."""
        return min(self.status.step or 0, len(self.strategy.canary.steps) - 1)

    @property
    def stage_name(self) -> str:
        """`Shadow`, `Canary/0`, and so on."""
        return f"Canary/{self.step}" if self.stage == "Canary" else self.stage

    @property
    def running(self) -> bool:
        """Whether the gateway has taken the stage's traffic, so that its evidence counts."""
        return self.status.stage_started_unix_milliseconds is not None

    @property
    def awaits_traffic(self) -> bool:
        """Whether the stage begins when the gateway has taken its traffic, and has not begun."""
        return not self.running and self.status.stage not in {"Pending", "Promoting"}

    @property
    def mirrors(self) -> bool:
        """Whether there is a shadow stage."""
        return self.strategy.shadow.percent > 0

    @property
    def needs_comparator(self) -> bool:
        """Whether anything is to be compared: mirrored traffic, or the golden set."""
        replays = any(slo.type == "Accuracy" for slo in self.strategy.slos)
        return self.mirrors or replays

    @property
    def comparator(self) -> DeploymentState | None:
        """The comparator's Deployment."""
        return self.observed.deployments.get(
            objects.comparator_name(self.observed.rollout.meta.name)
        )

    @property
    def reference(self) -> DeploymentState | None:
        """The Deployment of the stable digest that only the comparator calls."""
        return self.observed.deployments.get(
            objects.reference_name(self.observed.rollout.meta.name)
        )

    @property
    def scope(self) -> Scope:
        """Where figures come from in this stage."""
        weight = self.intent.traffic.candidate_permille
        return Scope(shadow=self.stage == "Shadow", compares=0 < weight < FULL)

    @property
    def promoted(self) -> bool:
        """Whether the live route names the candidate as the stable variant."""
        return (
            self.route is not None
            and self.route.annotations.get(names.STABLE_ANNOTATION) == self.candidate.name
        )

    @property
    def weight(self) -> int:
        """The candidate's share, as the route says."""
        if self.promoted:
            return FULL
        return self.route.candidate_permille if self.route is not None else 0

    @property
    def intent(self) -> Intent:
        """What the route is to say in this stage."""
        return self.intent_of(self.stage, self.step)

    def intent_of(self, stage: str, step: int) -> Intent:
        """What the route is to say in a stage."""
        stable, candidate = self.stable, self.candidate
        if stage in {"Promoting", "Watching"}:
            traffic = TrafficPlan(candidate.service)
            return Intent(traffic, stable=candidate.name, former=stable.name)
        if stage == "Succeeded":
            return Intent(TrafficPlan(candidate.service), stable=candidate.name)
        if stage == "Canary":
            traffic = TrafficPlan(
                stable.service,
                candidate_service=candidate.service,
                candidate_permille=self.strategy.canary.steps[step].weight_permille,
            )
            return Intent(traffic, stable=stable.name, candidate=candidate.name)
        if stage == "Shadow" and self.mirrors:
            traffic = TrafficPlan(
                stable.service,
                mirror_service=objects.comparator_name(self.observed.rollout.meta.name),
                mirror_percent=self.strategy.shadow.percent,
            )
            return Intent(traffic, stable=stable.name, candidate=candidate.name)
        return Intent(TrafficPlan(stable.service), stable=stable.name)

    @property
    def taken(self) -> bool:
        """Whether the gateway has taken what the route is to say."""
        return self.intent.is_in(self.route) and self.route is not None and self.route.accepted

    @property
    def gateway_works(self) -> bool:
        """Whether the policy's Gateway is there and programmed."""
        return self.observed.gateway is not None and self.observed.gateway.programmed

    @property
    def since_decision(self) -> float:
        """Seconds since the last transition."""
        decisions = self.status.decisions
        return self.now - decisions[-1].unix_milliseconds / 1000 if decisions else 0.0

    @property
    def in_stage(self) -> float:
        """Seconds since the stage's traffic was taken."""
        started = self.status.stage_started_unix_milliseconds
        return self.now - started / 1000 if started is not None else 0.0

    @property
    def under_way(self) -> float:
        """Seconds since Shadow began."""
        started = self.status.started_unix_milliseconds
        return self.now - started / 1000 if started is not None else 0.0


def living_policy(observed: RolloutObserved) -> Policy | None:
    """The policy, if it is there and serves."""
    policy = observed.policy
    return policy if policy is not None and policy.spec.serving is not None else None


def case_of(observed: RolloutObserved, status: VariantRolloutStatus) -> Case:
    """The facts of a rollout whose variants are pinned in its status."""
    policy = observed.rollout.spec.policy_ref.name

    def side(name: str | None, digest: str | None) -> Side:
        if name is None or digest is None:
            raise ValueError("a rollout that has not begun has no variants")
        service = objects.serving_name(policy, digest)
        state = observed.deployments.get(service)
        return Side(name, digest, observed.variants.get(name), service, state)

    return Case(
        observed=observed,
        status=status,
        stable=side(status.stable_variant, status.stable_digest),
        candidate=side(status.candidate_variant, status.candidate_digest),
        strategy=strategy_of(observed),
    )


def strategy_of(observed: RolloutObserved) -> Rollout:
    """The rollout's own strategy, or the policy's."""
    if observed.rollout.spec.strategy is not None:
        return observed.rollout.spec.strategy
    return observed.policy.spec.rollout if observed.policy is not None else Rollout()


def has_begun(status: VariantRolloutStatus) -> bool:
    """Whether variants are pinned, so that something may have to be undone."""
    return status.stable_digest is not None and status.candidate_digest is not None


def is_under_way(rollout: RolloutObject) -> bool:
    """Whether another rollout may move traffic."""
    return has_begun(rollout.status) and rollout.status.stage not in OVER


def target_of(policy: Policy) -> Target | None:
    """The target that is served."""
    serving = policy.spec.serving
    return next((t for t in policy.spec.targets if serving and t.name == serving.target), None)


def profile_of(observed: RolloutObserved) -> HardwareProfileSpec | None:
    """Where serving pods run."""
    target = target_of(observed.policy) if observed.policy is not None else None
    return observed.profiles.get(target.hardware_profile_ref.name) if target else None


def asked(observed: RolloutObserved) -> list[Asked]:
    """What people ask for now, obeyed already or not; an abort first."""
    meta, spec = observed.rollout.meta, observed.rollout.spec
    actor = meta.annotations.get(names.ACTOR_ANNOTATION, "").replace(",", " ")[:_ACTOR_MAX]
    annotation = meta.annotations.get(names.ACTION_ANNOTATION, "").strip().capitalize()
    found = [
        Asked(action, actor or source, f"{action} by {source} {actor}".strip())
        for action, source in ((annotation, "annotation"), (spec.action, "spec.action"))
        if action in {"Abort", "Promote"}
    ]
    return sorted(found, key=lambda a: a.action)


def obeyed(status: VariantRolloutStatus) -> set[str]:
    """Keys of what was obeyed."""
    return set((status.obeyed_action or "").split(_OBEYED_SEPARATOR)) - {""}


def remembered(keys: set[str]) -> str | None:
    """Those keys as the status keeps them."""
    return _OBEYED_SEPARATOR.join(sorted(keys)) or None
