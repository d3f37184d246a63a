# SPDX-License-Identifier: Apache-2.0
"""Jobs: a task as JSON in a ConfigMap, and a restricted pod on the profile's pool that does it.

Create both once, the ConfigMap first. A Job is never applied again: Kueue and others own parts of
its template after its creation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kompakt.api import names
from kompakt.api.artifact import canonical_json
from kompakt.api.job import TaskSpec
from kompakt.api.policy import JobSettings
from kompakt.api.profile import HardwareProfileSpec
from kompakt.api.source import Store
from kompakt.controllers.plan import Manifest, Settings
from kompakt.controllers.render.pods import (
    CONTAINER_SECURITY,
    Source,
    Volumes,
    environment,
    metadata,
    placement,
    pod_defaults,
    resources,
    secrets,
    threads,
)

CONTAINER = "job"
AHEAD = "answer"
"""Init container of a measurement."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
BACKOFF_LIMIT = 2
_EXIT_SIGKILL = 137
_TASK_FOLDER, _TASK_FILE = names.TASK_SPEC_PATH.rsplit("/", 1)


def job_manifests(  # noqa: PLR0913 -- all that a Job depends on, by name
    *,
    name: str,
    namespace: str,
    labels: Mapping[str, str],
    owner: Manifest,
    task: TaskSpec,
    store: Store,
    profile: HardwareProfileSpec,
    jobs: JobSettings,
    settings: Settings,
) -> tuple[Manifest, Manifest]:
    """The ConfigMap and the Job of a task, in the order of their creation.

    Args:
        name: Of both.
        namespace: Of both.
        labels: Added to both and to the pod.
        owner: Owner reference (`pods.owner_reference`) to the run.
        task: What the Job does.
        store: Where it keeps its artifacts.
        profile: Pool and limits of its pod.
        jobs: The policy's settings of Jobs.
        settings: The installation's.
    """
    task_json = canonical_json(task.to_wire()).decode()
    config_map: Manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(name, namespace, labels, owner=owner),
        "immutable": True,
        "data": {_TASK_FILE: task_json},
    }
    queue = {QUEUE_LABEL: jobs.queue_name} if jobs.queue_name else {}
    spec: dict[str, Any] = {
        "backoffLimit": BACKOFF_LIMIT,
        "activeDeadlineSeconds": jobs.deadline_seconds,
        "ttlSecondsAfterFinished": jobs.ttl_seconds_after_finished,
        "podFailurePolicy": {"rules": _failure_rules()},
        "template": {
            "metadata": {"labels": {names.MANAGED_BY_LABEL: names.MANAGED_BY, **labels}},
            "spec": _pod(name, task=task, store=store, profile=profile, settings=settings),
        },
    }
    if queue:
        # Kueue's webhook does this too, unless it is down: then the Job would run past its quota.
        spec["suspend"] = True
    job: Manifest = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(name, namespace, {**labels, **queue}, owner=owner),
        "spec": spec,
    }
    return config_map, job


def task_sources(task: TaskSpec) -> list[Source]:
    """The models and data that a task reads from outside the store."""
    found: list[Source | None] = []
    if task.import_model is not None:
        found += [task.import_model.model, *task.import_model.data.values()]
    if task.compress is not None:
        found += [task.compress.training, task.compress.calibration]
    if task.measure is not None:
        found += [task.measure.evaluation]
    return [source for source in found if source is not None]


def _failure_rules() -> list[dict[str, Any]]:
    """The first rule that matches a failed pod decides."""

    def fail_on(code: int) -> dict[str, Any]:
        # Of any container: a measurement has two.
        codes = {"operator": "In", "values": [code]}
        return {"action": "FailJob", "onExitCodes": codes}

    return [
        # An evicted, preempted or drained pod says nothing about the task, whatever its exit code:
        # it is replaced and not counted.
        {
            "action": "Ignore",
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        },
        fail_on(names.EXIT_INVALID_INPUT),
        # SIGKILL that is no disruption: the container went over its memory limit, and would again.
        # A policy cannot match the reason OOMKilled, only the code.
        fail_on(_EXIT_SIGKILL),
    ]


def _pod(
    config_map: str,
    *,
    task: TaskSpec,
    store: Store,
    profile: HardwareProfileSpec,
    settings: Settings,
) -> dict[str, Any]:
    volumes = Volumes()
    sources = task_sources(task)
    mounts = [
        volumes.tmp(),
        volumes.config("task", config_map, _TASK_FOLDER),
        *volumes.store(store, read_only=False),
        *volumes.sources(sources),
    ]
    container: dict[str, Any] = {
        "image": settings.jobs_image,
        "imagePullPolicy": settings.image_pull_policy,
        "securityContext": dict(CONTAINER_SECURITY),
        "terminationMessagePath": names.TERMINATION_LOG,
        # A program that dies before it can write its result leaves the end of its log.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }
    if env_from := secrets(store, *sources):
        container["envFrom"] = env_from
    memory = profile.job_memory_mebibytes or profile.memory_mebibytes
    job_cpu = profile.job_cpu_millis or profile.cpu_millis
    first: dict[str, Any] = {}
    if task.measure is not None:
        # What limits do not change is done with a Job's CPUs; the benchmark gets the target's.
        first["initContainers"] = [
            container
            | _run(AHEAD, "--ahead", profile=profile, cpu_millis=job_cpu, memory_mebibytes=memory)
        ]
        job_cpu = profile.cpu_millis
    work = container | _run(CONTAINER, profile=profile, cpu_millis=job_cpu, memory_mebibytes=memory)
    return {
        **pod_defaults(),
        **placement(profile, settings),
        "restartPolicy": "Never",
        **first,
        "containers": [work],
        "volumes": volumes.to_list(),
    }


def _run(
    name: str,
    *options: str,
    profile: HardwareProfileSpec,
    cpu_millis: int,
    memory_mebibytes: int,
) -> dict[str, Any]:
    """What the containers of a Job differ in."""
    return {
        "name": name,
        "command": ["python", "-m", "kompakt.jobs", "run", *options],
        "env": [
            *environment(thread_count=threads(cpu_millis), cuda=profile.has_cuda),
            {
                "name": names.NODE_NAME_VARIABLE,
                "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}},
            },
        ],
        "resources": resources(
            cpu_millis=cpu_millis,
            memory_mebibytes=memory_mebibytes,
            devices=profile.extended_resources,
        ),
    }
