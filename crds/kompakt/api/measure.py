# SPDX-License-Identifier: Apache-2.0
"""Measurements of a variant on a target, as whole numbers that any confidence bound can be
computed from.

Accuracy is paired: baseline and candidate answer the same examples. With `lost` the examples that
only the baseline
gets right and `gained` those that only the candidate does, the accuracy drop is (lost - gained) /
examples.

A number (the task Regression) is right within the model's tolerance of the label, and two numbers
agree within it, so that what decides is counts there too; errors and correlation are told beside.
A text whose words have labels (TokenClassification) is right when all of them are: words of one
text are not independent, texts are.

An embedding (SentenceEmbedding) is right as long as its cosine with the baseline's is at least the
model's minCosineBasisPoints, so that the baseline is always right. Where people have said how
similar two texts are, the correlation with that is told beside, with the standard error of what it
dropped by: a bound at any confidence follows from the two.
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from kompakt.api.base import (
    BasisPoints,
    Count,
    Digest,
    FieldName,
    ListType,
    Mebibytes,
    Microseconds,
    Model,
    ShortText,
    SignedBasisPoints,
    SignedMicros,
)

ANSWER_THREADS: Final = 1
"""Threads that work on one text: a server answers as many texts at a time as it has cores, each on
one of them, and a benchmark measures what a server does."""


class PairedCorrelation(Model):
    """Of pairs of texts that people have scored, how well each variant's cosines rank them:
    Spearman's correlation of cosine and score, the measure of semantic textual similarity (Reimers
    & Gurevych 2019, arXiv:1908.10084, section 4).
    """

    pairs: Count
    """Scored pairs, embedded by both."""
    baseline_basis_points: SignedBasisPoints
    """The baseline's correlation."""
    candidate_basis_points: SignedBasisPoints
    """The candidate's."""
    drop_micros: SignedMicros
    """By how much the candidate's is smaller, in millionths."""
    standard_error_micros: Count
    """Of the drop, by a paired bootstrap: pairs are drawn anew, and both variants judged on the
    same ones."""


class PairedCounts(Model):
    """Outcome of one set of labelled examples answered by both variants."""

    examples: Count = 0
    """Labelled examples answered by both."""
    baseline_correct: Count = 0
    """Right by the baseline."""
    candidate_correct: Count = 0
    """Right by the candidate."""
    lost: Count = 0
    """Right by the baseline, wrong by the candidate."""
    gained: Count = 0
    """Wrong by the baseline, right by the candidate."""
    disagreements: Count = 0
    """Examples where the two predict different labels, right or wrong."""


class SliceCounts(PairedCounts):
    """The same for the examples of one slice."""

    field: FieldName
    """Slice field."""
    value: Annotated[str, Field(max_length=63)]
    """Its value."""
    correlation: PairedCorrelation | None = None
    """Of a SentenceEmbedding with scored pairs."""


class CosineFigures(Model):
    """How near the candidate's embeddings are to the baseline's, over both splits."""

    mean_basis_points: SignedBasisPoints
    """Mean cosine, in ten-thousandths."""
    fifth_percentile_basis_points: SignedBasisPoints
    """The cosine that a twentieth of the texts are below."""
    least_basis_points: SignedBasisPoints
    """The least."""


class NumberFigures(Model):
    """How good the numbers of one variant are, over both splits."""

    mean_absolute_error_micros: Count
    """Mean distance from the labels, in millionths."""
    root_mean_squared_error_micros: Count
    """Square root of the mean squared distance, in millionths."""
    pearson_basis_points: SignedBasisPoints | None = None
    """Linear correlation with the labels; absent where either does not vary."""
    spearman_basis_points: SignedBasisPoints | None = None
    """Correlation of ranks; absent where either does not vary."""


class TagFigures(Model):
    """How good the labels of words are, over both splits."""

    words: Count
    """That either has a label for; truncated ones have none."""
    correct_words: Count
    """Of these, with the right label."""
    entities: Count | None = None
    """Spans in the data; absent where labels are no spans (BIO, IOBES and the like)."""
    found_entities: Count | None = None
    """Spans that the variant finds."""
    correct_entities: Count | None = None
    """Of these, in the data too, with the same ends and type."""
    entity_f1_basis_points: BasisPoints | None = None
    """Harmonic mean of the shares of correct entities among both, as conlleval counts them."""


