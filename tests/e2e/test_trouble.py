# SPDX-License-Identifier: Apache-2.0
"""What bad input and broken surroundings get: a clear condition, and healing when it is mended."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.e2e.kit import (
    INT8,
    Kube,
    Object,
    Operator,
    condition,
    is_true,
    policy,
    profile,
    recipe,
    stage,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def not_ready(*words: str) -> Callable[[Object], bool]:
    """A predicate: Ready is False, and its message has the words."""

    def says(obj: Object) -> bool:
        ready = condition(obj, "Ready")
        return ready.get("status") == "False" and all(word in ready["message"] for word in words)

    return says


def gateway(name: str) -> Object:
    """A Gateway of the tests' own."""
    listener = {"name": "http", "protocol": "HTTP", "port": 8000}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": name},
        "spec": {"gatewayClassName": "envoy", "listeners": [listener]},
    }


def served_by(name: str) -> Object:
    """The part of a policy that names a Gateway of the same namespace."""
    return {"target": "edge", "gatewayRef": {"name": name}, "deletionPolicy": "Delete"}


def test_what_is_missing_is_named_and_heals(kube: Kube, operator: Operator) -> None:
    """Recipe, profile and gateway are named in the condition; when they appear, a run starts."""
    late_profile = f"{kube.namespace}-late"
    target = {"name": "edge", "hardwareProfileRef": {"name": late_profile}}
    kube.apply(
        policy(
            kube,
            "waiting",
            recipes=[{"name": "late-recipe"}],
            targets=[target],
            serving=served_by("late-gateway"),
        )
    )
    said = ("late-recipe", late_profile, "late-gateway")
    kube.wait("compressionpolicy", "waiting", not_ready(*said), seconds=20)
    assert kube.items("compressionruns", "kompakt.dev/policy=waiting") == []

    kube.apply(
        recipe("late-recipe", {"quantize": {}}), profile(late_profile, "edge"), gateway(said[2])
    )
    try:
        kube.wait(
            "compressionpolicy",
            "waiting",
            lambda obj: bool((obj.get("status") or {}).get("run")),
            seconds=30,
            what="healed",
        )
        assert len(kube.items("compressionruns", "kompakt.dev/policy=waiting")) == 1
    finally:
        kube("delete", "compressionpolicy", "waiting")
        kube("delete", "hardwareprofile", late_profile)
        kube("delete", "gateway", said[2])


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("no-field", {"labelField": "sentiment"}, "sentiment"),
        ("no-file", {"uri": "pvc://inputs/absent.jsonl"}, "absent.jsonl"),
    ],
)
def test_wrong_data_fails_once_with_the_reason(
    kube: Kube, operator: Operator, inputs: list[str], name: str, changes: Object, said: str
) -> None:
    """Exit code 42: no retry; the policy, the run and an Event say what is wrong and where."""
    bad = policy(kube, name)
    bad["spec"]["data"]["evaluation"] |= changes
    kube.apply(INT8, bad)

    found = kube.wait("compressionpolicy", name, is_true("Stalled"), seconds=120, what="failed")

    assert not_ready(said)(found), condition(found, "Ready")
    (run,) = kube.items("compressionruns", f"kompakt.dev/policy={name}")
    assert condition(run, "Succeeded")["status"] == "False"
    pods = kube.items("pods", f"kompakt.dev/run={run['metadata']['name']}")
    ends = [pod["status"]["containerStatuses"][0]["state"]["terminated"] for pod in pods]
    assert [end["exitCode"] for end in ends] == [42]
    notes = [e.get("note", "") for e in kube.items("events.v1.events.k8s.io")]
    assert [note for note in notes if said in note]
    kube("delete", "compressionpolicy", name)


def test_a_trial_that_is_killed_for_memory_is_infeasible(
    kube: Kube, operator: Operator, inputs: list[str]
) -> None:
    """The run goes on to its end, and says what the trial was killed for."""
    target = {"name": "edge", "hardwareProfileRef": {"name": f"{kube.namespace}-starved"}}
    starved = policy(kube, "starved", targets=[target])
    del starved["spec"]["serving"]
    kube.apply(INT8, starved)

    kube.wait("compressionpolicy", "starved", is_true("Stalled"), seconds=180, what="at its end")

    (run,) = kube.items("compressionruns", "kompakt.dev/policy=starved")
    (trial,) = run["status"]["trials"]
    assert (trial["state"], trial["reason"]) == ("Infeasible", "OutOfMemory")
    kube("delete", "compressionpolicy", "starved")


def test_a_rollout_is_held_while_the_gateway_is_down(
    kube: Kube, operator: Operator, inputs: list[str]
) -> None:
    """And says so; it goes on by itself when the gateway is back."""
    kube.apply(gateway("own"))
    try:
        kube.apply(INT8, policy(kube, "held", serving=served_by("own")))
        kube.wait("compressionpolicy", "held", is_true("Serving"), seconds=180, what="serving")
        found = kube.wait(
            "compressionpolicy",
            "held",
            lambda obj: bool((obj.get("status") or {}).get("rollout")),
            seconds=120,
            what="rolling out",
        )
        name = found["status"]["rollout"]
        kube.wait("variantrollout", name, stage("Shadow"), seconds=90, what="in shadow")

        kube("delete", "gateway", "own")
        held = kube.wait("variantrollout", name, stage("Held"), seconds=40, what="held")
        assert condition(held, "Held")["reason"] == "GatewayNotReady"

        kube.apply(gateway("own"))
        kube.wait("variantrollout", name, stage("Shadow"), seconds=60, what="going on")
    finally:
        kube("delete", "compressionpolicy", "held", "--wait=false")
        kube("delete", "gateway", "own", "--ignore-not-found")
