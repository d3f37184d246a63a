# SPDX-License-Identifier: Apache-2.0
"""The two regressions, made honestly: nothing in the operator or in the servers knows of them.

- A variant of which pruning left almost nothing: one head and a few neurons in each layer, without
  distillation. It is made by the same Job as the good ones, with other steps, and registered by
  hand.
- A good variant whose pod gets a neighbour inside: an ephemeral container that burns the pod's CPU
  quota. Only this one pod suffers, since the quota is its own.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, Final

from examples.demo.errors import DemoError
from examples.demo.kube import Kube, Object

from kompakt.api import API_VERSION, names
from kompakt.api.job import CompressResult, CompressTask, TaskResult, TaskSpec
from kompakt.api.recipe import Step
from kompakt.api.steps import Prune, Quantize

OVER_PRUNED: Final = "over-pruned"
STEPS: Final = [
    # Fewer neurons alone are not bad enough: refitting gives most of what they did back.
    Step(prune=Prune(head_keep_permille=20, ffn_keep_permille=20, samples=64)),
    Step(quantize=Quantize()),
]
_JOB_SECONDS: Final = 240.0
_POLL_SECONDS: Final = 0.5
_TASK_FILE: Final = names.TASK_SPEC_PATH.rpartition("/")[2]

HOG: Final = """
import os, sys, time
end = time.monotonic() + float(sys.argv[1])
for _ in range(2 * os.cpu_count() - 1):
    if os.fork() == 0:
        break
while time.monotonic() < end:
    pass
