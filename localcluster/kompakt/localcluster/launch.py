# SPDX-License-Identifier: Apache-2.0
"""Brings a cluster into being: from an empty state folder to a Gateway that answers.

Invariants: a process is in the lease as soon as it is started; each wait looks at the processes
that it waits for, so a component that ends is named at once, with its last words; what can be done
side by side is: certificates, rendering, images and manifests wait for nothing but what they need.
"""

import dataclasses
import functools
import platform
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kompakt.localcluster import api, cgroups, gateway, host, image, network, pki, render, state
from kompakt.localcluster.build import Build
from kompakt.localcluster.errors import LocalClusterError
from kompakt.localcluster.process import Command, Process, run, spawn
from kompakt.localcluster.progress import Progress
from kompakt.localcluster.settings import IMAGE, NODES, Node, Settings
from kompakt.localcluster.state import Lease

WAIT_SECONDS = 90.0
MANIFESTS = Path(__file__).parent / "manifests"


@dataclass
class Launcher:
    """One start of a cluster; `lease` follows what happens."""

    settings: Settings
    lease: Lease
    controlplane: Build
    gateway: Build
    progress: Progress
    _writing: threading.Lock = field(default_factory=threading.Lock)
    _failed: threading.Event = field(default_factory=threading.Event)

    def create(self, *, with_gateway: bool) -> Lease:
        """Starts everything, and waits until it answers."""
        with self._workers() as pool:
            with self.progress.stage("prepare", "certificates, network and control groups"):
                rendered = pool.submit(self._render_gateway)
                self._prepare()
            with self.progress.stage("controlPlane", "etcd and the API server"):
                self.spawn(render.etcd(self.settings, self.controlplane.folder))
                self.spawn(render.apiserver(self.settings, self.controlplane.folder))
                runtimes = [pool.submit(self._start_containerd, node) for node in NODES]
                self.wait(self.client.ready, "the API server is not ready")
            with self.progress.stage("nodes", "nodes and DNS"):
                installed = pool.submit(self._install_gateway, rendered) if with_gateway else None
                base = pool.submit(self._apply, "-f", str(MANIFESTS / "base.yaml"))
                self._start_nodes(runtimes)
                self.wait_for_nodes()
                base.result()
                self.wait(self.dns_ready, "the cluster's DNS is not ready")
            if installed is not None:
                with self.progress.stage("gateway", "the gateway"):
                    installed.result()
                    self.wait_for_gateway()
        return self.update(phase="Running", seconds=dict(self.progress.seconds))

    def add_gateway(self) -> Lease:
        """Installs the gateway into a cluster that was started without one."""
        with self.progress.stage("gateway", "the gateway"), self._workers() as pool:
            self._install_gateway(pool.submit(self._render_gateway))
            self.wait_for_gateway()
        return self.lease

    def heal(self) -> Lease:
        """Starts what has ended again, in the order of the first start, until all answers."""
        dead = self.lease.dead()
        names = (
            ", ".join(process.name for process in dead) or "nothing ended, but it does not answer"
        )
        with self.progress.stage("heal", f"mending the cluster: {names}"):
            network.create()
            self._forget(dead)
            for process in dead:
                self.spawn(Command(name=process.name, argv=process.argv))
            self.wait(self.client.ready, "the API server is not ready")
            self.wait_for_nodes()
            self.wait(self.dns_ready, "the cluster's DNS is not ready")
            if self.lease.gateway_address:
                self.wait_for_gateway()
        return self.lease

    @property
    def client(self) -> api.Client:
        return api.Client(self.settings.pki)

    def update(self, **changes: object) -> Lease:
        self.lease = dataclasses.replace(self.lease, **changes)  # type: ignore[arg-type]
        state.write(self.lease)
        return self.lease

    def spawn(self, command: Command) -> Process:
        with self._writing:
            log = self.settings.logs / f"{command.name}.log"
            process = spawn(command, state=self.settings.state, log=log)
            cgroups.adopt(cgroups.hierarchies(), process.pid)
            self.update(processes=(*self.lease.processes, process))
        return process

    def wait(self, done: Callable[[], bool], otherwise: str) -> None:
        """Waits until `done`; a process that ends meanwhile, or a deadline, is an error."""

        def meanwhile() -> None:
            if self._failed.is_set():
                raise LocalClusterError("Aborted", "the start was given up", remedy="run up again")
            for process in self.lease.dead():
                raise self._ended(process)

        if not api.wait_until(done, timeout_seconds=WAIT_SECONDS, meanwhile=meanwhile):
            raise LocalClusterError(
                "StartFailed",
                f"{otherwise} after {WAIT_SECONDS:.0f} s",
                remedy=f"read what is in {self.settings.logs}; then run up again",
            )

    @contextmanager
    def _workers(self) -> Iterator[ThreadPoolExecutor]:
        """Threads for what can be done side by side; when one part fails the others give up."""
        with ThreadPoolExecutor(thread_name_prefix="launch") as pool:
            try:
                yield pool
            except BaseException:
                self._failed.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def wait_for_nodes(self) -> None:
        self.wait(self._nodes_ready, "the nodes are not ready")
        cgroups.confine(cgroups.hierarchies())

    def wait_for_gateway(self) -> None:
        self.wait(lambda: gateway.address(self.client) is not None, "the Gateway is not programmed")
        self.update(gateway_address=gateway.address(self.client))

    def dns_ready(self) -> bool:
        path = "/apis/apps/v1/namespaces/kube-system/deployments/coredns"
        return api.condition(self.client.read(path), "Available")

    def _nodes_ready(self) -> bool:
        return all(
            api.condition(self.client.read(f"/api/v1/nodes/{node.name}"), "Ready") for node in NODES
        )

    def _ended(self, process: Process) -> LocalClusterError:
        log = self.settings.logs / f"{process.name}.log"
        lines = log.read_text(errors="replace").strip().splitlines()
        return LocalClusterError(
            "ComponentEnded",
            f"{process.name} ended, and said last: {lines[-1] if lines else 'nothing'}",
            remedy=f"read {log}; then run up again, which starts afresh",
        )

    def _forget(self, gone: tuple[Process, ...]) -> None:
        with self._writing:
            kept = tuple(process for process in self.lease.processes if process not in gone)
            self.update(processes=kept)

    def _prepare(self) -> None:
        settings = self.settings
        self.update(kernel_settings=network.kernel_settings())
        for folder in (settings.logs, settings.state / "cni", *map(settings.node, NODES)):
            folder.mkdir()
        settings.volumes.mkdir()
        with ThreadPoolExecutor() as pool:
            certificates = pool.submit(pki.create, settings)
            network.create()
            cgroups.create(cgroups.hierarchies())
            self._write_configuration()
            certificates.result()

    def _write_configuration(self) -> None:
        settings = self.settings
        mounts = render.host_mounts(
            settings,
            controlplane=self.controlplane.folder,
            envoy_gateway=self.gateway.folder / "envoy-gateway",
            envoy=host.envoy(),
        )
        default_spec = run(["ctr", "oci", "spec"], what="read containerd's default container")
        files = {
            "scheduler.yaml": render.scheduler_configuration(settings),
            "kube-proxy.yaml": render.proxy_configuration(settings, node=NODES[0]),
            "cni/10-kompakt.conflist": render.network_configuration(settings),
            "resolv.conf": network.resolver(network.host_resolver()),
            "host-userland.json": render.host_userland(default_spec, mounts),
        }
        for node in NODES:
            files[f"{node.name}/containerd.toml"] = render.containerd_configuration(settings, node)
            files[f"{node.name}/kubelet.yaml"] = render.kubelet_configuration(settings, node)
        for name, text in files.items():
            (settings.state / name).write_text(text)
        image.write_archive(
            settings.state / "image.tar",
            pause=self.controlplane.folder / "pause",
            tag=IMAGE,
            machine=platform.machine(),
        )

    def _start_containerd(self, node: Node) -> None:
        """Starts a node's container runtime, and gives it the image."""
        self.spawn(render.containerd(self.settings, node, host.containerd()))
        socket = str(self.settings.containerd_socket(node))
        ctr = ["ctr", "--address", socket, "--namespace", "k8s.io"]

        def answers() -> bool:
            # Asked too early, it creates nothing and fails; its socket appears before it serves.
            version = subprocess.run([*ctr, "version"], capture_output=True, check=False)
            return version.returncode == 0

        self.wait(answers, f"the container runtime of {node.name} does not answer")
        archive = str(self.settings.state / "image.tar")
        run([*ctr, "images", "import", archive], what=f"give {node.name} its image")

    def _start_nodes(self, runtimes: list[Future[None]]) -> None:
        settings, binaries = self.settings, self.controlplane.folder
        self.spawn(render.controller_manager(settings, binaries))
        self.spawn(render.scheduler(settings, binaries))
        self.spawn(render.proxy(settings, binaries))
        for node, runtime in zip(NODES, runtimes, strict=True):
            runtime.result()
            self.spawn(render.kubelet(settings, node, binaries))
        self.spawn(render.storage_provisioner(settings, binaries))

    def _render_gateway(self) -> str:
        return gateway.render(self.gateway.folder / "chart", host.helm())

    def _install_gateway(self, rendered: Future[str]) -> None:
        """Installs CRDs and controller; needs no node yet, so it is done before there is one."""
        self._apply("-f", "-", stdin=gateway.namespace())
        with ThreadPoolExecutor(1) as pool:
            certificates = pool.submit(
                gateway.make_certificates, self.gateway.folder, self.settings.kubeconfig
            )
            gateway.create_kinds(self.client, self.gateway.folder / "crds")
            certificates.result()
        self._apply("-f", "-", stdin=rendered.result())
        served = functools.partial(gateway.kinds_served, self.client)
        self.wait(served, "the API server does not serve the kinds of the gateway")
        self._apply("-f", str(MANIFESTS / "gateway.yaml"))

    def _apply(self, *arguments: str, stdin: str | None = None) -> None:
        kubectl = [str(self.controlplane.folder / "kubectl"), "apply", "--server-side"]
        kubectl += ["--force-conflicts", "--field-manager=kompakt-localcluster"]
        kubectl += ["--kubeconfig", str(self.settings.kubeconfig), *arguments]
        run(kubectl, what="apply the cluster's own manifests", stdin=stdin)
