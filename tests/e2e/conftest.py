# SPDX-License-Identifier: Apache-2.0
"""The operator out of this checkout, on the real cluster, with a tiny model and real requests.

The operator runs as a process of this machine, limited to the namespace of the tests: it can be
killed and started again at once. Everything else (Jobs, servers, the gateway) is in the cluster.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.e2e.kit import (
    IMAGE,
    RUNTIME_CLASS,
    Kube,
    Object,
    Operator,
    Users,
    claim,
    profiles,
)

if TYPE_CHECKING:
    from tests.cluster_fixture import Cluster

ROOT = Path(__file__).resolve().parents[2]
# The image of the local cluster: this machine's userland, with this checkout and its environment.
_PLACE: Object = {"runtimeClassName": RUNTIME_CLASS}
_SECURITY: Object = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "runAsGroup": 65532,
    "fsGroup": 65532,
    "seccompProfile": {"type": "RuntimeDefault"},
}
_CONTAINER_SECURITY: Object = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


# --- the cluster and what is in it ---------------------------------------------------------------


@pytest.fixture(scope="session")
def kube(cluster: Cluster) -> Iterator[Kube]:
    """A namespace of its own for all of these tests, with the CRDs of this checkout."""
    if not cluster.local:
        pytest.skip("the operator runs on this machine and must reach pods: local cluster only")
    cluster("apply", "--server-side", "--force-conflicts", "--filename", str(ROOT / "crds"))
    name = f"e2e-{secrets.token_hex(3)}"
    cluster("create", "namespace", name)
    cluster("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    kube = Kube(cluster, name)
    kube.apply(claim("inputs"), claim("store"), *profiles(name))
    yield kube
    for profile in profiles(name):
        cluster.run("delete", "hardwareprofile", profile["metadata"]["name"], "--wait=false")
    # Finalizers are the operator's, which is gone by now. What is being collected may go first.
    for rollout in kube.items("variantrollouts"):
        patch = ["--type=merge", "-p", '{"metadata": {"finalizers": null}}']
        cluster.run(f"--namespace={name}", "patch", "vro", rollout["metadata"]["name"], *patch)
    cluster.run("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def inputs(kube: Kube) -> list[str]:
    """The tiny model and its data, in the claim `inputs`. Returns sentences for users."""
    program = Path(__file__).with_name("tiny.py")
    digest = hashlib.sha256(program.read_bytes()).hexdigest()[:12]
    folder = Path.home() / ".cache" / "kompakt" / f"tiny-{digest}"
    if not folder.exists():
        # Torch and transformers take longer to start than the training does.
        made = folder.with_name(f"{folder.name}.{os.getpid()}")
        subprocess.run([sys.executable, program, made], check=True, timeout=100)
        made.rename(folder)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(folder, arcname=".")
    _load(kube, buffer.getvalue())
    lines = (folder / "evaluation.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


def _load(kube: Kube, archive: bytes) -> None:
    """Copy a tar archive into the claim `inputs`, through a pod that mounts it."""
    unpack = "import sys, tarfile; tarfile.open(fileobj=sys.stdin.buffer, mode='r|')"
    container = {
        "name": "loader",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": ["python", "-c", "import time; time.sleep(300)"],
        "securityContext": _CONTAINER_SECURITY,
        # Without a share of its own it would start last on a busy machine.
        "resources": {"requests": {"cpu": "250m"}},
        "volumeMounts": [{"name": "inputs", "mountPath": "/inputs"}],
    }
    kube.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "loader"},
            "spec": {
                **_PLACE,
                "securityContext": _SECURITY,
                "restartPolicy": "Never",
                "containers": [container],
                "volumes": [{"name": "inputs", "persistentVolumeClaim": {"claimName": "inputs"}}],
            },
        }
    )
    kube("wait", "pod", "loader", "--for=condition=Ready", "--timeout=100s")
    cluster = kube.cluster
    command = [str(cluster.kubectl), "--kubeconfig", str(cluster.kubeconfig)]
    command += ["--namespace", kube.namespace, "exec", "-i", "loader", "--", "python", "-c"]
    code = f"{unpack}.extractall('/inputs', filter='data')"
    subprocess.run([*command, code], input=archive, check=True, timeout=120, capture_output=True)
    kube("delete", "pod", "loader", "--now", "--wait=false")


# --- the operator --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def operator(kube: Kube, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """The one operator of the namespace. One that the demo has left for the whole cluster rests."""
    others = ["--namespace", "kompakt-system", "deployment", "kompakt"]
    resting = kube.cluster.run("scale", *others, "--replicas=0").returncode == 0
    operator = Operator(kube, tmp_path_factory.mktemp("operator") / "log.jsonl")
    operator.start()
    yield operator
    operator.stop()
    if resting:
        kube.cluster.run("scale", *others, "--replicas=1")


# --- users ---------------------------------------------------------------------------------------


@pytest.fixture
def users(cluster: Cluster, inputs: list[str]) -> Iterator[Callable[[str, str], Users]]:
    """Makes clients; all of them end with the test."""
    started: list[Users] = []

    def start(model: str, host: str) -> Users:
        assert cluster.gateway
        client = Users(cluster.gateway.removeprefix("http://"), host, model, inputs)
        client.start()
        started.append(client)
        return client

    yield start
    for client in started:
        client.stop()
