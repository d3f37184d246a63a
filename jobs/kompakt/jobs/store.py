# SPDX-License-Identifier: Apache-2.0
"""The artifact store: folders named by the digest of their manifest, over any fsspec file system.

Invariants:

- what is stored under a digest never changes: writing it again does nothing, and two writers at
  once write the same bytes, so the last one harms nobody;
- a folder is complete once its manifest is there, because the manifest is written last; on a local
  file system each file appears under its name only when it is whole (object stores work so by
  themselves);
- everything fetched is checked against its digest, the manifest against the folder's name.

Besides artifacts and checkpoints (`kompakt.api.artifact`) it holds `reports/<name>.json`,
`analysis/<digest>.json` (of a baseline: `kompakt.jobs.analysis.document`), `steps/<key>.json`
(which checkpoint a step made, so that a killed Job goes on where it was), `latency/<key>.json`,
`findings/<key>.npy` (of models on texts: `kompakt.jobs.compress.findings`) and
`predictions/<key>.npy`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import posixpath
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from kompakt.api.artifact import (
    MANIFEST_NAME,
    ArtifactFile,
    ArtifactManifest,
    artifact_path,
    canonical_json,
    checkpoint_path,
    sha256_digest,
)
from kompakt.api.base import Digest, Model
from kompakt.jobs.errors import ArtifactCorrupt, ArtifactMissing, JobError, StoreUnavailable
from kompakt.jobs.location import describe, resolve

CHECKPOINT_MANIFEST = "checkpoint.json"
CHUNK_BYTES = 4 << 20
_M = TypeVar("_M", bound=Model)


class CheckpointManifest(Model):
    """`checkpoint.json`: the files of a torch checkpoint. Its digest is the checkpoint's."""

    schema_version: Literal[1] = 1
    files: Annotated[list[ArtifactFile], Field(min_length=1, max_length=4096)]

    def canonical(self) -> bytes:
        """The bytes that are stored and hashed."""
        return canonical_json(self.to_wire())

    def digest(self) -> Digest:
        """Content address of the checkpoint."""
        return sha256_digest(self.canonical())


def file_digest(path: Path) -> str:
    """`sha256:<hex>` of a file."""
    with path.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def describe_files(folder: Path, names: Sequence[str]) -> list[ArtifactFile]:
    """The manifest's entries for some files of a folder, sorted by name."""
    return [
        ArtifactFile(
            path=name,
            digest=file_digest(folder / name),
            size_bytes=(folder / name).stat().st_size,
        )
        for name in sorted(names)
    ]


