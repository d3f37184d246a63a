# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kompakt.api.job import CompressTask
from kompakt.jobs.compress.sources import choose, gather, hold_out, without
from kompakt.jobs.compress.steps import check_task, split
from kompakt.jobs.data.examples import Dataset, Example
from kompakt.jobs.errors import StepInvalid

pytestmark = pytest.mark.slow

DIGEST = "sha256:" + "0" * 64
LABELS = ["negative", "neutral", "positive"]
PRUNE: dict[str, Any] = {"prune": {"samples": 16}}
CALIBRATE: dict[str, Any] = {"calibrate": {"examples": 60}}


def task(*steps: dict[str, Any], **sources: Any) -> CompressTask:
    """A task over some sources."""
    return CompressTask.model_validate(
        {
            "recipe": "test",
            "checkpointDigest": DIGEST,
            "baselineDigest": DIGEST,
            "steps": list(steps),
        }
        | sources
    )


def dataset(texts: list[str]) -> Dataset:
    """All of them with a label."""
    examples = tuple(Example(text=text, label=LABELS[len(text) % 3]) for text in texts)
    return Dataset(uri="file:///x", digest=DIGEST, examples=examples)


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=120, max_size=200), st.data())
def test_nothing_is_both_trained_on_and_fitted_on(texts: list[str], data: st.DataObject) -> None:
    """Also where a text stands twice; and the same texts are held out in whatever order."""
    whole = dataset(texts)
    if len(set(texts)) < 50:
        return
    held = hold_out(whole, [len(text) % 3 for text in texts], 55)
    fitted = {entry.text for entry in held}
    rest = without(whole, fitted)
    assert not fitted & set(rest.texts)
    assert fitted | set(rest.texts) == set(texts)
    assert rest.digest != whole.digest
    shuffled = data.draw(st.permutations(texts))
    again = hold_out(dataset(shuffled), [len(text) % 3 for text in shuffled], 55)
    assert {entry.text for entry in again} == fitted


def test_training_texts_are_held_out_where_calibration_has_no_labels(workshop: Any) -> None:
    """Calibration texts with labels are taken first: then training loses nothing."""
    training = {"uri": workshop.data("training.jsonl", 200), "labelField": "label"}
    unlabelled = {"uri": workshop.data("calibration.jsonl", 150, seed=3)}
    labelled = unlabelled | {"labelField": "label"}
    for calibration, kept in ((unlabelled, False), (labelled, True)):
        given_ = task(PRUNE, CALIBRATE, training=training, calibration=calibration)
        texts = gather(choose(given_, *split(given_.steps)), labels=LABELS, seed=0)
        assert texts.training is not None
        assert (len(texts.training.examples) == 200) is kept
        assert 50 <= len(texts.labelled) <= 60
        assert not {e.text for e in texts.labelled} & set(texts.training.texts) or kept


def test_a_recipe_without_calibrate_reads_what_it_did(workshop: Any) -> None:
    """Its training texts and their digest are those of the file."""
    training = {"uri": workshop.data("training.jsonl", 80), "labelField": "label"}
    given_ = task(PRUNE, training=training)
    texts = gather(choose(given_, *split(given_.steps)), labels=LABELS, seed=0)
    assert texts.labelled == ()
    assert texts.training is not None
    assert len(texts.training.examples) == 80
    assert texts.digests[1:] == [None, None]


def test_ranges_are_taken_from_weighted_slices_first(workshop: Any) -> None:
    """Where the policy says that a model must be good, there are more of the calibration texts."""
    calibration = {
        "uri": workshop.data("calibration.jsonl", 300),
        "sliceFields": ["domain"],
        "sliceWeights": [{"field": "domain", "value": "short", "weightPermille": 20_000}],
    }
    drawn = {}
    for name, source in (
        ("weighted", calibration),
        ("even", {"uri": calibration["uri"]}),
    ):
        given_ = task({"quantize": {"method": "StaticInt8"}}, calibration=source)
        texts = gather(choose(given_, *split(given_.steps)), labels=LABELS, seed=0)
        order = texts.drawn(seed=0)
        assert len(order) == 300
        drawn[name] = sum(len(text) < 40 for text in order[:60])
    assert drawn["weighted"] > drawn["even"] + 15


