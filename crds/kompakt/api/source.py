# SPDX-License-Identifier: Apache-2.0
"""Where models, data and artifacts come from and go to."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from kompakt.api.base import (
    Cel,
    Digest,
    FieldName,
    ListType,
    LocalRef,
    MinCosine,
    Model,
    ShortText,
    Task,
    Tolerance,
    Uri,
)


class ModelSource(Model):
    """A Hugging Face checkpoint: config, weights as safetensors, tokenizer."""

    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel(
            "(self.task == 'Regression') == has(self.toleranceMicros)",
            "a Regression is right within toleranceMicros of the label: set it for that task, and"
            " for no other",
            ".toleranceMicros",
        ),
        Cel(
            "(self.task == 'SentenceEmbedding') == has(self.minCosineBasisPoints)",
            "a SentenceEmbedding is kept where its cosine with the original's is at least"
            " minCosineBasisPoints: set it for that task, and for no other",
            ".minCosineBasisPoints",
        ),
    )

    task: Task = "TextClassification"
    """What the model answers to a text. TextClassification: one of its labels. Regression: a
    number, as a sequence classifier with one output does. TokenClassification: a label for each
    word, that of the word's first token; a text is right when all of its labels are.
    SentenceEmbedding: a vector, as a checkpoint without a head gives it: by pooling and
    normalization as modules.json of sentence-transformers says, without it the mean of all tokens,
    normalized."""
    tolerance_micros: Tolerance | None = None
    """Of a Regression, in millionths of the label's unit: how far from the label a number may be
    and still be right, and how far apart those of two variants may be and still agree."""
    min_cosine_basis_points: MinCosine | None = None
    """Of a SentenceEmbedding, in ten-thousandths: the least cosine with the original's embedding at
    which a text counts as right, and the least between those of two variants at which they
    agree."""
    uri: Uri
    """`hf://org/name`, `file:///path`, `pvc://claim/path`, or any object store address with a
    checkpoint in it."""
    revision: ShortText = "main"
    """Branch, tag or commit; for `hf://` only."""
    digest: Digest | None = None
    """When set, a checkpoint of any other content is refused."""
    secret_ref: LocalRef | None = None
    """Secret whose keys become environment variables of the Jobs that read the model."""
    max_sequence_length: Annotated[int, Field(ge=8, le=8192)] = 128
    """Longer inputs are truncated to this many tokens, in measurements and when serving."""


class SliceWeight(Model):
    """How much oftener than the others the texts of a slice are drawn."""

    field: FieldName
    """One of sliceFields."""
    value: Annotated[str, Field(max_length=63)]
    """Its value."""
    weight_permille: Annotated[int, Field(ge=1, le=1_000_000)]
    """2000 is twice as often; texts of slices without a weight have 1000."""


class DataSource(Model):
    """Labelled or unlabelled text: JSON Lines or CSV, one example a line."""

    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel(
            "!has(self.sliceWeights) || self.sliceWeights.all(w,"
            " has(self.sliceFields) && w.field in self.sliceFields)",
            "the field of a slice weight must be one of sliceFields",
            ".sliceWeights",
        ),
        Cel(
            "!has(self.secondTextField) || has(self.labelField)",
            "a second text needs a score of how similar the two are: set labelField to its field,"
            " or leave secondTextField out",
            ".secondTextField",
        ),
    )

    uri: Uri
    """A file of JSON Lines (`.jsonl`) or CSV (`.csv`): `pvc://claim/path`, `s3://…`, `file:///…`
    and so on.
    """
    digest: Digest | None = None
    """When set, a file of any other content is refused."""
    secret_ref: LocalRef | None = None
    text_field: FieldName = "text"
    """Field that holds the text, or in JSON Lines a list of its words."""
    second_text_field: FieldName | None = None
    """In evaluation data of a SentenceEmbedding, field of a second text; the label is then a number
    that says how similar the two are, larger for more (on any scale: ranks are compared)."""
    label_field: FieldName | None = None
    """Absent when the text has no labels. Labels are the model's label names, or their indices; of
    a Regression, numbers; of a TokenClassification a list of labels, one for each word (what white
    space divides), or a text of them with spaces between. In calibration and training data some
    texts may have none: null, or nothing in CSV."""
    slice_fields: Annotated[list[FieldName], Field(max_length=8), ListType("set")] = []
    """Fields whose values divide the data into slices that are reported, and may be gated, one by
    one."""
    slice_weights: Annotated[
        list[SliceWeight], Field(max_length=32), ListType("map", ("field", "value"))
    ] = []
    """Where the model must be good: of training and calibration data, these slices are drawn more
    often. A text of several has the product of their weights."""
    limit: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Take a seeded sample of this many examples."""


class Store(Model):
    """Where artifacts and reports are kept, addressed by their content."""

    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel(
            "has(self.uri) != has(self.persistentVolumeClaim)",
            "say where artifacts are kept: exactly one of uri and persistentVolumeClaim",
        ),
    )

    uri: Uri | None = None
    """Root of the store, for example `s3://bucket/prefix`."""
    persistent_volume_claim: LocalRef | None = None
    """A claim that every node of the targets can mount (ReadWriteMany, unless there is one
    node)."""
    secret_ref: LocalRef | None = None
    """Secret whose keys become environment variables of the pods that use the store."""
