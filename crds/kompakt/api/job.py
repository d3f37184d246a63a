# SPDX-License-Identifier: Apache-2.0
"""The contract of the Jobs: a task goes in as JSON, a result of at most 4 KiB comes out in the
termination message.

A Job is a pure function of its task: run twice, it gives the same artifact digest (up to
floating-point noise in
training) and the same report. It exits 0 with `outcome: Succeeded`, 42 with `InvalidInput` (never
retried: the
message says which field is wrong and how to mend it), 1 with `Failed`. A Job killed for memory
leaves no result;
the operator sees the container's reason OOMKilled.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kompakt.api.base import (
    Count,
    Digest,
    FieldName,
    ListType,
    Message,
    Model,
    Reason,
    Runtime,
    ShortText,
)
from kompakt.api.measure import Measurement
from kompakt.api.recipe import Step
from kompakt.api.source import DataSource, ModelSource

TaskKind = Literal["Import", "Compress", "Measure"]
LabelName = ShortText
RESULT_MAX_BYTES = 4096


class ImportTask(Model):
    """Reads the source model and all data, checks that they fit each other, exports the model
    unchanged to ONNX.
    """

    model: ModelSource
    data: Annotated[dict[FieldName, DataSource], Field(max_length=8)] = {}
    """By role: evaluation, goldenSet, calibration, training."""
    parity_examples: Annotated[int, Field(ge=1, le=4096)] = 32
    """Texts on which the exported model must equal torch to 1e-4."""
    analysis_examples: Annotated[int, Field(ge=0, le=1024)] = 0
    """Texts of training or calibration that the analysis of the baseline takes sensitivity from, at
    most; 0 leaves the analysis out."""
    seed: int = 0
    """Draws them, as it draws the texts of prune: what is found once serves both."""


class CompressTask(Model):
    """Runs a recipe's resolved steps on the imported checkpoint and stores the artifact."""

    recipe: ShortText
    checkpoint_digest: Digest
    """Imported checkpoint in the store."""
    baseline_digest: Digest
    """Its artifact."""
    steps: Annotated[list[Step], Field(max_length=16), ListType("atomic")]
    training: DataSource | None = None
    calibration: DataSource | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0


class MeasureTask(Model):
    """Evaluates baseline and candidate on the same examples, then benchmarks them interleaved, on
    this very pod.
    """

    target: FieldName
    baseline_digest: Digest
    candidate_digest: Digest
    evaluation: DataSource
    selection_permille: Annotated[int, Field(ge=0, le=1000)] = 250
    """Share of the evaluation data in the selection split; the rest confirms."""
    first_look_permille: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Only such a share of the selection split is looked at, and nothing of the rest."""
    benchmark_rounds: Annotated[int, Field(ge=5, le=1000)] = 15
    benchmark_seconds: Annotated[int, Field(ge=1, le=3600)] = 10
    """Time for all rounds together."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0


class TaskSpec(Model):
    """What a Job reads from its ConfigMap: exactly one of the members, as `kind` says."""

    kind: TaskKind
    store: ShortText
    """Root of the store as the Job sees it, for example `file:///var/lib/kompakt/store` or `s3://bucket/prefix`."""
    report_name: ShortText
    """The whole report is stored as `reports/<report_name>.json`."""
    import_model: ImportTask | None = None
    compress: CompressTask | None = None
    measure: MeasureTask | None = None


class ImportResult(Model):
    """The baseline."""

    source_digest: Digest
    """Content address of the checkpoint that was read; also its address in the store's
    checkpoints."""
    artifact_digest: Digest
    """Artifact of the unchanged model."""
    size_bytes: Count
    """Of the artifact."""
    parameters: Count
    """Weights of the model."""
    labels: Annotated[list[LabelName], Field(max_length=64), ListType("atomic")]
    """The first 64."""
    data_digests: Annotated[dict[FieldName, Digest], Field(max_length=8)] = {}
    """Content of each data source, by role."""
    data_examples: Annotated[dict[FieldName, Count], Field(max_length=8)] = {}
    """Examples in each data source, by role."""
    max_absolute_error_nanos: Count
    """Largest difference of a logit between torch and ONNX, in billionths."""


class CompressResult(Model):
    """A variant."""

    artifact_digest: Digest
    runtime: Runtime = "OnnxRuntime"
    size_bytes: Count
    parameters: Count
    seconds: Count
    summary: ShortText = ""
    """One line for people: what was done, for example the neurons kept in each layer."""


class MeasureResult(Model):
    """A variant's figures on a target."""

    measurement: Measurement


class TaskResult(Model):
    """The termination message."""

    kind: TaskKind
    outcome: Literal["Succeeded", "InvalidInput", "Failed"]
    reason: Reason
    message: Message = ""
    imported: ImportResult | None = None
    compressed: CompressResult | None = None
    measured: MeasureResult | None = None
