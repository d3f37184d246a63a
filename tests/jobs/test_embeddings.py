# SPDX-License-Identifier: Apache-2.0
"""A model that answers a vector, from import to serving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from tests.jobs.conftest import (
    PARTS,
    Places,
    make_texts,
    write_checkpoint,
    write_jsonl,
    write_layout,
)

from kompakt.api.job import CompressTask, ImportResult, ImportTask, MeasureTask
from kompakt.api.measure import Evaluation
from kompakt.api.recipe import Step
from kompakt.jobs.compress.chain import compress
from kompakt.jobs.compress.steps import check_task
from kompakt.jobs.errors import DataInvalid, StepInvalid
from kompakt.jobs.evaluate.classifier import Classifier
from kompakt.jobs.importing import import_model
from kompakt.jobs.measure import measure
from kompakt.jobs.task import Workplace
from kompakt.serving.artifact import load_artifact
from kompakt.serving.embedder import Embedder

TEXTS, OTHERS = make_texts(60), make_texts(60, seed=1)
SCORES = [len(set(a.split()) & set(b.split())) for a, b in zip(TEXTS, OTHERS, strict=True)]


def evaluation(root: Path, *, pairs: bool = True) -> dict[str, Any]:
    """Pairs that share some words, with how many; or texts alone."""
    rows = [
        {"text": a, "other": b, "score": score, "long": len(a) > 40}
        for a, b, score in zip(TEXTS, OTHERS, SCORES, strict=True)
    ]
    uri = write_jsonl(root / "evaluation.jsonl", rows)
    scored = {"secondTextField": "other", "labelField": "score"} if pairs else {}
    return {"uri": uri, "sliceFields": ["long"], **scored}


def import_task(root: Path, *, least: int = 9500, **data: dict[str, Any]) -> ImportTask:
    """Of the model in the folder, whose embeddings agree from such a cosine on."""
    model = {
        "uri": f"file://{root}/model",
        "task": "SentenceEmbedding",
        "minCosineBasisPoints": least,
        "maxSequenceLength": 40,
    }
    return ImportTask.model_validate({"model": model, "data": data})


@pytest.fixture
def imported(tmp_path: Path, place: Places) -> ImportResult:
    """The baseline, with its data read."""
    write_layout(write_checkpoint(tmp_path / "model", embeds=True, extra=PARTS))
    return import_model(import_task(tmp_path, evaluation=evaluation(tmp_path)), place())


def compress_task(
    imported: ImportResult, root: Path, *steps: dict[str, Any], texts: int = 160
) -> CompressTask:
    """A recipe with these steps, and unlabelled texts."""
    rows = [{"text": text} for text in make_texts(texts, seed=2)]
    return CompressTask.model_validate(
        {
            "recipe": "test",
            "checkpointDigest": imported.source_digest,
            "baselineDigest": imported.artifact_digest,
            "steps": list(steps),
            "training": {"uri": write_jsonl(root / "training.jsonl", rows)},
        }
    )


def measured(
    imported: ImportResult, candidate: str, source: dict[str, Any], place: Workplace
) -> Evaluation:
    """The candidate beside the baseline."""
    task = MeasureTask.model_validate(
        {
            "target": "edge",
            "baselineDigest": imported.artifact_digest,
            "candidateDigest": candidate,
            "evaluation": source,
            "selectionPermille": 0,
            "benchmarkRounds": 5,
            "benchmarkSeconds": 1,
        }
    )
    return measure(task, place).measurement.evaluation


def reference(folder: Path, texts: list[str]) -> np.ndarray:
    """The embeddings by transformers and the tokenizer alone."""
    from tokenizers import Tokenizer
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    rows = []
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([tokenizer.encode(text).ids])
            states = model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            rows.append(torch.nn.functional.normalize(states.mean(dim=1))[0].numpy())
    return np.stack(rows)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Of length 1."""
    scaled: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantize", "runtime"),
    [
        ({"method": "DynamicInt8"}, "OnnxRuntime"),
        ({"method": "OpenVinoInt8", "samples": 32}, "OpenVino"),
    ],
)
def test_an_embedding_goes_the_whole_way(
    quantize: dict[str, Any],
    runtime: str,
    tmp_path: Path,
    place: Places,
    imported: ImportResult,
) -> None:
    """Imported, trimmed, pruned, distilled from unlabelled texts and quantized for either runtime;
    measured by cosines and by the correlation with scores; served as it was measured.
    """
    assert imported.labels == ["embedding"]
    made = compress(
        compress_task(
            imported,
            tmp_path,
            {"trimVocabulary": {"leastOccurrences": 1}},
            {"prune": {"ffnKeepPermille": 750, "headKeepPermille": 750}},
            {"distill": {"examples": 320, "learningRateMicros": 300, "hiddenWeightPermille": 500}},
            {"quantize": quantize},
        ),
        place(),
    )
    assert made.runtime == runtime
    store = place().store
    manifest = store.manifest(made.artifact_digest)
    assert (manifest.task, manifest.labels) == ("SentenceEmbedding", ["embedding"])
    assert (manifest.embedding_width, manifest.min_cosine_basis_points) == (64, 9500)
    found = measured(imported, made.artifact_digest, evaluation(tmp_path), place())
    folders = {}
    for name, digest in (("a", imported.artifact_digest), ("b", made.artifact_digest)):
        folders[name] = tmp_path / name
        store.get_artifact(digest, folders[name])
    before, after = (
        Classifier(folder, threads=1).answer_all([*TEXTS, *OTHERS]) for folder in folders.values()
    )
    np.testing.assert_allclose(before, reference(tmp_path / "model", [*TEXTS, *OTHERS]), atol=1e-5)
    near = (before * unit(after)).sum(axis=1)
    kept = np.minimum(near[:60], near[60:]) >= 0.95
    assert found.confirmation.examples == found.confirmation.baseline_correct == 60
    assert found.confirmation.candidate_correct == kept.sum()
    assert found.cosines is not None
    assert found.cosines.mean_basis_points == pytest.approx(near.mean() * 1e4, abs=1)
    correlation = found.confirmation_correlation
    assert correlation is not None
    for told, vectors in (
        (correlation.baseline_basis_points, before),
        (correlation.candidate_basis_points, unit(after)),
    ):
        cosines = (vectors[:60] * vectors[60:]).sum(axis=1)
        assert told == pytest.approx(scipy.stats.spearmanr(cosines, SCORES).statistic * 1e4, abs=2)
    assert {s.value for s in found.slices} == {"True", "False"}
    server = Embedder(load_artifact(folders["b"]))
    server.warm_up()
    np.testing.assert_allclose(server.answer(TEXTS).vectors, after[:60], atol=1e-5)


