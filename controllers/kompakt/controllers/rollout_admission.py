# SPDX-License-Identifier: Apache-2.0
"""Whether a rollout may begin, and with what: everything that it names is there and fits.

Invariants:

- the oldest rollout of a policy goes first, one at a time; one that cannot begin until someone
  mends it does not hold up the others;
- nothing is admitted whose objectives could never be measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from kompakt.api import names
from kompakt.api.rollout import VariantRolloutStatus
from kompakt.controllers import objects
from kompakt.controllers.conditions import find, is_true
from kompakt.controllers.plan import Policy, RolloutObserved, Variant
from kompakt.controllers.rollout_case import (
    OVER,
    is_under_way,
    living_policy,
    profile_of,
    strategy_of,
)


@dataclass(frozen=True)
class Problem:
    """Why a rollout cannot begin, and what would mend it."""

    reason: str
    message: str
    for_good: bool = True
    """Somebody has to do something; else it passes by itself."""


@dataclass(frozen=True)
class Pair:
    """The two variants."""

    stable: Variant
    candidate: Variant


def admit(observed: RolloutObserved) -> Pair | Problem:
    """The variants to begin with, or why not."""
    policy = living_policy(observed)
    if policy is None:
        return _no_policy(observed)
    candidate = _candidate(observed, policy)
    if isinstance(candidate, Problem):
        return candidate
    stable = _stable(observed, policy)
    if isinstance(stable, Problem):
        return stable
    problem = (
        _mismatch(stable, candidate)
        or _unmeasurable(observed, policy)
        or _not_now(observed, policy)
    )
    return problem or Pair(stable=stable, candidate=candidate)


def serves_already(observed: RolloutObserved) -> Variant | None:
    """The candidate, if its artifact is what the route leads to."""
    route = observed.route
    name = route.annotations.get(names.STABLE_ANNOTATION) if route is not None else None
    stable = observed.variants.get(name or "")
    candidate = observed.variants.get(observed.rollout.spec.candidate_ref.name)
    if stable is None or candidate is None or stable.spec.digest != candidate.spec.digest:
        return None
    return candidate


def recovered(observed: RolloutObserved) -> VariantRolloutStatus | None:
    """The status of a rollout that has begun and lost it, from what route, Deployments and variants
    tell; None when there is nothing to go on with, or to undo.
    """
    route, status = observed.route, observed.rollout.status
    if route is None or status.stage is not None or any(map(is_under_way, observed.others)):
        return None
    told = route.annotations
    former = told.get(names.FORMER_ANNOTATION)
    stable = former or told.get(names.STABLE_ANNOTATION)
    wanted = observed.rollout.spec.candidate_ref.name
    name = told.get(names.STABLE_ANNOTATION if former else names.CANDIDATE_ANNOTATION, wanted)
    before, candidate = observed.variants.get(stable or ""), observed.variants.get(name)
    if before is None or candidate is None or before.spec.digest == candidate.spec.digest:
        return None
    meta, policy = observed.rollout.meta, observed.rollout.spec.policy_ref.name
    remains = {
        objects.reference_name(meta.name),
        objects.comparator_name(meta.name),
        objects.serving_name(policy, candidate.spec.digest),
    }
    if (
        not former
        and names.CANDIDATE_ANNOTATION not in told
        and not remains & {*observed.deployments}
    ):
        return None
    return status.evolve(
        stage="Watching" if former else "Pending",
        stable_variant=before.meta.name,
        stable_digest=before.spec.digest,
        candidate_variant=candidate.meta.name,
        candidate_digest=candidate.spec.digest,
        stage_started_unix_milliseconds=None if former else int(observed.now * 1000),
    )


def _no_policy(observed: RolloutObserved) -> Problem:
    name = observed.rollout.spec.policy_ref.name
    if observed.policy is None:
        return Problem("PolicyNotFound", f"CompressionPolicy {name} not found: create it")
    text = f"CompressionPolicy {name} serves nothing: set spec.serving"
    return Problem("PolicyServesNothing", text)


def _candidate(observed: RolloutObserved, policy: Policy) -> Variant | Problem:
    name = observed.rollout.spec.candidate_ref.name
    variant = observed.variants.get(name)
    if variant is None:
        text = f"ModelVariant {name} of policy {policy.meta.name} not found"
        hint = "create it, with that policy in spec.policyRef"
        return Problem("VariantNotFound", f"{text}: {hint}")
    ready = find(variant.status.conditions, "Ready")
    if ready is None:
        return Problem("VariantNotReady", f"ModelVariant {name} was not looked at yet", False)
    if ready.status != "True":
        return Problem("VariantNotReady", f"ModelVariant {name} is not ready: {ready.message}")
    return variant


def _stable(observed: RolloutObserved, policy: Policy) -> Variant | Problem:
    told = observed.route.annotations if observed.route is not None else {}
    name = told.get(names.STABLE_ANNOTATION)
    if name is None:
        text = f"waiting for policy {policy.meta.name} to serve its first variant"
        return Problem("NothingServed", text, False)
    stable = observed.variants.get(name)
    if stable is None:
        text = f"ModelVariant {name} serves, but is gone: register it again"
        return Problem("StableVariantNotFound", text)
    return stable


def _mismatch(stable: Variant, candidate: Variant) -> Problem | None:
    ours, theirs = candidate.spec, stable.spec
    if len({ours.task, theirs.task}) > 1:
        text = f"{candidate.meta.name} does {ours.task}, {stable.meta.name} {theirs.task}"
        return Problem("TaskDiffers", f"{text}: a rollout needs the same task")
    if set(ours.labels) != set(theirs.labels):
        odd = sorted(set(ours.labels) ^ set(theirs.labels))
        text = f"{candidate.meta.name} and {stable.meta.name} differ in the labels"
        return Problem("LabelsDiffer", f"{text} {', '.join(odd)[:500]}: answers cannot be compared")
    return None


def _unmeasurable(observed: RolloutObserved, policy: Policy) -> Problem | None:
    """Objectives that would stay undecided for ever."""
    strategy = strategy_of(observed)
    for slo in strategy.slos:
        if slo.type == "Accuracy" and policy.spec.data.golden_set is None:
            text = f"objective {slo.name} needs labelled data: set spec.data.goldenSet of policy"
            return Problem("GoldenSetMissing", f"{text} {policy.meta.name}")
        certify = slo.type == "Disagreement" and slo.mode == "Certify"
        if certify and strategy.shadow.percent == 0:
            text = f"objective {slo.name} is certified by mirrored requests, but shadow.percent is"
            return Problem("ObjectiveNotMeasurable", f"{text} 0: raise it, or use mode Guard")
    return None


def _not_now(observed: RolloutObserved, policy: Policy) -> Problem | None:
    if profile_of(observed) is None:
        serving = policy.spec.serving
        text = f"target {serving.target if serving else ''} has no HardwareProfile: create it"
        return Problem("HardwareProfileNotFound", text)
    if policy.spec.suspended:
        text = f"policy {policy.meta.name} is suspended: set spec.suspend to Disabled"
        return Problem("PolicySuspended", text, False)
    mine = observed.rollout.meta
    for other in observed.others:
        meta, status = other.meta, other.status
        earlier = (meta.created_unix_seconds, meta.name) < (mine.created_unix_seconds, mine.name)
        waits = status.stage not in OVER and earlier and not is_true(status.conditions, "Stalled")
        if is_under_way(other) or (waits and not meta.deleting):
            text = f"waiting for rollout {meta.name} of the same policy"
            return Problem("RolloutUnderWay", f"{text}, which goes first", False)
    gateway = observed.gateway
    if gateway is None or not gateway.programmed:
        why = "it is gone" if gateway is None else gateway.message or "it is not programmed"
        return Problem("GatewayNotReady", f"the gateway does not work: {why}", False)
    return None
