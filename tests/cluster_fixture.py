# SPDX-License-Identifier: Apache-2.0
"""The cluster of the tests that need one: the local one, started where it does not run, or the one
that KUBECONTEXT names.

Invariants: a test gets a namespace of its own, restricted as a careful platform restricts it, and
leaves nothing else behind; the local cluster goes on running afterwards, for the next run.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kompakt.localcluster import cluster as localcluster
from kompakt.localcluster.progress import Progress
from kompakt.localcluster.settings import GATEWAY_NAME, GATEWAY_NAMESPACE, from_environment

COMMAND_SECONDS = 180


@dataclass(frozen=True)
class Cluster:
    """A running cluster.

    Attributes:
        kubeconfig: the file whose current context is the cluster; good for `KUBECONFIG`.
        kubectl: the client that fits it.
        gateway: `address:port` of the Gateway `gateways/public`; None where the cluster has none.
        local: whether it is the one of this machine, whose pods see this checkout.
    """

    kubeconfig: Path
    kubectl: Path
    gateway: str | None
    local: bool

    def run(self, *args: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """One kubectl command; its failure is for the caller to look at."""
        return subprocess.run(
            [str(self.kubectl), "--kubeconfig", str(self.kubeconfig), *args],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS,
        )

    def __call__(self, *args: str, text: str | None = None) -> str:
        """One kubectl command that must succeed; returns what it printed."""
        done = self.run(*args, text=text)
        assert done.returncode == 0, f"kubectl {' '.join(args)}: {done.stderr}"
        return done.stdout


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The cluster that the tests share."""
    context = os.environ.get("KUBECONTEXT")
    if context:
        return _existing(context, tmp_path_factory.mktemp("cluster") / "kubeconfig")
    settings = from_environment()
    lease = localcluster.up(settings, Progress(), with_gateway=True)
    found = localcluster.status(settings)
    return Cluster(
        kubeconfig=Path(found["kubeconfig"]),
        kubectl=Path(found["kubectl"]),
        gateway=lease.gateway_address,
        local=True,
    )


def _existing(context: str, kubeconfig: Path) -> Cluster:
    kubectl = shutil.which("kubectl")
    assert kubectl, "KUBECONTEXT names a cluster, and there is no kubectl on the PATH to reach it"
    view = [kubectl, "config", "view", "--minify", "--flatten", "--context", context]
    kubeconfig.touch(mode=0o600)
    kubeconfig.write_text(subprocess.run(view, capture_output=True, text=True, check=True).stdout)
    there = Cluster(kubeconfig=kubeconfig, kubectl=Path(kubectl), gateway=None, local=False)
    path = "jsonpath={.status.addresses[0].value}:{.spec.listeners[0].port}"
    gateway = ("get", "gateway", "--namespace", GATEWAY_NAMESPACE, GATEWAY_NAME, "--output", path)
    address = there.run(*gateway).stdout
    return Cluster(
        kubeconfig=kubeconfig,
        kubectl=Path(kubectl),
        gateway=None if address.startswith(":") else address or None,
        local=False,
    )


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A fresh namespace that enforces the restricted pod security standard."""
    name = f"test-{secrets.token_hex(4)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    manifest = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": labels},
    }
    cluster("create", "--filename", "-", text=json.dumps(manifest))
    yield name
    cluster.run("delete", "namespace", name, "--wait=false")
