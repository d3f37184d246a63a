# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from kompakt.localcluster import cli, cluster
from kompakt.localcluster.errors import LocalClusterError
from kompakt.localcluster.settings import Settings


@pytest.fixture(autouse=True)
def machine(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A machine without a cluster."""
    monkeypatch.setattr(cli, "from_environment", lambda: settings)
    return settings


def test_an_error_is_two_sentences_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong, what to do, no traceback; markup in a path is only text."""

    def fail(*_: object, **__: object) -> None:
        raise LocalClusterError("Broken", "the folder [red] is broken", remedy="mend it")

    monkeypatch.setattr(cluster, "up", fail)
    assert cli.main(["up"]) == 1
    said = capsys.readouterr()
    assert said.err == "kompakt-localcluster: the folder [red] is broken.\nMend it.\n"
    assert not said.out


def test_an_interrupted_start_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C is no crash."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster, "up", interrupt)
    assert cli.main(["up"]) == 130
    assert "run up again" in capsys.readouterr().err


def test_nothing_running_is_exit_code_3(capsys: pytest.CaptureFixture[str]) -> None:
    """A script can tell it from an error, and a machine can read it."""
    assert cli.main(["status"]) == 3
    assert "no local cluster" in capsys.readouterr().out
    assert cli.main(["status", "--json"]) == 3
    assert json.loads(capsys.readouterr().out) == {"running": False}
    assert cli.main(["kubeconfig"]) == 3
    assert not capsys.readouterr().out


def test_an_unknown_log_names_those_that_exist(
    machine: Settings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The names are those of `status`; nothing but a log of the cluster can be read."""
    logs = tmp_path / "log"
    logs.mkdir()
    (logs / "etcd.log").write_text("hello\n")
    monkeypatch.setattr(Settings, "logs", logs)
    assert cli.main(["logs", "../secret"]) == 1
    assert "Name one of them (etcd)." in capsys.readouterr().err
    assert cli.main(["logs", "etcd"]) == 0


def test_a_refused_file_is_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may not read the state is told which file, and that root may."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/var/lib/kompakt")

    monkeypatch.setattr(cluster, "status", refuse)
    assert cli.main(["status"]) == 1
    said = capsys.readouterr().err
    assert "/var/lib/kompakt: Permission denied." in said
    assert "as root" in said
