# SPDX-License-Identifier: Apache-2.0
"""Envoy Gateway, as ordinary pods: its chart, rendered and changed for pods without images.

Invariant: nothing here knows more than the chart's own values, but for what the chart has no field
for: the RuntimeClass and the command.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from kompakt.localcluster.api import CONFLICT, CREATED, Client, condition
from kompakt.localcluster.errors import LocalClusterError
from kompakt.localcluster.process import run
from kompakt.localcluster.settings import GATEWAY_NAME, GATEWAY_NAMESPACE, GATEWAY_PORT

NAMESPACE = "envoy-gateway-system"
MANIFESTS = Path(__file__).parent / "manifests"
PROGRAM = "/opt/kompakt/gateway/envoy-gateway"


def render(chart: Path, helm: str) -> str:
    """The manifests of the controller, without its CRDs."""
    values = (chart / "values.tmpl.yaml", MANIFESTS / "gateway-values.yaml")
    argv = [helm, "template", "eg", str(chart), "--namespace", NAMESPACE]
    for file in values:
        argv += ["--values", str(file)]
    rendered = run(argv, what="render Envoy Gateway's chart")
    return yaml.safe_dump_all(list(adapt(yaml.safe_load_all(rendered))))


def adapt(documents: Iterator[dict[str, Any] | None]) -> Iterator[dict[str, Any]]:
    """Gives every pod the host's programs, and leaves out hooks: `make_certificates` does their
    work.
    """
    for document in documents:
        if document is None or "helm.sh/hook" in document["metadata"].get("annotations", {}):
            continue
        if document["kind"] == "Deployment":
            pod = document["spec"]["template"]["spec"]
            pod["runtimeClassName"] = "host-userland"
            pod["containers"][0]["command"] = [PROGRAM]
        yield document


def namespace() -> str:
    """The namespace of controller and proxies."""
    metadata = {
        "name": NAMESPACE,
        "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
    }
    return yaml.safe_dump({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})


def make_certificates(build: Path, kubeconfig: Path) -> None:
    """Makes the certificates between controller and proxies.

    The chart has a Job for it. Run from here it needs no node, and the controller's pod does not
    start before its secret exists, which would cost it seconds of back-off.
    """
    run(
        [str(build / "envoy-gateway"), "certgen", "--disable-topology-injector"],
        what="make the gateway's certificates",
        env={
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            "ENVOY_GATEWAY_NAMESPACE": NAMESPACE,
            "KUBERNETES_CLUSTER_DOMAIN": "cluster.local",
        },
    )


def create_kinds(client: Client, crds: Path) -> None:
    """Makes the CRDs; one that is there stays as it is.

    Not by `kubectl apply`: to track who owns each of their many thousand fields takes the API
    server more time than all the rest of the start.
    """
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

    def create(file: Path) -> None:
        status, body = client.create(path, file.read_bytes())
        if status not in {CREATED, CONFLICT}:
            raise LocalClusterError(
                "KindRefused",
                f"the API server refuses {file.stem}: {body.decode(errors='replace')[:300]}",
                remedy="run down, remove the build that holds it from the cache, and run up again",
            )

    with ThreadPoolExecutor() as pool:
        list(pool.map(create, sorted(crds.glob("*.json"))))


def kinds_served(client: Client) -> bool:
    """Whether objects of the gateway's kinds can be made: a new CRD takes a moment."""
    groups = (
        "gateway.envoyproxy.io/v1alpha1/envoyproxies",
        "gateway.networking.k8s.io/v1/gateways",
    )
    return all(client.read(f"/apis/{kind}") is not None for kind in groups)


def address(client: Client) -> str | None:
    """Where the Gateway answers, as `address:port`; None until it is programmed."""
    path = f"/apis/gateway.networking.k8s.io/v1/namespaces/{GATEWAY_NAMESPACE}/gateways"
    found = client.read(f"{path}/{GATEWAY_NAME}")
    if found is None or not condition(found, "Programmed"):
        return None
    return f"{found['status']['addresses'][0]['value']}:{GATEWAY_PORT}"
