# SPDX-License-Identifier: Apache-2.0
"""The configuration and the command line of every component, as pure functions of the settings."""

import json
from pathlib import Path
from typing import Any

import yaml

from kompakt.localcluster.process import Command
from kompakt.localcluster.settings import (
    API_PORT,
    BRIDGE,
    CGROUP,
    CONTROL_PLANE_ADDRESS,
    CONTROLLER_MANAGER_PORT,
    DNS_ADDRESS,
    FIRST_POD_ADDRESS,
    IMAGE,
    POD_CIDR,
    PROXY_HEALTH_PORT,
    PROXY_METRICS_PORT,
    SCHEDULER_PORT,
    SERVICE_CIDR,
    Node,
    Settings,
)

ISSUER = "https://kubernetes.default.svc.cluster.local"
ETCD = "unix://etcd:0"
"""A socket in the state folder, where every process starts; etcd wants the form of a host and a
port.
"""

POOL_LABEL = "kompakt.dev/pool"


def etcd(settings: Settings, binaries: Path) -> Command:
    """The database; reachable through a socket in the state folder, so only by root."""
    peer = "unix://etcd-peer:0"
    return _command(
        "etcd",
        binaries / "etcd",
        {
            "data-dir": settings.state / "etcd",
            # The cluster goes with its state folder: nothing has to survive a power failure.
            "unsafe-no-fsync": "true",
            "listen-client-urls": ETCD,
            "advertise-client-urls": ETCD,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
        },
    )


def apiserver(settings: Settings, binaries: Path) -> Command:
    """The API server; it listens on the bridge alone, which no other machine reaches."""
    pki = settings.pki
    return _command(
        "kube-apiserver",
        binaries / "kube-apiserver",
        {
            "etcd-servers": ETCD,
            "bind-address": CONTROL_PLANE_ADDRESS,
            "advertise-address": CONTROL_PLANE_ADDRESS,
            "secure-port": API_PORT,
            "tls-cert-file": pki / "apiserver.crt",
            "tls-private-key-file": pki / "apiserver.key",
            "client-ca-file": pki / "ca.crt",
            "service-account-issuer": ISSUER,
            "service-account-key-file": pki / "service-accounts.pub",
            "service-account-signing-key-file": pki / "service-accounts.key",
            "service-cluster-ip-range": SERVICE_CIDR,
            "authorization-mode": "Node,RBAC",
            "enable-admission-plugins": "NodeRestriction",
            "allow-privileged": "true",
            "kubelet-certificate-authority": pki / "ca.crt",
            "kubelet-client-certificate": pki / "apiserver-kubelet-client.crt",
            "kubelet-client-key": pki / "apiserver-kubelet-client.key",
            "kubelet-preferred-address-types": "InternalIP",
            "profiling": "false",
        },
    )


def controller_manager(settings: Settings, binaries: Path) -> Command:
    """The controllers of Kubernetes itself."""
    return _command(
        "kube-controller-manager",
        binaries / "kube-controller-manager",
        {
            "kubeconfig": settings.state / "controller-manager.kubeconfig",
            "bind-address": "127.0.0.1",
            "secure-port": CONTROLLER_MANAGER_PORT,
            "service-account-private-key-file": settings.pki / "service-accounts.key",
            "root-ca-file": settings.pki / "ca.crt",
            "use-service-account-credentials": "true",
            "leader-elect": "false",
            "flex-volume-plugin-dir": settings.state / "volume-plugins",
            # A node's first heartbeat takes off its taint at the next look: by default 5 s later.
            "node-monitor-period": "1s",
            "kube-api-qps": 200,
            "kube-api-burst": 400,
            "profiling": "false",
        },
    )


def scheduler(settings: Settings, binaries: Path) -> Command:
    """The scheduler."""
    return _command(
        "kube-scheduler",
        binaries / "kube-scheduler",
        {
            "config": settings.state / "scheduler.yaml",
            "bind-address": "127.0.0.1",
            "secure-port": SCHEDULER_PORT,
        },
    )


