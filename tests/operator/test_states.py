# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from typing import Any

import pytest

from kompakt.operator import states

RESULT = {
    "kind": "Import",
    "outcome": "InvalidInput",
    "reason": "UnknownLabel",
    "message": "label 'meh' in line 7 is none of the model's",
}


def job(*conditions: str) -> dict[str, Any]:
    """A Job with True conditions."""
    listed = [{"type": c, "status": "True", "reason": "R", "message": "m"} for c in conditions]
    return {"kind": "Job", "metadata": {"name": "j"}, "status": {"conditions": listed}}


def pod(state: dict[str, Any], name: str = "p", **status: Any) -> dict[str, Any]:
    """A pod with one container in a state."""
    containers = [{"name": "job", "state": state}]
    return {
        "kind": "Pod",
        "metadata": {"name": name},
        "status": {"containerStatuses": containers, **status},
    }


def ended(code: int, reason: str, message: str = "", at: str = "2026-01-01T00:00:00Z") -> Any:
    """A terminated container."""
    end = {"exitCode": code, "reason": reason, "message": message, "finishedAt": at}
    return {"terminated": end}


def test_the_result_is_that_of_the_newest_pod() -> None:
    """A retried Job has several pods; the last one to end speaks."""
    old = pod(ended(1, "Error", "boom", at="2026-01-01T00:00:00Z"))
    new = pod(ended(42, "Error", json.dumps(RESULT), at="2026-01-01T00:05:00Z"))

    state = states.job_state(job("Failed"), [new, old])

    assert state.result is not None
    assert state.result.outcome == "InvalidInput"
    assert state.message == RESULT["message"]
    assert (state.finished, state.succeeded, state.out_of_memory) == (True, False, False)


def test_a_failed_init_container_is_the_end_of_its_pod() -> None:
    """A measurement has two containers: the first speaks when it fails, else the second does."""
    waiting = {"waiting": {"reason": "PodInitializing"}}
    failed = ended(42, "Error", json.dumps(RESULT))
    went_well = ended(0, "Completed")
    stopped = pod(waiting, initContainerStatuses=[{"name": "answer", "state": failed}])
    running = pod({"running": {}}, initContainerStatuses=[{"name": "answer", "state": went_well}])

    assert states.job_state(job("Failed"), [stopped]).message == RESULT["message"]
    assert states.newest_end([running]) is None


def test_killed_for_memory_is_told_apart() -> None:
    """A container that went over its limit leaves no result, but its reason."""
    state = states.job_state(job("Failed"), [pod(ended(137, "OOMKilled"))])

    assert state.out_of_memory
    assert state.result is None


@pytest.mark.parametrize(
    "text", ["", "Traceback…\nValueError: no", "{not json", '{"kind": "Dance"}']
)
def test_the_end_of_a_log_is_no_result(text: str) -> None:
    """What a dying program leaves behind is a message for people at best."""
    state = states.job_state(job("Failed"), [pod(ended(1, "Error", text))])

    assert state.result is None
    assert "exit code 1" in state.message


def test_a_waiting_job_says_why() -> None:
    """An unschedulable pod and an image that cannot be pulled are told as Kubernetes says them."""
    reason = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/2",
    }
    unschedulable = {"metadata": {"name": "p"}, "status": {"conditions": [reason]}}
    pulling = pod({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}})
    starting = pod({"waiting": {"reason": "ContainerCreating"}})

    assert "Unschedulable: 0/2" in states.job_state(job(), [unschedulable]).message
    assert "no such image" in states.job_state(job(), [pulling]).message
    assert states.job_state(job(), [starting]).message == ""
    assert not states.job_state(job(), [pulling]).finished


def test_a_suspended_job_is_not_finished() -> None:
    """Kueue has not admitted it: that is no failure."""
    state = states.job_state(job("Suspended"), [])

    assert (state.suspended, state.finished) == (True, False)


@pytest.mark.parametrize(
    ("status", "ready"),
    [
        ({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2}, 2),
        ({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2}, 0),
        ({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 1, "readyReplicas": 2}, 0),
        ({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 2, "readyReplicas": 3}, 2),
        ({}, 0),
    ],
    ids=["all", "not observed yet", "former pods only", "rolling", "new"],
)
def test_pods_of_former_templates_do_not_count_as_ready(status: dict[str, Any], ready: int) -> None:
    """Traffic goes to what the current template says, or not yet."""
    deployment = {
        "metadata": {"name": "d", "generation": 2},
        "spec": {"replicas": 2},
        "status": status,
    }

    state = states.deployment_state(deployment, [])

    assert state.ready == ready
    assert state.available == (ready == 2)


def test_a_crashing_deployment_says_why() -> None:
    """The last words of the container that crashes are the message."""
    crashing = pod({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}})
    crashing["status"]["containerStatuses"][0]["lastState"] = ended(137, "OOMKilled")

    state = states.deployment_state({"metadata": {"name": "d"}}, [crashing])

    assert "CrashLoopBackOff after OOMKilled" in state.message


def gateway(**status: Any) -> dict[str, Any]:
    """A Gateway with an HTTP and an HTTPS listener."""
    listeners = [{"protocol": "HTTPS", "port": 443}, {"protocol": "HTTP", "port": 8000}]
    return {
        "metadata": {"name": "g", "namespace": "n"},
        "spec": {"listeners": listeners},
        "status": status,
    }


def test_a_gateway_is_where_its_http_listener_is() -> None:
    """Address and port of the first listener that speaks plain HTTP."""
    ready = gateway(
        conditions=[{"type": "Programmed", "status": "True"}], addresses=[{"value": "10.0.0.1"}]
    )
    waiting = gateway(conditions=[{"type": "Programmed", "status": "False", "message": "no pods"}])

    assert states.gateway_state(ready).address == "10.0.0.1:8000"
    assert states.gateway_state(ready).programmed
    assert states.gateway_state(waiting).message == "no pods"
    assert states.gateway_state(waiting).address is None
    assert not states.gateway_state(gateway()).programmed
