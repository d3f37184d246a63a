# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.jobs.conftest import HIDDEN, Places

from kompakt.api.job import CompressTask, ImportResult, ImportTask
from kompakt.jobs.artifact import count_parameters
from kompakt.jobs.compress.chain import compress
from kompakt.jobs.compress.distill import Distillation
from kompakt.jobs.errors import StepInvalid
from kompakt.jobs.evaluate.classifier import Classifier
from kompakt.jobs.importing import import_model
from kompakt.jobs.models.checkpoint import inspect

pytestmark = pytest.mark.slow

PRUNE: dict[str, Any] = {"prune": {"ffnKeepPermille": 500, "samples": 16}}
DISTILL: dict[str, Any] = {"distill": {"examples": 64, "learningRateMicros": 50}}
AWARE = {"distill": DISTILL["distill"] | {"quantizationAware": "Enabled"}}
QUANTIZE: dict[str, Any] = {"quantize": {}}
CALIBRATE: dict[str, Any] = {"calibrate": {"examples": 60}}
OPENVINO: dict[str, Any] = {"quantize": {"method": "OpenVinoInt8", "samples": 16}}


def test_a_whole_recipe_makes_an_artifact(
    task: Callable[..., CompressTask], imported: ImportResult, place: Places
) -> None:
    """Pruned, distilled, quantized: smaller, runnable, and it knows where it comes from."""
    made = place()
    result = compress(task(PRUNE, DISTILL, QUANTIZE), made)
    manifest = made.store.get_artifact(result.artifact_digest, made.scratch / "check")
    assert manifest.parent_digest == imported.artifact_digest
    assert manifest.source_digest == imported.source_digest
    assert (manifest.recipe, manifest.labels) == ("test", ["negative", "neutral", "positive"])
    assert manifest.steps_digest is not None
    assert result.size_bytes == manifest.size_bytes < imported.size_bytes / 2
    assert result.parameters < imported.parameters
    assert result.summary.startswith("kept FFN neurons ")
    assert result.summary.endswith("embedding tables int8")
    classifier = Classifier(made.scratch / "check", threads=1)
    assert classifier.answer("a good film").shape == (3,)
    assert set(made.seconds) >= {"prune", "distill", "quantize", "export"}


@pytest.mark.parametrize("model_type", ["deberta-v2"])
def test_relative_positions_go_through_a_whole_recipe(
    task: Callable[..., CompressTask], imported: ImportResult, place: Places
) -> None:
    """What cannot handle them says so before any work."""
    made, prune = place(), {"prune": {"ffnKeepPermille": 900, "headKeepPermille": 900}}
    result = compress(task(prune, DISTILL, QUANTIZE), made)
    assert result.size_bytes < imported.size_bytes / 1.6
    assert made.details["firstTokenOnly"]
    for step, message in (
        ({"lowRank": {"keepPermille": 500}}, "lowRank is for models with absolute positions"),
        ({"prune": {"latencyKeepPermille": 500}}, "latencyKeepPermille is for models with absol"),
    ):
        with pytest.raises(StepInvalid, match=message):
            compress(task(DISTILL, step), made := place())
        assert "distill" not in made.seconds


def test_without_torch_steps_the_baseline_is_quantized(
    task: Callable[..., CompressTask], imported: ImportResult, place: Places
) -> None:
    """A recipe that only quantizes needs no data, and keeps the number of parameters, all but what
    stands for a type that no token has.
    """
    made = place()
    result = compress(task(QUANTIZE, training=None), made)
    assert result.parameters == imported.parameters - HIDDEN
    assert "import torch" not in made.seconds
    again = compress(task(QUANTIZE, training=None), place())
    assert again.artifact_digest == result.artifact_digest


def test_a_recipe_for_openvino_makes_an_artifact_for_it(
    task: Callable[..., CompressTask], imported: ImportResult, place: Places, workshop: Any
) -> None:
    """The manifest says what runs it, its files are that runtime's, and they answer; ranges come
    from the calibration texts, or from the training texts where there are none.
    """
    made = place()
    result = compress(task(PRUNE, OPENVINO), made)
    folder = made.scratch / "check"
    manifest = made.store.get_artifact(result.artifact_digest, folder)
    assert result.runtime == manifest.runtime == "OpenVino"
    assert manifest.precision == "Float32"
    names = [file.path for file in manifest.files]
    assert names == ["model.bin", "model.xml", "tokenizer.json"]
    assert sum((folder / name).stat().st_size for name in names) == result.size_bytes
    # Of the weights: the tiny model's graph itself is larger than they are.
    assert manifest.files[0].size_bytes < imported.size_bytes / 2
    assert Classifier(folder, threads=1).answer("a good film").shape == (3,)
    assert made.details["executed"]
    source = {"uri": workshop.data("calibration.jsonl", 40, seed=4)}
    calibrated = compress(task(OPENVINO, training=None, calibration=source), place())
    trained = compress(task(OPENVINO), place())
    assert calibrated.artifact_digest != trained.artifact_digest
    assert compress(task(OPENVINO), place()).artifact_digest == trained.artifact_digest


