# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from kompakt.localcluster import gateway, network, pki, render, teardown
from kompakt.localcluster.settings import NODES, PORTS, Node, Settings

BIN = Path("/cache/bin")
CPU, EDGE = NODES


def kubelet(settings: Settings, node: Node) -> dict[str, Any]:
    """A kubelet's configuration, as the kubelet reads it."""
    found: dict[str, Any] = yaml.safe_load(render.kubelet_configuration(settings, node))
    return found


def test_nodes_share_nothing_but_the_machine(settings: Settings) -> None:
    """Ports, sockets, folders and control groups of two kubelets are different."""
    one, two = kubelet(settings, CPU), kubelet(settings, EDGE)
    for field in ("port", "healthzPort", "address", "cgroupRoot", "podLogsDir"):
        assert one[field] != two[field]
    assert one["containerRuntimeEndpoint"] != two["containerRuntimeEndpoint"]
    assert len(set(PORTS.values())) == len(PORTS)


def test_only_the_edge_is_tainted(settings: Settings) -> None:
    """Nothing runs there by accident."""
    assert kubelet(settings, CPU)["registerWithTaints"] == []
    assert kubelet(settings, EDGE)["registerWithTaints"] == [
        {"key": "kompakt.dev/pool", "value": "edge", "effect": "NoSchedule"}
    ]
    assert "--node-labels=kompakt.dev/pool=edge" in render.kubelet(settings, EDGE, BIN).argv


def test_no_configuration_looks_like_json(settings: Settings) -> None:
    """Kubelet and kube-proxy would parse it as such."""
    texts = [
        render.kubelet_configuration(settings, CPU),
        render.proxy_configuration(settings, node=CPU),
        render.scheduler_configuration(settings),
    ]
    assert all(text.startswith("apiVersion: ") for text in texts)


def test_containerd_writes_into_its_nodes_folder_only(settings: Settings) -> None:
    """What is outside of it, `down` would have to know by heart."""
    found = tomllib.loads(render.containerd_configuration(settings, EDGE))
    folder = str(settings.node(EDGE))
    cri = found["plugins"]["io.containerd.grpc.v1.cri"]
    runtimes = cri["containerd"]["runtimes"]
    for path in (
        found["root"],
        found["state"],
        found["grpc"]["address"],
        *(runtime["options"]["Root"] for runtime in runtimes.values()),
    ):
        assert path.startswith(f"{folder}/")
    assert cri["netns_mounts_under_state_dir"]
    assert "base_runtime_spec" not in runtimes["runc"]
    assert runtimes["host-userland"]["base_runtime_spec"].endswith("host-userland.json")


def test_the_database_is_behind_a_socket(settings: Settings) -> None:
    """Whoever can write to etcd owns the machine: no port, and no other user, leads to it."""
    argv = " ".join(render.etcd(settings, BIN).argv)
    assert "http" not in argv
    assert "unix://" in argv
    assert f"--etcd-servers={render.ETCD}" in render.apiserver(settings, BIN).argv


def test_pods_see_the_host_read_only(settings: Settings) -> None:
    """Every mount is read-only; the interpreter lies where the environment's link points."""
    mounts = render.host_mounts(
        settings, controlplane=BIN, envoy_gateway=BIN / "envoy-gateway", envoy=Path("/e/envoy")
    )
    targets = {target: source for source, target in mounts}
    assert targets["/opt/kompakt/src"] == settings.checkout
    assert targets["/opt/kompakt/venv"] == settings.venv
    assert targets["/opt/python"] == settings.interpreter
    assert targets["/lib"] == Path("/lib").resolve()
    spec = json.loads(render.host_userland('{"mounts": [{"destination": "/proc"}]}', mounts))
    assert spec["mounts"][0] == {"destination": "/proc"}
    assert all("ro" in mount["options"] for mount in spec["mounts"][1:])


