# SPDX-License-Identifier: Apache-2.0
"""What the other rooms rely upon, seen from ordinary restricted pods on the real cluster."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kompakt.localcluster import cgroups
from kompakt.localcluster.settings import GATEWAY_CLASS, GATEWAY_NAME, GATEWAY_NAMESPACE

if TYPE_CHECKING:
    from tests.cluster_fixture import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

Apply = Callable[..., None]
EDGE: dict[str, Any] = {
    "nodeSelector": {"kompakt.dev/pool": "edge"},
    "tolerations": [{"key": "kompakt.dev/pool", "operator": "Exists"}],
}
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


@pytest.fixture(autouse=True)
def local(cluster: Cluster) -> Cluster:
    """These are promises of the local cluster; a cluster of the user's own makes others."""
    if not cluster.local:
        pytest.skip("KUBECONTEXT names a cluster of the user's own")
    return cluster


@pytest.fixture
def apply(cluster: Cluster, namespace: str) -> Apply:
    """Makes objects in the test's namespace."""

    def apply(*objects: dict[str, Any]) -> None:
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        cluster("apply", "--namespace", namespace, "--filename", "-", text=text)

    return apply


def pod(name: str, *command: str, claim: str | None = None, **spec: Any) -> dict[str, Any]:
    """A pod as restricted as the operator's own, with a program of the virtual environment."""
    volumes: list[dict[str, Any]] = [{"name": "tmp", "emptyDir": {}}]
    mounts = [{"name": "tmp", "mountPath": "/tmp"}]
    if claim:
        volumes.append({"name": "store", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": "store", "mountPath": "/store"})
    container = {
        "name": "main",
        "image": "localhost/kompakt:dev",
        "imagePullPolicy": "IfNotPresent",
        "command": list(command),
        "securityContext": RESTRICTED,
        # A request is a weight: without one, whatever else runs on the node goes first.
        "resources": {"requests": {"cpu": "200m"}},
        "volumeMounts": mounts,
    }
    ready = spec.pop("readiness", None)
    if ready:
        container["readinessProbe"] = ready
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "runtimeClassName": "host-userland",
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "runAsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": volumes,
            **spec,
        },
    }


def output(cluster: Cluster, namespace: str, name: str) -> str:
    """What a pod printed, once it has succeeded."""
    phase = "--for=jsonpath={.status.phase}=Succeeded"
    done = cluster.run("wait", "-n", namespace, f"pod/{name}", phase, "--timeout=150s")
    logs: str = cluster.run("logs", "-n", namespace, name).stdout
    assert done.returncode == 0, f"{done.stderr}{logs}"
    return logs


def said(cluster: Cluster, namespace: str, name: str, container: str) -> str:
    """The first thing that a container printed."""
    deadline, logs = time.monotonic() + 60, ""
    while not logs and time.monotonic() < deadline:
        logs = cluster.run("logs", "-n", namespace, name, "-c", container).stdout.strip()
        time.sleep(0.2)
    return logs


def test_a_restricted_pod_has_the_environment_and_the_source(
    cluster: Cluster, namespace: str, apply: Apply
) -> None:
    """Torch and the rooms are importable by a user who owns nothing, on the tainted node too."""
    program = (
        "import json, os, torch, kompakt.api\n"
        "print(json.dumps([os.getuid(), kompakt.api.__file__]))"
    )
    apply(pod("import", "python", "-c", program, **EDGE))
    user, file = json.loads(output(cluster, namespace, "import"))
    assert user == 65532
    assert file == "/opt/kompakt/src/crds/kompakt/api/__init__.py"


def test_nodes_have_cpus_of_their_own(cluster: Cluster, namespace: str, apply: Apply) -> None:
    """Pods of different nodes never compete for a CPU, where there is more than one."""
    program = "import os; print(sorted(os.sched_getaffinity(0)))"
    apply(pod("cpu", "python", "-c", program), pod("edge", "python", "-c", program, **EDGE))
    seen = {name: set(json.loads(output(cluster, namespace, name))) for name in ("cpu", "edge")}
    found = cgroups.hierarchies()
    root = found.root_of("cpuset")
    assert root
    name = "cpuset.cpus.effective" if found.unified else "cpuset.cpus"
    shares = cgroups.split_cpus(cgroups.parse_cpus((root / name).read_text()))
    assert seen == {"cpu": set(shares["cpu-0"]), "edge": set(shares["edge-0"])}


