# SPDX-License-Identifier: Apache-2.0
"""What a rollout makes and removes: Deployments, Services, and the route's traffic.

Invariants:

- a Deployment that exists has its Service: it is applied last;
- the candidate gets no weight unless all of its pods are observed ready, and traffic goes to the
  stable variant only when it has ready pods, or when the candidate has none either;
- nothing is removed that the route leads to, or that another rollout needs.
"""

from __future__ import annotations

from collections.abc import Iterable

from kompakt.controllers import objects
from kompakt.controllers.plan import Action, Apply, Delete, Manifest
from kompakt.controllers.render.route import FULL, redirected, route_manifest
from kompakt.controllers.render.serving import (
    comparator_manifests,
    reference_manifests,
    serving_manifests,
)
from kompakt.controllers.rollout_case import Case, Intent, Side, is_under_way, profile_of


def missing(case: Case) -> list[Action]:
    """Apply what the stage needs and nobody has made, or somebody has deleted."""
    sides = [case.stable] if case.stage == "RollingBack" else [case.stable, case.candidate]
    manifests = [m for side in sides if side.state is None for m in _serving(case, side)]
    if case.stage != "RollingBack" and case.needs_comparator:
        manifests += _comparison(case)
    return [Apply(manifest) for manifest in manifests]


def can_take(case: Case, intent: Intent) -> str:
    """Why the traffic of an intent must not be written now; empty when it may."""
    to_candidate = intent.traffic.candidate_permille > 0 or intent.stable == case.candidate.name
    if to_candidate and not case.candidate.available:
        return f"waiting for the pods of {case.candidate.name}{_why(case.candidate)}"
    if intent.traffic.mirror_percent and (case.comparator is None or not case.comparator.available):
        return "waiting for the pod of the comparator"
    to_stable = intent.stable == case.stable.name and intent.traffic.candidate_permille < FULL
    if not to_stable or case.stable.ready:
        return ""
    if case.stage == "RollingBack" and not case.candidate.ready:
        # Neither variant answers: the one that is known to be good is mended first.
        return ""
    return f"waiting for the pods of {case.stable.name}{_why(case.stable)}"


def write_route(case: Case, intent: Intent) -> list[Action]:
    """Apply the route with this traffic."""
    manifest: Manifest | None = None
    policy, meta = case.policy, case.observed.rollout.meta
    if policy is not None:
        manifest = route_manifest(
            policy=policy,
            traffic=intent.traffic,
            stable_variant_name=intent.stable,
            candidate_variant_name=intent.candidate,
            former_variant_name=intent.former,
        )
    elif case.route is not None:
        manifest = redirected(
            policy_name=case.observed.rollout.spec.policy_ref.name,
            namespace=meta.namespace,
            live=case.route,
            traffic=intent.traffic,
            stable_variant_name=intent.stable,
        )
    return [Apply(manifest)] if manifest is not None else []


def remove(case: Case, *, side: Side) -> list[Action]:
    """Delete what compared the variants, and the variant that is not served any more."""
    rollout = case.observed.rollout.meta
    names_ = [objects.comparator_name(rollout.name), objects.reference_name(rollout.name)]
    if not _is_needed(case, side):
        names_.append(side.service)
    return [
        Delete(api_version, kind, rollout.namespace, name)
        for name in names_
        for api_version, kind in (("apps/v1", "Deployment"), ("v1", "Service"))
    ]


def _is_needed(case: Case, side: Side) -> bool:
    """Whether someone still wants a variant's pods."""
    if case.stable.digest == case.candidate.digest:
        return True
    wanted = {
        digest
        for other in case.observed.others
        if is_under_way(other)
        for digest in (other.status.stable_digest, other.status.candidate_digest)
    }
    return side.digest in wanted


def _serving(case: Case, side: Side) -> list[Manifest]:
    profile = profile_of(case.observed)
    if case.policy is None or side.variant is None or profile is None:
        return []
    return _deployments_last(
        serving_manifests(
            policy=case.policy,
            variant=side.variant,
            profile=profile,
            settings=case.observed.settings,
        )
    )


def _comparison(case: Case) -> list[Manifest]:
    """Reference and comparator, where they are missing."""
    rollout, settings = case.observed.rollout.meta, case.observed.settings
    profile = profile_of(case.observed)
    if case.policy is None or case.stable.variant is None or profile is None:
        return []
    found: list[Manifest] = []
    if case.reference is None:
        found += _deployments_last(
            reference_manifests(
                rollout_name=rollout.name,
                policy=case.policy,
                variant=case.stable.variant,
                profile=profile,
                settings=settings,
                owner=rollout,
            )
        )
    if case.comparator is None:
        found += _deployments_last(
            comparator_manifests(
                rollout_name=rollout.name,
                policy=case.policy,
                candidate_service=case.candidate.service,
                reference_service=objects.reference_name(rollout.name),
                settings=settings,
                owner=rollout,
            )
        )
    return found


def _deployments_last(manifests: Iterable[Manifest]) -> list[Manifest]:
    return sorted(manifests, key=lambda m: m["kind"] == "Deployment")


def _why(side: Side) -> str:
    if side.state is None:
        return ": there are none"
    counts = f": {side.state.ready} of {side.state.desired} ready"
    return counts + (f" ({side.state.message})" if side.state.message else "")
