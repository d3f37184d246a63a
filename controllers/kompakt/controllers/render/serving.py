# SPDX-License-Identifier: Apache-2.0
"""Deployments and Services: of variants that answer users, of a rollout's reference and comparator.

Invariants:

- what runs in a pod can be told from its labels alone: policy, digest, role, and for the objects of
  a rollout the rollout;
- a selector never matches the pods of another Deployment of ours;
- the store is mounted in the init container only: a serving pod holds the one artifact it serves.
"""

from __future__ import annotations

from typing import Any

from kompakt.api import names
from kompakt.api.artifact import canonical_json
from kompakt.api.profile import HardwareProfileSpec
from kompakt.controllers import objects
from kompakt.controllers.plan import Manifest, Meta, Policy, Settings, Variant
from kompakt.controllers.render.pods import (
    CONTAINER_SECURITY,
    Volumes,
    environment,
    metadata,
    owner_reference,
    placement,
    pod_defaults,
    resources,
    secrets,
    store_root,
    threads,
)

SERVER = "server"
COMPARATOR = "comparator"
_GOLDEN_FILE = f"{names.GOLDEN_MOUNT}/golden.jsonl"
_GRACE_SECONDS = 30
"""The server itself goes on answering for 5 s after SIGTERM, and then ends what it has begun."""
_START_SECONDS = 300
_COMPARATOR_CPU_MILLIS = 1000
_COMPARATOR_MEMORY_MEBIBYTES = 512


def model_name(policy: Policy) -> str:
    """Name of the model in the paths of the Open Inference Protocol."""
    serving = policy.spec.serving
    return (serving and serving.model_name) or policy.meta.name


def serving_manifests(
    *, policy: Policy, variant: Variant, profile: HardwareProfileSpec, settings: Settings
) -> tuple[Manifest, ...]:
    """Deployment and Service of a variant that answers users."""
    serving = policy.spec.serving
    delete = serving is not None and serving.deletion_policy == "Delete"
    return _server(
        name=objects.serving_name(policy.meta.name, variant.spec.digest),
        selector=objects.selector(policy.meta.name, variant.spec.digest, names.ROLE_SERVING),
        policy=policy,
        variant=variant,
        profile=profile,
        settings=settings,
        owner=owner_reference("CompressionPolicy", policy.meta) if delete else None,
    )


def reference_manifests(
    *,
    rollout_name: str,
    policy: Policy,
    variant: Variant,
    profile: HardwareProfileSpec,
    settings: Settings,
    owner: Meta | None = None,
) -> tuple[Manifest, ...]:
    """Deployment and Service of the stable variant that only the comparator calls: as large as the
    candidate's, so that both carry the same load. `owner` is the metadata of the rollout.
    """
    selector = objects.selector(policy.meta.name, variant.spec.digest, names.ROLE_REFERENCE)
    return _server(
        name=objects.reference_name(rollout_name),
        selector=selector | {names.ROLLOUT_LABEL: rollout_name},
        policy=policy,
        variant=variant,
        profile=profile,
        settings=settings,
        owner=_rollout_reference(owner),
    )


def comparator_manifests(
    *,
    rollout_name: str,
    policy: Policy,
    candidate_service: str,
    reference_service: str,
    settings: Settings,
    owner: Meta | None = None,
) -> tuple[Manifest, ...]:
    """Deployment and Service of the comparator. `owner` is the metadata of the rollout."""
    selector = {
        names.MANAGED_BY_LABEL: names.MANAGED_BY,
        names.POLICY_LABEL: policy.meta.name,
        names.ROLE_LABEL: names.ROLE_COMPARATOR,
        names.ROLLOUT_LABEL: rollout_name,
    }
    command = ["python", "-m", "kompakt.serving", "compare"]
    command += ["--candidate", f"http://{candidate_service}:{names.SERVING_PORT}"]
    command += ["--reference", f"http://{reference_service}:{names.SERVING_PORT}"]
    command += ["--model-name", model_name(policy)]
    volumes = Volumes()
    tmp = volumes.tmp()
    mounts = [tmp]
    pod: dict[str, Any] = {}
    limits = resources(
        cpu_millis=_COMPARATOR_CPU_MILLIS, memory_mebibytes=_COMPARATOR_MEMORY_MEBIBYTES
    )
    # It is in nobody's way while it waits, and its figures do not depend on its neighbours: both
    # legs of a comparison go through it alike.
    limits["requests"] = {"cpu": "100m", "memory": f"{_COMPARATOR_MEMORY_MEBIBYTES}Mi"}
    if (golden := policy.spec.data.golden_set) is not None:
        command += ["--golden", _GOLDEN_FILE]
        folder = volumes.empty("golden", names.GOLDEN_MOUNT)
        mounts.append(folder | {"readOnly": True})
        fetch = ["python", "-m", "kompakt.jobs", "fetch-data"]
        fetch += ["--source", canonical_json(golden.to_wire()).decode(), "--to", _GOLDEN_FILE]
        pod["initContainers"] = [
            _init(
                "fetch-golden-set",
                command=fetch,
                env_from=secrets(golden),
                mounts=[tmp, folder, *volumes.sources([golden])],
                limits=limits,
                settings=settings,
            )
        ]
    container = _main(COMPARATOR, command=command, mounts=mounts, limits=limits, settings=settings)
    container["env"] = environment()
    pod |= {**placement(None, settings), "containers": [container], "volumes": volumes.to_list()}
    return _deployment_and_service(
        name=objects.comparator_name(rollout_name),
        namespace=policy.meta.namespace,
        selector=selector,
        labels=selector,
        replicas=1,
        pod=pod,
        owner=_rollout_reference(owner),
    )


