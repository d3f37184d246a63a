# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.planning import NOW, measured, policy, policy_spec, variant

from kompakt.api import names
from kompakt.api.variant import ModelVariantStatus
from kompakt.controllers.conditions import find
from kompakt.controllers.plan import Policy, RouteState, Variant, VariantObserved, WriteStatus
from kompakt.controllers.variant import plan_variant

GATES = [
    {"name": "quality", "maxDropBasisPoints": 200},
    {"name": "strict", "maxDropBasisPoints": 10},
    {"name": "domains", "slice": "domain", "maxDropBasisPoints": 400},
]
FIGURES = [
    measured(target="other", mean=8000).to_wire(),
    measured(target="edge", mean=4000, lost=15).to_wire(),
]


def route(**annotations: str) -> RouteState:
    """A live route that names variants."""
    told = {f"kompakt.dev/{key}-variant": name for key, name in annotations.items()}
    return RouteState(told, "a", None, 0, None, 0, generation=1, accepted=True)


def status(
    made: Variant, *, of: Policy | None = None, live: RouteState | None = None
) -> ModelVariantStatus:
    """What the plan writes, and that it writes nothing a second time."""
    observed = VariantObserved(now=NOW, variant=made, policy=of, route=live)
    (action,) = plan_variant(observed).actions
    assert isinstance(action, WriteStatus)
    assert isinstance(action.status, ModelVariantStatus)
    parsed = ModelVariantStatus.model_validate(action.status.to_wire())
    again = VariantObserved(NOW + 60, replace(made, status=parsed), policy=of, route=live)
    assert plan_variant(again).actions == ()
    return parsed


def ready(found: ModelVariantStatus) -> tuple[str, str]:
    """Status and reason of Ready."""
    condition = find(found.conditions, "Ready")
    assert condition is not None
    return condition.status, condition.reason


@pytest.mark.parametrize(
    ("spec", "of", "expected"),
    [
        ({"policyRef": None}, None, ("False", "NoPolicy")),
        ({}, None, ("False", "PolicyNotFound")),
        ({}, policy(), ("True", "Registered")),
        ({"figures": FIGURES}, policy(), ("True", "Measured")),
        ({"lineage": {"run": "r", "recipe": "Source"}}, policy(), ("True", "Imported")),
    ],
)
def test_ready_means_that_it_may_be_rolled_out(
    spec: dict[str, Any], of: Policy | None, expected: tuple[str, str]
) -> None:
    """A variant needs a policy to be rolled out, and no figures: a hand-made one is judged live."""
    assert ready(status(variant(**spec), of=of)) == expected


def test_the_figures_are_those_of_the_served_target() -> None:
    """Speed, drop and gates in short are of the target that the policy serves."""
    found = status(variant(figures=FIGURES), of=policy(policy_spec(gates=GATES)))

    assert found.speedup_permille == 2500
    assert found.accuracy_drop_basis_points == 50
    assert found.gates_passed == ["quality", "domains"]


def test_without_a_served_target_the_first_measured_counts() -> None:
    """A policy that serves nothing still shows figures."""
    found = status(variant(figures=FIGURES), of=policy(policy_spec(serving=None)))

    assert found.speedup_permille == 1250


def test_without_figures_no_gate_is_passed() -> None:
    """What was not measured has passed nothing."""
    pending = [{"target": "edge", "state": "Failed", "reason": "JobFailed", "message": "lost"}]
    found = status(variant(figures=pending), of=policy())

    assert (found.gates_passed, found.speedup_permille) == ([], None)
    assert found.accuracy_drop_basis_points is None


@pytest.mark.parametrize(
    ("key", "role", "serving"),
    [
        ("stable", "Stable", "True"),
        ("candidate", "Candidate", "False"),
        ("former", "None", "False"),
    ],
)
def test_the_role_is_the_route_s_word(key: str, role: str, serving: str) -> None:
    """Stable, candidate or neither, as the annotations of the live route say."""
    made = variant()
    found = status(made, of=policy(), live=route(**{key: made.meta.name}))
    condition = find(found.conditions, "Serving")

    assert found.role == role
    assert condition is not None
    assert condition.status == serving


def test_the_annotations_are_the_api_s() -> None:
    """The names that these tests write are the ones of the API."""
    assert set(route(stable="x", candidate="y").annotations) == {
        names.STABLE_ANNOTATION,
        names.CANDIDATE_ANNOTATION,
    }


def test_a_variant_that_is_deleted_is_left_alone() -> None:
    """Nothing is written to an object that goes."""
    made = variant()
    gone = replace(made, meta=replace(made.meta, deleting=True))

    assert plan_variant(VariantObserved(NOW, gone)).actions == ()
