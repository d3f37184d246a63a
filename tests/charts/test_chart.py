# SPDX-License-Identifier: Apache-2.0
"""The Helm chart: what it renders, what it refuses, and what the API server says of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "kompakt"
HELM = Path(sys.executable).with_name("helm")
WORKLOADS = {"Deployment"}


def helm(*args: str) -> subprocess.CompletedProcess[str]:
    """One helm command on the chart, which needs no cluster."""
    command = [str(HELM), "template", "kompakt", str(CHART), "--namespace", "kompakt-system", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def rendered(*args: str) -> list[dict[str, Any]]:
    """The objects that the chart renders with some values."""
    done = helm(*args)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def of_kind(documents: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Those of one kind."""
    return [d for d in documents if d["kind"] == kind]


@pytest.fixture(scope="module")
def default() -> list[dict[str, Any]]:
    """What the chart renders without any value."""
    return rendered()


def test_the_operator_is_a_restricted_pod(default: list[dict[str, Any]]) -> None:
    """It runs as a user without rights, on a read-only root, with bounded memory."""
    (deployment,) = of_kind(default, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]
    assert container["command"] == ["python", "-m", "kompakt.operator"]


def test_the_operator_may_do_no_more_than_it_must(default: list[dict[str, Any]]) -> None:
    """No wildcard, no Secret, and no write to the spec of an object that users keep in Git."""
    roles = [d for d in default if d["kind"] in {"ClusterRole", "Role"}]
    operator = [r for r in roles if not r["metadata"]["name"].endswith(("-viewer", "-editor"))]
    rules = [rule for role in operator for rule in role["rules"]]
    write = {"create", "update", "patch", "delete", "deletecollection"}

    for rule in rules:
        assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"]
        assert "secrets" not in rule["resources"]
        if {"compressionpolicies", "compressionrecipes", "hardwareprofiles"} & {*rule["resources"]}:
            assert not write & {*rule["verbs"]}, rule


def test_uninstalling_keeps_the_kinds(default: list[dict[str, Any]]) -> None:
    """Deleting a CRD deletes every object of it, so Helm leaves them, unless told otherwise."""
    kept = of_kind(default, "CustomResourceDefinition")
    policy = "helm.sh/resource-policy"

    assert len(kept) == 6
    assert all(d["metadata"]["annotations"][policy] == "keep" for d in kept)
    loose = of_kind(rendered("--set=crds.keep=false"), "CustomResourceDefinition")
    assert not any(policy in (d["metadata"].get("annotations") or {}) for d in loose)
    assert not of_kind(rendered("--set=crds.enabled=false"), "CustomResourceDefinition")


def test_namespaces_bind_the_operator_to_them() -> None:
    """With watchNamespaces it has rights in those namespaces only, beside what is
    cluster-scoped.
    """
    documents = rendered("--set=operator.watchNamespaces={team-a,team-b}")
    wide = {d["metadata"]["name"] for d in of_kind(documents, "ClusterRoleBinding")}
    bound = [
        d["metadata"]["namespace"]
        for d in of_kind(documents, "RoleBinding")
        if d["roleRef"]["kind"] == "ClusterRole"
    ]
    (deployment,) = of_kind(documents, "Deployment")

    assert wide == {"kompakt-cluster", "kompakt-gateways"}
    assert bound == ["team-a", "team-b"]
    args = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    assert {"--namespace=team-a", "--namespace=team-b"} <= {*args}


@pytest.mark.slow
def test_images_come_from_one_registry() -> None:
    """The three images share registry and tag; one image may stand for all."""
    (deployment,) = of_kind(rendered("--set=image.registry=reg.local/team"), "Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "reg.local/team/kompakt-operator:0.1.0"
    assert "--jobs-image=reg.local/team/kompakt-jobs:0.1.0" in container["args"]

    (deployment,) = of_kind(rendered("--set=image.override=one:dev"), "Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "one:dev"
    assert "--serving-image=one:dev" in container["args"]


@pytest.mark.slow
def test_the_arguments_are_the_operators(default: list[dict[str, Any]]) -> None:
    """Every argument that the chart passes is one that the operator's command line knows."""
    done = subprocess.run(
        [sys.executable, "-m", "kompakt.operator", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    values = ["--set=operator.watchNamespaces={a}", "--set=runtimeClassName=x"]
    (deployment,) = of_kind(rendered(*values), "Deployment")
    for argument in deployment["spec"]["template"]["spec"]["containers"][0]["args"]:
        assert argument.split("=")[0] in done.stdout


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("operator.logLevel=LOUD", "operator.logLevel"),
        ("image.pullpolicy=Always", "pullpolicy"),
        ("operator.replicas=-1", "operator.replicas"),
        ("metrics.serviceMonitor.interval=often", "metrics.serviceMonitor.interval"),
    ],
)
def test_a_wrong_value_is_refused_by_name(value: str, words: str) -> None:
    """The schema of the values names the one that is wrong."""
    done = helm(f"--set={value}")

    assert done.returncode != 0
    assert words.replace(".", "/") in done.stderr.replace(".", "/")


def test_values_that_contradict_each_other_are_refused() -> None:
    """A ServiceMonitor without a Service would watch nothing."""
    done = helm("--set=metrics.serviceMonitor.enabled=true,metrics.service.enabled=false")

    assert "needs metrics.service.enabled" in done.stderr


@pytest.mark.cluster
def test_the_api_server_takes_every_object(cluster: Any, namespace: str) -> None:
    """A server-side dry run accepts all that the chart renders, with no unknown field."""
    kubectl = [str(cluster.kubectl), "--kubeconfig", str(cluster.kubeconfig)]
    documents = rendered()
    for document in documents:
        if "namespace" in document["metadata"]:
            document["metadata"]["namespace"] = namespace
    kinds = [d for d in documents if d["kind"] == "CustomResourceDefinition"]
    rest = [d for d in documents if d["kind"] != "CustomResourceDefinition"]
    flags = ["--server-side", "--force-conflicts", "--validate=strict", "-f", "-"]
    apply(kubectl, flags, kinds)
    for _ in range(30):
        done = apply(kubectl, [*flags, "--dry-run=server"], rest)
        # The API server serves a kind a moment after it was made.
        if "no matches for kind" not in done.stderr:
            break
        time.sleep(0.5)
    assert done.returncode == 0, done.stderr


def apply(
    kubectl: list[str], flags: list[str], items: list[dict[str, Any]]
) -> subprocess.CompletedProcess[str]:
    """Apply some objects."""
    return subprocess.run(
        [*kubectl, "apply", *flags],
        input=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
