# SPDX-License-Identifier: Apache-2.0
"""The artifact: a folder in the store, named by the digest of its manifest, that a server or a
Job can use alone.

    <store>/artifacts/sha256-<hex>/variant.json     this manifest, canonical JSON; its sha256 is
    the artifact's digest
                                   /model.onnx      inputs input_ids, attention_mask (int64,
                                   [batch, tokens]) and
                                                    token_type_ids where the tokenizer gives
                                                    any but 0; output logits
                                                    (float32, [batch, labels]; of a Regression
                                                    the number itself, [batch, 1]; of a
                                                    TokenClassification [batch, tokens, labels];
                                                    of a SentenceEmbedding the vector itself,
                                                    pooled and normalized, [batch, width])
                                   /model.xml, /model.bin
                                                    instead of it, where the runtime is OpenVino:
                                                    its intermediate representation, with the same
                                                    inputs and output
                                   /tokenizer.json  a Hugging Face fast tokenizer
    <store>/checkpoints/sha256-<hex>/…              torch side: config.json, model.safetensors,
    tokenizer files
    <store>/reports/<name>.json                     whole reports

Bytes are code: only ONNX, OpenVINO's IR and safetensors are ever read, never pickle; each file's
sha256 is checked when fetched.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kompakt.api.base import (
    Count,
    Digest,
    ListType,
    MinCosine,
    Model,
    Runtime,
    ShortText,
    Task,
    Tolerance,
)

MANIFEST_NAME = "variant.json"
MODEL_NAME = "model.onnx"
IR_NAME = "model.xml"
IR_WEIGHTS_NAME = "model.bin"
TOKENIZER_NAME = "tokenizer.json"
MODEL_FILES: dict[Runtime, tuple[str, ...]] = {
    "OnnxRuntime": (MODEL_NAME,),
    "OpenVino": (IR_NAME, IR_WEIGHTS_NAME),
}
"""The files of a model by its runtime; the first is the one to open."""

Precision = Literal["Float32", "BFloat16"]


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
    labels: Annotated[list[ShortText], Field(min_length=1, max_length=4096), ListType("atomic")]
    """Label names in the order of the logits; of a Regression, what its one number is called; of a
    SentenceEmbedding `embedding`."""
    tolerance_micros: Tolerance | None = None
    """Of a Regression: how far apart two numbers may be and still count as the same."""
    min_cosine_basis_points: MinCosine | None = None
    """Of a SentenceEmbedding: the least cosine, in ten-thousandths, of two vectors that count as
    the same."""
    embedding_width: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Of a SentenceEmbedding: how many numbers the vector has."""
    max_sequence_length: Annotated[int, Field(ge=8, le=8192)]
    runtime: Runtime = "OnnxRuntime"
    """What runs it."""
    precision: Precision = "Float32"
    """What OpenVINO computes in where the model is not quantized. Always told to it: left alone, it
    takes bfloat16 on CPUs that have it, and the same file answers otherwise from node to node."""
    temperature_micros: Annotated[int, Field(ge=50_000, le=20_000_000)] | None = None
    """What logits are divided by before they become scores, in millionths; 1 when absent."""
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

    @model_validator(mode="after")
    def _fits_its_task(self) -> Self:
        if self.task == "Regression":
            if len(self.labels) != 1 or self.tolerance_micros is None:
                raise ValueError("labels of a Regression are one, and it has toleranceMicros")
        elif self.task == "SentenceEmbedding":
            if len(self.labels) != 1 or not (self.min_cosine_basis_points and self.embedding_width):
                raise ValueError(
                    "labels of a SentenceEmbedding are one, and it has minCosineBasisPoints and"
                    " embeddingWidth"
                )
        elif len(self.labels) < 2:  # noqa: PLR2004 a choice needs two
            raise ValueError(f"labels of a {self.task} are at least 2")
        return self

    @property
    def tolerance(self) -> float:
        """In the label's unit; of embeddings 1 - cosine; 0 for tasks whose answers are equal or
        not.
        """
        if self.min_cosine_basis_points is not None:
            return 1 - self.min_cosine_basis_points / 1e4
        return (self.tolerance_micros or 0) / 1e6

    @property
    def width(self) -> int:
        """How many numbers the graph answers to a text, or to a token."""
        return self.embedding_width or len(self.labels)

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


def padded_length(tokens: int, longest: int) -> int:
    """How many positions OpenVINO is asked with for a text: a multiple of 8, of 16 beyond 64, of 32
    beyond 128…, but no more than the model takes.

    It prepares its kernels anew for each length that it has not seen (28 ms for a small BERT); with
    all of these seen at start, no text is the first of its kind. What is filled up is masked.
    """
    step = max(8, (1 << (tokens - 1).bit_length()) // 8)
    return max(tokens, min(-(-tokens // step) * step, longest))


def padded_lengths(longest: int) -> list[int]:
    """All that `padded_length` can give for up to so many tokens."""
    return sorted({padded_length(tokens, longest) for tokens in range(1, longest + 1)})
