# SPDX-License-Identifier: Apache-2.0
"""The rules of safety, as far as a single write of the operator can break them, and worlds in
which every write is watched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.rollout_world import World

from kompakt.api import names
from kompakt.api.base import Condition
from kompakt.api.rollout import VariantRolloutStatus
from kompakt.api.strategy import Rollout
from kompakt.controllers import objects
from kompakt.controllers.conditions import find
from kompakt.controllers.plan import (
    Action,
    Apply,
    Delete,
    DeploymentState,
    Manifest,
    Plan,
    RolloutObserved,
    SetFinalizer,
    WriteStatus,
)


class SafetyError(AssertionError):
    """A write of the operator would break a rule."""


def world(**changes: Any) -> World:
    """A cluster whose every write is watched."""
    return World(watch=watch, **changes)


def at(stage: str, **changes: Any) -> World:
    """A cluster whose rollout has reached a stage, and whose evidence has begun."""
    found = world(**changes)
    found.run(120, until=(stage,))
    assert found.stage == stage
    found.step()
    found.step()
    return found


def ready(found: World) -> Condition:
    """The condition that the printer columns show."""
    condition = find(found.status.conditions, "Ready")
    assert condition is not None
    return condition


def kinds(plan: Plan | None) -> list[str]:
    """What a plan does, in short."""
    assert plan is not None
    return [
        action.manifest["kind"] if isinstance(action, Apply) else type(action).__name__
        for action in plan.actions
    ]


def watch(world: World, observed: RolloutObserved, action: Action) -> None:
    """Raise SafetyError for a write that breaks a rule, given what the operator has observed."""
    match action:
        case Apply(manifest) if manifest["kind"] == "HTTPRoute":
            _watch_route(world, observed, manifest)
        case Delete(name=name):
            _watch_delete(world, name)
        case WriteStatus(status):
            assert isinstance(status, VariantRolloutStatus)
            _watch_status(world, observed, status)
        case SetFinalizer(present=False) if observed.rollout.meta.deleting:
            _watch_release(world)
        case _:
            pass


def _watch_route(world: World, observed: RolloutObserved, manifest: Manifest) -> None:
    (rule,) = manifest["spec"]["rules"]
    weights = {b["name"]: b["weight"] for b in rule["backendRefs"]}
    _rule(1, sum(weights.values()) == 1000, f"weights {weights} sum to 1000")
    states = observed.deployments
    live = {n for n, w in weights.items() if w > 0 and _answers(states, n)}
    candidate = objects.serving_name("sentiment", world.status.candidate_digest or "")
    nobody = not _answers(states, candidate)
    unready = {n for n, w in weights.items() if w > 0} - live
    _rule(1, not unready or nobody, f"{unready} get weight and are observed ready")
    _rule(1, candidate not in unready, "the candidate gets weight and is observed ready")
    mirrors = [f for f in rule.get("filters", []) if f["type"] == "RequestMirror"]
    _rule(6, not (mirrors and len(weights) > 1), "mirror and weight are never on together")
    share = weights.get(candidate, 0)
    if world.status.stage == "RollingBack":
        _rule(2, share == 0, "after a Fail the candidate gets 0")
    told = manifest["metadata"]["annotations"][names.STABLE_ANNOTATION]
    if told == world.status.candidate_variant:
        promoted = any(d.to_stage == "Promoting" for d in world.status.decisions)
        lost = not world.status.decisions
        _rule(3, promoted or lost, "the stable variant changes by a recorded decision only")
    first = rule["backendRefs"][0]["name"]
    digest = world.variants[told].spec.digest
    _rule(7, first == objects.serving_name("sentiment", digest), "the route names what serves")


def _watch_delete(world: World, name: str) -> None:
    route = world.taken
    if route is None or world.route is None:
        return
    for state in (route, world.live):
        leads = {state.stable_backend if state.candidate_permille < 1000 else None}
        leads |= {state.candidate_backend if state.candidate_permille else None}
        leads |= {state.mirror_backend if state.mirror_percent else None}
        _rule(5, name not in leads, f"{name} is deleted when no route leads to it")


def _watch_status(world: World, observed: RolloutObserved, status: VariantRolloutStatus) -> None:
    if status.stage != "Promoting" or world.status.stage == "Promoting":
        return
    reason = status.decisions[-1].reason
    fresh = [
        s
        for s in observed.samples
        if s.digest == objects.digest_label(status.candidate_digest or "")
        and observed.now - s.unix_milliseconds / 1000 <= 10
        and not s.gone
    ]
    strategy = Rollout.model_validate(world.strategy)
    certify = {slo.name for slo in strategy.slos if slo.mode == "Certify"}
    passed = {v.slo for v in status.verdicts if v.certified == "True"}
    failed = [v.slo for v in status.verdicts if v.verdict == "Fail"]
    by_judge = reason == "CanaryPassed" and fresh and certify <= passed and not failed
    by_hand = reason == "PromotedByHand" and (
        observed.rollout.meta.annotations.get(names.ACTION_ANNOTATION) == "promote"
        or observed.rollout.spec.action == "Promote"
    )
    _rule(3, bool(by_judge or by_hand), "promotion needs fresh Passes or a person's word")


def _watch_release(world: World) -> None:
    if world.route is not None:
        live = world.live
        one = live.candidate_permille == 0 and live.mirror_percent == 0
        _rule(5, one, "all traffic is on one variant before a rollout is let go")


def _rule(number: int, holds: bool, text: str) -> None:  # noqa: FBT001
    if not holds:
        raise SafetyError(f"rule {number} is broken, which says: {text}")


def _answers(states: Mapping[str, DeploymentState], name: str) -> bool:
    return name in states and states[name].ready > 0