def scheduler_configuration(settings: Settings) -> str:
    """The scheduler's configuration."""
    return _yaml(
        {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "clientConnection": {
                "kubeconfig": str(settings.state / "scheduler.kubeconfig"),
                "qps": 200,
                "burst": 400,
            },
            "leaderElection": {"leaderElect": False},
            "enableProfiling": False,
        }
    )


def storage_provisioner(settings: Settings, binaries: Path) -> Command:
    """What makes a PersistentVolume for a claim of the StorageClass `local`."""
    return _command(
        "storage-provisioner",
        binaries / "storage-provisioner",
        {"kubeconfig": settings.kubeconfig, "root": settings.volumes},
    )


def proxy(settings: Settings, binaries: Path) -> Command:
    """What makes a Service's address lead to its pods."""
    return _command(
        "kube-proxy", binaries / "kube-proxy", {"config": settings.state / "kube-proxy.yaml"}
    )


def proxy_configuration(settings: Settings, *, node: Node) -> str:
    """One kube-proxy serves both nodes: they share the machine's network."""
    return _yaml(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clusterCIDR": str(POD_CIDR),
            "clientConnection": {
                "kubeconfig": str(settings.state / "proxy.kubeconfig"),
                "qps": 100,
                "burst": 200,
            },
            "hostnameOverride": node.name,
            "healthzBindAddress": f"127.0.0.1:{PROXY_HEALTH_PORT}",
            "metricsBindAddress": f"127.0.0.1:{PROXY_METRICS_PORT}",
            # How soon an endpoint that goes is out of the rules; by default 1 s.
            "nftables": {"minSyncPeriod": "100ms"},
            # The machine's own limits stay as they are.
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
        }
    )


def containerd(settings: Settings, node: Node, containerd_binary: str) -> Command:
    """A node's container runtime."""
    argv = (containerd_binary, "--config", str(settings.node(node) / "containerd.toml"))
    return Command(name=f"{node.name}-containerd", argv=argv)


def containerd_configuration(settings: Settings, node: Node) -> str:
    """The container runtime's configuration; everything that it and runc write lies in the node's
    folder.
    """
    folder = settings.node(node)
    # JSON's strings and lists are TOML's.
    quoted = {
        name: json.dumps(str(value))
        for name, value in {
            "root": folder / "images",
            "run": folder / "run",
            "runc": folder / "runc",
            "socket": settings.containerd_socket(node),
            "cni": settings.state / "cni",
            "spec": settings.state / "host-userland.json",
            "image": IMAGE,
        }.items()
    }
    runtimes = ""
    for handler in ("runc", "host-userland"):
        table = f'[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{handler}]'
        options = table.replace("]", ".options]")
        spec = f"base_runtime_spec = {quoted['spec']}\n" if handler == "host-userland" else ""
        runtimes += (
            f'{table}\nruntime_type = "io.containerd.runc.v2"\n{spec}'
            f"{options}\nRoot = {quoted['runc']}\n"
        )
    return f"""\
version = 2
root = {quoted["root"]}
state = {quoted["run"]}
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
address = {quoted["socket"]}
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = {quoted["image"]}
# A root without CAP_SYS_RESOURCE cannot lower its OOM score, and runc then fails on every sandbox.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = {quoted["cni"]}
{runtimes}"""


def kubelet(settings: Settings, node: Node, binaries: Path) -> Command:
    """A node's kubelet."""
    folder = settings.node(node)
    command = _command(
        "kubelet",
        binaries / "kubelet",
        {
            "config": folder / "kubelet.yaml",
            "kubeconfig": settings.state / f"{node.name}.kubeconfig",
            "root-dir": folder / "kubelet",
            "cert-dir": folder / "kubelet-pki",
            "hostname-override": node.name,
            "node-ip": node.address,
            "node-labels": f"{POOL_LABEL}={node.pool}",
        },
    )
    return Command(name=f"{node.name}-kubelet", argv=command.argv)


