# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from kompakt.localcluster import image

TAG = "localhost/kompakt:dev"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An image made of a binary of five bytes."""
    pause = tmp_path / "pause"
    pause.write_bytes(b"pause")
    path = tmp_path / "image.tar"
    image.write_archive(path, pause=pause, tag=TAG, machine="x86_64")
    return path


def read(archive: Path) -> dict[str, bytes]:
    """The files of an archive."""
    with tarfile.open(archive) as tar:
        return {m.name: f.read() for m in tar.getmembers() if (f := tar.extractfile(m))}


def blob(files: dict[str, bytes], descriptor: dict[str, Any]) -> bytes:
    """What a descriptor points at, checked as a container runtime checks it."""
    algorithm, _, digest = descriptor["digest"].partition(":")
    data = files[f"blobs/{algorithm}/{digest}"]
    assert len(data) == descriptor["size"]
    assert hashlib.sha256(data).hexdigest() == digest
    return data


def test_the_archive_is_a_consistent_oci_image(archive: Path) -> None:
    """From the index every blob is reached, with the size and digest that are promised."""
    files = read(archive)
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    (descriptor,) = json.loads(files["index.json"])["manifests"]
    assert descriptor["annotations"]["io.containerd.image.name"] == TAG
    manifest = json.loads(blob(files, descriptor))
    config = json.loads(blob(files, manifest["config"]))
    (layer,) = manifest["layers"]
    assert config["rootfs"]["diff_ids"] == [layer["digest"]]
    assert (config["architecture"], config["os"]) == ("amd64", "linux")
    with tarfile.open(fileobj=io.BytesIO(blob(files, layer))) as tar:
        assert tar.getmember("pause").mode == 0o755
        assert tar.getmember("tmp").mode == 0o1777


def test_equal_content_is_an_equal_image(archive: Path, tmp_path: Path) -> None:
    """No time of day is in the image: a node need not import it twice."""
    again = tmp_path / "again.tar"
    image.write_archive(again, pause=tmp_path / "pause", tag=TAG, machine="x86_64")
    assert again.read_bytes() == archive.read_bytes()


def test_a_container_finds_python_and_every_room(archive: Path) -> None:
    """The environment names the virtual environment first, and the five rooms that run in pods."""
    environment = image.environment()
    assert environment["PATH"].split(":")[0] == "/opt/kompakt/venv/bin"
    rooms = {Path(root).name for root in environment["PYTHONPATH"].split(":")}
    assert rooms == {"crds", "controllers", "operator", "jobs", "serving"}
    checkout = Path(__file__).parents[2]
    assert all((checkout / room / "kompakt").is_dir() for room in rooms)
