# SPDX-License-Identifier: Apache-2.0
"""What Kubernetes says about Jobs, Deployments, Pods and Gateways, in the words of the plans."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from pydantic import ValidationError

from kompakt.api.job import TaskResult
from kompakt.controllers.plan import DeploymentState, GatewayState, JobState

Object = Mapping[str, Any]
_OOM: Final = "OOMKilled"
_HARMLESS: Final = frozenset({"ContainerCreating", "PodInitializing"})
"""Reasons of waiting that every pod goes through."""
_MESSAGE_MAX: Final = 512


def job_state(job: Object, pods: Sequence[Object]) -> JobState:
    """A Job with the end of its newest pod."""
    status = job.get("status") or {}
    complete = condition(status, "Complete")
    failed = condition(status, "Failed")
    ended = newest_end(pods)
    result = _result(ended)
    return JobState(
        name=job["metadata"]["name"],
        labels=job["metadata"].get("labels") or {},
        finished=_true(complete) or _true(failed),
        succeeded=_true(complete),
        suspended=_true(condition(status, "Suspended")),
        result=result,
        out_of_memory=ended is not None and ended.get("reason") == _OOM,
        message=_job_message(failed, ended, result, pods)[:_MESSAGE_MAX],
    )


def newest_end(pods: Iterable[Object]) -> Object | None:
    """How the container that terminated last among all pods ended; an init container counts when
    it failed, since otherwise another one goes on.
    """
    ends = [
        terminated
        for pod in pods
        for kind in ("initContainerStatuses", "containerStatuses")
        for container in (pod.get("status") or {}).get(kind) or ()
        if (terminated := (container.get("state") or {}).get("terminated"))
        and (kind == "containerStatuses" or terminated.get("exitCode"))
    ]
    return max(ends, key=lambda end: end.get("finishedAt") or "", default=None)


def _result(ended: Object | None) -> TaskResult | None:
    """The termination message, when it is a result and not the end of a log."""
    text = (ended or {}).get("message") or ""
    if not text.startswith("{"):
        return None
    try:
        return TaskResult.model_validate_json(text)
    except ValidationError:
        return None


def _job_message(
    failed: Object | None, ended: Object | None, result: TaskResult | None, pods: Iterable[Object]
) -> str:
    if result is not None and result.outcome != "Succeeded":
        return result.message
    parts = []
    if _true(failed) and failed is not None:
        parts.append(f"{failed.get('reason', '')}: {failed.get('message', '')}")
    if ended is not None and ended.get("exitCode"):
        parts.append(f"exit code {ended['exitCode']} ({ended.get('reason', '')})")
        # The last line of a log says the most.
        lines = (ended.get("message") or "").strip().splitlines()
        parts += lines[-1:] if result is None else []
    if not parts:
        parts = [trouble for pod in pods if (trouble := pod_trouble(pod))][:1]
    return "; ".join(parts)


def pod_trouble(pod: Object) -> str:
    """Why a pod does not run, as Kubernetes says it; empty while nothing is wrong."""
    status = pod.get("status") or {}
    scheduled = condition(status, "PodScheduled")
    if scheduled is not None and scheduled.get("status") == "False":
        return f"{scheduled.get('reason', '')}: {scheduled.get('message', '')}"
    containers = [
        *(status.get("initContainerStatuses") or ()),
        *(status.get("containerStatuses") or ()),
    ]
    for container in containers:
        state = container.get("state") or {}
        waiting = state.get("waiting") or {}
        if waiting and waiting.get("reason") not in _HARMLESS:
            last = (container.get("lastState") or {}).get("terminated") or {}
            why = last.get("message") or waiting.get("message") or ""
            reason = waiting.get("reason", "Waiting")
            if last.get("reason") == _OOM:
                reason = f"{reason} after {_OOM}"
            line = why.strip().splitlines()[-1:] or [""]
            return f"{reason} in container {container['name']}: {line[0]}"
        terminated = state.get("terminated") or {}
        if terminated.get("exitCode"):
            reason = terminated.get("reason", "Error")
            code = terminated["exitCode"]
            return f"{reason} in container {container['name']}: exit code {code}"
    return ""


def deployment_state(deployment: Object, pods: Iterable[Object]) -> DeploymentState:
    """A Deployment with the troubles of its pods."""
    metadata, status = deployment["metadata"], deployment.get("status") or {}
    ready = int(status.get("readyReplicas") or 0)
    # Pods of former templates count as ready too; assume that they are.
    former = int(status.get("replicas") or 0) - int(status.get("updatedReplicas") or 0)
    current = int(status.get("observedGeneration") or 0) >= int(metadata.get("generation") or 0)
    troubles = [trouble for pod in pods if (trouble := pod_trouble(pod))]
    return DeploymentState(
        name=metadata["name"],
        labels=metadata.get("labels") or {},
        desired=int((deployment.get("spec") or {}).get("replicas", 1)),
        ready=max(0, ready - max(0, former)) if current else 0,
        message=troubles[0][:_MESSAGE_MAX] if troubles else "",
    )


def gateway_state(gateway: Object) -> GatewayState:
    """A Gateway with the address of its HTTP listener."""
    metadata, status = gateway["metadata"], gateway.get("status") or {}
    programmed = condition(status, "Programmed")
    addresses = status.get("addresses") or ()
    listeners = (gateway.get("spec") or {}).get("listeners") or ()
    ports = [listener["port"] for listener in listeners if listener.get("protocol") == "HTTP"]
    host = addresses[0].get("value") if addresses else None
    message = "" if _true(programmed) else (programmed or {}).get("message") or "not programmed"
    if not ports:
        message = "it has no listener of protocol HTTP"
    elif host is None and not message:
        message = "it has no address"
    return GatewayState(
        name=metadata["name"],
        namespace=metadata["namespace"],
        programmed=_true(programmed) and bool(ports),
        address=f"{host}:{ports[0]}" if host and ports else None,
        message=message[:_MESSAGE_MAX],
    )


def pod_ready(pod: Object) -> bool:
    """Whether a pod takes requests from its Service."""
    return not pod["metadata"].get("deletionTimestamp") and _true(
        condition(pod.get("status") or {}, "Ready")
    )


def condition(status: Object, type_: str) -> Object | None:
    """The condition of a type."""
    return next((c for c in status.get("conditions") or () if c.get("type") == type_), None)


def unix_seconds(timestamp: str | None) -> int:
    """Seconds since 1970 of a timestamp of Kubernetes; 0 for none."""
    return int(datetime.fromisoformat(timestamp).timestamp()) if timestamp else 0


def _true(found: Object | None) -> bool:
    return found is not None and found.get("status") == "True"