@pytest.mark.slow
def test_texts_alone_are_compared_with_the_original(
    tmp_path: Path, place: Places, imported: ImportResult
) -> None:
    """8 bits move a vector by less than they are allowed to, 1 bit by more."""
    source = evaluation(tmp_path, pairs=False)
    one_bit = {"quantize": {"method": "WeightOnly", "weightBits": 1}}
    for step, kept in (({"quantize": {}}, 60), (one_bit, 0)):
        made = compress(compress_task(imported, tmp_path, step), place())
        found = measured(imported, made.artifact_digest, source, place())
        assert found.confirmation.candidate_correct == kept
        assert found.confirmation_correlation is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "least"),
    [
        ([{"lowRank": {"keepPermille": 800, "samples": 16}}], 0.9),
        ([{"prune": {"dropLayers": 1, "samples": 16}}], 0.2),
        ([{"prune": {"latencyKeepPermille": 700, "samples": 16}}], 0.2),
        ([{"prune": {"importance": "L0", "sparsityExamples": 64, "ffnKeepPermille": 750}}], 0.2),
        ([{"quantize": {"method": "StaticInt8", "samples": 16}}], 0.9),
        ([{"quantize": {"method": "WeightOnly", "weightBits": 8}}], 0.9),
        ([{"quantize": {"method": "BFloat16"}}], 0.9),
        ([{"quantize": {"method": "Float16"}}], 0.9),
        ([{"distill": {"examples": 64, "quantizationAware": "Enabled"}}, {"quantize": {}}], 0.9),
    ],
    ids=["lowRank", "layers", "latency", "l0", "static", "weights", "bfloat16", "float16", "aware"],
)
def test_every_other_step_can_handle_embeddings(
    steps: list[dict[str, Any]],
    least: float,
    tmp_path: Path,
    place: Places,
    imported: ImportResult,
) -> None:
    """And what it makes is still near to the original, or of a model without redundancy at least
    nearer than chance.
    """
    made = compress(compress_task(imported, tmp_path, *steps), place())
    folder = tmp_path / "made"
    place().store.get_artifact(made.artifact_digest, folder)
    found = Classifier(folder, threads=1).answer_all(TEXTS)
    near = (unit(found) * reference(tmp_path / "model", TEXTS)).sum(axis=1)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=0.02)
    assert near.mean() > least


@pytest.mark.slow
def test_products_that_turn_vectors_away_stay_in_floating_point(
    tmp_path: Path, place: Places
) -> None:
    """As many as it takes for a strict cosine, which all in 8 bits would not keep."""
    write_layout(write_checkpoint(tmp_path / "model", embeds=True))
    texts = evaluation(tmp_path, pairs=False)
    imported = import_model(import_task(tmp_path, least=9985, evaluation=texts), place())
    found = {}
    for mixed in ("Disabled", "Enabled"):
        step = {"method": "StaticInt8", "samples": 16, "mixed": mixed}
        step |= {"minAgreementBasisPoints": 9500} if mixed == "Enabled" else {}
        at = place()
        made = compress(compress_task(imported, tmp_path, {"quantize": step}), at)
        kept = measured(imported, made.artifact_digest, texts, place()).confirmation
        found[mixed] = kept.candidate_correct
    assert at.details["mixed"]["floating"]
    assert at.details["mixed"]["agreement"] >= 0.95
    assert found["Disabled"] < 54 <= found["Enabled"]


