# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import stat
import threading
from pathlib import Path

import fsspec
import pytest

from kompakt.api.artifact import ArtifactManifest, artifact_path
from kompakt.jobs.artifact import describe_artifact
from kompakt.jobs.errors import ArtifactCorrupt, ArtifactMissing, StoreUnavailable
from kompakt.jobs.store import Store

SOURCE = "sha256:" + "1" * 64
ABSENT = "sha256:" + "0" * 64


def make_artifact(folder: Path, content: bytes = b"graph") -> Path:
    """The two files of an artifact."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(content)
    (folder / "tokenizer.json").write_bytes(b"{}")
    return folder


def put(store: Store, folder: Path) -> tuple[str, ArtifactManifest]:
    """Stores a made-up artifact."""
    manifest = describe_artifact(
        folder, labels=["no", "yes"], max_sequence_length=64, source_digest=SOURCE
    )
    return store.put_artifact(folder, manifest), manifest


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store on a local disk."""
    return Store(f"file://{tmp_path / 'store'}")


def test_what_is_stored_comes_back(store: Store, tmp_path: Path) -> None:
    """An artifact that is fetched has the bytes that were stored, and its manifest."""
    digest, manifest = put(store, make_artifact(tmp_path / "made"))
    fetched = store.get_artifact(digest, tmp_path / "fetched")
    assert fetched == manifest
    assert fetched.digest() == digest
    assert (tmp_path / "fetched/model.onnx").read_bytes() == b"graph"
    assert (tmp_path / "fetched/variant.json").read_bytes() == manifest.canonical()
    assert store.manifest(digest) == manifest


def test_storing_twice_changes_nothing(store: Store, tmp_path: Path) -> None:
    """The same content has the same digest, and its files are not written again."""
    digest, _ = put(store, make_artifact(tmp_path / "made"))
    stored = tmp_path / "store" / artifact_path(digest) / "model.onnx"
    before = stored.stat().st_mtime_ns
    assert put(store, make_artifact(tmp_path / "again"))[0] == digest
    assert stored.stat().st_mtime_ns == before
    assert put(store, make_artifact(tmp_path / "other", b"another"))[0] != digest


