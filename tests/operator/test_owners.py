# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from kompakt.api import names
from kompakt.operator.owners import dependents, of_gateway
from kompakt.operator.resources import Manifest, Ref
from kompakt.operator.store import Store

POLICY_SPEC = {
    "recipes": [{"name": "int8"}],
    "search": {"recipes": [{"name": "prune"}]},
    "targets": [{"name": "edge", "hardwareProfileRef": {"name": "small"}}],
    "serving": {"gatewayRef": {"name": "public", "namespace": "gateways"}},
}


def obj(kind: str, name: str, *, labels: dict[str, str] | None = None, **parts: Any) -> Manifest:
    """A live object in the namespace `team` (a profile in none)."""
    metadata = {"name": name, "uid": f"{kind}-{name}", "resourceVersion": "1"}
    metadata |= {"labels": labels or {}}  # type: ignore[dict-item]
    if kind != "HardwareProfile":
        metadata["namespace"] = "team"
    return {"kind": kind, "metadata": metadata, **parts}


@pytest.fixture
def store() -> Store:
    """A policy `p` with a run, two variants, a running rollout and one that has ended."""
    of_policy = {"policyRef": {"name": "p"}}
    store = Store()
    for entry in (
        obj("CompressionPolicy", "p", spec=POLICY_SPEC),
        obj("CompressionPolicy", "q", spec={"recipes": [{"name": "other"}]}),
        obj("CompressionRun", "p-1", spec=of_policy),
        obj("ModelVariant", "p-a", spec={**of_policy, "lineage": {"run": "p-1"}}),
        obj("ModelVariant", "p-b", spec=of_policy),
        obj("VariantRollout", "new", spec=of_policy, status={"stage": "Canary"}),
        obj("VariantRollout", "old", spec=of_policy, status={"stage": "Succeeded"}),
    ):
        store.put(entry)
    return store


ROLLOUT = Ref("VariantRollout", "team", "new")
POLICY = Ref("CompressionPolicy", "team", "p")
RUN = Ref("CompressionRun", "team", "p-1")
VARIANTS = {Ref("ModelVariant", "team", "p-a"), Ref("ModelVariant", "team", "p-b")}
OF_POLICY = {names.POLICY_LABEL: "p"}


@pytest.mark.parametrize(
    ("changed", "keys"),
    [
        (obj("CompressionPolicy", "p", spec=POLICY_SPEC), {POLICY, ROLLOUT, *VARIANTS}),
        (obj("CompressionRecipe", "int8"), {POLICY}),
        (obj("CompressionRecipe", "prune"), {POLICY}),
        (obj("CompressionRecipe", "unused"), set()),
        (obj("HardwareProfile", "small"), {POLICY, RUN, ROLLOUT}),
        (obj("HardwareProfile", "large"), set()),
        (obj("CompressionRun", "p-1", spec={"policyRef": {"name": "p"}}), {RUN, POLICY, ROLLOUT}),
        (obj("Job", "j", labels={**OF_POLICY, names.RUN_LABEL: "p-1"}), {RUN}),
        (obj("Pod", "j-x", labels={**OF_POLICY, names.RUN_LABEL: "p-1"}), {RUN}),
        (obj("Pod", "d-x", labels=OF_POLICY), {POLICY, ROLLOUT}),
        (obj("Deployment", "d", labels=OF_POLICY), {POLICY, ROLLOUT}),
        (obj("Service", "d", labels=OF_POLICY), {POLICY, ROLLOUT}),
        (obj("HTTPRoute", "p", labels=OF_POLICY), {POLICY, ROLLOUT, *VARIANTS}),
        (obj("Pod", "stray"), set()),
    ],
    ids=lambda value: f"{value['kind']}-{value['metadata']['name']}" if "kind" in value else "",
)
def test_each_event_wakes_the_plans_that_look_at_it(
    store: Store, changed: Manifest, keys: set[Ref]
) -> None:
    """Too many would only cost time; here it is exactly those. Rollouts that have ended rest."""
    assert dependents(store, changed) == keys


def test_a_variant_wakes_its_run_too(store: Store) -> None:
    """A variant that somebody deleted is made again by the run that made it."""
    variant = store.get(Ref("ModelVariant", "team", "p-a"))
    assert variant is not None

    assert dependents(store, variant) == {Ref("ModelVariant", "team", "p-a"), RUN, POLICY, ROLLOUT}


def test_an_ended_rollout_that_is_deleted_still_wakes(store: Store) -> None:
    """Its finalizer is taken off by its plan."""
    old = obj("VariantRollout", "old", spec={"policyRef": {"name": "p"}})
    old["status"] = {"stage": "Succeeded"}

    assert Ref("VariantRollout", "team", "old") in dependents(store, old)


def test_a_gateway_wakes_the_policies_behind_it(store: Store) -> None:
    """Only those that name it."""
    assert of_gateway(store, "gateways", "public") == {POLICY, ROLLOUT}
    assert of_gateway(store, "team", "public") == set()
