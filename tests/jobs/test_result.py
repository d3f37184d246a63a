# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any, Literal

import pytest

from kompakt.api.job import RESULT_MAX_BYTES, ImportResult, MeasureResult, TaskResult
from kompakt.api.measure import (
    Benchmark,
    Evaluation,
    Hardware,
    LatencyFigures,
    Measurement,
    PairedCounts,
    SliceCounts,
)
from kompakt.jobs.result import encode, shorten

DIGEST = "sha256:" + "f" * 64


def measured(slices: int, *, outcome: Literal["Succeeded", "Failed"] = "Succeeded") -> TaskResult:
    """A result as large as it gets."""
    counts: dict[str, Any] = {
        "examples": 10**9,
        "baseline_correct": 10**9,
        "candidate_correct": 10**9,
        "lost": 10**9,
        "gained": 10**9,
        "disagreements": 10**9,
    }
    latency = LatencyFigures(
        p50_microseconds=10**9,
        p90_microseconds=10**9,
        p95_microseconds=10**9,
        p99_microseconds=10**9,
        p99_upper_microseconds=10**9,
        mean_microseconds=10**9,
        peak_memory_mebibytes=10**6,
    )
    return TaskResult(
        kind="Measure",
        outcome=outcome,
        reason=outcome,
        message="m" * 1024,
        measured=MeasureResult(
            measurement=Measurement(
                target="t" * 64,
                baseline_digest=DIGEST,
                candidate_digest=DIGEST,
                evaluation=Evaluation(
                    data_digest=DIGEST,
                    selection=PairedCounts(**counts),
                    confirmation=PairedCounts(**counts),
                    slices=[
                        SliceCounts(field="f" * 64, value="v" * 63, **counts | {"examples": i})
                        for i in range(slices)
                    ],
                ),
                benchmark=Benchmark(
                    rounds=1000,
                    requests=10**9,
                    baseline=latency,
                    candidate=latency,
                    speedup_permille=10**6,
                    speedup_low_permille=10**6,
                    speedup_high_permille=10**6,
                    hardware=Hardware(
                        cpu_model="c" * 256,
                        cpu_features=["x" * 32 + str(i) for i in range(0)],
                        node="n" * 256,
                    ),
                ),
            )
        ),
    )


def test_a_small_result_is_whole() -> None:
    """What fits is not touched."""
    result = measured(2).evolve(message="fine")
    assert TaskResult.model_validate_json(encode(result)) == result


@pytest.mark.parametrize("slices", [0, 8, 32])
def test_a_large_result_fits_the_termination_message(slices: int) -> None:
    """Slices go first, the smallest first; the counts that gates need always stay."""
    result = measured(slices)
    encoded = encode(result)
    assert len(encoded) <= RESULT_MAX_BYTES
    found = TaskResult.model_validate_json(encoded)
    assert found.measured is not None
    assert result.measured is not None
    theirs, ours = found.measured.measurement, result.measured.measurement
    assert theirs.benchmark == ours.benchmark
    assert theirs.evaluation.confirmation == ours.evaluation.confirmation
    kept = [entry.examples for entry in theirs.evaluation.slices]
    assert sorted(kept) == list(range(slices - len(kept), slices))
    # Or a gate on each value would pass by those that are left.
    assert theirs.evaluation.cut_slice_fields == (["f" * 64] if len(kept) < slices else [])


def test_long_labels_fit(tmp_path: object) -> None:
    """A model with 64 labels of 256 characters, not even in Latin script, still fits."""
    imported = ImportResult(
        source_digest=DIGEST,
        artifact_digest=DIGEST,
        size_bytes=1,
        parameters=1,
        labels=["ж" * 250 + str(i) for i in range(64)],
        max_absolute_error_nanos=1,
    )
    result = TaskResult(kind="Import", outcome="Succeeded", reason="Succeeded", imported=imported)
    encoded = encode(result)
    assert len(encoded) <= RESULT_MAX_BYTES
    found = TaskResult.model_validate_json(encoded).imported
    assert found is not None
    assert found.labels == imported.labels[: len(found.labels)]
    assert found.labels


def test_a_message_of_wide_characters_fits() -> None:
    """The limit is in bytes, and a message may be of characters of four bytes each."""
    result = TaskResult(kind="Import", outcome="Failed", reason="Unexpected", message="🙂" * 1024)
    assert len(encode(result)) <= RESULT_MAX_BYTES


def test_a_cut_is_marked() -> None:
    """A text that was cut ends with an ellipsis, and one that fits does not."""
    assert shorten("abcdef", 4) == "abc…"
    assert shorten("abcd", 4) == "abcd"