def test_two_writers_at_once_are_harmless(store: Store, tmp_path: Path) -> None:
    """Jobs that store the same artifact at the same time leave one whole artifact."""
    folder = make_artifact(tmp_path / "made", b"x" * 3_000_000)
    digests = []
    threads = [
        threading.Thread(target=lambda: digests.append(put(store, folder)[0])) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 8
    assert len(set(digests)) == 1
    store.get_artifact(digests[0], tmp_path / "fetched")
    left = [p.name for p in (tmp_path / "store" / artifact_path(digests[0])).iterdir()]
    assert sorted(left) == ["model.onnx", "tokenizer.json", "variant.json"]


def test_servers_of_other_users_can_read(store: Store, tmp_path: Path) -> None:
    """Stored files are readable by others, since servers run as another user than Jobs."""
    digest, _ = put(store, make_artifact(tmp_path / "made"))
    for file in (tmp_path / "store" / artifact_path(digest)).iterdir():
        assert file.stat().st_mode & stat.S_IROTH


def test_a_changed_file_is_noticed(store: Store, tmp_path: Path) -> None:
    """One changed byte in the store makes fetching fail, and the file does not arrive."""
    digest, _ = put(store, make_artifact(tmp_path / "made"))
    (tmp_path / "store" / artifact_path(digest) / "model.onnx").write_bytes(b"grapH")
    with pytest.raises(ArtifactCorrupt, match=r"model\.onnx .* has the digest sha256:"):
        store.get_artifact(digest, tmp_path / "fetched")
    assert not (tmp_path / "fetched/model.onnx").exists()


def test_a_changed_manifest_is_noticed(store: Store, tmp_path: Path) -> None:
    """A manifest that was edited no longer belongs to its digest."""
    digest, manifest = put(store, make_artifact(tmp_path / "made"))
    edited = manifest.evolve(labels=["yes", "no"]).canonical()
    (tmp_path / "store" / artifact_path(digest) / "variant.json").write_bytes(edited)
    with pytest.raises(ArtifactCorrupt, match="was changed after it was stored"):
        store.get_artifact(digest, tmp_path / "fetched")


def test_a_manifest_cannot_name_files_outside_of_its_folder(store: Store, tmp_path: Path) -> None:
    """A manifest with `..` in a path is refused, whoever signed for its digest."""
    _, manifest = put(store, make_artifact(tmp_path / "made"))
    evil = manifest.evolve(files=[manifest.files[0].evolve(path="a/../../../evil")])
    store.put_bytes(f"{artifact_path(evil.digest())}/variant.json", evil.canonical())
    with pytest.raises(ArtifactCorrupt, match="outside of itself"):
        store.get_artifact(evil.digest(), tmp_path / "deep/fetched")


def test_fetching_again_mends_what_is_broken(store: Store, tmp_path: Path) -> None:
    """Files that are there and right are left alone; a damaged one is replaced."""
    digest, _ = put(store, make_artifact(tmp_path / "made"))
    store.get_artifact(digest, tmp_path / "fetched")
    (tmp_path / "fetched/model.onnx").write_bytes(b"half")
    untouched = (tmp_path / "fetched/tokenizer.json").stat().st_mtime_ns
    store.get_artifact(digest, tmp_path / "fetched")
    assert (tmp_path / "fetched/model.onnx").read_bytes() == b"graph"
    assert (tmp_path / "fetched/tokenizer.json").stat().st_mtime_ns == untouched


def test_what_is_not_there_is_said_so(store: Store, tmp_path: Path) -> None:
    """A digest that the store does not hold names the store and the mend."""
    with pytest.raises(ArtifactMissing, match="run the Job that makes it again"):
        store.get_artifact(ABSENT, tmp_path / "fetched")


def test_half_an_upload_is_no_artifact(store: Store, tmp_path: Path) -> None:
    """Files without a manifest, as a killed Job leaves them, are not an artifact, and are
    completed.
    """
    digest, _ = put(store, make_artifact(tmp_path / "made"))
    folder = tmp_path / "store" / artifact_path(digest)
    (folder / "variant.json").unlink()
    (folder / "model.onnx").write_bytes(b"gr")
    with pytest.raises(ArtifactMissing):
        store.get_artifact(digest, tmp_path / "fetched")
    put(store, make_artifact(tmp_path / "made"))
    store.get_artifact(digest, tmp_path / "fetched")


def test_a_store_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    """A store below a file cannot be written; the error names the store and what to check."""
    (tmp_path / "file").write_text("")
    store = Store(f"file://{tmp_path / 'file'}/store")
    with pytest.raises(StoreUnavailable, match=r"cannot be written .* check its address"):
        store.put_json("reports/x", {})


def test_a_store_of_an_unknown_kind_is_refused() -> None:
    """A scheme without a driver is an error about the store."""
    with pytest.raises(StoreUnavailable, match="unheard://x cannot be opened"):
        Store("unheard://x")


def test_object_stores_work_alike(tmp_path: Path) -> None:
    """The same invariants hold on a store that knows no folders and no renaming."""
    fsspec.filesystem("memory").store.clear()
    store = Store("memory://bucket/prefix")
    digest, manifest = put(store, make_artifact(tmp_path / "made"))
    assert put(store, make_artifact(tmp_path / "made"))[0] == digest
    assert store.get_artifact(digest, tmp_path / "fetched") == manifest
    store.put_bytes(f"{artifact_path(digest)}/model.onnx", b"tampered")
    with pytest.raises(ArtifactCorrupt):
        store.get_artifact(digest, tmp_path / "elsewhere")


def test_checkpoints_are_addressed_by_content(store: Store, tmp_path: Path) -> None:
    """The digest of a checkpoint follows from the names and bytes of its files alone."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "notes.txt").write_text(name)
    first = store.put_checkpoint(tmp_path / "one", ["config.json"])
    assert store.put_checkpoint(tmp_path / "two", ["config.json"]) == first
    assert store.put_checkpoint(tmp_path / "two", ["config.json", "notes.txt"]) != first
    store.get_checkpoint(first, tmp_path / "back")
    assert [p.name for p in (tmp_path / "back").iterdir()] == ["config.json"]


def test_documents_are_replaced(store: Store) -> None:
    """A report is written anew by a Job that runs again, and absent ones are None."""
    assert store.get_json("reports/run") is None
    store.put_json("reports/run", {"try": 1})
    store.put_json("reports/run", {"try": 2})
    assert store.get_json("reports/run") == {"try": 2}