class Evaluation(Model):
    """Paired accuracy on two disjoint splits: a variant is chosen on one and confirmed on the
    other, because the
    best of many is biased on the split that chose it. The split of an example follows from a hash
    of its text.
    """

    data_digest: Digest
    """Of the evaluation data."""
    selection: PairedCounts
    """Split that variants are chosen on."""
    confirmation: PairedCounts
    """Split that the choice is confirmed on."""
    slices: Annotated[list[SliceCounts], Field(max_length=32), ListType("atomic")] = []
    """Of the confirmation split, those with most examples: a result has room for 4 KiB."""
    cut_slice_fields: Annotated[list[FieldName], Field(max_length=8), ListType("set")] = []
    """Slice fields of which values are left out. A gate on one of them cannot be passed."""
    baseline_calibration_error: BasisPoints | None = None
    """Expected calibration error, 15 bins, over both splits (Guo et al. 2017, arXiv:1706.04599);
    of a TextClassification alone."""
    candidate_calibration_error: BasisPoints | None = None
    """The candidate's."""
    baseline_numbers: NumberFigures | None = None
    """Of a Regression: the baseline's errors."""
    candidate_numbers: NumberFigures | None = None
    """The candidate's."""
    baseline_tags: TagFigures | None = None
    """Of a TokenClassification: the baseline's labels of words and entities."""
    candidate_tags: TagFigures | None = None
    """The candidate's."""
    cosines: CosineFigures | None = None
    """Of a SentenceEmbedding: the candidate's embeddings beside the baseline's."""
    selection_correlation: PairedCorrelation | None = None
    """Of a SentenceEmbedding with scored pairs, on the selection split; absent where cosines or
    scores do not vary."""
    confirmation_correlation: PairedCorrelation | None = None
    """The same on the confirmation split."""


class Hardware(Model):
    """The machine that a benchmark ran on."""

    cpu_model: ShortText = ""
    """As the kernel names it."""
    cpu_features: Annotated[
        list[Annotated[str, Field(max_length=32)]], Field(max_length=16), ListType("set")
    ] = []
    """Those that decide int8 speed and results, for example avx512_vnni."""
    cpu_millis: Count = 0
    """CPU limit of the pod, in thousandths of a core."""
    memory_mebibytes: Mebibytes = 0
    """Memory limit of the pod."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """Threads of the inference runtime."""
    node: ShortText = ""
    """Name of the node."""
    accelerator: ShortText | None = None
    """The GPU that the pod was given, as its driver names it; absent where it was given none."""


class LatencyFigures(Model):
    """One variant's share of an interleaved benchmark, batch size 1, tokenization included."""

    p50_microseconds: Microseconds = 0
    """Median."""
    p90_microseconds: Microseconds = 0
    """90th percentile."""
    p95_microseconds: Microseconds = 0
    """95th percentile."""
    p99_microseconds: Microseconds = 0
    """99th percentile."""
    p99_upper_microseconds: Microseconds | None = None
    """99 % upper confidence bound of p99 by order statistics; absent when there are too few
    samples for one."""
    mean_microseconds: Microseconds = 0
    """Mean."""
    peak_memory_mebibytes: Mebibytes = 0
    """Resident memory of a process that runs this variant alone; not that of a GPU."""
    execution_provider: ShortText | None = None
    """What of ONNX Runtime the variant ran on, for example CUDAExecutionProvider; absent where it
    was the CPU."""


class Benchmark(Model):
    """Baseline and candidate, interleaved in rounds in one pod under the profile's limits."""

    rounds: Count
    """Rounds, each with both variants on the same texts."""
    requests: Count
    """Requests of each variant, over all rounds."""
    baseline: LatencyFigures
    """Figures of the baseline."""
    candidate: LatencyFigures
    """Figures of the candidate."""
    speedup_permille: Count
    """Median over rounds of baseline time / candidate time."""
    speedup_low_permille: Count
    """Lower end of a 95 % interval over rounds (order statistics)."""
    speedup_high_permille: Count
    """Upper end."""
    hardware: Hardware
    """Where it ran."""


class Measurement(Model):
    """What a Measure Job found for one candidate on one target."""

    target: FieldName
    """Name of the target."""
    baseline_digest: Digest
    """Artifact of the baseline."""
    candidate_digest: Digest
    """Artifact of the candidate."""
    evaluation: Evaluation
    """Accuracy."""
    benchmark: Benchmark
    """Latency."""