@pytest.mark.slow
def test_pruning_goes_on_as_long_as_vectors_stay_near(
    tmp_path: Path, place: Places, imported: ImportResult
) -> None:
    """The stage that turns them away is undone; no text needs a label for that."""
    at = place()
    gate = {"samples": 16, "minAgreementBasisPoints": 9000}
    steps = [
        {"prune": {"ffnKeepPermille": 900, **gate}},
        {"distill": {"examples": 64}},
        {"prune": {"ffnKeepPermille": 200, "headKeepPermille": 250, **gate}},
    ]
    made = compress(compress_task(imported, tmp_path, *steps, texts=440), at)
    assert made.summary.startswith("stopped after 1 of 2 stages: agreement ")
    first, second = at.details["stages"]
    assert first["texts"] == second["texts"] > 100
    assert first["agreeing"] >= 0.9 * first["texts"] > second["agreeing"]
    assert first["labelled"] == 0


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            [{"quantize": {}}, {"calibrate": {"examples": 60}}],
            r"calibrate cannot handle a model of the task SentenceEmbedding; take it out",
        ),
        (
            [{"prune": {"ffnKeepPermille": 500, "maxDropBasisPoints": 100}}],
            r"maxDropBasisPoints counts .*SentenceEmbedding gives none .*take minAgreement",
        ),
        (
            [{"prune": {"ffnKeepPermille": 500, "importance": "Movement"}}],
            r"prune\.importance is Movement.* a SentenceEmbedding has none; take Fisher",
        ),
        (
            [{"distill": {"labelWeightPermille": 1}}],
            r"labelWeightPermille is for models with labels, .* has none; set it to 0",
        ),
    ],
)
def test_a_step_that_needs_labels_is_refused_before_any_work(
    steps: list[dict[str, Any]], message: str
) -> None:
    """With what would do instead."""
    with pytest.raises(StepInvalid, match=message):
        check_task([Step.model_validate(step) for step in steps], "SentenceEmbedding")


@pytest.mark.parametrize(
    ("role", "changes", "message"),
    [
        (
            "evaluation",
            {"secondTextField": None},
            r"set both data\.evaluation\.secondTextField and data\.evaluation\.labelField, or neit",
        ),
        ("evaluation", {"labelField": None}, r"set both data\.evaluation\.secondTextField"),
        ("evaluation", {"labelField": "text"}, r"no finite number, which a SentenceEmbedding need"),
        ("evaluation", {"secondTextField": "score"}, r"'score' in line 1 .* set secondTextField"),
        ("evaluation", {"secondTextField": "y"}, r"'y' is missing in line 1 .* set secondTextF"),
        ("training", {}, r"data\.training of a SentenceEmbedding is texts alone; leave its"),
        ("goldenSet", {}, r"data\.goldenSet of a SentenceEmbedding is texts alone; leave its"),
    ],
)
def test_data_that_do_not_fit_an_embedding_have_their_sentence(
    role: str, changes: dict[str, Any], message: str, tmp_path: Path, place: Places
) -> None:
    """Said at the import, before torch is loaded."""
    write_checkpoint(tmp_path / "model", embeds=True)
    task = import_task(tmp_path, least=9500, **{role: evaluation(tmp_path) | changes})
    with pytest.raises(DataInvalid, match=message):
        import_model(task, place())


def test_a_pair_without_a_score_is_refused(tmp_path: Path, place: Places) -> None:
    """With its line."""
    write_checkpoint(tmp_path / "model", embeds=True)
    rows: list[dict[str, Any]] = [
        {"text": "a", "other": "b", "score": 1},
        {"text": "a", "other": "b", "score": None},
    ]
    source = evaluation(tmp_path) | {
        "uri": write_jsonl(tmp_path / "some.jsonl", rows),
        "sliceFields": [],
    }
    with pytest.raises(DataInvalid, match=r"line 2 of .* has no label"):
        import_model(import_task(tmp_path, evaluation=source), place())


def test_second_texts_are_for_embeddings(tmp_path: Path, place: Places) -> None:
    """A classifier would leave them out without a word."""
    write_checkpoint(tmp_path / "model")
    model = {"uri": f"file://{tmp_path}/model", "maxSequenceLength": 40}
    data = {"evaluation": evaluation(tmp_path)}
    with pytest.raises(DataInvalid, match=r"secondTextField is for the evaluation data of a Sent"):
        import_model(ImportTask.model_validate({"model": model, "data": data}), place())


@pytest.mark.slow
def test_without_a_layout_the_report_says_what_was_taken(tmp_path: Path, place: Places) -> None:
    """Nobody should have to guess what pooling a baseline has."""
    write_checkpoint(tmp_path / "model", embeds=True)
    at = place()
    texts = evaluation(tmp_path, pairs=False)
    task = import_task(tmp_path, evaluation=texts, training=texts).evolve(analysis_examples=16)
    done = import_model(task, at)
    assert at.details["model"]["pooling"] == "the mean of all tokens, normalized"
    assert at.details["model"]["declared"] is False
    analysis = at.store.get_json(f"analysis/{done.artifact_digest.replace(':', '-')}")
    assert analysis is not None
    scores = analysis["sensitivity"]["headFisher"]
    assert np.shape(scores) == (2, 4)
    assert np.min(scores) > 0
