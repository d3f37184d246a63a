# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from tests.planning import (
    BASELINE_DIGEST,
    NAMESPACE,
    PROFILES,
    SETTINGS,
    policy,
    policy_spec,
    profile,
    variant,
)
from tests.pod_security import violations

from kompakt.api import names
from kompakt.api.source import DataSource
from kompakt.controllers import objects
from kompakt.controllers.plan import Manifest, Meta
from kompakt.controllers.render import serving

GOLDEN = {"uri": "pvc://data/golden.jsonl", "labelField": "label", "secretRef": {"name": "data"}}
OWNER = Meta("sentiment-11223344", NAMESPACE, uid="uid-rollout")


def of_variant(**changes: Any) -> tuple[Manifest, ...]:
    """Deployment and Service of the variant that serves."""
    spec = policy_spec(**changes)
    return serving.serving_manifests(
        policy=policy(spec), variant=variant(), profile=PROFILES["edge-small"], settings=SETTINGS
    )


def of_reference(rollout: str = OWNER.name) -> tuple[Manifest, ...]:
    """Deployment and Service of the reference."""
    return serving.reference_manifests(
        rollout_name=rollout,
        policy=policy(),
        variant=variant(),
        profile=PROFILES["edge-small"],
        settings=SETTINGS,
        owner=OWNER,
    )


def of_comparator(*, golden: bool = True) -> tuple[Manifest, ...]:
    """Deployment and Service of the comparator."""
    data = {"evaluation": {"uri": "s3://b/e", "labelField": "label"}}
    spec = policy_spec(data=data | ({"goldenSet": GOLDEN} if golden else {}))
    return serving.comparator_manifests(
        rollout_name=OWNER.name,
        policy=policy(spec),
        candidate_service="sentiment-aaaaaaaa",
        reference_service=objects.reference_name(OWNER.name),
        settings=SETTINGS,
        owner=OWNER,
    )


def pod(manifests: tuple[Manifest, ...]) -> dict[str, Any]:
    """The pod of a Deployment."""
    found: dict[str, Any] = manifests[0]["spec"]["template"]["spec"]
    return found


ALL = [of_variant(), of_reference(), of_comparator(), of_comparator(golden=False)]
IDS = ["serving", "reference", "comparator", "comparator without golden set"]


@pytest.mark.parametrize("manifests", ALL, ids=IDS)
def test_pods_are_restricted(manifests: tuple[Manifest, ...]) -> None:
    """No serving pod needs more than the Pod Security Standard `restricted` allows."""
    assert violations(pod(manifests)) == []


@pytest.mark.parametrize("manifests", ALL, ids=IDS)
def test_services_find_their_pods_and_no_others(manifests: tuple[Manifest, ...]) -> None:
    """Service and Deployment select by the same labels, which their pods have and no others do."""
    deployment, service = manifests
    chosen = service["spec"]["selector"]
    every = (of_variant(), of_reference(), of_reference("other"), of_comparator())
    others = [m for m in every if m[0]["metadata"]["name"] != deployment["metadata"]["name"]]

    assert deployment["spec"]["selector"]["matchLabels"] == chosen
    assert chosen.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert deployment["metadata"]["name"] == service["metadata"]["name"]
    assert len(others) == 3
    for other in others:
        labels = other[0]["spec"]["template"]["metadata"]["labels"]
        assert not chosen.items() <= labels.items()


@pytest.mark.parametrize("manifests", ALL, ids=IDS)
def test_a_rolling_update_loses_nobody(manifests: tuple[Manifest, ...]) -> None:
    """An old pod goes when a new one is ready, and has time to end what it has begun."""
    deployment = manifests[0]["spec"]

    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert pod(manifests)["terminationGracePeriodSeconds"] == 30
    assert "lifecycle" not in pod(manifests)["containers"][0]


