# SPDX-License-Identifier: Apache-2.0
"""Envoy Gateway, as ordinary pods: its chart, rendered and changed for pods without images.

Invariant: nothing here knows more than the chart's own values, but for what the chart has no field for:
the RuntimeClass and the command.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from kompakt.localcluster.api import Client, condition
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
    """Puts the namespace first, and gives every pod the host's programs."""
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"name": NAMESPACE, "labels": restricted}
    yield {"apiVersion": "v1", "kind": "Namespace", "metadata": namespace}
    for document in documents:
        if document is None:
            continue
        if document["kind"] in {"Deployment", "Job"}:
            pod = document["spec"]["template"]["spec"]
            container = pod["containers"][0]
            certgen = document["kind"] == "Job"
            pod["runtimeClassName"] = "host-userland"
            container["command"] = [PROGRAM, "certgen"] if certgen else [PROGRAM]
        yield document


def address(client: Client) -> str | None:
    """Where the Gateway answers, as `address:port`; None until it is programmed."""
    path = f"/apis/gateway.networking.k8s.io/v1/namespaces/{GATEWAY_NAMESPACE}/gateways"
    found = client.read(f"{path}/{GATEWAY_NAME}")
    if found is None or not condition(found, "Programmed"):
        return None
    return f"{found['status']['addresses'][0]['value']}:{GATEWAY_PORT}"
