# SPDX-License-Identifier: Apache-2.0
"""Builds the Go programs of the cluster once, in the user's cache.

Invariants: a build lies in a folder named by the hash of everything that it was made from, and
appears there by one rename, so what is in the cache is whole; the sources are never written; after
a build, starting the cluster needs no Go and no network.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kompakt.localcluster import golang
from kompakt.localcluster.errors import LocalClusterError
from kompakt.localcluster.process import run
from kompakt.localcluster.progress import Progress
from kompakt.localcluster.settings import Settings
from kompakt.localcluster.state import locked

SOURCES = Path(__file__).resolve().parents[2]
"""The folder `localcluster/` of the checkout; it has the Go modules beside the Python package."""

COMPONENTS = (
    "coredns",
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
    "storage-provisioner",
)
NEEDED_BYTES = 8 * 1024**3
"""Room for the module cache, the build cache and the results of a first build."""

DRAFT = ".draft-"
_STEPS = "4"
"""Part of the key: raise it when a build of the same sources has another result."""


@dataclass(frozen=True)
class Build:
    """A Go module of this room and what it was, or will be, built into."""

    name: str
    source: Path
    key: str
    folder: Path

    def built(self) -> bool:
        return self.folder.is_dir()

    def version(self, module: str) -> str:
        """The version of a module that this one requires, such as `v1.36.1`."""
        return required_version((self.source / "go.mod").read_text(), module)


def required_version(go_mod: str, module: str) -> str:
    """Reads the version of a required module out of the text of a go.mod."""
    found = re.search(rf"^\s*(?:require\s+)?{re.escape(module)} (v\S+)", go_mod, re.MULTILINE)
    if found is None:
        raise LocalClusterError(
            "ModuleMissing",
            f"go.mod requires no module {module}",
            remedy="restore localcluster/ from the repository",
        )
    return found[1]


def source_key(source: Path) -> str:
    """The hash of a Go module's own files, for this machine's architecture."""
    digest = hashlib.sha256(f"{_STEPS} {platform.machine()}".encode())
    names = ("go.mod", "go.sum")
    files = sorted([*source.rglob("*.go"), *(source / name for name in names)])
    for file in files:
        content = file.read_bytes()
        digest.update(f"\0{file.relative_to(source)}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def controlplane(settings: Settings) -> Build:
    """Kubernetes, etcd, CoreDNS, the storage provisioner and the pause process."""
    return _build_of("controlplane", settings)


def gateway(settings: Settings) -> Build:
    """Envoy Gateway with its chart, and the kinds of the Gateway API."""
    return _build_of("gateway", settings)


def _build_of(name: str, settings: Settings) -> Build:
    source = SOURCES / name
    if not (source / "go.sum").is_file():
        raise LocalClusterError(
            "SourcesMissing",
            f"there are no Go sources in {source}: the local cluster runs from a checkout",
            remedy="install it from one: pip install --editable .",
        )
    key = source_key(source)
    return Build(name=name, source=source, key=key, folder=settings.cache / "bin" / f"{name}-{key}")


def ensure(builds: Iterable[Build], settings: Settings, progress: Progress) -> None:
    """Builds what is not there yet; two builders on one machine take turns."""
    missing = [build for build in builds if not build.built()]
    if not missing:
        return
    _check_disk(settings.cache)

    def waiting(holder: int | None) -> None:
        progress.detail(f"waiting for the build of process {holder}")

    with (
        progress.stage("build", "building Kubernetes and the gateway from source, once"),
        locked(settings.cache / "bin" / "build.lock", on_wait=waiting),
    ):
        for draft in (settings.cache / "bin").glob(f"{DRAFT}*"):
            shutil.rmtree(draft)  # of a builder that was killed
        progress.detail("looking for Go")
        needed = max(golang.needed(build.source) for build in missing)
        go = golang.find(needed, settings.cache, progress)
        for build in missing:
            if not build.built():
                _make(build, go=go, progress=progress)


def _make(build: Build, *, go: Path, progress: Progress) -> None:
    build.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f"{DRAFT}{build.name}-", dir=build.folder.parent
    ) as draft:
        target = Path(draft) / "result"
        target.mkdir()
        maker = {"controlplane": _make_controlplane, "gateway": _make_gateway}[build.name]
        maker(build, target, go=go, progress=progress)
        target.replace(build.folder)


def _make_controlplane(build: Build, target: Path, *, go: Path, progress: Progress) -> None:
    version = build.version("k8s.io/kubernetes")
    major, minor, _patch = version.removeprefix("v").split(".", 2)
    flags = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    linked = " ".join(f"-X k8s.io/component-base/version.{k}={v}" for k, v in flags.items())
    title = f"Kubernetes {version}"
    _go_build(go, build, target / "kubelite", ".", linked=linked, title=title, progress=progress)
    _go_build(go, build, target / "pause", "./pause", linked="", title="pause", progress=progress)
    for component in COMPONENTS:
        (target / component).symlink_to("kubelite")


def _make_gateway(build: Build, target: Path, *, go: Path, progress: Progress) -> None:
    module = "github.com/envoyproxy/gateway"
    version = build.version(module)
    linked = f"-X {module}/internal/cmd/version.envoyGatewayVersion={version}"
    package = f"{module}/cmd/envoy-gateway"
    title = f"Envoy Gateway {version}"
    _go_build(
        go, build, target / "envoy-gateway", package, linked=linked, title=title, progress=progress
    )
    envoy_gateway = _module_folder(go, build, module)
    gateway_api = _module_folder(go, build, "sigs.k8s.io/gateway-api")
    _write_crds(
        target / "crds",
        gateway_api / "config/crd/standard",
        envoy_gateway / "charts/gateway-helm/charts/crds/crds/generated",
    )
    shutil.copytree(
        envoy_gateway / "charts/gateway-helm",
        target / "chart",
        copy_function=shutil.copyfile,
    )
    for copied, _, _ in os.walk(target / "chart"):
        Path(copied).chmod(0o755)  # the module cache is read-only, and so are copies of its folders


def _write_crds(target: Path, standard: Path, own: Path) -> None:
    """Writes the kinds of the Gateway API and of Envoy Gateway, as JSON that can be sent as it is.

    Envoy Gateway brings the experimental channel of the Gateway API too: the standard one wins.
    """
    target.mkdir()
    files = [*standard.glob("*.yaml"), *own.glob("gateway.envoyproxy.io_*.yaml")]
    for file in files:
        for document in yaml.load_all(file.read_bytes(), Loader=yaml.CSafeLoader):
            if document and document["kind"] == "CustomResourceDefinition":
                path = target / f"{document['metadata']['name']}.json"
                path.write_text(json.dumps(without_descriptions(document)))


def without_descriptions(value: Any) -> Any:
    """A schema without its prose: two thirds of what the API server would parse, merge and keep.

    A property that is called `description` has a schema for a value, and stays.
    """
    if isinstance(value, dict):
        return {
            key: without_descriptions(item)
            for key, item in value.items()
            if not (key == "description" and isinstance(item, str))
        }
    return [without_descriptions(item) for item in value] if isinstance(value, list) else value


def _module_folder(go: Path, build: Build, module: str) -> Path:
    said = run(
        [str(go), "mod", "download", "-json", module],
        what=f"download the Go module {module}",
        env=golang.environment(),
        cwd=build.source,
    )
    return Path(json.loads(said)["Dir"])


def _go_build(
    go: Path,
    build: Build,
    output: Path,
    package: str,
    *,
    linked: str,
    title: str,
    progress: Progress,
) -> None:
    """Runs `go build`, telling how many packages it has compiled; `-v` names each as it is done."""
    progress.detail(f"{title}: downloading modules")
    argv = [str(go), "build", "-v", "-trimpath", "-mod=readonly", "-buildvcs=false"]
    argv += ["-ldflags", f"-s -w {linked}".strip(), "-o", str(output), package]
    child = subprocess.Popen(
        argv,
        cwd=build.source,
        env=golang.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stderr is not None  # noqa: S101  (for mypy: it is a pipe)
        compiled, said = 0, []
        for line in child.stderr:
            text = line.strip()
            if text.startswith("go: downloading "):
                progress.detail(f"{title}: downloading {text.split()[2]}")
            elif " " not in text:
                compiled += 1
                progress.detail(f"{title}: {compiled} packages compiled, now {text}")
            else:
                said.append(text)
    if child.returncode:
        raise LocalClusterError(
            "BuildFailed",
            f"cannot build {title}: {' '.join(said[-6:]) or f'go ended with {child.returncode}'}",
            remedy="mend that (a first build needs a Go module proxy and some 4 GB of memory), "
            "then run it again: what was compiled stays in Go's cache",
        )


def _check_disk(cache: Path) -> None:
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < NEEDED_BYTES:
        raise LocalClusterError(
            "DiskFull",
            f"{existing} has {free / 1024**3:.1f} GiB free, and a first build needs "
            f"{NEEDED_BYTES / 1024**3:.0f} GiB",
            remedy="make room, or let XDG_CACHE_HOME, GOCACHE and GOMODCACHE name other folders",
        )
