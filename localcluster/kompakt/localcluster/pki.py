# SPDX-License-Identifier: Apache-2.0
"""The certificate authority of one cluster, its certificates, and kubeconfigs that use them.

Every component has an identity of its own, as Kubernetes' default roles expect; everything lies in
the state folder, which only root can read, and goes with it.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kompakt.localcluster.process import run
from kompakt.localcluster.settings import (
    API_PORT,
    CONTROL_PLANE_ADDRESS,
    KUBERNETES_SERVICE_ADDRESS,
    NODES,
    Settings,
)

DAYS = "365"
EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Identity:
    """A certificate: who it is to Kubernetes, and the names under which it may serve."""

    name: str
    subject: str
    serves: tuple[str, ...] = ()


IDENTITIES = (
    Identity(
        "apiserver",
        "/CN=kube-apiserver",
        (
            f"IP:{CONTROL_PLANE_ADDRESS}",
            f"IP:{KUBERNETES_SERVICE_ADDRESS}",
            "IP:127.0.0.1",
            "DNS:localhost",
            "DNS:kubernetes",
            "DNS:kubernetes.default",
            "DNS:kubernetes.default.svc",
            "DNS:kubernetes.default.svc.cluster.local",
        ),
    ),
    Identity("apiserver-kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client"),
    Identity("admin", "/O=system:masters/CN=kubernetes-admin"),
    Identity("controller-manager", "/CN=system:kube-controller-manager"),
    Identity("scheduler", "/CN=system:kube-scheduler"),
    Identity("proxy", "/CN=system:kube-proxy"),
    *(
        Identity(node.name, f"/O=system:nodes/CN=system:node:{node.name}", (f"IP:{node.address}",))
        for node in NODES
    ),
)
KUBECONFIGS = ("admin", "controller-manager", "scheduler", "proxy", *(node.name for node in NODES))


def create(settings: Settings) -> None:
    """Writes authority, certificates, keys and kubeconfigs."""
    pki = settings.pki
    pki.mkdir(mode=0o700)
    _openssl("req", "-x509", *EC, "-keyout", pki / "ca.key", "-out", pki / "ca.crt", "-days", DAYS,
             "-subj", "/CN=kompakt-localcluster")  # fmt: skip
    with ThreadPoolExecutor() as pool:
        signing_key = pool.submit(_signing_key, pki)
        list(pool.map(lambda identity: _certificate(pki, identity), IDENTITIES))
        signing_key.result()
    for name in KUBECONFIGS:
        path = settings.state / f"{name}.kubeconfig"
        path.touch(mode=0o600)
        path.write_text(kubeconfig(name, pki))


def kubeconfig(name: str, pki: Path) -> str:
    """A kubeconfig, as JSON (which is YAML), that authenticates as the identity `name`."""
    cluster = {
        "server": f"https://{CONTROL_PLANE_ADDRESS}:{API_PORT}",
        "certificate-authority": str(pki / "ca.crt"),
    }
    user = {
        "client-certificate": str(pki / f"{name}.crt"),
        "client-key": str(pki / f"{name}.key"),
    }
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "kompakt-local",
        "contexts": [
            {"name": "kompakt-local", "context": {"cluster": "kompakt-local", "user": name}}
        ],
        "clusters": [{"name": "kompakt-local", "cluster": cluster}],
        "users": [{"name": name, "user": user}],
    }
    return json.dumps(document, indent=1)


def _signing_key(pki: Path) -> None:
    key, public = pki / "service-accounts.key", pki / "service-accounts.pub"
    _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
    _openssl("ec", "-in", key, "-pubout", "-out", public)


def _certificate(pki: Path, identity: Identity) -> None:
    extensions = ["-addext", "extendedKeyUsage=serverAuth,clientAuth"]
    extensions += ["-addext", "basicConstraints=critical,CA:FALSE"]
    if identity.serves:
        extensions += ["-addext", f"subjectAltName={','.join(identity.serves)}"]
    key, certificate = pki / f"{identity.name}.key", pki / f"{identity.name}.crt"
    _openssl("req", "-x509", *EC, "-keyout", key, "-out", certificate, "-days", DAYS,
             "-subj", identity.subject, "-CA", pki / "ca.crt", "-CAkey", pki / "ca.key",
             *extensions)  # fmt: skip


def _openssl(*argv: str | Path) -> None:
    run(["openssl", *map(str, argv)], what="make the cluster's certificates")
