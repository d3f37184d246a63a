# SPDX-License-Identifier: Apache-2.0
"""Whose plan depends on an object: an event on it puts these keys in the queue.

The mapping may name too many (a plan that finds nothing to do does nothing), never too few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from kompakt.api import names
from kompakt.operator.resources import (
    MADE,
    PLANNED,
    POLICY,
    PROFILE,
    RECIPE,
    ROLLOUT,
    RUN,
    VARIANT,
    Ref,
    ref_of,
)
from kompakt.operator.store import POLICY_REF, Store

ENDED: Final = frozenset({"Succeeded", "RolledBack"})
"""Stages of a rollout that nothing follows."""


def dependents(store: Store, obj: Mapping[str, Any]) -> set[Ref]:
    """The keys of all plans that look at an object."""
    ref = ref_of(obj)
    found = {ref} if ref.kind in PLANNED else set()
    return found | set(_REFERRERS[ref.kind](store, obj))


def _of_policy_object(store: Store, obj: Mapping[str, Any]) -> Iterator[Ref]:
    ref = ref_of(obj)
    yield from _of_policy(store, ref.namespace, ref.name, (ROLLOUT, VARIANT))


def _of_child(store: Store, obj: Mapping[str, Any]) -> Iterator[Ref]:
    """Of a run, a variant or a rollout."""
    namespace, spec = obj["metadata"]["namespace"], obj.get("spec") or {}
    policy = (spec.get("policyRef") or {}).get("name")
    if policy:
        yield from _of_policy(store, namespace, policy, (POLICY, ROLLOUT))
    run = (spec.get("lineage") or {}).get("run")
    if run:
        yield Ref(RUN, namespace, run)


def _of_recipe(store: Store, obj: Mapping[str, Any]) -> Iterator[Ref]:
    # Of all namespaces: the recipe may be one of the catalogue.
    for policy in store.all(POLICY):
        if obj["metadata"]["name"] in _recipes(policy):
            yield ref_of(policy)


def _of_profile(store: Store, obj: Mapping[str, Any]) -> Iterator[Ref]:
    for policy in store.all(POLICY):
        if obj["metadata"]["name"] in profiles(policy):
            ref = ref_of(policy)
            yield from _of_policy(store, ref.namespace, ref.name, (POLICY, RUN, ROLLOUT))


def _of_made(store: Store, obj: Mapping[str, Any]) -> Iterator[Ref]:
    """Of what we made: its labels tell for whom."""
    metadata = obj["metadata"]
    labels = metadata.get("labels") or {}
    run, policy = labels.get(names.RUN_LABEL), labels.get(names.POLICY_LABEL)
    if run:
        yield Ref(RUN, metadata["namespace"], run)
    elif policy:
        kinds = [POLICY, ROLLOUT, *([VARIANT] if obj["kind"] == "HTTPRoute" else [])]
        yield from _of_policy(store, metadata["namespace"], policy, kinds)


_REFERRERS: Final[Mapping[str, Callable[[Store, Mapping[str, Any]], Iterator[Ref]]]] = {
    POLICY: _of_policy_object,
    RUN: _of_child,
    VARIANT: _of_child,
    ROLLOUT: _of_child,
    RECIPE: _of_recipe,
    PROFILE: _of_profile,
    **dict.fromkeys(MADE, _of_made),
}


def of_gateway(store: Store, namespace: str, name: str) -> set[Ref]:
    """The keys of the policies that are served by a Gateway, and of their rollouts."""
    found: set[Ref] = set()
    for obj in store.all(POLICY):
        if gateway(obj) == (namespace, name):
            ref = ref_of(obj)
            found |= set(_of_policy(store, ref.namespace, ref.name, (POLICY, ROLLOUT)))
    return found


def gateway(policy: Mapping[str, Any]) -> tuple[str, str] | None:
    """Namespace and name of the Gateway that a policy names."""
    reference = ((policy.get("spec") or {}).get("serving") or {}).get("gatewayRef") or {}
    name = reference.get("name")
    return (reference.get("namespace") or policy["metadata"]["namespace"], name) if name else None


def profiles(policy: Mapping[str, Any]) -> set[str]:
    """Names of the hardware profiles that a policy, or the snapshot of one, names."""
    spec = policy.get("spec") or {}
    references = [target.get("hardwareProfileRef") for target in spec.get("targets") or ()]
    references.append((spec.get("jobs") or {}).get("hardwareProfileRef"))
    return {reference["name"] for reference in references if reference and "name" in reference}


def ended(rollout: Mapping[str, Any]) -> bool:
    """Whether nothing more will happen to a rollout by itself."""
    return (rollout.get("status") or {}).get("stage") in ENDED


def _recipes(policy: Mapping[str, Any]) -> set[str]:
    spec = policy.get("spec") or {}
    references = [*(spec.get("recipes") or ()), *((spec.get("search") or {}).get("recipes") or ())]
    return {reference.get("name", "") for reference in references}


def _of_policy(store: Store, namespace: str, policy: str, kinds: Iterable[str]) -> Iterator[Ref]:
    """A policy itself and what refers to it. Rollouts that have ended are at rest, unless they are
    being deleted.
    """
    for kind in kinds:
        if kind == POLICY:
            yield Ref(POLICY, namespace, policy)
            continue
        for obj in store.where(kind, namespace, POLICY_REF, policy):
            resting = kind == ROLLOUT and ended(obj)
            if not resting or obj["metadata"].get("deletionTimestamp"):
                yield ref_of(obj)