@pytest.mark.parametrize("quantize", ["DynamicInt8", "OpenVinoInt8"])
def test_scores_are_set_right_at_the_end(
    task: Callable[..., CompressTask], place: Places, workshop: Any, quantize: str
) -> None:
    """The temperature goes into the manifest, and whoever asks for logits gets them divided by it;
    without the step there is none.
    """
    source = {"uri": workshop.data("labelled.jsonl", 200, seed=8), "labelField": "label"}
    step: dict[str, Any] = {"quantize": {"method": quantize, "samples": 16}}
    answers = {}
    for name, steps in (("plain", [step]), ("calibrated", [step, CALIBRATE])):
        made = place()
        result = compress(task(*steps, training=None, calibration=source), made)
        folder = made.scratch / "check"
        manifest = made.store.get_artifact(result.artifact_digest, folder)
        answers[name] = (manifest, Classifier(folder, threads=1).answer("a good film"))
    assert answers["plain"][0].temperature_micros is None
    micros = answers["calibrated"][0].temperature_micros
    assert micros is not None
    # The tiny model guesses: no score of it is worth much.
    assert micros > 2_000_000
    np.testing.assert_allclose(
        answers["calibrated"][1] * micros / 1e6, answers["plain"][1], rtol=1e-5
    )
    assert [file.digest for file in answers["plain"][0].files] == [
        file.digest for file in answers["calibrated"][0].files
    ]


def test_texts_that_scores_are_fitted_on_are_not_trained_on(
    task: Callable[..., CompressTask], place: Places, workshop: Any
) -> None:
    """With calibrate, the steps before it see fewer texts: their results are others."""
    source = {"uri": workshop.data("training.jsonl", 300, seed=9), "labelField": "label"}
    compress(task(PRUNE, training=source), place())
    fresh = place()
    compress(task(PRUNE, CALIBRATE, training=source), fresh)
    assert "resumedAfterSteps" not in fresh.details
    assert fresh.details["calibrate"]["examples"] == 60


def test_calibration_needs_data(task: Callable[..., CompressTask], place: Places) -> None:
    """A method that takes ranges from texts says so before any work, and which setting names
    them.
    """
    made = place()
    with pytest.raises(StepInvalid, match=r"quantize of the recipe test needs texts: set data\.c"):
        compress(task(OPENVINO, training=None), made)
    assert made.seconds == {}


def test_pruned_models_are_smaller_without_quantization(
    task: Callable[..., CompressTask], imported: ImportResult, place: Places
) -> None:
    """Export follows the torch steps even when nothing is quantized."""
    made = place()
    result = compress(task(PRUNE), made)
    made.store.get_artifact(result.artifact_digest, made.scratch / "check")
    assert count_parameters(made.scratch / "check/model.onnx") == result.parameters
    assert made.details["parity"] < 1e-4


