# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.planning import policy, policy_spec

from kompakt.api import names
from kompakt.controllers.plan import Manifest
from kompakt.controllers.render.route import (
    TrafficPlan,
    parse_route,
    redirected,
    route_manifest,
)

GATEWAY = {"name": "public", "namespace": "gateways"}
SERVING: dict[str, Any] = {
    "target": "edge",
    "gatewayRef": GATEWAY,
    "hostnames": ["sentiment.example.com"],
}
UNMARKED = {
    "type": "RequestHeaderModifier",
    "requestHeaderModifier": {"remove": ["x-kompakt-shadow"]},
}
"""Nobody hides from the counters by calling himself a comparator."""
CANARY = TrafficPlan("old", candidate_service="new", candidate_permille=50)
SHADOW = TrafficPlan("old", mirror_service="compare", mirror_percent=25)


def manifest(traffic: TrafficPlan, **serving: Any) -> Manifest:
    """The route of a policy."""
    return route_manifest(
        policy=policy(policy_spec(serving=SERVING | serving)),
        traffic=traffic,
        stable_variant_name="v-old",
        candidate_variant_name="v-new",
    )


def live(
    route: Manifest, *, generation: int = 3, parents: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """A route as the API server returns it."""
    status = {"parents": parents} if parents is not None else {}
    metadata = {**route["metadata"], "generation": generation}
    return {**route, "metadata": metadata, "status": status}


def parent(*, generation: int = 3, ref: dict[str, Any] | None = None, **conditions: str) -> Any:
    """What one gateway says."""
    told = {"Accepted": "True", "ResolvedRefs": "True"} | conditions
    return {
        "parentRef": ref or {"group": "gateway.networking.k8s.io", "kind": "Gateway", **GATEWAY},
        "conditions": [
            {
                "type": type_,
                "status": word,
                "observedGeneration": generation,
                "reason": "BackendNotFound" if word == "False" else type_,
                "message": "no Service new",
            }
            for type_, word in told.items()
        ],
    }


traffic_plans = st.one_of(
    st.just(TrafficPlan("old")),
    st.integers(1, 1000).map(
        lambda w: TrafficPlan("old", candidate_service="new", candidate_permille=w)
    ),
    st.integers(1, 100).map(
        lambda p: TrafficPlan("old", mirror_service="compare", mirror_percent=p)
    ),
)


@given(traffic=traffic_plans, other=traffic_plans)
def test_what_is_written_is_what_is_read(traffic: TrafficPlan, other: TrafficPlan) -> None:
    """A plan is found again in its own route, and in no other's."""
    found = parse_route(live(manifest(traffic)))

    assert traffic.is_in(found)
    assert other.is_in(found) == (other == traffic)


@given(traffic=traffic_plans)
def test_weights_sum_to_1000(traffic: TrafficPlan) -> None:
    """Every weight is written, and together they are 1000: an absent one would mean 1."""
    (rule,) = manifest(traffic)["spec"]["rules"]

    assert sum(backend["weight"] for backend in rule["backendRefs"]) == 1000


def test_a_canary_route() -> None:
    """Two backends by weight on the path of the model, and nothing mirrored."""
    assert manifest(CANARY)["spec"] == {
        "parentRefs": [GATEWAY],
        "hostnames": ["sentiment.example.com"],
        "rules": [
            {
                "matches": [{"path": {"type": "PathPrefix", "value": "/v2/models/sentiment"}}],
                "filters": [UNMARKED],
                "backendRefs": [
                    {"name": "old", "port": 8080, "weight": 950},
                    {"name": "new", "port": 8080, "weight": 50},
                ],
            }
        ],
    }


def test_a_shadow_route() -> None:
    """All requests to the stable variant, copies of a part of them to the comparator."""
    (rule,) = manifest(SHADOW)["spec"]["rules"]

    assert rule["backendRefs"] == [{"name": "old", "port": 8080, "weight": 1000}]
    assert rule["filters"] == [
        UNMARKED,
        {
            "type": "RequestMirror",
            "requestMirror": {"backendRef": {"name": "compare", "port": 8080}, "percent": 25},
        },
    ]


def test_the_route_names_what_serves() -> None:
    """Variants are told by annotations; a former one only while it is kept warm."""
    told = manifest(CANARY)["metadata"]["annotations"]

    assert told == {
        names.STABLE_ANNOTATION: "v-old",
        names.CANDIDATE_ANNOTATION: "v-new",
    }


def test_another_model_name_is_another_path() -> None:
    """The path follows the name that users know."""
    (rule,) = manifest(CANARY, modelName="mood")["spec"]["rules"]

    assert rule["matches"][0]["path"]["value"] == "/v2/models/mood"


@pytest.mark.parametrize(("policy_says", "owned"), [("Retain", False), ("Delete", True)])
def test_the_route_goes_with_its_policy_only_if_asked(policy_says: str, owned: bool) -> None:  # noqa: FBT001
    """By default a policy can be deleted, and users are answered on."""
    route = manifest(CANARY, deletionPolicy=policy_says)

    assert ("ownerReferences" in route["metadata"]) == owned


@pytest.mark.parametrize(
    "wrong",
    [
        {"candidate_permille": 50},
        {"mirror_percent": 10},
        {"candidate_service": "new", "candidate_permille": 1001},
        {
            "candidate_service": "new",
            "candidate_permille": 1,
            "mirror_service": "compare",
            "mirror_percent": 1,
        },
    ],
)
def test_an_impossible_division_cannot_be_said(wrong: dict[str, Any]) -> None:
    """No weight without a backend, and never a mirror beside a weight."""
    with pytest.raises(ValueError, match=r"weight|mirror"):
        TrafficPlan("old", **wrong)


def test_a_route_is_taken_when_the_gateway_says_so_for_this_generation() -> None:
    """Accepted and ResolvedRefs, both True, both about what is written now."""
    found = parse_route(live(manifest(CANARY), parents=[parent()]))

    assert (found.accepted, found.message, found.generation) == (True, "", 3)


@pytest.mark.parametrize(
    ("parents", "says"),
    [
        ([], "not answered"),
        ([parent(generation=2)], "not there yet for generation 3"),
        ([parent(ResolvedRefs="False")], "ResolvedRefs is False (BackendNotFound): no Service new"),
        ([parent(ref={"name": "other", "namespace": "gateways"})], "not answered"),
        ([parent(), parent(Accepted="False")], "Accepted is False"),
    ],
)
def test_a_route_that_is_not_taken_says_why(parents: list[dict[str, Any]], says: str) -> None:
    """An old answer, a refusal, and another gateway's word are no consent."""
    found = parse_route(live(manifest(CANARY), parents=parents))

    assert not found.accepted
    assert says in found.message


def test_a_parent_without_namespace_is_in_the_route_s_own() -> None:
    """A gateway of the same namespace needs not be named with it."""
    route = manifest(CANARY, gatewayRef={"name": "public"})

    found = parse_route(live(route, parents=[parent(ref={"name": "public", "namespace": "team"})]))

    assert found.accepted


def test_a_foreign_route_is_read_as_it_is() -> None:
    """Weights of another sum are shares all the same, and an absent weight means 1."""
    route = manifest(CANARY)
    route["spec"]["rules"][0]["backendRefs"] = [{"name": "a"}, {"name": "b", "weight": 3}]

    found = parse_route(live(route))

    assert (found.stable_backend, found.candidate_backend, found.candidate_permille) == (
        "a",
        "b",
        750,
    )
    assert parse_route({}).stable_backend == ""


def test_a_mirror_that_somebody_added_is_noticed() -> None:
    """A canary route that mirrors as well is not what was planned."""
    route = manifest(CANARY)
    route["spec"]["rules"][0]["filters"] = [
        {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "compare"}}}
    ]

    found = parse_route(live(route))

    assert found.mirror_percent == 100
    assert not CANARY.is_in(found)


def test_traffic_can_be_put_back_when_the_policy_is_gone() -> None:
    """Gateway, host names, paths and owners stay as they are; weights and mirrors go."""
    before = manifest(CANARY, deletionPolicy="Delete")

    after = redirected(
        policy_name="sentiment",
        namespace="team",
        live=parse_route(live(before)),
        traffic=TrafficPlan("old"),
        stable_variant_name="v-old",
    )

    expected = manifest(TrafficPlan("old"), deletionPolicy="Delete")
    expected["metadata"]["annotations"].pop(names.CANDIDATE_ANNOTATION)
    assert after == expected


def test_a_policy_that_serves_nothing_has_no_route() -> None:
    """Asking for one is a programming error that says so."""
    with pytest.raises(ValueError, match=r"spec\.serving is absent"):
        route_manifest(
            policy=policy(policy_spec(serving=None)),
            traffic=CANARY,
            stable_variant_name="v-old",
        )
