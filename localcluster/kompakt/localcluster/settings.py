# SPDX-License-Identifier: Apache-2.0
"""Where everything of the local cluster is: folders, addresses, ports, nodes.

Invariants: no other module names a port, an address or a folder; every value is fixed before the
first process starts, so that `down` finds what `up` made.
"""

import ipaddress
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kompakt.localcluster.errors import LocalClusterError

SOCKET_PATH_LIMIT = 107
"""Bytes of a Unix socket's path (sun_path has 108, with the closing zero)."""

IMAGE = "localhost/kompakt:dev"
MARK = "KOMPAKT_LOCALCLUSTER_MARK"
"""Environment variable of every process that the launcher starts: how `down` knows its own."""

BRIDGE = "kompakt0"
NFT_TABLE = "kompakt"
CGROUP = "kompakt"
POD_CIDR = ipaddress.IPv4Network("10.88.0.0/16")
SERVICE_CIDR = ipaddress.IPv4Network("10.96.0.0/16")
CONTROL_PLANE_ADDRESS = "10.88.0.1"
FIRST_POD_ADDRESS = "10.88.1.1"
KUBERNETES_SERVICE_ADDRESS = "10.96.0.1"
DNS_ADDRESS = "10.96.0.10"

API_PORT = 16443
CONTROLLER_MANAGER_PORT = 16257
SCHEDULER_PORT = 16259
PROXY_METRICS_PORT = 16249
PROXY_HEALTH_PORT = 16256

GATEWAY_CLASS = "envoy"
GATEWAY_NAMESPACE = "gateways"
GATEWAY_NAME = "public"
GATEWAY_PORT = 8000


@dataclass(frozen=True)
class Node:
    """One node: a kubelet and a containerd of its own, because a kubelet removes containers that it
    does not know.
    """

    name: str
    pool: str
    address: str
    kubelet_port: int
    health_port: int
    tainted: bool = False


NODES = (
    Node(
        name="cpu-0",
        pool="cpu",
        address=CONTROL_PLANE_ADDRESS,
        kubelet_port=16250,
        health_port=16350,
    ),
    Node(
        name="edge-0",
        pool="edge",
        address="10.88.0.2",
        kubelet_port=16251,
        health_port=16351,
        tainted=True,
    ),
)

PORTS = {
    "kube-apiserver": API_PORT,
    "kube-controller-manager": CONTROLLER_MANAGER_PORT,
    "kube-scheduler": SCHEDULER_PORT,
    "kube-proxy's metrics": PROXY_METRICS_PORT,
    "kube-proxy's health": PROXY_HEALTH_PORT,
    **{f"the kubelet of {node.name}": node.kubelet_port for node in NODES},
    **{f"the health of {node.name}": node.health_port for node in NODES},
}


@dataclass(frozen=True)
class Settings:
    """What differs between machines and checkouts.

    Attributes:
        state: folder of the running cluster; removed by `down`.
        run: folder of the machine-wide lock, and of the link to the state of the running cluster.
        cache: folder of what is built once; outside any checkout.
        checkout: the source tree that pods see.
        venv: the virtual environment that pods see.
        interpreter: the installation that the virtual environment's `python` is a link to.
    """

    state: Path
    run: Path
    cache: Path
    checkout: Path
    venv: Path
    interpreter: Path

    def __post_init__(self) -> None:
        longest = max(len(os.fsencode(self.containerd_socket(node))) for node in NODES)
        # containerd adds a service of its own beside the socket that it is told.
        longest += len(".ttrpc")
        if longest > SOCKET_PATH_LIMIT:
            raise LocalClusterError(
                "StatePathTooLong",
                "KOMPAKT_LOCALCLUSTER_STATE is too long: a socket in it would have a path of "
                f"{longest} bytes, and Linux allows {SOCKET_PATH_LIMIT}",
                remedy=f"name a folder that is {longest - SOCKET_PATH_LIMIT} bytes shorter",
            )

    @property
    def lease(self) -> Path:
        return self.state / "cluster.json"

    @property
    def lock(self) -> Path:
        return self.run / "localcluster.lock"

    @property
    def pointer(self) -> Path:
        """A link to the state folder of the one cluster of this machine."""
        return self.run / "localcluster"

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def logs(self) -> Path:
        return self.state / "log"

    @property
    def kubeconfig(self) -> Path:
        return self.state / "admin.kubeconfig"

    @property
    def volumes(self) -> Path:
        return self.state / "volumes"

    def node(self, node: Node) -> Path:
        return self.state / node.name

    def containerd_socket(self, node: Node) -> Path:
        return self.node(node) / "containerd.sock"


def from_environment(environment: Mapping[str, str] = os.environ) -> Settings:
    """Reads the settings from the environment and from the running interpreter."""
    cache = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    state = environment.get("KOMPAKT_LOCALCLUSTER_STATE") or "/var/lib/kompakt/localcluster"
    return Settings(
        state=Path(state).absolute(),
        run=Path("/run/kompakt"),
        cache=cache.absolute() / "kompakt",
        checkout=Path(__file__).resolve().parents[3],
        venv=Path(sys.prefix),
        interpreter=Path(sys.base_prefix).resolve(),
    )
