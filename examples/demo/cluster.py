# SPDX-License-Identifier: Apache-2.0
"""Which cluster the demo uses, and what has to be known of it: the embedded one, or KUBECONTEXT's.

Invariant: nothing below this module knows which of the two it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from examples.demo.errors import DemoError
from examples.demo.kube import GATEWAYS, Kube, Kubectl, run_command

ROOT: Final = Path(__file__).resolve().parents[2]
CHART: Final = ROOT / "charts" / "kompakt"
RELEASE: Final = "kompakt"
SYSTEM_NAMESPACE: Final = "kompakt-system"
_BUILD_SECONDS: Final = 3600.0
_LOCAL_IMAGE: Final = "localhost/kompakt:dev"
_LOCAL_RUNTIME_CLASS: Final = "host-userland"
_LOCAL_SOURCES: Final = ("crds", "controllers", "operator")


@dataclass(frozen=True)
class PodImage:
    """What pods of the demo's own are made of: the image of the Jobs, which has Python."""

    image: str
    pull_policy: str
    runtime_class: str | None = None

    def container(self) -> dict[str, Any]:
        """The fields of a container."""
        return {"image": self.image, "imagePullPolicy": self.pull_policy}

    def pod(self) -> dict[str, Any]:
        """The fields of a pod."""
        return {"runtimeClassName": self.runtime_class} if self.runtime_class else {}


@dataclass(frozen=True)
class Cluster:
    """How to reach a cluster, and how Kompakt is installed in it."""

    kubectl: Kubectl
    helm: tuple[str, ...]
    values: tuple[str, ...]
    """Of the chart, as `name=value`."""
    jobs: PodImage
    build_seconds: float = 0.0
    start_seconds: float = 0.0


async def from_environment(
    say: Callable[[str], None], environment: Mapping[str, str] = os.environ
) -> Cluster:
    """The cluster of KUBECONTEXT, else the embedded one, which is started if it does not run.

    Raises DemoError with what to do, when there is none to use.
    """
    context = environment.get("KUBECONTEXT", "")
    if context:
        return _existing(context, environment.get("REGISTRY", ""))
    return await _embedded(say)


def _existing(context: str, registry: str) -> Cluster:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        msg = f"KUBECONTEXT is {context}, but there is no kubectl on the PATH: install it"
        raise DemoError(msg)
    if not registry:
        msg = (
            f"KUBECONTEXT is {context}, but REGISTRY is empty: say where its nodes find the images "
            "(make images REGISTRY=… pushes them)"
        )
        raise DemoError(msg)
    registry = registry.rstrip("/")
    return Cluster(
        kubectl=Kubectl((kubectl, f"--context={context}")),
        helm=(_helm(), f"--kube-context={context}"),
        values=(f"image.registry={registry}",),
        jobs=PodImage(f"{registry}/kompakt-jobs:{_chart_version()}", "IfNotPresent"),
    )


async def _embedded(say: Callable[[str], None]) -> Cluster:
    launcher = [sys.executable, "-m", "kompakt.localcluster"]
    begin = time.monotonic()
    await _watched(*launcher, "build")
    built = time.monotonic()
    await _watched(*launcher, "up")
    started = time.monotonic()
    status = json.loads(await run_command([*launcher, "status", "--json"]))
    say(f"the local cluster runs: export KUBECONFIG={status['kubeconfig']}")
    kubeconfig = f"--kubeconfig={status['kubeconfig']}"
    return Cluster(
        kubectl=Kubectl((status["kubectl"], kubeconfig)),
        helm=(_helm(), kubeconfig),
        values=(
            f"image.override={_LOCAL_IMAGE}",
            "image.pullPolicy=Never",
            f"runtimeClassName={_LOCAL_RUNTIME_CLASS}",
            # Pods see the checkout; an operator that runs already must see what changed in it.
            f"operator.podAnnotations.kompakt\\.dev/source={_source_digest()}",
        ),
        jobs=PodImage(_LOCAL_IMAGE, "Never", _LOCAL_RUNTIME_CLASS),
        build_seconds=built - begin,
        start_seconds=started - built,
    )


async def install(cluster: Cluster) -> None:
    """Install the chart, or bring an older release up to date, and wait for the operator."""
    await run_command(
        [
            *cluster.helm,
            *("upgrade", "--install", RELEASE, str(CHART)),
            *("--namespace", SYSTEM_NAMESPACE, "--create-namespace"),
            # CRDs that were applied by hand, or by the tests, become the release's.
            "--take-ownership",
            *("--wait", "--timeout", "120s"),
            *(part for value in cluster.values for part in ("--set-string", value)),
        ],
        seconds=150,
    )


async def kubernetes_version(kube: Kube) -> tuple[str, int]:
    """The version of the API server, and the number of nodes."""
    version = await kube.get("/version")
    nodes = await kube.items("/api/v1/nodes")
    return (version or {}).get("gitVersion", ""), len(nodes)


async def gateway_address(kube: Kube, *, namespace: str, name: str) -> str:
    """`host:port` of the first HTTP listener of a Gateway.

    Raises DemoError when there is no such Gateway, or it has no address.
    """
    found = await kube.get(f"{GATEWAYS}/namespaces/{namespace}/gateways/{name}")
    if found is None:
        msg = (
            f"there is no Gateway {namespace}/{name} in the cluster: make one, or name yours in "
            "spec.serving.gatewayRef of examples/sentiment/30-policy.yaml"
        )
        raise DemoError(msg)
    addresses = [a["value"] for a in found.get("status", {}).get("addresses", []) if a.get("value")]
    ports = [x["port"] for x in found["spec"]["listeners"] if x.get("protocol") == "HTTP"]
    if not addresses or not ports:
        msg = f"Gateway {namespace}/{name} has no address yet, or no HTTP listener"
        raise DemoError(msg)
    return f"{addresses[0]}:{ports[0]}"


async def _watched(*command: str) -> None:
    """Run a program whose progress the user watches on standard error."""
    await run_command(command, seconds=_BUILD_SECONDS, watch=True)


def _helm() -> str:
    beside = Path(sys.executable).with_name("helm")
    found = str(beside) if beside.exists() else shutil.which("helm")
    if found is None:
        msg = "there is no helm: make venv installs it into .venv"
        raise DemoError(msg)
    return found


def _chart_version() -> str:
    for line in (CHART / "Chart.yaml").read_text().splitlines():
        if line.startswith("appVersion:"):
            return line.partition(":")[2].strip().strip('"')
    return "latest"


def _source_digest() -> str:
    """A digest of the source that the operator runs."""
    digest = hashlib.sha256()
    for room in _LOCAL_SOURCES:
        for path in sorted((ROOT / room).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