def test_a_killed_job_goes_on_where_it_was(
    task: Callable[..., CompressTask], place: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while distilling, the next try does not prune again and gives the same."""
    whole = compress(task(PRUNE, DISTILL, QUANTIZE, seed=7), place())
    store = place().store

    class Killed(BaseException):
        """As a signal would end the process."""

    def die(*_arguments: Any) -> str:
        raise Killed

    def forget(step: str) -> None:
        for entry in Path(store.root.removeprefix("file://")).glob("steps/*.json"):
            if step in entry.read_text():
                entry.unlink()

    forget("distilled")
    forget("kept")
    with monkeypatch.context() as patch:
        patch.setattr(Distillation, "apply", die)
        with pytest.raises(Killed):
            compress(task(PRUNE, DISTILL, QUANTIZE, seed=7), place())
    second = place()
    resumed = compress(task(PRUNE, DISTILL, QUANTIZE, seed=7), second)
    assert second.details["resumedAfterSteps"] == 1
    assert "prune" not in second.seconds
    assert resumed.artifact_digest == whole.artifact_digest
    assert resumed.summary == whole.summary
    third = place()
    assert compress(task(PRUNE, DISTILL, QUANTIZE, seed=7), third).artifact_digest == (
        whole.artifact_digest
    )
    assert third.details["resumedAfterSteps"] == 2


def test_stages_prune_on_from_each_other(
    task: Callable[..., CompressTask], place: Places, tmp_path: Path
) -> None:
    """Prune, distill, prune on, distill: each leaves its checkpoint and its part of the report."""
    prune = {"prune": {"ffnKeepPermille": 500, "headKeepPermille": 500, "samples": 16}}
    made = place()
    whole = compress(task(prune, DISTILL, prune, DISTILL, QUANTIZE), made)
    first, second = (made.details[f"prune {number}"] for number in (1, 2))
    assert first["headsAfter"] == second["headsBefore"]
    assert first["neuronsAfter"] == second["neuronsBefore"]
    # Half of four; a layer keeps one at least.
    assert sum(first["headsAfter"]) == 4 > sum(second["headsAfter"]) >= 2
    assert sum(second["neuronsAfter"]) < sum(first["neuronsAfter"]) < 256
    assert {"prune 1", "distill 1", "prune 2", "distill 2", "quantize"} <= set(made.seconds)
    assert {"prune", "distill"}.isdisjoint(made.details)
    assert len(list(Path(made.store.root.removeprefix("file://")).glob("steps/*.json"))) == 4
    # Two recipes share the stages that they begin with.
    another = place()
    compress(task(prune, DISTILL, prune), another)
    assert another.details["resumedAfterSteps"] == 3
    again = compress(task(prune, DISTILL, prune, DISTILL, QUANTIZE), place())
    assert again.artifact_digest == whole.artifact_digest


def test_a_latency_budget_is_measured_on_the_job(
    task: Callable[..., CompressTask], place: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table comes from this pod, is kept in the store, and another trial finds it there."""
    from kompakt.jobs.compress import latency

    measure = latency.measure
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    made = place()
    compress(task({"prune": {"latencyKeepPermille": 850, "samples": 64}}, QUANTIZE), made)
    spent = made.details["prune"]["latency"]
    assert 0 < spent["microsecondsAfter"] <= spent["microsecondsAllowed"] * (1 + 1e-3)
    assert spent["microsecondsAllowed"] == pytest.approx(0.85 * spent["microsecondsBefore"], 1e-3)
    monkeypatch.setattr(latency, "measure", None)
    other = place()
    compress(task({"prune": {"latencyKeepPermille": 800, "samples": 64}}), other)
    assert other.details["prune"]["latency"]["table"] == spent["table"]
    # Other hardware has other costs: what was pruned for this one is not taken over.
    monkeypatch.setattr(latency, "hardware_key", lambda _precision: "another")
    monkeypatch.setattr(latency, "measure", measure)
    elsewhere = place()
    compress(task({"prune": {"latencyKeepPermille": 850, "samples": 64}}), elsewhere)
    assert "resumedAfterSteps" not in elsewhere.details


def test_the_length_that_latency_is_measured_at_may_be_given(
    task: Callable[..., CompressTask], place: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is measured alone, and is no longer than what the model reads: said before any work."""
    from kompakt.jobs.compress import latency

    measure, asked = latency.measure, []

    def spy(*arguments: Any, **named: Any) -> Any:
        asked.append(named["lengths"])
        return measure(*arguments, **named)

    monkeypatch.setattr(latency, "SECONDS", 0.0)
    monkeypatch.setattr(latency, "measure", spy)
    prune = {"latencyKeepPermille": 850, "samples": 64}
    compress(task({"prune": prune | {"latencyTokens": 33}}), place())
    assert set(asked[0]) == {40}
    other = place()
    compress(task({"prune": prune | {"latencyTokens": 16}}), other)
    assert set(asked[1]) == {16}
    assert "resumedAfterSteps" not in other.details
    longer = place()
    with pytest.raises(StepInvalid, match=r"latencyTokens is 41, but model\.maxSequenceLength is"):
        compress(task({"prune": prune | {"latencyTokens": 41}}), longer)
    assert set(longer.seconds) <= {"fetch"}


def test_another_seed_or_parameter_starts_anew(
    task: Callable[..., CompressTask], place: Places
) -> None:
    """Results are shared between trials only where everything they follow from is the same."""
    compress(task(PRUNE, DISTILL), place())
    same_start = place()
    compress(task(PRUNE, {"distill": {"examples": 96, "learningRateMicros": 50}}), same_start)
    assert same_start.details["resumedAfterSteps"] == 1
    for changed in (
        task(PRUNE, DISTILL, seed=1),
        task({"prune": {"ffnKeepPermille": 400, "samples": 16}}, DISTILL),
    ):
        fresh = place()
        compress(changed, fresh)
        assert "resumedAfterSteps" not in fresh.details


def test_training_for_another_quantization_starts_anew(
    task: Callable[..., CompressTask], place: Places
) -> None:
    """What was trained for 2 bits is none to store in 4; and a recipe for 2 bits stores what was
    trained, no more and no less.
    """
    two, four = (
        {"quantize": {"method": "WeightOnly", "weightBits": bits, "activations": "Float32"}}
        for bits in (2, 4)
    )
    made = place()
    small = compress(task(PRUNE, AWARE, two), made)
    assert max(made.details["weightErrors"].values()) < 1e-5
    assert small.summary.count("for quantized weights") == 1
    again, other = place(), place()
    compress(task(PRUNE, AWARE, two), again)
    assert again.details["resumedAfterSteps"] == 2
    larger = compress(task(PRUNE, AWARE, four), other)
    assert other.details["resumedAfterSteps"] == 1
    assert small.size_bytes < larger.size_bytes


def test_other_data_starts_anew(
    task: Callable[..., CompressTask], place: Places, workshop: Any
) -> None:
    """A changed file under the same name is other data."""
    compress(task(PRUNE), place())
    workshop.data("training.jsonl", 80, seed=5)
    fresh = place()
    compress(task(PRUNE), fresh)
    assert "resumedAfterSteps" not in fresh.details


def test_a_damaged_checkpoint_is_made_again(
    task: Callable[..., CompressTask], place: Places, imported: ImportResult
) -> None:
    """A step whose result was damaged in the store is run again, and gives the same."""
    first = compress(task(PRUNE), place())
    store = Path(place().store.root.removeprefix("file://"))
    source = imported.source_digest.replace(":", "-")
    (damaged,) = [p for p in store.glob("checkpoints/*/model.safetensors") if source not in str(p)]
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(bytes(content))
    again = place()
    assert compress(task(PRUNE), again).artifact_digest == first.artifact_digest
    assert "resumedAfterSteps" not in again.details


def test_pruned_checkpoints_load_from_the_store(
    task: Callable[..., CompressTask], place: Places, tmp_path: Path
) -> None:
    """What a step stored is a checkpoint like any other, with the sizes of its layers."""
    made = place()
    compress(task(PRUNE), made)
    (entry,) = Path(made.store.root.removeprefix("file://")).glob("steps/*.json")
    made.store.get_checkpoint(json.loads(entry.read_text())["checkpoint"], tmp_path / "back")
    sizes = inspect(tmp_path / "back", origin="test").ffn_sizes
    assert list(sizes) == made.details["prune"]["neuronsAfter"]


def test_a_pruned_model_is_a_source_like_any_other(
    workshop: Any, task: Callable[..., CompressTask], place: Places, tmp_path: Path
) -> None:
    """A checkpoint with fewer heads, neurons and layers is imported and pruned further."""
    import torch

    from kompakt.jobs.models.load import load, save

    original = inspect(workshop.checkpoint, origin="test")
    encoder = load(original)
    first, second = encoder.encoder_layers()
    first.keep_heads(torch.tensor([0, 2, 3]))
    second.keep_neurons(torch.arange(64))
    save(encoder, original, tmp_path / "pruned")
    model = {"uri": f"file://{tmp_path / 'pruned'}", "maxSequenceLength": 40}
    made = place()
    pruned = import_model(ImportTask.model_validate({"model": model}), made)
    assert (made.details["model"]["heads"], made.details["model"]["ffnSizes"]) == (
        [3, 4],
        [128, 64],
    )
    assert pruned.parameters == encoder.parameter_count
    digests = {"checkpointDigest": pruned.source_digest, "baselineDigest": pruned.artifact_digest}
    result = compress(task(PRUNE, **digests), place())
    assert result.parameters < pruned.parameters


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            [QUANTIZE, PRUNE],
            "quantize works on the exported graph, so only calibrate may follow it",
        ),
        ([AWARE, PRUNE, QUANTIZE], "only the last distill step may be one"),
        ([{}], "exactly one of .*, quantize, calibrate; this one is none"),
        ([PRUNE | QUANTIZE], "this one is prune and quantize"),
    ],
    ids=["order", "aware too early", "empty", "two at once"],
)
def test_bad_recipes_are_refused(
    task: Callable[..., CompressTask], place: Places, steps: list[dict[str, Any]], message: str
) -> None:
    """A recipe that cannot be run is invalid input, found before anything is done."""
    with pytest.raises(StepInvalid, match=message):
        compress(task(*steps), place())


def test_training_needs_data(task: Callable[..., CompressTask], place: Places) -> None:
    """A step that needs texts says so, and which setting names them."""
    with pytest.raises(StepInvalid, match=r"prune of the recipe test needs texts: set data\.train"):
        compress(task(PRUNE, training=None), place())


def test_unlabelled_texts_will_do(
    task: Callable[..., CompressTask], place: Places, workshop: Any
) -> None:
    """Pruning and distillation work on calibration texts without labels."""
    source = {"uri": workshop.data("training.jsonl", 80)}
    made = place()
    compress(task(PRUNE, DISTILL, training=None, calibration=source), made)
    assert made.details["prune"]["labelled"] == 0
