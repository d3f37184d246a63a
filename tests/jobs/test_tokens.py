# SPDX-License-Identifier: Apache-2.0
"""A model that labels words, from import to measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.jobs.conftest import PARTS, make_texts, write_checkpoint, write_jsonl

from kompakt.api.job import CompressTask, ImportTask, MeasureTask
from kompakt.jobs.compress.chain import compress
from kompakt.jobs.evaluate.classifier import Classifier
from kompakt.jobs.importing import import_model
from kompakt.jobs.measure import measure
from kompakt.jobs.store import Store
from kompakt.jobs.task import Workplace

LABELS = ("O", "B-X", "I-X")


def data(path: Path, count: int, *, lists: bool) -> dict[str, Any]:
    """Words with labels by their length, as lists or as texts."""
    rows: list[dict[str, Any]] = []
    for text in make_texts(count):
        tags = [LABELS[len(word) % 3] for word in text.split()]
        row = {"text": text.split(), "tags": tags} if lists else {"text": text, "tags": tags}
        rows.append(row)
    return {"uri": write_jsonl(path, rows), "labelField": "tags"}


@pytest.mark.slow
def test_a_token_classifier_goes_the_whole_way(tmp_path: Path) -> None:
    """Imported, trimmed, pruned, quantized for either runtime; measured by texts, words and
    entities, in which a trimmed tokenizer's other tokens are no obstacle.
    """
    folder = tmp_path / "model"
    write_checkpoint(folder, labels=LABELS, each_token=True, extra=PARTS)
    store = Store(f"file://{tmp_path}/store")

    def place(name: str) -> Workplace:
        (tmp_path / name).mkdir()
        return Workplace(store=store, scratch=tmp_path / name, threads=1)

    model = {
        "uri": f"file://{folder}",
        "task": "TokenClassification",
        "maxSequenceLength": 40,
    }
    evaluation = data(tmp_path / "evaluation.jsonl", 60, lists=True)
    task = ImportTask.model_validate({"model": model, "data": {"evaluation": evaluation}})
    imported = import_model(task, place("import"))
    assert imported.labels == list(LABELS)
    steps = [
        {"trimVocabulary": {"leastOccurrences": 60}},
        {"prune": {"ffnKeepPermille": 500, "headKeepPermille": 500}},
        {"distill": {"examples": 160, "learningRateMicros": 50}},
        {"quantize": {"method": "OpenVinoInt8", "samples": 16}},
    ]
    made = compress(
        CompressTask.model_validate(
            {
                "recipe": "test",
                "checkpointDigest": imported.source_digest,
                "baselineDigest": imported.artifact_digest,
                "steps": steps,
                "training": data(tmp_path / "training.jsonl", 80, lists=False),
            }
        ),
        place("compress"),
    )
    assert made.runtime == "OpenVino"
    found = measure(
        MeasureTask.model_validate(
            {
                "target": "edge",
                "baselineDigest": imported.artifact_digest,
                "candidateDigest": made.artifact_digest,
                "evaluation": evaluation,
                "selectionPermille": 0,
                "benchmarkRounds": 5,
                "benchmarkSeconds": 1,
            }
        ),
        place("measure"),
    ).measurement.evaluation
    tags = []
    for name, digest in (("a", imported.artifact_digest), ("b", made.artifact_digest)):
        store.get_artifact(digest, tmp_path / name)
        classifier = Classifier(tmp_path / name, threads=1)
        texts = make_texts(60)
        whole = classifier.answer_all(texts)
        alone = np.concatenate([classifier.answer(text) for text in texts])
        assert whole.shape == (sum(len(text.split()) for text in texts), 3)
        np.testing.assert_allclose(whole, alone, atol=1e-4)
        # Cut finer, some texts are longer than the model reads.
        tags.append(np.where(np.isneginf(whole).all(axis=1), -1, whole.argmax(axis=1)))
    assert found.baseline_tags is not None
    assert found.candidate_tags is not None
    truth = np.array([len(word) % 3 for text in make_texts(60) for word in text.split()])
    assert found.baseline_tags.words == len(truth)
    assert -1 not in tags[0]
    assert found.baseline_tags.correct_words == (tags[0] == truth).sum()
    assert found.candidate_tags.correct_words == (tags[1] == truth).sum()
    assert found.candidate_tags.entity_f1_basis_points is not None
    assert 0 < found.confirmation.disagreements <= 60
