# SPDX-License-Identifier: Apache-2.0
"""The artifact: a folder in the store, named by the digest of its manifest, that a server or a
Job can use alone.

    <store>/artifacts/sha256-<hex>/variant.json     this manifest, canonical JSON; its sha256 is
    the artifact's digest
                                   /model.onnx      inputs input_ids, attention_mask (int64,
                                   [batch, tokens]) and
                                                    token_type_ids where the architecture has
                                                    them; output logits
                                                    (float32, [batch, labels])
                                   /tokenizer.json  a Hugging Face fast tokenizer
    <store>/checkpoints/sha256-<hex>/…              torch side: config.json, model.safetensors,
    tokenizer files
    <store>/reports/<name>.json                     whole reports

Bytes are code: only ONNX and safetensors are ever read, never pickle; each file's sha256 is
checked when fetched.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import Field

from kompakt.api.base import Count, Digest, ListType, Model, ShortText, Task

MANIFEST_NAME = "variant.json"
MODEL_NAME = "model.onnx"
TOKENIZER_NAME = "tokenizer.json"


class ArtifactFile(Model):
    """One file of an artifact."""

    path: Annotated[
        str, Field(min_length=1, max_length=256, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]*$")
    ]
    digest: Digest
    size_bytes: Count


class ArtifactManifest(Model):
    """`variant.json`: what the folder holds and how to run it."""

    schema_version: Literal[1] = 1
    task: Task
    labels: Annotated[list[ShortText], Field(min_length=2, max_length=4096), ListType("atomic")]
    """Label names in the order of the logits."""
    max_sequence_length: Annotated[int, Field(ge=8, le=8192)]
    runtime: Literal["OnnxRuntime"] = "OnnxRuntime"
    source_digest: Digest
    """Checkpoint that everything was derived from."""
    parent_digest: Digest | None = None
    """Artifact of the baseline; absent for the baseline itself."""
    recipe: ShortText = ""
    steps_digest: Digest | None = None
    """Digest of the resolved steps with their parameters and data."""
    files: Annotated[
        list[ArtifactFile], Field(min_length=1, max_length=64), ListType("map", ("path",))
    ]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(f.size_bytes for f in self.files)

    def canonical(self) -> bytes:
        """The bytes that are stored and hashed: sorted keys, no spaces, UTF-8."""
        return canonical_json(self.to_wire())

    def digest(self) -> str:
        """Content address of the artifact."""
        return sha256_digest(self.canonical())


def canonical_json(value: object) -> bytes:
    """JSON with sorted keys and no spaces, so that equal values have equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha256_digest(data: bytes) -> str:
    """`sha256:<hex>` of some bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def artifact_path(digest: str) -> str:
    """Folder of an artifact, relative to the store's root."""
    return f"artifacts/{digest.replace(':', '-')}"


def checkpoint_path(digest: str) -> str:
    """Folder of a torch checkpoint, relative to the store's root."""
    return f"checkpoints/{digest.replace(':', '-')}"
