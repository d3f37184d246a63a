# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kompakt.api.job import CompressTask, ImportTask
from kompakt.jobs import machine
from kompakt.jobs.compress.chain import compress
from kompakt.jobs.evaluate.classifier import Classifier
from kompakt.jobs.evaluate.predictions import logits_of, prediction_key
from kompakt.jobs.importing import import_model
from kompakt.jobs.store import Store
from kompakt.jobs.task import Workplace

TEXTS = ["a good film", "good", "a bad and boring plot with a weak actor", "not very moving", ""]


@pytest.fixture
def baseline(workshop: Any) -> tuple[Store, str, Path]:
    """A store with a baseline in it, and a scratch folder."""
    scratch = workshop.root / "import"
    scratch.mkdir()
    place = Workplace(store=Store(workshop.store), scratch=scratch, threads=1)
    model = {"uri": f"file://{workshop.checkpoint}", "maxSequenceLength": 40}
    result = import_model(ImportTask.model_validate({"model": model}), place)
    return place.store, result.artifact_digest, workshop.root / "scratch"


def test_batches_answer_as_one_by_one(baseline: tuple[Store, str, Path]) -> None:
    """The order of the answers is that of the texts, whatever order they were computed in."""
    store, digest, folder = baseline
    store.get_artifact(digest, folder)
    classifier = Classifier(folder, threads=1)
    together = classifier.answer_all(TEXTS * 5)
    one_by_one = np.stack([classifier.answer(text) for text in TEXTS * 5])
    np.testing.assert_allclose(together, one_by_one, atol=1e-5)


def test_quantized_answers_do_not_depend_on_neighbours(
    baseline: tuple[Store, str, Path], workshop: Any
) -> None:
    """A quantized graph is asked one text at a time, so its answers are those of a server."""
    store, digest, _ = baseline
    scratch = workshop.root / "compress"
    scratch.mkdir()
    task = {
        "recipe": "int8",
        "checkpointDigest": "sha256:" + "0" * 64,
        "baselineDigest": digest,
        "steps": [{"quantize": {}}],
    }
    place = Workplace(store=store, scratch=scratch, threads=1)
    made = compress(CompressTask.model_validate(task), place).artifact_digest
    folder = workshop.root / "int8"
    store.get_artifact(made, folder)
    classifier = Classifier(folder, threads=1)
    together = classifier.answer_all(TEXTS)
    for text, row in zip(TEXTS, together, strict=True):
        np.testing.assert_array_equal(classifier.answer(text), row)


def test_answers_are_computed_once(
    baseline: tuple[Store, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second Job on the same hardware finds the answers of the first in the store."""
    store, digest, folder = baseline
    first = logits_of(digest, TEXTS, folder=folder, store=store, threads=1, name="x")
    monkeypatch.setattr(Classifier, "answer_all", None)
    again = logits_of(digest, TEXTS, folder=folder, store=store, threads=1, name="x")
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY garbage", b"0" * 500])
def test_a_damaged_cache_is_no_cache(baseline: tuple[Store, str, Path], damage: bytes) -> None:
    """What cannot be read is computed again, and replaced."""
    store, digest, folder = baseline
    first = logits_of(digest, TEXTS, folder=folder, store=store, threads=1, name="x")
    store.put_bytes(prediction_key(digest, TEXTS, "OnnxRuntime"), damage)
    again = logits_of(digest, TEXTS, folder=folder, store=store, threads=1, name="x")
    np.testing.assert_array_equal(first, again)


def test_a_cache_of_other_texts_is_not_used(
    baseline: tuple[Store, str, Path],
) -> None:
    """Answers belong to their texts, their order, their artifact and its runtime."""
    _, digest, _ = baseline
    keys = {
        prediction_key(digest, TEXTS, "OnnxRuntime"),
        prediction_key(digest, TEXTS[::-1], "OnnxRuntime"),
        prediction_key("sha256:" + "1" * 64, TEXTS, "OnnxRuntime"),
        prediction_key(digest, TEXTS, "OpenVino"),
    }
    assert len(keys) == 4


def test_answers_of_another_cpu_are_not_used(
    baseline: tuple[Store, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """int8 results depend on the CPU, so a node of another kind computes its own."""
    _, digest, _ = baseline
    here = prediction_key(digest, TEXTS, "OnnxRuntime")
    monkeypatch.setattr(machine, "cpu_features", lambda _root: ["avx512_vnni"])
    assert prediction_key(digest, TEXTS, "OnnxRuntime") != here
