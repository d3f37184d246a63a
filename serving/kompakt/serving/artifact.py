# SPDX-License-Identifier: Apache-2.0
"""Read an artifact folder and refuse whatever is not exactly what its manifest says.

A model file is code: nothing is parsed by a native library before its sha256 has been compared.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from kompakt.api.artifact import (
    MANIFEST_NAME,
    MODEL_FILES,
    TOKENIZER_NAME,
    ArtifactFile,
    ArtifactManifest,
    sha256_digest,
)


class ArtifactError(Exception):
    """The folder cannot be served; the message names the file, the reason and the mend."""


@dataclass(frozen=True)
class Artifact:
    """A folder whose every file has the digest that the manifest gives."""

    folder: Path
    digest: str
    manifest: ArtifactManifest

    @property
    def model_path(self) -> Path:
        """The file that the runtime opens."""
        return self.folder / MODEL_FILES[self.manifest.runtime][0]

    @property
    def tokenizer_path(self) -> Path:
        """The fast tokenizer."""
        return self.folder / TOKENIZER_NAME


def load_artifact(folder: Path, expected_digest: str | None = None) -> Artifact:
    """Verify a folder; with `expected_digest`, refuse any other variant.

    Raises ArtifactError.
    """
    path = folder / MANIFEST_NAME
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read ({error.strerror}): --model-dir must name an artifact's folder"
        ) from error
    digest = sha256_digest(raw)
    if expected_digest is not None and digest != expected_digest:
        raise ArtifactError(
            f"{folder} holds {digest}, but {expected_digest} was asked for: "
            "fetch that artifact, or correct --digest"
        )
    try:
        manifest = ArtifactManifest.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "(whole file)"
        wrong = f"{field}: {first['msg']}"
        if first["type"] == "value_error":  # of fields that do not fit each other; it names them
            wrong = first["msg"].removeprefix("Value error, ")
        raise ArtifactError(
            f"{path}: {wrong}; make the artifact again with this version's jobs"
        ) from error
    for file in manifest.files:
        _verify(folder, file)
    for name in (*MODEL_FILES[manifest.runtime], TOKENIZER_NAME):
        if all(file.path != name for file in manifest.files):
            raise ArtifactError(f"{path}: files: {name} is missing, and nothing can run without it")
    return Artifact(folder=folder, digest=digest, manifest=manifest)


def _verify(folder: Path, file: ArtifactFile) -> None:
    if ".." in file.path.split("/"):
        raise ArtifactError(f"{MANIFEST_NAME}: files: {file.path} leads out of the artifact")
    path = folder / file.path
    try:
        with path.open("rb") as stream:
            found = f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read ({error.strerror}): fetch the artifact again"
        ) from error
    if found != file.digest:
        raise ArtifactError(
            f"{path} is not the file that was measured: its digest is {found}, "
            f"the manifest says {file.digest}; fetch the artifact again"
        )