def _rollout_reference(owner: Meta | None) -> Manifest | None:
    return None if owner is None else owner_reference("VariantRollout", owner)


def _server(
    *,
    name: str,
    selector: dict[str, str],
    policy: Policy,
    variant: Variant,
    profile: HardwareProfileSpec,
    settings: Settings,
    owner: Manifest | None,
) -> tuple[Manifest, ...]:
    store = variant.spec.store
    volumes = Volumes()
    tmp = volumes.tmp()
    model = volumes.empty("model", names.MODEL_MOUNT)
    limits = resources(cpu_millis=profile.cpu_millis, memory_mebibytes=profile.memory_mebibytes)
    fetch = ["python", "-m", "kompakt.jobs", "fetch-artifact", "--store", store_root(store)]
    fetch += ["--digest", variant.spec.digest, "--to", names.MODEL_MOUNT]
    serve = ["python", "-m", "kompakt.serving", "serve", "--model-dir", names.MODEL_MOUNT]
    serve += ["--model-name", model_name(policy), "--port", str(names.SERVING_PORT)]
    init = _init(
        "fetch-artifact",
        command=fetch,
        env_from=secrets(store),
        mounts=[tmp, model, *volumes.store(store, read_only=True)],
        limits=limits,
        settings=settings,
    )
    container = _main(
        SERVER,
        command=serve,
        mounts=[tmp, model | {"readOnly": True}],
        # The init container has none: what a pod gets is the most that one of its stages asks for.
        limits=resources(
            cpu_millis=profile.cpu_millis,
            memory_mebibytes=profile.memory_mebibytes,
            devices=profile.extended_resources,
        ),
        settings=settings,
    )
    container["env"] = environment(thread_count=threads(profile.cpu_millis), cuda=profile.has_cuda)
    return _deployment_and_service(
        name=name,
        namespace=policy.meta.namespace,
        selector=selector,
        labels=selector | {names.VARIANT_LABEL: variant.meta.name},
        replicas=policy.spec.serving.replicas if policy.spec.serving else 1,
        pod={
            **placement(profile, settings),
            "initContainers": [init],
            "containers": [container],
            "volumes": volumes.to_list(),
        },
        owner=owner,
    )


def _init(
    name: str,
    *,
    command: list[str],
    env_from: list[dict[str, Any]],
    mounts: list[dict[str, Any]],
    limits: dict[str, Any],
    settings: Settings,
) -> dict[str, Any]:
    container = {
        "name": name,
        "image": settings.jobs_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": command,
        "env": environment(thread_count=1),
        "resources": limits,
        "securityContext": dict(CONTAINER_SECURITY),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }
    return container | ({"envFrom": env_from} if env_from else {})


def _main(
    name: str,
    *,
    command: list[str],
    mounts: list[dict[str, Any]],
    limits: dict[str, Any],
    settings: Settings,
) -> dict[str, Any]:
    """The container that answers, with its probes."""
    ready = {"httpGet": {"path": "/v2/health/ready", "port": "http"}}
    live = {"httpGet": {"path": "/v2/health/live", "port": "http"}}
    return {
        "name": name,
        "image": settings.serving_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": command,
        "ports": [{"name": "http", "containerPort": names.SERVING_PORT, "protocol": "TCP"}],
        "resources": limits,
        "securityContext": dict(CONTAINER_SECURITY),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
        "startupProbe": {**ready, "periodSeconds": 1, "failureThreshold": _START_SECONDS},
        # Slow is not unready: a starved candidate is the judge's business. Were its only pod taken
        # out of the Service, requests that the route still sends there would fail.
        "readinessProbe": {**ready, "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 3},
        "livenessProbe": {**live, "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 6},
    }


def _deployment_and_service(
    *,
    name: str,
    namespace: str,
    selector: dict[str, str],
    labels: dict[str, str],
    replicas: int,
    pod: dict[str, Any],
    owner: Manifest | None,
) -> tuple[Manifest, ...]:
    deployment: Manifest = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(name, namespace, labels, owner=owner),
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 1,
            "selector": {"matchLabels": dict(selector)},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
            },
            "template": {
                "metadata": {"labels": dict(labels)},
                "spec": {
                    **pod_defaults(),
                    **pod,
                    "terminationGracePeriodSeconds": _GRACE_SECONDS,
                },
            },
        },
    }
    service: Manifest = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(name, namespace, labels, owner=owner),
        "spec": {
            "selector": dict(selector),
            "ports": [
                {
                    "name": "http",
                    "port": names.SERVING_PORT,
                    "targetPort": "http",
                    "protocol": "TCP",
                }
            ],
        },
    }
    return deployment, service