def kubelet_configuration(settings: Settings, node: Node) -> str:
    """The configuration of a node's kubelet."""
    folder = settings.node(node)
    taint = {"key": POOL_LABEL, "value": node.pool, "effect": "NoSchedule"}
    return _yaml(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": False,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{CGROUP}/{node.name}",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(settings.pki / "ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(settings.pki / f"{node.name}.crt"),
            "tlsPrivateKeyFile": str(settings.pki / f"{node.name}.key"),
            "containerRuntimeEndpoint": f"unix://{settings.containerd_socket(node)}",
            "clusterDNS": [DNS_ADDRESS],
            "clusterDomain": "cluster.local",
            "resolvConf": str(settings.state / "resolv.conf"),
            "address": node.address,
            "port": node.kubelet_port,
            "healthzBindAddress": "127.0.0.1",
            "healthzPort": node.health_port,
            "podLogsDir": str(folder / "pod-logs"),
            "volumePluginDir": str(settings.state / "volume-plugins"),
            "registerWithTaints": [taint] if node.tainted else [],
            # Only kube-proxy's other modes need them, and nobody would remove them.
            "makeIPTablesUtilChains": False,
            "failSwapOn": False,
            # The image is imported, never pulled: nothing may collect it.
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            # The disk is the user's own: how full it is, is no reason to evict a pod.
            "evictionHard": {
                "memory.available": "100Mi",
                "nodefs.available": "0%",
                "imagefs.available": "0%",
            },
            "localStorageCapacityIsolation": False,
            "kubeAPIQPS": 200,
            "kubeAPIBurst": 400,
            "eventRecordQPS": 100,
            "eventBurst": 200,
            "nodeStatusUpdateFrequency": "5s",
            "syncFrequency": "20s",
            "serializeImagePulls": False,
        }
    )


def network_configuration(settings: Settings) -> str:
    """The CNI configuration: a bridge, addresses of one range for both nodes, bandwidth limits."""
    ipam = {
        "type": "host-local",
        "dataDir": str(settings.state / "addresses"),
        "ranges": [[{"subnet": str(POD_CIDR), "rangeStart": FIRST_POD_ADDRESS}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        "hairpinMode": True,
        "ipam": ipam,
    }
    bandwidth = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
    return json.dumps({"cniVersion": "1.0.0", "name": "kompakt", "plugins": [bridge, bandwidth]})


def host_userland(default_spec: str, mounts: list[tuple[Path, str]]) -> str:
    """The OCI spec of every container of the RuntimeClass `host-userland`: containerd's default,
    and the host's programs, read-only.

    Args:
        default_spec: what `ctr oci spec` prints.
        mounts: what to show, and where.
    """
    spec: dict[str, Any] = json.loads(default_spec)
    spec["mounts"] += [
        {
            "source": str(source),
            "destination": destination,
            "type": "bind",
            "options": ["rbind", "ro", "nosuid"],
        }
        for source, destination in mounts
    ]
    return json.dumps(spec)


def host_mounts(
    settings: Settings, *, controlplane: Path, envoy_gateway: Path, envoy: Path
) -> list[tuple[Path, str]]:
    """What the pods see of this machine."""
    # On Debian /lib, /lib64 and /bin are links into /usr; a bind mount follows them.
    system = [Path(name) for name in ("/usr", "/lib", "/lib64", "/bin", "/etc/ssl")]
    mounts = [(path.resolve(), str(path)) for path in system if path.exists()]
    # The environment's `python` is a link to the interpreter, which so needs its own path.
    if not settings.interpreter.is_relative_to("/usr"):
        mounts.append((settings.interpreter, str(settings.interpreter)))
    mounts += [
        (settings.venv, "/opt/kompakt/venv"),
        (settings.checkout, "/opt/kompakt/src"),
        (controlplane, "/opt/kompakt/bin"),
        (envoy_gateway, "/opt/kompakt/gateway/envoy-gateway"),
        (envoy, "/opt/kompakt/gateway/envoy"),
    ]
    return mounts


def _command(name: str, program: Path, flags: dict[str, object]) -> Command:
    return Command(name=name, argv=(str(program), *(f"--{k}={v}" for k, v in flags.items())))


def _yaml(document: dict[str, Any]) -> str:
    # Block style: a configuration that starts with `{` would be parsed as JSON.
    return yaml.safe_dump(document, sort_keys=False, default_flow_style=False)
