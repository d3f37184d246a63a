# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from kompakt.localcluster import build, golang
from kompakt.localcluster.errors import LocalClusterError
from kompakt.localcluster.progress import Progress
from kompakt.localcluster.settings import Settings

GO_MOD = """\
module example

go 1.26.7

require (
	example.com/one v1.2.3
	example.com/one/two v4.5.6 // indirect
)
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small Go module."""
    folder = tmp_path / "localcluster/controlplane"
    (folder / "pause").mkdir(parents=True)
    (folder / "go.mod").write_text(GO_MOD)
    (folder / "go.sum").write_text("sums")
    (folder / "main.go").write_text("package main")
    (folder / "pause/main.go").write_text("package main")
    return folder


@pytest.mark.parametrize("name", ["go.mod", "go.sum", "main.go", "pause/main.go"])
def test_every_source_is_part_of_the_key(source: Path, name: str) -> None:
    """A changed, renamed or added source means another build."""
    before = build.source_key(source)
    (source / name).write_text("changed")
    changed = build.source_key(source)
    (source / "more.go").write_text("")
    assert len({before, changed, build.source_key(source)}) == 3


def test_what_is_no_source_is_not_part_of_the_key(source: Path) -> None:
    """A note beside the sources does not cause a build of minutes."""
    before = build.source_key(source)
    (source / "README.md").write_text("a note")
    assert build.source_key(source) == before


def test_moving_text_between_files_changes_the_key(source: Path) -> None:
    """The key knows where one file ends and the next begins."""
    (source / "a.go").write_text("xy")
    (source / "b.go").write_text("")
    before = build.source_key(source)
    (source / "a.go").write_text("x")
    (source / "b.go").write_text("y")
    assert build.source_key(source) != before


def test_versions_are_those_of_go_mod() -> None:
    """The version of a module is found though others have names that begin alike."""
    assert build.required_version(GO_MOD, "example.com/one") == "v1.2.3"
    with pytest.raises(LocalClusterError, match="requires no module"):
        build.required_version(GO_MOD, "example.com/three")


def test_this_checkout_has_what_is_built(settings: Settings) -> None:
    """The Go modules of this checkout require what the cluster says it runs."""
    version = build.controlplane(settings).version("k8s.io/kubernetes")
    assert re.fullmatch(r"v1\.\d+\.\d+", version)
    assert build.gateway(settings).version("sigs.k8s.io/gateway-api").startswith("v1.")


def test_what_is_built_needs_no_go(
    source: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With everything in the cache no Go is looked for."""
    monkeypatch.setattr(golang, "find", lambda *_: pytest.fail("looked for Go"))
    done = build.Build("controlplane", source, "key", settings.cache / "bin/controlplane-key")
    done.folder.mkdir(parents=True)
    build.ensure([done], settings, Progress())


def fake_go(tmp_path: Path, script: str) -> Path:
    """A `go` that does what a test wants; `$output` is where the binary belongs."""
    go = tmp_path / "go"
    find_output = 'while [ "$1" != -o ]; do shift; done; output=$2\n'
    go.write_text(f"#!/bin/sh\n{find_output}{script}\n")
    go.chmod(0o755)
    return go


@pytest.fixture
def wanted(source: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> build.Build:
    """A control plane to build, on a machine with enough disk."""
    monkeypatch.setattr(build, "NEEDED_BYTES", 0)
    text = GO_MOD.replace("example.com/one v", "k8s.io/kubernetes v")
    (source / "go.mod").write_text(text)
    return build.Build("controlplane", source, "key", settings.cache / "bin/controlplane-key")


def test_a_build_appears_as_a_whole(
    wanted: build.Build, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every component is a name of the one binary, and no trace of the work is left: neither of
    this builder, nor of one that was killed.
    """
    (wanted.folder.parent / ".draft-controlplane-killed/result").mkdir(parents=True)
    go = fake_go(tmp_path, 'echo k8s.io/api >&2; echo binary > "$output"')
    monkeypatch.setattr(golang, "find", lambda *_: go)
    build.ensure([wanted], settings, Progress())
    assert {file.name for file in wanted.folder.iterdir()} == {
        "kubelite",
        "pause",
        *build.COMPONENTS,
    }
    assert (wanted.folder / "kubelet").read_text() == "binary\n"
    assert {file.name for file in wanted.folder.parent.iterdir()} == {
        "build.lock",
        wanted.folder.name,
    }


def test_a_failed_build_leaves_nothing(
    wanted: build.Build, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error repeats what the compiler said, and the next `up` builds again."""
    go = fake_go(tmp_path, 'echo half > "$output"; echo "main.go:7:1: syntax error" >&2; exit 1')
    monkeypatch.setattr(golang, "find", lambda *_: go)
    with pytest.raises(LocalClusterError, match=r"main\.go:7:1: syntax error") as caught:
        build.ensure([wanted], settings, Progress())
    assert caught.value.reason == "BuildFailed"
    assert not wanted.built()
    assert [file.name for file in wanted.folder.parent.iterdir()] == ["build.lock"]


def test_a_full_disk_is_seen_before_the_build(
    wanted: build.Build, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is downloaded for a build that cannot end well."""
    monkeypatch.setattr(build, "NEEDED_BYTES", 2**60)
    with pytest.raises(LocalClusterError, match="GiB free, and a first build needs") as caught:
        build.ensure([wanted], settings, Progress())
    assert "XDG_CACHE_HOME" in caught.value.remedy


def test_kinds_lose_their_prose_and_nothing_else(tmp_path: Path) -> None:
    """A field that is called `description` stays; the standard channel is written, in JSON."""
    standard, own, target = tmp_path / "standard", tmp_path / "own", tmp_path / "crds"
    for folder in (standard, own):
        folder.mkdir()
    schema = {"description": "prose", "properties": {"description": {"type": "string"}}}
    crd = {
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "gateways.example.com"},
        "spec": {"versions": [{"schema": {"openAPIV3Schema": schema}}]},
    }
    (standard / "gateways.yaml").write_text(yaml.safe_dump_all([crd, {"kind": "Policy"}]))
    (own / "gateway.networking.k8s.io_gateways.yaml").write_text(yaml.safe_dump(crd))
    build._write_crds(target, standard, own)
    (file,) = target.iterdir()
    found = json.loads(file.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert found == {"properties": {"description": {"type": "string"}}}
