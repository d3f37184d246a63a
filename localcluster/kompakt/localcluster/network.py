# SPDX-License-Identifier: Apache-2.0
"""The cluster's network on this machine: a bridge, a route for Services, and masquerading.

Invariants: the service range is routed to the bridge before anything can send to a ClusterIP, or
the packet would leave by the default route before kube-proxy sees it; every kernel setting that the
cluster changes is read first, and given back by `down`; all firewall rules lie in tables of their
own, but for two that let pods through where Docker lets nothing through.
"""

import contextlib
import ipaddress
import json
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kompakt.localcluster.errors import OTHER_CLUSTER, LocalClusterError
from kompakt.localcluster.process import run
from kompakt.localcluster.settings import (
    BRIDGE,
    CONTROL_PLANE_ADDRESS,
    NFT_TABLE,
    NODES,
    POD_CIDR,
    SERVICE_CIDR,
)

SYSCTL = Path("/proc/sys")
OURS = {
    "net/ipv4/ip_forward": "1",
    # An answer between two pods would bypass kube-proxy's translation without this.
    "net/bridge/bridge-nf-call-iptables": "1",
}
KUBELETS = (
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "vm/overcommit_memory",
)
"""Settings that a kubelet changes by itself."""

KUBE_PROXY_TABLES = (("ip", "kube-proxy"), ("ip6", "kube-proxy"))
FORWARD_RULES = (("-s", str(POD_CIDR)), ("-d", str(POD_CIDR)))


def kernel_settings() -> dict[str, str]:
    """The present value of every kernel setting that the cluster changes."""
    _load_bridge_filter()
    found = {}
    for name in (*OURS, *KUBELETS):
        with contextlib.suppress(FileNotFoundError):
            found[name] = (SYSCTL / name).read_text().strip()
    return found


def restore(saved: dict[str, str]) -> None:
    """Gives the kernel settings back."""
    for name, value in saved.items():
        path = SYSCTL / name
        with contextlib.suppress(FileNotFoundError):
            if path.read_text().strip() != value:
                path.write_text(value)


def check_free(routes: Iterable[dict[str, Any]] | None = None) -> None:
    """Refuses a machine on which something else uses the cluster's addresses."""
    if routes is None:
        routes = json.loads(run(["ip", "-json", "-4", "route"], what="read the routes"))
    for route in routes:
        destination = route["dst"]
        if destination == "default" or route.get("dev") == BRIDGE:
            continue
        network = ipaddress.IPv4Network(destination, strict=False)
        for ours in (POD_CIDR, SERVICE_CIDR):
            if network.overlaps(ours):
                raise LocalClusterError(
                    "AddressesTaken",
                    f"this machine routes {destination} to {route.get('dev', 'a gateway')}, "
                    f"and the local cluster needs {ours}",
                    remedy=f"remove that network, {OTHER_CLUSTER}",
                )


def create() -> None:
    """Makes bridge, addresses, route and rules; what is there already stays."""
    _load_bridge_filter()
    for name, value in OURS.items():
        path = SYSCTL / name
        if not path.exists():
            raise LocalClusterError(
                "KernelModuleMissing",
                f"this kernel has no setting {name.replace('/', '.')}",
                remedy=f"load its module (modprobe br_netfilter), {OTHER_CLUSTER}",
            )
        if path.read_text().strip() != value:
            path.write_text(value)
    if not Path("/sys/class/net", BRIDGE).exists():
        run(["ip", "link", "add", BRIDGE, "type", "bridge"], what="make the bridge")
    for node in NODES:
        address = f"{node.address}/{POD_CIDR.prefixlen}"
        run(["ip", "address", "replace", address, "dev", BRIDGE], what="give the nodes addresses")
    run(["ip", "link", "set", BRIDGE, "up"], what="start the bridge")
    run(["ip", "route", "replace", str(SERVICE_CIDR), "dev", BRIDGE], what="route the Services")
    run(["nft", "-f", "-"], what="let pods reach other machines", stdin=masquerade_rules())
    _accept_forwarding()


def resolver(configuration: str) -> str:
    """The machine's resolv.conf as pods can use it: its own loopback would be the pod's.

    Without any other name server it names the bridge, where nothing listens: a name of the outside
    then fails at once, and not after a time limit.
    """
    servers = [
        words[1]
        for words in map(str.split, configuration.splitlines())
        if len(words) > 1
        and words[0] == "nameserver"
        and not ipaddress.ip_address(words[1]).is_loopback
    ]
    return "".join(f"nameserver {server}\n" for server in servers or [CONTROL_PLANE_ADDRESS])


def host_resolver() -> str:
    """What this machine asks for names; behind systemd-resolved, what that asks."""
    for path in (Path("/run/systemd/resolve/resolv.conf"), Path("/etc/resolv.conf")):
        if path.exists():
            return path.read_text()
    return ""


def masquerade_rules() -> str:
    """Pods reach other machines under this one's address; the table is replaced as a whole."""
    return f"""\
table ip {NFT_TABLE}
delete table ip {NFT_TABLE}
table ip {NFT_TABLE} {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {POD_CIDR} ip daddr != {{ {POD_CIDR}, {SERVICE_CIDR} }} masquerade
  }}
}}
"""


def remove() -> None:
    """Takes away what `create` and kube-proxy made; the pods' interfaces went with the pods."""
    for family, table in ((("ip", NFT_TABLE)), *KUBE_PROXY_TABLES):
        _quiet("nft", "delete", "table", family, table)
    for rule in FORWARD_RULES:
        while _quiet("iptables", "-w", "-D", "FORWARD", *rule, "-j", "ACCEPT"):
            pass
    _quiet("ip", "route", "del", str(SERVICE_CIDR), "dev", BRIDGE)
    _quiet("ip", "link", "del", BRIDGE)


def missing() -> bool:
    """Whether the bridge or the route to the Services is gone."""
    return f"{SERVICE_CIDR} dev {BRIDGE}" not in run(["ip", "route"], what="read the routes")


def leftovers() -> list[str]:
    """What of the cluster's network is still there."""
    left = []
    for family, table in (("ip", NFT_TABLE), *KUBE_PROXY_TABLES):
        if _quiet("nft", "list", "table", family, table):
            left.append(f"table {family} {table}")
    if Path("/sys/class/net", BRIDGE).exists():
        left.append(f"bridge {BRIDGE}")
    return left


def _accept_forwarding() -> None:
    """Docker sets the policy of FORWARD to DROP, which would hold for pods too."""
    if shutil.which("iptables") is None or "-P FORWARD DROP" not in run(
        ["iptables", "-w", "-S", "FORWARD"], what="read the firewall"
    ):
        return
    for rule in FORWARD_RULES:
        if not _quiet("iptables", "-w", "-C", "FORWARD", *rule, "-j", "ACCEPT"):
            accept = ["iptables", "-w", "-I", "FORWARD", *rule, "-j", "ACCEPT"]
            run(accept, what="let pods through the firewall")


def _load_bridge_filter() -> None:
    if not (SYSCTL / "net/bridge").exists():
        _quiet("modprobe", "br_netfilter")


def _quiet(*argv: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0
    return False
