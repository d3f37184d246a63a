# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("crds", "controllers", "operator", "jobs", "serving", "localcluster")
LINES_AT_MOST = 450
# Written in two parts, so that this file does not name what it forbids.
INDEX_HOSTS = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("files.pythonhosted", "org"),
        ("registry.npmjs", "org"),
        ("crates", "io"),
        ("proxy.golang", "org"),
        ("sum.golang", "org"),
        ("deb.debian", "org"),
        ("security.debian", "org"),
    )
]


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a program in the checkout, without what starting the tests put in the environment."""
    inherited = ("PYTHONPATH", "PYTHONSAFEPATH", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in inherited}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@cache
def tracked() -> tuple[Path, ...]:
    """The files of the repository that exist in this working tree."""
    listing = run("git", "ls-files", "-z")
    if listing.returncode:
        pytest.skip("these are rules about a git checkout, and this is none")
    return tuple(ROOT / name for name in listing.stdout.split("\0") if (ROOT / name).is_file())


@cache
def project() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def read(path: Path) -> str:
    """The text of a file; what is not text reads as nothing."""
    try:
        return path.read_text()
    except UnicodeDecodeError:
        return ""


def pins(name: str) -> dict[str, list[str]]:
    """The pinned requirements of a requirements file, each with its hashes."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text().replace("\\\n", " ")
    lines = [
        line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    return {line.split()[0]: re.findall(r"--hash=(\S+)", line) for line in lines}


def names(requirements: list[Any]) -> set[str]:
    """The names of distributions in a list of requirement specifiers."""
    texts = (entry for entry in requirements if isinstance(entry, str))
    return {re.split(r"[<>=!~\[; ]", entry, maxsplit=1)[0].lower() for entry in texts}


@pytest.mark.parametrize("room", ROOMS)
def test_namespace_roots_hold_no_init(room: str) -> None:
    """A package file in a source root would hide the other rooms, or the standard library."""
    assert not (ROOT / room / "__init__.py").exists()
    assert not (ROOT / room / "kompakt" / "__init__.py").exists()


def test_operator_is_the_standard_library_s() -> None:
    """In the checkout's root, `import operator` still finds the module of the standard library."""
    found = run(sys.executable, "-c", "import operator; print(operator.__file__)")

    assert Path(found.stdout.strip()).parts[-2:] == (
        f"python3.{sys.version_info.minor}",
        "operator.py",
    )


def test_no_index_is_named() -> None:
    """Files name no package registry: whoever installs decides where packages come from."""
    pattern = re.compile("|".join(rf"\b{re.escape(host)}\b" for host in INDEX_HOSTS))

    assert [str(path) for path in tracked() if pattern.search(read(path))] == []


def test_no_path_of_this_checkout_is_named() -> None:
    """Files do not know where they are checked out."""
    assert [str(path) for path in tracked() if f"{ROOT}/" in read(path)] == []


def test_files_can_be_read_at_once() -> None:
    """A file that has outgrown one read is divided."""
    sources = [path for path in tracked() if path.suffix in {".py", ".go"}]

    lengths = {str(path): len(read(path).splitlines()) for path in sources}

    assert {path: lines for path, lines in lengths.items() if lines > LINES_AT_MOST} == {}


def test_sources_name_their_licence() -> None:
    """The first line of each source file is the licence (the second, after an interpreter)."""
    sources = [path for path in tracked() if path.suffix in {".py", ".go", ".sh"}]

    def begins_well(path: Path) -> bool:
        head = read(path).splitlines()[:2]
        return any("SPDX-License-Identifier: Apache-2.0" in line for line in head)

    assert [str(path) for path in sources if not begins_well(path)] == []


def test_imports_point_one_way() -> None:
    """Rooms import each other only along the arrows of the architecture."""
    verdict = run(Path(sys.executable).with_name("lint-imports"), "--no-cache")

    assert verdict.returncode == 0, verdict.stdout + verdict.stderr


def test_documented_targets_exist() -> None:
    """Each `make TARGET` that a document shows is one that the Makefile has."""
    shown = set()
    for path in (path for path in tracked() if path.suffix == ".md"):
        code = re.findall(
            r"```.*?```|`[^`\n]+`|^(?: {4}|\t).*$", read(path), re.DOTALL | re.MULTILINE
        )
        shown |= {target for text in code for target in re.findall(r"\bmake ([a-z][\w-]*)", text)}

    missing = {target for target in shown if run("make", "--dry-run", target).returncode}

    assert {"demo", "test"} <= shown
    assert missing == set()


@pytest.mark.parametrize("name", ["build", "dev", "jobs", "operator", "serving"])
def test_requirements_are_pinned_and_hashed(name: str) -> None:
    """A requirements file says which bytes are installed, and nothing about where they are."""
    pinned = pins(name)

    assert [spec for spec in pinned if not re.fullmatch(r"[a-z0-9.-]+==[^=;@]+", spec)] == []
    assert [spec for spec, hashes in pinned.items() if not hashes] == []
    assert "://" not in (ROOT / "requirements" / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", ["build", "jobs", "operator", "serving"])
def test_images_hold_what_was_tested(name: str) -> None:
    """The requirements of an image are a part of those that the tests run with."""
    assert set(pins(name)) <= set(pins("dev"))


@pytest.mark.parametrize(
    ("part", "extras"),
    [
        ("jobs", ["jobs", "openvino", "nncf"]),
        ("operator", ["operator"]),
        ("serving", ["serving", "openvino"]),
    ],
)
def test_requirements_follow_the_project(part: str, extras: list[str]) -> None:
    """What pyproject.toml asks for is in the lock."""
    asked = names(project()["project"]["dependencies"])
    for extra in extras:
        asked |= names(project()["project"]["optional-dependencies"][extra])

    assert asked <= {spec.partition("==")[0] for spec in pins(part)}


def test_developers_have_everything() -> None:
    """The one environment of a developer serves all rooms and their tests."""
    groups = project()["project"]["optional-dependencies"] | project()["dependency-groups"]

    asked = names([entry for group in groups.values() for entry in group])

    assert asked <= {spec.partition("==")[0] for spec in pins("dev")}


@pytest.mark.parametrize(
    ("name", "unwanted"),
    [
        ("operator", {"torch", "transformers", "onnxruntime", "openvino"}),
        ("serving", {"torch", "transformers", "kopf", "kubernetes", "nncf"}),
        ("jobs", {"kopf", "kubernetes"}),
    ],
)
def test_images_do_without_the_other_rooms(name: str, unwanted: set[str]) -> None:
    """Nothing pulls one room's heavy dependencies into the image of another."""
    assert unwanted & {spec.partition("==")[0] for spec in pins(name)} == set()


def test_the_wheel_is_the_namespace_and_nothing_else(tmp_path: Path) -> None:
    """A built wheel holds each room below `kompakt`, and neither tests nor generated files."""
    built = run(
        sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")

    with zipfile.ZipFile(wheel) as archive:
        files = [Path(name) for name in archive.namelist() if ".dist-info/" not in name]

    assert {path.parts[0] for path in files} == {"kompakt"}
    rooms = {"api", *ROOMS} - {"crds"}
    assert {path.parts[1] for path in files} == {
        room for room in rooms if list(ROOT.glob(f"*/kompakt/{room}/*.py"))
    }
