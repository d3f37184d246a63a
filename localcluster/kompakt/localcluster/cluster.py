# SPDX-License-Identifier: Apache-2.0
"""The commands: up, down, status. Each looks at what is there, and does what is missing.

Invariant: `up` ends with a cluster that answers and that shows this checkout to its pods, or with
an error; it never takes away a cluster that somebody may still want.
"""

import time
from dataclasses import dataclass
from typing import Any

from kompakt.localcluster import api, build, gateway, host, network, state, teardown
from kompakt.localcluster.errors import LocalClusterError
from kompakt.localcluster.launch import Launcher
from kompakt.localcluster.progress import Progress
from kompakt.localcluster.settings import NODES, Settings
from kompakt.localcluster.state import Lease, Owner


@dataclass(frozen=True)
class Builds:
    """The two Go modules of this checkout."""

    controlplane: build.Build
    gateway: build.Build

    @classmethod
    def of(cls, settings: Settings) -> "Builds":
        return cls(build.controlplane(settings), build.gateway(settings))


def up(settings: Settings, progress: Progress, *, with_gateway: bool) -> Lease:
    """Makes the cluster of this checkout run; what runs already stays."""
    host.check_here()

    def waiting(holder: int | None) -> None:
        progress.say(f"another kompakt-localcluster (process {holder}) is at work: waiting for it")

    with state.locked(settings.lock, on_wait=waiting):
        builds = Builds.of(settings)
        owner = owner_of(settings, builds)
        running = state.current(settings)
        lease = state.read(running.lease)
        if lease is not None and not belongs(lease, owner):
            _clean(running, progress, why=reason_to_clean(lease))
            lease = None
        host.install_packages(progress)
        build.ensure((builds.controlplane, builds.gateway), settings, progress)
        if lease is not None:
            healed = _keep(running, lease, builds, progress, with_gateway=with_gateway)
            if healed is not None:
                return healed
        return _create(settings, owner, builds, progress, with_gateway=with_gateway)


def owner_of(settings: Settings, builds: Builds) -> Owner:
    """Who this checkout is, and what its pods would see."""
    return Owner(
        checkout=str(settings.checkout),
        venv=str(settings.venv),
        interpreter=str(settings.interpreter),
        controlplane=builds.controlplane.key,
        gateway=builds.gateway.key,
    )


def belongs(lease: Lease, owner: Owner) -> bool:
    """Whether this checkout can use the cluster as it is; raises when it is somebody else's.

    False means that nobody can, and that it may be taken away.
    """
    if lease.phase != "Running" or lease.abandoned():
        return False
    if lease.owner == owner:
        return True
    if lease.owner.checkout != owner.checkout:
        raise LocalClusterError(
            "OtherCluster",
            "a machine has one local cluster at a time, "
            f"and the one of {lease.owner.checkout} is running",
            remedy="take it down first, if nobody needs it: kompakt-localcluster down",
        )
    raise LocalClusterError(
        "ClusterOutdated",
        f"the local cluster is running, but with {_difference(lease.owner, owner)}",
        remedy="take it down first: kompakt-localcluster down",
    )


def _difference(old: Owner, new: Owner) -> str:
    if old.venv != new.venv:
        return f"the virtual environment {old.venv}, and this is {new.venv}"
    if old.interpreter != new.interpreter:
        return f"the Python of {old.interpreter}, and this is the one of {new.interpreter}"
    return "another version of its Go programs"


def reason_to_clean(lease: Lease) -> str:
    """Why nobody can want a cluster any more, in words."""
    if lease.owner.gone():
        return f"its checkout {lease.owner.checkout} is gone"
    if lease.abandoned():
        return "none of its processes is running"
    return "its start was not finished"


def _clean(settings: Settings, progress: Progress, *, why: str) -> None:
    with progress.stage("clean", f"removing what is left of a cluster: {why}"):
        teardown.down(settings)


def _keep(
    settings: Settings, lease: Lease, builds: Builds, progress: Progress, *, with_gateway: bool
) -> Lease | None:
    """Mends a running cluster where it needs it; None when that failed, and none is left."""
    launcher = Launcher(settings, lease, builds.controlplane, builds.gateway, progress)
    try:
        if lease.dead() or network.missing() or not launcher.client.ready():
            lease = launcher.heal()
        if with_gateway and lease.gateway_address is None:
            lease = launcher.add_gateway()
    except LocalClusterError as error:
        progress.say(f"the running cluster cannot be mended ({error.message})")
        _clean(settings, progress, why="it cannot be mended")
        return None
    progress.seconds.setdefault("already running", 0.0)
    return lease


def _create(
    settings: Settings, owner: Owner, builds: Builds, progress: Progress, *, with_gateway: bool
) -> Lease:
    if network.leftovers():
        # A lease was lost: its folder was removed by hand, or was on a temporary disk.
        _clean(settings, progress, why="its state folder is gone")
    host.check(settings)
    versions = {
        "kubernetes": builds.controlplane.version("k8s.io/kubernetes"),
        "etcd": builds.controlplane.version("go.etcd.io/etcd/server/v3"),
        "coredns": builds.controlplane.version("github.com/coredns/coredns"),
        "envoyGateway": builds.gateway.version("github.com/envoyproxy/gateway"),
        "gatewayApi": builds.gateway.version("sigs.k8s.io/gateway-api"),
        **host.versions(),
    }
    lease = Lease(owner=owner, state=str(settings.state), started_at=time.time(), versions=versions)
    settings.state.mkdir(parents=True, mode=0o700, exist_ok=True)
    settings.state.chmod(0o700)
    state.write(lease)
    settings.pointer.unlink(missing_ok=True)
    settings.pointer.symlink_to(settings.state)
    launcher = Launcher(settings, lease, builds.controlplane, builds.gateway, progress)
    return launcher.create(with_gateway=with_gateway)


def down(settings: Settings, progress: Progress) -> bool:
    """Takes the machine's cluster away; False where there was none."""
    host.check_here()

    def waiting(holder: int | None) -> None:
        progress.say(f"another kompakt-localcluster (process {holder}) is at work: waiting for it")

    with state.locked(settings.lock, on_wait=waiting):
        running = state.current(settings)
        existed = running.lease.exists() or bool(network.leftovers())
        if existed:
            with progress.stage("down", "taking the local cluster down"):
                teardown.down(running)
        return existed


def status(settings: Settings) -> dict[str, Any]:
    """What there is to know, for `status --json`."""
    running = state.current(settings)
    lease = state.read(running.lease)
    if lease is None or len(lease.dead()) == len(lease.processes):
        return {"running": False}
    client = api.Client(running.pki, timeout_seconds=3.0)
    ready = lease.phase == "Running" and not lease.dead() and client.ready()
    nodes = [
        {
            "name": node.name,
            "pool": node.pool,
            "ready": api.condition(client.read(f"/api/v1/nodes/{node.name}"), "Ready"),
        }
        for node in NODES
    ]
    return {
        "running": ready,
        "phase": lease.phase,
        "checkout": lease.owner.checkout,
        "state": lease.state,
        "kubeconfig": str(running.kubeconfig),
        "kubectl": str(running.cache / "bin" / f"controlplane-{lease.owner.controlplane}/kubectl"),
        "gateway": gateway.address(client),
        "uptimeSeconds": round(time.time() - lease.started_at),
        "versions": lease.versions,
        "seconds": lease.seconds,
        "nodes": nodes,
        "processes": [
            {"name": process.name, "pid": process.pid, "alive": process.alive()}
            for process in lease.processes
        ],
    }
