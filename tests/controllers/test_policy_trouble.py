# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
from tests.planning import RECIPES, policy, policy_spec
from tests.policy_world import PolicyWorld, chosen, only, ready, said, serving_source, stable_of
from tests.run_world import OUT_OF_MEMORY, broken, fail

from kompakt.controllers.conditions import find

EXAMPLES: dict[str, tuple[dict[str, Any], str, str]] = {
    "recipe": ({"recipes": {}}, "RecipeNotFound", "CompressionRecipe dynamic-int8 not found in"),
    "profile": ({"profiles": {}}, "HardwareProfileNotFound", "HardwareProfile cpu-large not found"),
    "gateway": (
        {"gateway": None},
        "GatewayNotFound",
        "Gateway public not found in namespace gateways",
    ),
}


@pytest.mark.parametrize("missing", EXAMPLES)
def test_what_is_missing_is_named_and_heals(missing: str) -> None:
    """A missing recipe, profile or gateway: not ready, with its name, until it appears."""
    fields, reason, words = EXAMPLES[missing]
    made = PolicyWorld(**fields)
    plan = made.plan()

    assert (ready(made), said(made, "Stalled").status) == (("False", reason), "True")
    assert words in said(made).message
    assert made.runs == {}
    assert plan.requeue_after is not None
    assert plan.requeue_after <= 30
    assert [event.warning for event in made.events] == [True]

    whole = PolicyWorld()
    made.recipes, made.profiles, made.gateway = whole.recipes, whole.profiles, whole.gateway
    made.settle()
    assert ready(made) == ("False", "Compressing")
    assert find(made.status.conditions, "Stalled") is None
    assert len(made.runs) == 1


@pytest.mark.parametrize("missing", EXAMPLES)
def test_what_goes_missing_later_does_not_stop_what_serves(missing: str) -> None:
    """A recipe, profile or gateway that is deleted takes nothing out of production."""
    made = chosen()
    made.promote(only(made.rollouts))
    made.settle()
    fields, reason, _ = EXAMPLES[missing]
    for field, value in fields.items():
        setattr(made, field, value)
    before = (stable_of(made), dict(made.deployments), made.status.serving_variant)

    made.settle()

    assert ready(made) == ("False", reason)
    assert (stable_of(made), made.deployments, made.status.serving_variant) == before


def test_a_range_that_no_step_allows_is_found_at_once() -> None:
    """A search over impossible values is refused before anything runs, with the recipe's name."""
    bad = RECIPES["prune-int8"].ranges[0].evolve(maximum=5000)
    search = {"recipes": [{"name": "prune-int8"}]}
    made = PolicyWorld(
        policy(policy_spec(search=search)),
        recipes=RECIPES | {"prune-int8": RECIPES["prune-int8"].evolve(ranges=[bad])},
    )
    made.settle()

    assert ready(made) == ("False", "RecipeInvalid")
    assert "CompressionRecipe prune-int8" in said(made).message


def test_a_store_that_forgets_is_refused() -> None:
    """A file:// store is a path in a pod, and gone with it."""
    made = PolicyWorld(policy(policy_spec(store={"uri": "file:///tmp/store"})))
    made.settle()

    assert ready(made) == ("False", "StoreInvalid")


@pytest.mark.parametrize(
    ("kind", "reason"), [("Import", "SourceUnreadable"), ("Compress", "StepInvalid")]
)
def test_a_failed_run_tells_the_policy(kind: str, reason: str) -> None:
    """The reason and the sentence of the Job reach the policy's condition and an Event."""
    text = "model.uri: pvc://models/sentiment holds no config.json; correct it"
    made = PolicyWorld()
    made.settle()
    made.end_run(work=broken(kind, lambda t: fail(t, reason, outcome="InvalidInput", message=text)))
    made.settle()

    assert ready(made) == ("False", reason)
    assert said(made, "VariantChosen").reason == reason
    assert text in said(made).message
    assert [(e.reason, e.warning) for e in made.events][-1] == (reason, True)


def test_no_variant_at_all_still_serves_the_source() -> None:
    """When every trial failed, the policy says so, and the source goes on serving."""
    made = serving_source()
    made.end_run(work=broken("Compress", lambda _: OUT_OF_MEMORY))
    made.settle()

    assert ready(made) == ("False", "NoVariant")
    assert said(made, "Serving").status == "True"
    assert made.rollouts == {}


def test_no_gate_passed_is_at_rest_with_the_source() -> None:
    """Nothing is good enough: the source serves, ready, and the message says which bound failed."""
    made = PolicyWorld(policy(policy_spec(gates=[{"name": "strict", "maxDropBasisPoints": 0}])))
    made.settle()
    made.end_run()
    made.settle()

    assert ready(made) == ("True", "NoVariantPassesGates")
    assert "gate strict" in said(made).message
    assert said(made, "VariantChosen").status == "False"
    assert only(made.status.chosen).variant is None
    assert made.rollouts == {}
