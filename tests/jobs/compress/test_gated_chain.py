# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.jobs.conftest import Places

from kompakt.api.job import CompressTask, ImportResult
from kompakt.jobs.compress import held_out
from kompakt.jobs.compress.agreement import Rule
from kompakt.jobs.compress.chain import compress
from kompakt.jobs.compress.held_out import look
from kompakt.jobs.data.examples import Dataset, Example
from kompakt.jobs.store import Store
from kompakt.jobs.task import Workplace

from .conftest import Bench

pytestmark = pytest.mark.slow

DISTILL: dict[str, Any] = {
    "distill": {"examples": 32, "learningRateMicros": 1, "precision": "Float32"}
}
QUANTIZE: dict[str, Any] = {"quantize": {}}

Tasks = Callable[..., CompressTask]


def pruned(**gate: int) -> dict[str, Any]:
    """Half of the neurons and of the heads."""
    shares = {"ffnKeepPermille": 500, "headKeepPermille": 500, "samples": 16}
    return {"prune": shares | gate}


def staged(agreement: int, *, stages: int = 3) -> list[dict[str, Any]]:
    """Each stage halves."""
    return [pruned(minAgreementBasisPoints=agreement), DISTILL] * stages


@pytest.fixture
def many(task: Tasks, workshop: Any) -> Tasks:
    """Tasks with texts enough for a gate."""
    training = {"uri": workshop.data("many.jsonl", 440), "labelField": "label"}
    return lambda *steps: task(*steps, training=training)


def graph(place: Workplace, digest: str) -> bytes:
    """What was exported."""
    place.store.get_artifact(digest, place.scratch / "made")
    return (place.scratch / "made" / "model.onnx").read_bytes()


def shares(place: Workplace) -> list[float]:
    """Agreement after each stage that was looked at."""
    return [check["agreeing"] / check["texts"] for check in place.details["stages"]]


def test_the_loop_stops_at_the_stage_that_breaks_its_gate(many: Tasks, place: Places) -> None:
    """The last good stage is the result, the note says why, and no stage follows; under another
    gate nothing is computed again.
    """
    first = place()
    whole = compress(many(*staged(5000), QUANTIZE), first)
    assert "stopped" not in whole.summary
    found = shares(first)
    assert len(found) == 3
    assert found[0] > found[1] > 0.5
    gate = round(10_000 * (found[0] + found[1]) / 2)

    second = place()
    stopped = compress(many(*staged(gate), QUANTIZE), second)

    percent = f"{100 * found[1]:.2f}".rstrip("0").rstrip(".")
    assert stopped.summary.startswith(
        f"stopped after 1 of 3 stages: agreement {percent} % < {gate / 100:g} %; kept"
    )
    assert shares(second) == found[:2]
    assert {"prune 1", "gate after distill 1", "prune 2"}.isdisjoint(second.seconds)
    assert second.details["resumedAfterSteps"] == 2
    third = place()
    one = compress(many(*staged(gate, stages=1), QUANTIZE), third)
    assert graph(second, stopped.artifact_digest) == graph(third, one.artifact_digest)
    assert graph(first, whole.artifact_digest) != graph(third, one.artifact_digest)


@pytest.mark.parametrize("looks", [0, 1, 2])
def test_a_job_that_is_killed_at_a_gate_goes_on_there(
    many: Tasks, place: Places, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    """Before its first, its second and its third look: all steps so far are kept, and the end is
    the same as without.
    """

    class Killed(BaseException):
        """As a signal would end the process."""

    left = iter(range(looks))

    def dying(*arguments: Any) -> Any:
        if next(left, None) is None:
            raise Killed
        return look(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(held_out, "look", dying)
        with pytest.raises(Killed):
            compress(many(*staged(5000)), place())
    second = place()
    resumed = compress(many(*staged(5000)), second)
    assert second.details["resumedAfterSteps"] == 2 * looks + 2
    assert len(second.details["stages"]) == 3
    for entry in Path(second.store.root.removeprefix("file://")).glob("steps/*.json"):
        entry.unlink()
    assert compress(many(*staged(5000)), place()).artifact_digest == resumed.artifact_digest


def test_where_no_stage_holds_the_model_is_what_came_before(
    many: Tasks, place: Places, imported: ImportResult
) -> None:
    """Its tokenizer too, though the stage trimmed it; what comes after all stages is done."""
    trim = {"trimVocabulary": {"keepPermille": 800}}
    made = place()
    steps = [pruned(minAgreementBasisPoints=10_000), trim, {"lowRank": {"keepPermille": 900}}]
    result = compress(many(*steps), made)
    assert result.summary.startswith("stopped after 0 of 1 stages: agreement ")
    assert {"prune", "trimVocabulary", "lowRank"} <= set(made.seconds)
    folder, other = made.scratch / "made", made.scratch / "other"
    made.store.get_artifact(result.artifact_digest, folder)
    made.store.get_artifact(imported.artifact_digest, other)
    assert (folder / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()
    assert 0.8 * imported.parameters < result.parameters < imported.parameters


def test_a_drop_of_accuracy_stops_it(many: Tasks, place: Places) -> None:
    """Counted on the held-out texts that have a label, beside the original."""
    made = place()
    gates = [pruned(maxDropBasisPoints=limit) for limit in (10_000, 0)]
    compress(many(*gates), made)
    last = made.details["stages"][-1]
    assert last["labelled"] == last["texts"] >= 100
    lost = last["original_right"] - last["right"]
    assert len(made.details["stages"]) == 2
    summary = compress(many(*gates), place()).summary
    assert summary.startswith("stopped after 1 of 2 stages: accuracy fell") is (lost > 0)


def test_a_look_counts_what_both_models_answer(bench_of: Callable[[str], Bench]) -> None:
    """Text by text, against numpy."""
    bench = bench_of("bert")
    with torch.no_grad():
        middle = torch.from_numpy(bench.data.teacher(bench.data.dataset.texts)).mean(dim=0)
        bench.encoder.state_dict()["out.bias"].sub_(middle)
    texts = [f"{text} film" for text in bench.data.dataset.texts[:60]]
    labels = [None, 0, 1, 2] * 15
    others = Dataset(uri="file:///y", digest="sha256:1", examples=tuple(map(Example, texts)))
    found = look(bench.encoder, bench.data, others, labels, Rule())
    answers = []
    for text in texts:
        ids = torch.tensor([bench.data.tokenizer.encode(text).ids])
        with torch.no_grad():
            answers.append(int(bench.encoder(ids, torch.ones_like(ids)).argmax()))
    original = bench.data.teacher(texts).argmax(axis=1)
    wanted = np.array([-1 if label is None else label for label in labels])
    assert found.texts == 60
    assert 0 < found.agreeing == (np.array(answers) == original).sum() < 60
    assert found.labelled == 45
    assert found.right == (np.array(answers) == wanted).sum()
    assert found.original_right == (original == wanted).sum()


def test_stages_are_kept(many: Tasks, place: Places) -> None:
    """Each has its checkpoint in the store, also the one that was undone."""
    made = place()
    compress(many(*staged(10_000, stages=2)), made)
    assert len(made.details["stages"]) == 1
    entries = list(Path(made.store.root.removeprefix("file://")).glob("steps/*.json"))
    assert len(entries) == 2
    store = Store(made.store.root)
    digests = {json.loads(entry.read_text())["checkpoint"] for entry in entries}
    for number, digest in enumerate(digests):
        store.get_checkpoint(digest, made.scratch / f"kept-{number}")
    assert len(digests) == 2