def test_a_kubeconfig_names_its_own_identity(settings: Settings) -> None:
    """Each component authenticates as itself, by files in the state folder."""
    found = yaml.safe_load(pki.kubeconfig("edge-0", settings.pki))
    assert found["users"][0]["user"]["client-key"] == "/nowhere/state/pki/edge-0.key"
    assert found["clusters"][0]["cluster"]["server"] == "https://10.88.0.1:16443"
    subjects = {identity.name: identity.subject for identity in pki.IDENTITIES}
    assert subjects["edge-0"] == "/O=system:nodes/CN=system:node:edge-0"
    assert set(pki.KUBECONFIGS) <= set(subjects)


def test_pod_addresses_are_not_the_nodes(settings: Settings) -> None:
    """The range for pods begins behind the addresses of the nodes."""
    found = json.loads(render.network_configuration(settings))
    start = found["plugins"][0]["ipam"]["ranges"][0][0]["rangeStart"]
    assert start not in {node.address for node in NODES}
    assert [plugin["type"] for plugin in found["plugins"]] == ["bridge", "bandwidth"]


def test_masquerading_spares_the_clusters_own_traffic() -> None:
    """A pod sees the address of another pod, and the world sees the machine's."""
    rules = network.masquerade_rules()
    assert "ip saddr 10.88.0.0/16 ip daddr != { 10.88.0.0/16, 10.96.0.0/16 } masquerade" in rules
    assert rules.startswith("table ip kompakt\ndelete table ip kompakt\n")


def test_the_charts_pods_run_the_hosts_program() -> None:
    """The Deployment gets class and command; the hook, whose work is done elsewhere, is left
    out.
    """
    deployment = {
        "kind": "Deployment",
        "metadata": {"name": "envoy-gateway"},
        "spec": {"template": {"spec": {"containers": [{"name": "envoy-gateway"}]}}},
    }
    job = {"kind": "Job", "metadata": {"annotations": {"helm.sh/hook": "pre-install"}}}
    service = {"kind": "Service", "metadata": {"name": "envoy-gateway"}}
    found = list(gateway.adapt(iter([job, None, deployment, service])))
    assert [document["kind"] for document in found] == ["Deployment", "Service"]
    pod = found[0]["spec"]["template"]["spec"]
    assert pod["runtimeClassName"] == "host-userland"
    assert pod["containers"][0]["command"] == ["/opt/kompakt/gateway/envoy-gateway"]


@pytest.mark.parametrize("name", ["base.yaml", "gateway.yaml", "gateway-values.yaml"])
def test_manifests_use_the_image_of_the_cluster(name: str) -> None:
    """No manifest names an image that would have to be pulled."""
    text = (gateway.MANIFESTS / name).read_text()
    images = {line.split("image:")[1] for line in text.splitlines() if "image:" in line}
    assert all("localhost/kompakt:dev" in image for image in images)


def test_mounts_are_found_innermost_first() -> None:
    """Only what is below the folder, with the kernel's escapes undone."""
    text = """\
22 1 8:1 / / rw - ext4 /dev/vda rw
60 22 0:50 / /s/state/edge-0/run/a rw - tmpfs tmpfs rw
61 60 0:51 / /s/state/edge-0/run/a/with\\040space rw - tmpfs tmpfs rw
62 22 0:52 / /s/state-of-another/x rw - tmpfs tmpfs rw
"""
    assert teardown.mounts_below(Path("/s/state"), text) == [
        "/s/state/edge-0/run/a/with space",
        "/s/state/edge-0/run/a",
    ]


@pytest.mark.parametrize(
    ("machine", "pods"),
    [
        ("search lan\nnameserver 192.0.2.53\nnameserver 127.0.0.1\n", "nameserver 192.0.2.53\n"),
        ("nameserver 127.0.0.53\noptions edns0\n", "nameserver 10.88.0.1\n"),
        ("", "nameserver 10.88.0.1\n"),
    ],
    ids=["one of two", "a local stub only", "none"],
)
def test_pods_never_ask_their_own_loopback(machine: str, pods: str) -> None:
    """The machine's loopback is not the pod's; without a server, names fail at once."""
    assert network.resolver(machine) == pods