def test_calibrate_needs_labels_and_enough_of_them(workshop: Any) -> None:
    """Said before any work, and how many there are."""
    bare = {"uri": workshop.data("training.jsonl", 200)}
    without_labels = task(CALIBRATE, training=bare)
    with pytest.raises(StepInvalid, match="calibrate of the recipe test needs labelled texts"):
        choose(without_labels, *split(without_labels.steps))
    few = {"uri": workshop.data("few.jsonl", 60), "labelField": "label"}
    short = task(CALIBRATE, calibration=few)
    with pytest.raises(StepInvalid, match=r"at least 50 labelled texts, .* with a label: name"):
        gather(choose(short, *split(short.steps)), labels=LABELS, seed=0)


@pytest.mark.parametrize(
    "steps",
    [[CALIBRATE, {"quantize": {}}], [CALIBRATE, PRUNE], [{"quantize": {}}, PRUNE, CALIBRATE]],
    ids=["before quantize", "before prune", "quantize before prune"],
)
def test_calibrate_is_last(steps: list[dict[str, Any]]) -> None:
    """Whatever comes after it would change the scores again."""
    with pytest.raises(StepInvalid, match="calibrate is about the finished model"):
        split(task(*steps).steps)


GATED: dict[str, Any] = {"prune": {"samples": 16, "minAgreementBasisPoints": 9500}}


def test_what_gates_look_at_is_trained_on_by_nobody(workshop: Any) -> None:
    """A quarter of the texts, without those of calibrate, the same ones whatever the gate; the
    rest has a digest of its own.
    """
    training = {"uri": workshop.data("training.jsonl", 480), "labelField": "label"}
    found = {}
    for name, gate in (
        ("agreement", {"minAgreementBasisPoints": 9900}),
        ("accuracy", {"maxDropBasisPoints": 100}),
    ):
        given_ = task({"prune": {"samples": 16} | gate}, CALIBRATE, training=training)
        found[name] = gather(choose(given_, *split(given_.steps)), labels=LABELS, seed=0)
    texts = found["agreement"]
    assert texts.training is not None
    assert texts.checks is not None
    sides = [set(texts.training.texts), set(texts.checks.texts), {e.text for e in texts.labelled}]
    assert all(not one & other for one, other in combinations(sides, 2))
    assert 100 <= len(sides[1]) == len(texts.checks.texts) <= 120
    plain = task(PRUNE, training=training)
    whole = gather(choose(plain, *split(plain.steps)), labels=LABELS, seed=0)
    assert whole.training is not None
    assert whole.checks is None
    assert set.union(*sides) == set(whole.training.texts)
    assert texts.training.digest != whole.training.digest
    assert found["accuracy"] == texts


@pytest.mark.parametrize(
    ("count", "labelled", "gate", "message"),
    [
        (390, True, "minAgreementBasisPoints", r"100 training texts.* has \d+: name 400, or leave"),
        (480, False, "maxDropBasisPoints", r"50 labelled texts .* 0 have a label: name more, or"),
    ],
    ids=["texts", "labels"],
)
def test_gates_need_texts(
    workshop: Any, count: int, *, labelled: bool, gate: str, message: str
) -> None:
    """Said before any work, and how many."""
    source = {"uri": workshop.data("training.jsonl", count)}
    source |= {"labelField": "label"} if labelled else {}
    given_ = task({"prune": {"samples": 16, gate: 9000}}, training=source)
    with pytest.raises(StepInvalid, match=message):
        gather(choose(given_, *split(given_.steps)), labels=LABELS, seed=0)


def test_gates_count_answers_to_texts() -> None:
    """A model that has several for a text has no such gate, and accuracy is of classifiers; a model
    that is rounded while it trains is looked at before.
    """
    with pytest.raises(StepInvalid, match="a model of the task TokenClassification has several"):
        check_task(task(GATED).steps, "TokenClassification")
    check_task(task(GATED).steps, "SentenceEmbedding")
    drop = task({"prune": {"ffnKeepPermille": 500, "maxDropBasisPoints": 100}}).steps
    check_task(drop, "TextClassification")
    with pytest.raises(StepInvalid, match=r"maxDropBasisPoints counts .* Regression gives none"):
        check_task(drop, "Regression")
    check_task(task(GATED).steps, "TextClassification")
    aware = {"distill": {"quantizationAware": "Enabled"}}
    with pytest.raises(StepInvalid, match="put a distill step without quantizationAware between"):
        split(task(GATED, aware, {"quantize": {}}).steps)
    split(task(GATED, {"distill": {}}, aware, {"quantize": {}}).steps)
