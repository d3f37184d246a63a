# SPDX-License-Identifier: Apache-2.0
"""A model that answers a number, from import to measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.jobs.conftest import Places, make_texts, write_checkpoint, write_jsonl

from kompakt.api.job import CompressTask, ImportResult, ImportTask, MeasureTask
from kompakt.api.source import DataSource
from kompakt.jobs.compress.chain import compress
from kompakt.jobs.errors import StepInvalid
from kompakt.jobs.evaluate.classifier import Classifier
from kompakt.jobs.importing import import_model
from kompakt.jobs.measure import measure

TOLERANCE = 0.5
MOVEMENT = {"importance": "Movement", "samples": 16}


def data(path: Path, count: int) -> dict[str, Any]:
    """Texts with a number that is a function of the words."""
    rows = [{"text": t, "stars": len(t.split()) / 4 - 2} for t in make_texts(count)]
    return {"uri": write_jsonl(path, rows), "labelField": "stars"}


@pytest.fixture
def imported(tmp_path: Path, place: Places) -> ImportResult:
    """The baseline, with its data read."""
    write_checkpoint(tmp_path / "model", labels=("stars",))
    model = {
        "uri": f"file://{tmp_path}/model",
        "task": "Regression",
        "toleranceMicros": round(TOLERANCE * 1e6),
        "maxSequenceLength": 40,
    }
    sources = {"evaluation": data(tmp_path / "evaluation.jsonl", 60)}
    return import_model(ImportTask.model_validate({"model": model, "data": sources}), place())


def compress_task(imported: ImportResult, root: Path, *steps: dict[str, Any]) -> CompressTask:
    """A recipe with these steps."""
    return CompressTask.model_validate(
        {
            "recipe": "test",
            "checkpointDigest": imported.source_digest,
            "baselineDigest": imported.artifact_digest,
            "steps": list(steps),
            "training": data(root / "training.jsonl", 80),
        }
    )


@pytest.mark.slow
def test_a_regression_goes_the_whole_way(
    tmp_path: Path, place: Places, imported: ImportResult
) -> None:
    """Imported, pruned by its numbers' gradients, quantized; measured by the tolerance."""
    assert imported.labels == ["stars"]
    prune = {"prune": {"ffnKeepPermille": 750}}
    distill = {"distill": {"examples": 64, "learningRateMicros": 20}}
    made = compress(compress_task(imported, tmp_path, prune, distill, {"quantize": {}}), place())
    store = place().store
    manifest = store.manifest(made.artifact_digest)
    assert (manifest.task, manifest.labels) == ("Regression", ["stars"])
    assert manifest.tolerance == TOLERANCE
    task = MeasureTask.model_validate(
        {
            "target": "edge",
            "baselineDigest": imported.artifact_digest,
            "candidateDigest": made.artifact_digest,
            "evaluation": data(tmp_path / "evaluation.jsonl", 60),
            "selectionPermille": 0,
            "benchmarkRounds": 5,
            "benchmarkSeconds": 1,
        }
    )
    found = measure(task, place()).measurement.evaluation
    numbers = []
    for name, digest in (("a", imported.artifact_digest), ("b", made.artifact_digest)):
        store.get_artifact(digest, tmp_path / name)
        numbers.append(Classifier(tmp_path / name, threads=1).answer_all(make_texts(60))[:, 0])
    labels = np.array([len(text.split()) / 4 - 2 for text in make_texts(60)])
    apart = np.abs(numbers[1].astype(np.float64) - numbers[0]) > TOLERANCE
    assert 0 < found.confirmation.disagreements == apart.sum() < 60
    right = [np.abs(one.astype(np.float64) - labels) <= TOLERANCE for one in numbers]
    assert found.confirmation.lost == (right[0] & ~right[1]).sum()
    assert found.confirmation.gained == (right[1] & ~right[0]).sum()
    assert found.candidate_numbers is not None
    error = np.abs(numbers[1] - labels).mean()
    assert found.candidate_numbers.mean_absolute_error_micros == pytest.approx(error * 1e6, abs=9)


def test_a_step_that_cannot_handle_numbers_is_refused_before_any_work(
    tmp_path: Path, place: Places, imported: ImportResult
) -> None:
    """With the steps that can; the data, which is not even there, is not looked at."""
    task = compress_task(imported, tmp_path, {"quantize": {}}, {"calibrate": {"examples": 60}})
    nowhere = DataSource(uri="file:///nowhere.jsonl", label_field="label")
    with pytest.raises(StepInvalid, match=r"calibrate cannot handle a model of the task") as caught:
        compress(task.evolve(training=nowhere), place())
    assert "trimVocabulary, prune, " in str(caught.value)


@pytest.mark.slow
def test_movement_of_a_regression_needs_labels(
    tmp_path: Path, place: Places, imported: ImportResult
) -> None:
    """Towards its own numbers nothing moves; said instead of pruned at random."""
    task = compress_task(imported, tmp_path, {"prune": {"ffnKeepPermille": 500, **MOVEMENT}})
    unlabelled = task.training.evolve(label_field=None) if task.training else None
    with pytest.raises(StepInvalid, match=r"importance is Movement.* set labelField, or take"):
        compress(task.evolve(training=unlabelled), place())