def test_a_claim_is_shared_by_pods_of_both_nodes(
    cluster: Cluster, namespace: str, apply: Apply
) -> None:
    """The default StorageClass binds ReadWriteMany, and any user can write."""
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "store"},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    write = "open('/store/note', 'w').write('from the edge')"
    read = (
        "import os, time\n"
        "while not os.path.exists('/store/note'): time.sleep(0.1)\n"
        "time.sleep(0.1); print(open('/store/note').read())"
    )
    apply(
        claim,
        pod("writer", "python", "-c", write, claim="store", **EDGE),
        pod("reader", "python", "-c", read, claim="store"),
    )
    assert output(cluster, namespace, "reader").strip() == "from the edge"
    volume = cluster("get", "pvc", "-n", namespace, "store", "-o", "jsonpath={.spec.volumeName}")
    path = Path(
        cluster("get", "pv", volume, "-o", "jsonpath={.spec.hostPath.path}"),
    )
    assert (path / "note").exists()
    cluster("delete", "pod,pvc", "-n", namespace, "--all", "--timeout=150s")
    deadline = time.monotonic() + 20
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not path.exists(), "the volume's folder outlived its claim"


def test_names_and_the_gateway_lead_to_a_pod(
    cluster: Cluster, namespace: str, apply: Apply
) -> None:
    """A route of any namespace takes requests through the Gateway; a Service answers by its
    name.
    """
    server = ("python", "-m", "http.server", "8080", "--directory", "/opt/kompakt/src/crds")
    probe = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}
    host = f"{namespace}.example.com"
    apply(
        pod("web", *server, readiness=probe),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
        },
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {"name": "web"},
            "spec": {
                "parentRefs": [{"name": GATEWAY_NAME, "namespace": GATEWAY_NAMESPACE}],
                "hostnames": [host],
                "rules": [{"backendRefs": [{"name": "web", "port": 80}]}],
            },
        },
    )
    cluster("wait", "-n", namespace, "pod/web", "--for=condition=Ready", "--timeout=150s")
    assert cluster.gateway
    deadline, status = time.monotonic() + 20, 0
    while status != 200 and time.monotonic() < deadline:
        connection = http.client.HTTPConnection(cluster.gateway, timeout=5)
        connection.request("GET", "/", headers={"Host": host})
        status = connection.getresponse().status
        connection.close()
        time.sleep(0.1)
    assert status == 200
    ask = (
        f"import urllib.request as u; print(u.urlopen('http://web.{namespace}/', timeout=5).status)"
    )
    apply(pod("client", "python", "-c", ask, **EDGE))
    assert output(cluster, namespace, "client").strip() == "200"


def test_a_running_pod_takes_commands_and_an_ephemeral_container(
    cluster: Cluster, namespace: str, apply: Apply
) -> None:
    """Logs, exec and an ephemeral container work, within the same restrictions."""
    apply(pod("busy", "python", "-c", "import time; print('here'); time.sleep(300)"))
    cluster("wait", "-n", namespace, "pod/busy", "--for=condition=Ready", "--timeout=150s")
    assert said(cluster, namespace, "busy", "main") == "here"
    run = cluster("exec", "-n", namespace, "busy", "--", "python", "-c", "print(6 * 7)")
    assert run.strip() == "42"
    hog = {
        "name": "hog",
        "image": "localhost/kompakt:dev",
        "command": ["python", "-c", "print('in the pod')"],
        "securityContext": RESTRICTED,
    }
    patch = json.dumps({"spec": {"ephemeralContainers": [hog]}})
    cluster(
        "patch", "-n", namespace, "pod", "busy", "--subresource=ephemeralcontainers", "-p", patch
    )
    assert said(cluster, namespace, "busy", "hog") == "in the pod"


def test_a_pod_that_is_not_restricted_is_refused(cluster: Cluster, namespace: str) -> None:
    """The namespace of a test enforces the restricted standard, as a careful platform does."""
    loose = pod("loose", "true")
    loose["spec"].pop("securityContext")
    done = cluster.run("apply", "-n", namespace, "-f", "-", text=json.dumps(loose))
    assert done.returncode != 0
    assert "violates PodSecurity" in done.stderr


def test_the_gateway_is_what_it_should_be(cluster: Cluster) -> None:
    """Programmed, of the class that the documentation names, with the versions that are built."""
    path = "jsonpath={.spec.gatewayClassName}"
    found = cluster("get", "gateway", "-n", GATEWAY_NAMESPACE, GATEWAY_NAME, "-o", path)
    assert found == GATEWAY_CLASS


def test_up_again_changes_nothing(cluster: Cluster) -> None:
    """The second `up` is quick, starts nothing, and prints the same address."""

    def command(*arguments: str) -> str:
        module = [sys.executable, "-m", "kompakt.localcluster", *arguments]
        return subprocess.run(module, capture_output=True, text=True, check=True).stdout

    before = json.loads(command("status", "--json"))
    said = command("up")
    after = json.loads(command("status", "--json"))
    assert after["processes"] == before["processes"]
    assert f"http://{cluster.gateway}" in said
    assert command("kubeconfig").strip() == str(cluster.kubeconfig)
