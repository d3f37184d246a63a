# SPDX-License-Identifier: Apache-2.0
"""The whole way once, and the ways back, with users all the time: none of them is ever failed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.e2e.kit import (
    FOR_EVER,
    INT8,
    Kube,
    Object,
    Operator,
    Users,
    condition,
    host,
    is_true,
    policy,
    rollout,
    stage,
)

from kompakt.api import names

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]
NAME = "tiny"
StartUsers = Callable[[str, str], Users]


def traffic(kube: Kube) -> tuple[str, int]:
    """The stable variant by the route, and the share of another one in permille."""
    route = kube.get("httproute", NAME)
    assert route is not None
    backends = route["spec"]["rules"][0]["backendRefs"]
    stable = route["metadata"]["annotations"][names.STABLE_ANNOTATION]
    return str(stable), sum(backend["weight"] for backend in backends[1:])


def other_variant(kube: Kube) -> str:
    """A variant of the policy that does not serve."""
    stable, _ = traffic(kube)
    variants = [variant["metadata"]["name"] for variant in kube.items("modelvariants")]
    return str(next(n for n in variants if n != stable and n.startswith(f"{NAME}-")))


def in_canary(kube: Kube, name: str) -> Callable[[Object], bool]:
    """A predicate: users are answered by the candidate too."""
    return lambda obj: stage("Canary")(obj) and traffic(kube)[1] > 0


@pytest.fixture(scope="module")
def promoted(kube: Kube, operator: Operator, inputs: list[str]) -> Iterator[Object]:
    """A policy whose choice has come to production; users come as soon as anything serves."""
    kube.apply(INT8, policy(kube, NAME))
    kube.wait("compressionpolicy", NAME, is_true("Serving"), seconds=150, what="serving")
    gateway = kube.cluster.gateway
    assert gateway
    client = Users(gateway.removeprefix("http://"), host(kube, NAME), NAME, inputs)
    client.start()
    try:
        found = kube.wait("compressionpolicy", NAME, is_true("Ready"), seconds=240, what="ready")
    finally:
        client.stop()
    assert client.failures == []
    assert client.outcomes["200"] > 100
    yield found
    kube("delete", "compressionpolicy", NAME)


@pytest.fixture
def client(kube: Kube, users: StartUsers, promoted: Object) -> Iterator[Users]:
    """Users, of whom none may be failed."""
    client = users(NAME, host(kube, NAME))
    yield client
    client.stop()
    assert client.failures == []
    assert client.outcomes["200"] > 0


def test_a_policy_brings_its_choice_to_production(kube: Kube, promoted: Object) -> None:
    """From `kubectl apply` to all users on the compressed variant, without a failed request."""
    status = promoted["status"]
    (chosen,) = status["chosen"]
    assert chosen["recipe"] == "int8"
    assert status["servingVariant"] == chosen["variant"]
    assert traffic(kube) == (chosen["variant"], 0)
    assert condition(promoted, "Ready")["reason"] == "Serving"

    done = kube.get("variantrollout", status["rollout"])
    assert done is not None
    assert done["status"]["stage"] == "Succeeded"
    assert "finalizers" not in done["metadata"]
    ways = [decision["toStage"] for decision in done["status"]["decisions"]]
    assert [way.partition("/")[0] for way in ways] == [
        "Shadow",
        "Canary",
        "Canary",
        "Promoting",
        "Watching",
        "Succeeded",
    ]


def test_events_and_columns_tell_what_happened(kube: Kube, promoted: Object) -> None:
    """`kubectl get` and `kubectl get events` are all that one needs to look at."""
    events = {(e["regarding"]["kind"], e["reason"]) for e in kube.items("events.v1.events.k8s.io")}
    assert {("CompressionRun", "RunSucceeded"), ("VariantRollout", "Promoted")} <= events

    table = kube("get", "compressionpolicies,compressionruns,modelvariants,variantrollouts")
    assert "Succeeded" in table
    assert NAME in table


def test_an_abort_brings_traffic_back(kube: Kube, client: Users) -> None:
    """By the annotation, in the middle of a canary."""
    before, _ = traffic(kube)
    candidate = other_variant(kube)
    kube.apply(rollout("aborted", NAME, candidate, canary=FOR_EVER))
    kube.wait("variantrollout", "aborted", in_canary(kube, "aborted"), seconds=90, what="in canary")

    kube(
        "annotate", "variantrollout", "aborted", "kompakt.dev/action=abort", "kompakt.dev/actor=me"
    )
    done = kube.wait("variantrollout", "aborted", stage("RolledBack"), seconds=60)

    assert traffic(kube) == (before, 0)
    assert condition(done, "RolledBack")["reason"] == "Aborted"
    assert "me" in json.dumps(done["status"]["decisions"])
    _nothing_left(kube, "aborted")


def test_deleting_a_rollout_puts_traffic_back_first(kube: Kube, client: Users) -> None:
    """The finalizer holds the object until all users are on the stable variant."""
    before, _ = traffic(kube)
    kube.apply(rollout("deleted", NAME, other_variant(kube), canary=FOR_EVER))
    kube.wait("variantrollout", "deleted", in_canary(kube, "deleted"), seconds=90, what="in canary")

    kube("delete", "variantrollout", "deleted", "--timeout=60s")

    assert traffic(kube) == (before, 0)
    _nothing_left(kube, "deleted")


def test_a_killed_operator_goes_on_where_it_was(
    kube: Kube, operator: Operator, client: Users
) -> None:
    """SIGKILL in the middle of a canary: traffic stays as it is, and the outcome is the same."""
    candidate = other_variant(kube)
    canary = {"steps": [{"weightPermille": 300, "minimumRequests": 150}]}
    kube.apply(rollout("killed", NAME, candidate, canary=canary))
    kube.wait("variantrollout", "killed", in_canary(kube, "killed"), seconds=90, what="in canary")

    operator.kill()
    assert traffic(kube)[1] == 300
    operator.start()
    kube.wait("variantrollout", "killed", stage("Succeeded"), seconds=120, what="promoted")

    assert traffic(kube) == (candidate, 0)
    _nothing_left(kube, "killed")


@pytest.mark.parametrize(
    "fault",
    [
        "after:WriteStatus:VariantRollout:1",
        "before:Apply:HTTPRoute:2",
        "after:Apply:HTTPRoute:3",
    ],
)
def test_a_death_between_two_writes_changes_nothing(
    kube: Kube, operator: Operator, client: Users, fault: str
) -> None:
    """The operator dies right at a write and is started again: same outcome, nobody failed."""
    candidate = other_variant(kube)
    name = "fault-" + fault.replace(":", "-").lower()[-20:].strip("-")
    operator.stop()
    operator.start(KOMPAKT_FAULT=fault)
    kube.apply(rollout(name, NAME, candidate))

    operator.wait_until_dead(seconds=90)
    operator.start()
    kube.wait("variantrollout", name, stage("Succeeded"), seconds=120, what="promoted")

    assert traffic(kube) == (candidate, 0)


def test_the_operator_stays_small(operator: Operator, promoted: Object) -> None:
    """Its memory, over all that came before, is below 150 MiB; its log has no traceback."""
    operator.observe()

    assert operator.peak_mebibytes < 150
    assert [entry for entry in operator.logged() if "error" in entry] == []


def _nothing_left(kube: Kube, name: str) -> None:
    """What a rollout made for itself is gone; what serves is there."""

    def names_of(kind: str) -> list[Any]:
        return [obj["metadata"]["name"] for obj in kube.items(kind, "app.kubernetes.io/managed-by")]

    left = [entry for entry in names_of("deployments") if entry.startswith(name)]
    assert left == []
    stable, _ = traffic(kube)
    assert stable in names_of("deployments")