"""
"""Busy loops on every CPU, for so many seconds."""


async def find_compress_job(kube: Kube, *, namespace: str, run: str) -> Object:
    """A Job of a run that made a variant.

    Raises DemoError when there is none any more.
    """
    jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    selector = f"{names.RUN_LABEL}={run},{names.TASK_LABEL}=Compress"
    found = await kube.items(jobs, selector=selector)
    if not found:
        msg = f"run {run} has no Compress Job any more to make another variant like"
        raise DemoError(msg)
    return found[0]


def over_pruning(job: Object, config_map: Object) -> tuple[Object, Object]:
    """The ConfigMap and the Job that make the over-pruned variant, after those of a good one."""
    original = TaskSpec.model_validate_json(config_map["data"][_TASK_FILE])
    if original.compress is None:
        msg = f"Job {job['metadata']['name']} compresses nothing"
        raise DemoError(msg)
    compress = original.compress.evolve(recipe=OVER_PRUNED, steps=STEPS)
    task = original.evolve(report_name=OVER_PRUNED, compress=compress)
    pod = job["spec"]["template"]["spec"]
    volumes = [
        v | {"configMap": {"name": OVER_PRUNED}} if "configMap" in v else v for v in pod["volumes"]
    ]
    meta = {"name": OVER_PRUNED, "labels": {"app.kubernetes.io/part-of": "kompakt-demo"}}
    return (
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": meta,
            "data": {_TASK_FILE: json.dumps(task.to_wire())},
        },
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": meta,
            "spec": {
                "backoffLimit": 0,
                "template": {
                    "metadata": {"labels": meta["labels"]},
                    "spec": pod | {"volumes": volumes},
                },
            },
        },
    )


async def over_prune(
    kube: Kube, *, namespace: str, run: str
) -> tuple[CompressTask, CompressResult]:
    """Make the over-pruned variant in the store; returns what was asked for and what came out.

    Raises DemoError when the Job fails.
    """
    core, batch = f"/api/v1/namespaces/{namespace}", f"/apis/batch/v1/namespaces/{namespace}"
    job = await find_compress_job(kube, namespace=namespace, run=run)
    config_map = await kube.get(f"{core}/configmaps/{_config_map_of(job)}")
    if config_map is None:
        msg = f"the ConfigMap of Job {job['metadata']['name']} is gone"
        raise DemoError(msg)
    task_map, task_job = over_pruning(job, config_map)
    await kube.create(f"{core}/configmaps", task_map)
    await kube.create(f"{batch}/jobs", task_job)
    result = await _result(kube, core)
    task = TaskSpec.model_validate_json(task_map["data"][_TASK_FILE])
    if result.compressed is None or task.compress is None:
        msg = f"the over-pruned variant was not made: {result.reason}: {result.message}"
        raise DemoError(msg)
    return task.compress, result.compressed


def registration(
    policy: str, *, task: CompressTask, made: CompressResult, store: Object, labels: list[str]
) -> Object:
    """The ModelVariant that a person writes for an artifact of their own."""
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelVariant",
        "metadata": {"name": f"{policy}-{OVER_PRUNED}"},
        "spec": {
            "policyRef": {"name": policy},
            "digest": made.artifact_digest,
            "store": store,
            "labels": labels,
            "sizeBytes": made.size_bytes,
            "lineage": {
                "sourceDigest": task.checkpoint_digest,
                "baselineDigest": task.baseline_digest,
                "recipe": OVER_PRUNED,
                "steps": [step.to_wire() for step in task.steps],
            },
        },
    }


def rollout(name: str, *, policy: str, candidate: str) -> Object:
    """The VariantRollout that a person writes for it."""
    return {
        "apiVersion": API_VERSION,
        "kind": "VariantRollout",
        "metadata": {"name": name},
        "spec": {"policyRef": {"name": policy}, "candidateRef": {"name": candidate}},
    }


async def serving_pod(kube: Kube, *, namespace: str, policy: str, digest: str) -> Object:
    """The pod that answers users with a variant.

    Raises DemoError when there is none.
    """
    selector = ",".join(
        (
            f"{names.POLICY_LABEL}={policy}",
            f"{names.ROLE_LABEL}={names.ROLE_SERVING}",
            f"{names.DIGEST_LABEL}={digest.removeprefix('sha256:')[:40]}",
        )
    )
    found = await kube.items(f"/api/v1/namespaces/{namespace}/pods", selector=selector)
    alive = [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]
    if not alive:
        msg = f"no pod serves {digest[:19]}…"
        raise DemoError(msg)
    return alive[0]


def hog_container(pod: Object, *, seconds: float) -> dict[str, Any]:
    """An ephemeral container with the image of a pod's own, that burns the pod's CPU quota."""
    own = pod["spec"]["containers"][0]
    return {
        "name": "hog",
        "image": own["image"],
        "imagePullPolicy": own.get("imagePullPolicy", "IfNotPresent"),
        "command": ["python", "-c", HOG, str(seconds)],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


async def starve(kube: Kube, pod: Object, *, seconds: float) -> float:
    """Start the hog in a pod; returns when it ran (Unix seconds). It stops by itself.

    Raises DemoError when it does not start.
    """
    meta = pod["metadata"]
    path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
    change = {"spec": {"ephemeralContainers": [hog_container(pod, seconds=seconds)]}}
    await kube.patch(f"{path}/ephemeralcontainers", change, kind="strategic-merge")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = await kube.get(path) or {}
        for status in found.get("status", {}).get("ephemeralContainerStatuses", []):
            if "running" in status.get("state", {}):
                return time.time()
        await asyncio.sleep(0.1)
    msg = f"the hog did not start in pod {meta['name']} within 30 s"
    raise DemoError(msg)


async def _result(kube: Kube, core: str) -> TaskResult:
    """The termination message of the over-pruning Job's pod."""
    deadline = time.monotonic() + _JOB_SECONDS
    selector = f"batch.kubernetes.io/job-name={OVER_PRUNED}"
    while time.monotonic() < deadline:
        for pod in await kube.items(f"{core}/pods", selector=selector):
            for status in pod.get("status", {}).get("containerStatuses", []):
                ended = status.get("state", {}).get("terminated")
                if ended is None:
                    continue
                if not ended.get("message", "").startswith("{"):
                    msg = f"Job {OVER_PRUNED} failed: {ended.get('reason')} {ended.get('message')}"
                    raise DemoError(msg)
                return TaskResult.model_validate_json(ended["message"])
        await asyncio.sleep(_POLL_SECONDS)
    msg = f"Job {OVER_PRUNED} did not end within {_JOB_SECONDS:.0f} s"
    raise DemoError(msg)


def _config_map_of(job: Object) -> str:
    volumes = job["spec"]["template"]["spec"]["volumes"]
    return str(next(v["configMap"]["name"] for v in volumes if "configMap" in v))