class Store:
    """A store at a root such as `file:///var/lib/kompakt/store` or `s3://bucket/prefix`."""

    def __init__(self, root: str) -> None:
        self.root = root
        try:
            location = resolve(root)
        except JobError as error:
            raise StoreUnavailable(f"the artifact store {error}") from error
        self._fs = location.fs
        self._base = location.path.rstrip("/")

    # --- artifacts and checkpoints -------------------------------------------------------------

    def put_artifact(self, folder: Path, manifest: ArtifactManifest) -> str:
        """Stores a folder's files and returns the digest to find them by."""
        digest = manifest.digest()
        self._put_folder(
            artifact_path(digest),
            source=folder,
            files=manifest.files,
            manifest_name=MANIFEST_NAME,
            manifest=manifest.canonical(),
        )
        return digest

    def get_artifact(self, digest: str, to: Path) -> ArtifactManifest:
        """Copies an artifact to a local folder, every byte checked."""
        raw = self._manifest(artifact_path(digest), MANIFEST_NAME, digest=digest)
        manifest = _parse(ArtifactManifest, raw, digest=digest)
        self._get_files(artifact_path(digest), manifest.files, to=to)
        _write_local(to / MANIFEST_NAME, raw)
        return manifest

    def manifest(self, digest: str) -> ArtifactManifest:
        """The manifest of an artifact alone."""
        raw = self._manifest(artifact_path(digest), MANIFEST_NAME, digest=digest)
        return _parse(ArtifactManifest, raw, digest=digest)

    def put_checkpoint(self, folder: Path, names: Sequence[str]) -> str:
        """Stores some files of a folder as a checkpoint and returns its digest."""
        manifest = CheckpointManifest(files=describe_files(folder, names))
        digest = manifest.digest()
        self._put_folder(
            checkpoint_path(digest),
            source=folder,
            files=manifest.files,
            manifest_name=CHECKPOINT_MANIFEST,
            manifest=manifest.canonical(),
        )
        return digest

    def get_checkpoint(self, digest: str, to: Path) -> None:
        """Copies a checkpoint to a local folder, every byte checked."""
        raw = self._manifest(checkpoint_path(digest), CHECKPOINT_MANIFEST, digest=digest)
        manifest = _parse(CheckpointManifest, raw, digest=digest)
        self._get_files(checkpoint_path(digest), manifest.files, to=to)

    # --- small documents -----------------------------------------------------------------------

    def put_json(self, name: str, value: object) -> None:
        """Stores a JSON document; the only kind of entry that a second write replaces."""
        text = json.dumps(value, indent=2, ensure_ascii=False)
        self.put_bytes(f"{name}.json", text.encode())

    def get_json(self, name: str) -> Any | None:
        """A JSON document, or nothing when there is none (or it cannot be parsed)."""
        raw = self.get_bytes(f"{name}.json")
        if raw is None:
            return None
        try:
            return json.loads(raw)
        except ValueError:
            return None

    def put_bytes(self, name: str, data: bytes) -> None:
        """Stores one object under a name."""
        with self._writing(name):
            self._write(posixpath.join(self._base, name), lambda stream: stream.write(data))

    def get_bytes(self, name: str) -> bytes | None:
        """One object, or nothing when there is none."""
        path = posixpath.join(self._base, name)
        with self._reading(name):
            try:
                return bytes(self._fs.cat_file(path))
            except FileNotFoundError:
                return None

    # --- inside --------------------------------------------------------------------------------

    def _put_folder(
        self,
        folder: str,
        *,
        source: Path,
        files: Sequence[ArtifactFile],
        manifest_name: str,
        manifest: bytes,
    ) -> None:
        base = posixpath.join(self._base, folder)
        with self._writing(folder):
            if self._fs.exists(posixpath.join(base, manifest_name)):
                return
            for entry in files:
                self._put_file(source / entry.path, posixpath.join(base, entry.path))
            self._write(posixpath.join(base, manifest_name), lambda s: s.write(manifest))

    def _put_file(self, source: Path, target: str) -> None:
        with source.open("rb") as stream:
            self._write(target, lambda s: shutil.copyfileobj(stream, s, CHUNK_BYTES))

    def _write(self, path: str, write: Callable[[Any], object]) -> None:
        """Writes one object so that nobody ever sees half of it."""
        if not self._is_local:
            # An object appears when its upload is complete; an aborted upload leaves nothing.
            with self._fs.open(path, "wb") as stream:
                write(stream)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Opened plainly, not by `tempfile`: that one makes files only their owner can read, and the
        # servers that mount the store run as another user.
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("wb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _manifest(self, folder: str, name: str, *, digest: str) -> bytes:
        raw = self.get_bytes(posixpath.join(folder, name))
        if raw is None:
            raise ArtifactMissing(
                f"the store {self.root} holds no {folder}/{name}; run the Job that makes it again"
            )
        if sha256_digest(raw) != digest:
            raise ArtifactCorrupt(
                f"{folder}/{name} in the store {self.root} was changed after it was stored; delete"
                " that folder and"
                " run the Job that makes it again"
            )
        return raw

    def _get_files(self, folder: str, files: Sequence[ArtifactFile], *, to: Path) -> None:
        for entry in files:
            if ".." in entry.path.split("/"):
                raise ArtifactCorrupt(f"{folder} names the file {entry.path}, outside of itself")
            target = to / entry.path
            if target.is_file() and file_digest(target) == entry.digest:
                continue
            source = posixpath.join(self._base, folder, entry.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.partial")
            with self._reading(f"{folder}/{entry.path}"):
                found = self._download(source, partial)
            if found is None:
                raise ArtifactMissing(
                    f"{folder}/{entry.path} is gone from the store {self.root}; delete that folder"
                    " and run the Job"
                    " that makes it again"
                )
            if found != entry.digest:
                partial.unlink()
                raise ArtifactCorrupt(
                    f"{folder}/{entry.path} in the store {self.root} has the digest {found}, not"
                    f" {entry.digest};"
                    " delete that folder and run the Job that makes it again"
                )
            partial.replace(target)

    def _download(self, source: str, target: Path) -> str | None:
        """Copies one object and returns its digest, so that its bytes are read once; None when it
        is missing.
        """
        digest = hashlib.sha256()
        try:
            remote = self._fs.open(source, "rb")
        except FileNotFoundError:
            return None
        with remote, target.open("wb") as local:
            while chunk := remote.read(CHUNK_BYTES):
                digest.update(chunk)
                local.write(chunk)
        return f"sha256:{digest.hexdigest()}"

    @property
    def _is_local(self) -> bool:
        protocol = self._fs.protocol
        return "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # drivers raise what they like
            raise StoreUnavailable(
                f"{name} cannot be written to the store {self.root}: {describe(error)};"
                " check its address, free space, permissions and keys"
            ) from error

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # drivers raise what they like
            raise StoreUnavailable(
                f"{name} cannot be read from the store {self.root}: {describe(error)};"
                " check its address, permissions and keys"
            ) from error


def _parse(kind: type[_M], raw: bytes, *, digest: str) -> _M:
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise ArtifactCorrupt(
            f"the manifest of {digest} is of another version of Kompakt: {error.errors()[0]['msg']}"
        ) from error


def _write_local(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    partial.replace(path)
