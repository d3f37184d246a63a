# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import sys
from pathlib import Path

import pytest

from kompakt.localcluster import host, network
from kompakt.localcluster.errors import LocalClusterError
from kompakt.localcluster.settings import API_PORT, Settings, from_environment


@pytest.mark.parametrize(
    ("system", "machine", "user", "reason", "words"),
    [
        ("Darwin", "arm64", 0, "NotLinux", "runs on Linux, and this is Darwin"),
        ("Linux", "riscv64", 0, "ArchitectureUnknown", "and this is riscv64"),
        ("Linux", "x86_64", 1000, "NotRoot", "only root may do so"),
    ],
    ids=["not Linux", "unknown processor", "not root"],
)
def test_a_machine_that_cannot_run_it_is_told_so(
    system: str, machine: str, user: int, reason: str, words: str
) -> None:
    """One sentence, and the way to a cluster that is already there."""
    with pytest.raises(LocalClusterError, match=words) as caught:
        host.check_platform(system=system, machine=machine, user=user)
    assert caught.value.reason == reason
    assert "make demo KUBECONTEXT=" in caught.value.remedy


def test_a_taken_port_is_told_with_its_holder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence has the port, what needs it, and the process that has it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(host, "PORTS", {"kube-apiserver": port})
        name = Path("/proc/self/comm").read_text().strip()
        words = f"port {port}, which kube-apiserver needs, is taken by process {os.getpid()}"
        with pytest.raises(LocalClusterError, match=words) as caught:
            host.check_ports()
        assert f"({name})" in caught.value.message
    host.check_ports()


def test_a_holder_outside_this_container_is_admitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket whose process cannot be seen is still a taken port."""
    with pytest.raises(LocalClusterError, match="a process outside this container"):
        host.check_ports(lambda: {API_PORT: "0"})


@pytest.mark.parametrize("destination", ["10.88.0.0/16", "10.0.0.0/8", "10.96.0.0/12"])
def test_taken_addresses_are_told(destination: str) -> None:
    """Podman's and kubeadm's defaults overlap with ours."""
    routes = [{"dst": "default", "dev": "eth0"}, {"dst": destination, "dev": "cni-podman0"}]
    with pytest.raises(LocalClusterError, match=f"routes {destination} to cni-podman0"):
        network.check_free(routes)


def test_our_own_bridge_is_no_stranger() -> None:
    """Routes of the bridge, and of other networks, are in nobody's way."""
    network.check_free(
        [{"dst": "10.88.0.0/16", "dev": "kompakt0"}, {"dst": "192.168.1.0/24", "dev": "eth0"}]
    )


def test_a_state_folder_with_other_files_is_refused(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`down` removes the state folder: it must never be somebody's home."""
    monkeypatch.setattr(sys, "base_prefix", "/elsewhere")
    home = tmp_path / "h"
    home.mkdir()
    (home / "thesis.tex").touch()
    short = Path("/tmp") / f"kompakt-test-{os.getpid()}"
    short.symlink_to(home)
    try:
        with pytest.raises(LocalClusterError, match="not a local cluster's"):
            host.check(dataclasses.replace(settings, state=short))
    finally:
        short.unlink()


def test_installed_programs_need_no_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every program is there, it does not matter who installed it."""
    for name in host.CNI_PLUGINS:
        (tmp_path / name).touch()
    monkeypatch.setattr(host, "CNI_FOLDER", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert host.missing_packages() == []


def test_another_distribution_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without apt-get the missing programs are named, and what Debian calls them."""
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(LocalClusterError, match="needs containerd, ctr, runc") as caught:
        host.missing_packages()
    assert "containernetworking-plugins" in caught.value.remedy


def test_a_long_state_path_is_refused(tmp_path: Path) -> None:
    """A socket's path has a limit, and the sentence says by how much it is passed."""
    with pytest.raises(LocalClusterError, match="Linux allows 107") as caught:
        from_environment({"KOMPAKT_LOCALCLUSTER_STATE": f"/tmp/{'x' * 100}", "HOME": "/root"})
    assert "bytes shorter" in caught.value.remedy


def test_folders_come_from_the_environment() -> None:
    """Cache and state can lie elsewhere; the checkout is the one of this code."""
    found = from_environment({"XDG_CACHE_HOME": "/c", "KOMPAKT_LOCALCLUSTER_STATE": "/s"})
    assert (found.cache, found.state) == (Path("/c/kompakt"), Path("/s"))
    assert found.checkout == Path(__file__).parents[2]