def test_a_device_is_the_servers() -> None:
    """Whoever fetches the artifact needs none, nor does the comparator."""
    on = profile("gpu", extendedResources=[{"name": "nvidia.com/gpu"}])
    made = pod(
        serving.serving_manifests(
            policy=policy(policy_spec()), variant=variant(), profile=on, settings=SETTINGS
        )
    )
    (fetch,), (server,) = made["initContainers"], made["containers"]

    assert server["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert server["resources"]["requests"] == server["resources"]["limits"]
    assert {"name": names.DEVICE_VARIABLE, "value": "cuda"} in server["env"]
    assert "nvidia.com/gpu" not in fetch["resources"]["limits"]
    assert names.DEVICE_VARIABLE not in {entry["name"] for entry in fetch["env"]}
    assert violations(made) == []


def test_the_store_is_the_init_container_s() -> None:
    """The server's container sees its one artifact, read-only, and no store."""
    (fetch,), (server,) = pod(of_variant())["initContainers"], pod(of_variant())["containers"]
    fetched = {m["mountPath"]: m for m in fetch["volumeMounts"]}
    served = {m["mountPath"]: m for m in server["volumeMounts"]}

    assert fetched[names.STORE_MOUNT]["readOnly"] is True
    assert names.STORE_MOUNT not in served
    assert served[names.MODEL_MOUNT]["readOnly"] is True
    assert fetch["command"] == [
        *["python", "-m", "kompakt.jobs", "fetch-artifact"],
        *["--store", "file:///var/lib/kompakt/store", "--digest", BASELINE_DIGEST],
        *["--to", names.MODEL_MOUNT],
    ]
    assert server["command"] == [
        *["python", "-m", "kompakt.serving", "serve", "--model-dir", names.MODEL_MOUNT],
        *["--model-name", "sentiment", "--port", "8080"],
    ]
    assert (fetch["image"], server["image"]) == ("jobs:1", "serving:1")


def test_the_store_s_secret_goes_no_further() -> None:
    """Credentials of the store reach the init container only."""
    secret = {"uri": "s3://b/x", "secretRef": {"name": "store"}}
    manifests = serving.serving_manifests(
        policy=policy(),
        variant=variant(store=secret),
        profile=PROFILES["edge-small"],
        settings=SETTINGS,
    )
    (fetch,), (server,) = pod(manifests)["initContainers"], pod(manifests)["containers"]

    assert fetch["envFrom"] == [{"secretRef": {"name": "store"}}]
    assert "envFrom" not in server


def test_a_slow_pod_is_not_taken_out() -> None:
    """Probes wait long enough for a starved pod: that it is slow is for the judge to say."""
    server = pod(of_variant())["containers"][0]

    assert server["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert server["readinessProbe"]["periodSeconds"] == 1
    assert server["readinessProbe"]["timeoutSeconds"] >= 5
    assert server["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
    assert (
        server["livenessProbe"]["periodSeconds"] * server["livenessProbe"]["failureThreshold"] >= 60
    )


def test_labels_tell_what_serves() -> None:
    """Policy, digest, role and variant can be read from the pods, when every status was lost."""
    labels = of_variant()[0]["spec"]["template"]["metadata"]["labels"]

    assert labels[names.POLICY_LABEL] == "sentiment"
    assert labels[names.DIGEST_LABEL] == objects.digest_label(BASELINE_DIGEST)
    assert labels[names.ROLE_LABEL] == names.ROLE_SERVING
    assert labels[names.VARIANT_LABEL] == variant().meta.name


@pytest.mark.parametrize(("deletion", "owned"), [("Retain", False), ("Delete", True)])
def test_deletion_policy(deletion: str, *, owned: bool) -> None:
    """Serving objects go with the policy only if it says so."""
    wanted = policy_spec().serving
    assert wanted is not None
    changed = wanted.to_wire() | {"deletionPolicy": deletion, "replicas": 3}
    deployment, service = of_variant(serving=changed)

    for manifest in (deployment, service):
        assert ("ownerReferences" in manifest["metadata"]) is owned
    assert deployment["spec"]["replicas"] == 3


def test_a_rollout_s_objects_go_with_it() -> None:
    """Reference and comparator are labelled with their rollout, and owned by it."""
    for manifest in (*of_reference(), *of_comparator()):
        (owner,) = manifest["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"]) == ("VariantRollout", OWNER.uid)
        assert manifest["metadata"]["labels"][names.ROLLOUT_LABEL] == OWNER.name


def test_the_comparator_gets_the_golden_set() -> None:
    """The golden set is fetched by an init container, whose address and credentials the comparator
    never sees; without one there is neither.
    """
    (fetch,), (comparator,) = (
        pod(of_comparator())["initContainers"],
        pod(of_comparator())["containers"],
    )
    command = dict(zip(fetch["command"][4::2], fetch["command"][5::2], strict=True))

    assert fetch["command"][:4] == ["python", "-m", "kompakt.jobs", "fetch-data"]
    assert DataSource.model_validate(json.loads(command["--source"])) == DataSource.model_validate(
        GOLDEN
    )
    assert fetch["envFrom"] == [{"secretRef": {"name": "data"}}]
    assert f"{names.VOLUMES_MOUNT}/data" in {m["mountPath"] for m in fetch["volumeMounts"]}
    assert comparator["command"] == [
        *["python", "-m", "kompakt.serving", "compare"],
        *["--candidate", "http://sentiment-aaaaaaaa:8080"],
        *["--reference", "http://sentiment-11223344-reference:8080"],
        *["--model-name", "sentiment", "--golden", command["--to"]],
    ]
    assert f"{names.VOLUMES_MOUNT}/data" not in {m["mountPath"] for m in comparator["volumeMounts"]}
    bare = pod(of_comparator(golden=False))
    assert "initContainers" not in bare
    assert "--golden" not in bare["containers"][0]["command"]


def test_settings_reach_every_pod() -> None:
    """Runtime class and pull policy of the installation hold where the profile says nothing."""
    settings = replace(SETTINGS, runtime_class_name="host-userland", image_pull_policy="Never")
    manifests = serving.serving_manifests(
        policy=policy(), variant=variant(), profile=PROFILES["edge-small"], settings=settings
    )

    assert pod(manifests)["runtimeClassName"] == "host-userland"
    for container in (*pod(manifests)["initContainers"], *pod(manifests)["containers"]):
        assert container["imagePullPolicy"] == "Never"


def test_manifests_share_nothing() -> None:
    """Changing one manifest changes no other: equal input gives equal output, always."""
    first = of_variant()
    pod(first)["containers"][0]["securityContext"]["privileged"] = True
    pod(first)["containers"][0]["resources"]["limits"]["cpu"] = "9"
    pod(first)["securityContext"]["runAsUser"] = 0

    assert violations(pod(of_variant())) == []
    assert pod(of_variant())["containers"][0]["resources"]["limits"]["cpu"] == "500m"
