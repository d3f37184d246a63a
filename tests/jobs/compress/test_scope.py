# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.jobs.compress.conftest import WORDS, Bench, make_bench
from tests.jobs.conftest import Places, write_checkpoint, write_jsonl, write_layout

from kompakt.api.job import CompressTask, ImportResult
from kompakt.api.recipe import Step
from kompakt.api.steps import AttentionScope, Quantize
from kompakt.jobs.compress.chain import compress
from kompakt.jobs.compress.first_token import compute_first_token
from kompakt.jobs.compress.graph import Graph, GraphData
from kompakt.jobs.compress.scope import LimitAttention, limitable, limited_to, sensitivity
from kompakt.jobs.compress.steps import METHODS, check_positions, split
from kompakt.jobs.data.examples import Example
from kompakt.jobs.errors import StepInvalid
from kompakt.jobs.models.checkpoint import inspect
from kompakt.jobs.models.export import export
from kompakt.jobs.models.session import open_files
from kompakt.jobs.models.text import pad

pytestmark = pytest.mark.slow

WINDOW = 16


def long_texts(count: int, *, least: int = 20, seed: int = 5) -> list[str]:
    """Of 20 to 38 words, each of which is one token."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(least, 38))) for _ in range(count)]


def bench(folder: Path, texts: Sequence[str], **kind: Any) -> Bench:
    """The tiny model with other texts."""
    made = make_bench(write_checkpoint(folder, **kind), texts=1)
    dataset = replace(made.data.dataset, examples=tuple(Example(text) for text in texts))
    data = replace(made.data, dataset=dataset, labels=[None] * len(texts))
    return replace(made, data=data)


def step(**parameters: Any) -> LimitAttention:
    """With a window that the tiny model's texts go beyond."""
    return LimitAttention(AttentionScope(window_tokens=WINDOW, samples=128, **parameters))


def windows(made: Bench) -> list[int]:
    """Of the model as it is."""
    return [layer.window for layer in made.encoder.encoder_layers()]


def answers(made: Bench, indices: Sequence[int]) -> torch.Tensor:
    """To some of the texts."""
    rows = torch.empty(len(indices), made.encoder.config.width)
    with torch.no_grad():
        for batch in made.data.batches(indices, 16):
            for row, index in zip(made.encoder(**batch.inputs), batch.indices, strict=True):
                rows[list(indices).index(index)] = row
    return rows


def test_the_last_layer_of_a_classifier_needs_no_window(tmp_path: Path) -> None:
    """Its one row is the first token's, which looks at all; of two layers the first gets one, and
    the report says what was seen.
    """
    made = bench(tmp_path, [*long_texts(140), *["short"] * 20])
    said = step(min_agreement_basis_points=5000).apply(made.encoder, made.data)
    assert windows(made) == [WINDOW, 0]
    assert said == "1 of 2 layers look at 16 tokens, 88% of the texts have more"
    report = made.data.details["attentionScope"]
    assert report["texts"] == {"all": 160, "longer": 140, "ranked": 32, "checked": 96}
    assert report["windows"] == [WINDOW, 0]
    assert list(report["divergence"]) == [0]


@pytest.mark.parametrize("kind", ["tokens", "embeddings", "regression"])
def test_every_task_can_be_limited(tmp_path: Path, kind: str) -> None:
    """Where every token is read the last layer counts too; numbers agree within the tolerance."""
    settings: dict[str, dict[str, Any]] = {
        "tokens": {"each_token": True},
        "embeddings": {"embeds": True},
        "regression": {"labels": ("score",)},
    }
    if kind == "embeddings":
        write_layout(write_checkpoint(tmp_path, embeds=True))
    made = bench(tmp_path, long_texts(140), **settings[kind])
    assert limitable(made.encoder) == ([0] if kind == "regression" else [0, 1])
    loose = replace(made.data, tolerance=100.0)
    step(min_agreement_basis_points=5000).apply(made.encoder, loose)
    assert WINDOW in windows(made)
    for layer in made.encoder.encoder_layers():
        layer.window = 0
    if kind != "tokens":
        strict = replace(made.data, tolerance=0.0)
        said = step(min_agreement_basis_points=10_000).apply(made.encoder, strict)
        assert said.startswith("0 of 2 layers")
        assert windows(made) == [0, 0]


def test_layers_are_limited_as_far_as_answers_hold(tmp_path: Path) -> None:
    """The least sensitive ones, as many as the agreement of the texts that ranked none allows."""
    made = bench(tmp_path, long_texts(150), each_token=True)
    chosen = made.data.order()[:128]
    checked = [index for place, index in enumerate(chosen) if place % 4]
    ranked = list(made.data.batches(chosen[::4], 8))
    damage = sensitivity(made.encoder, [0, 1], ranked, window=WINDOW)
    best = min(damage, key=lambda number: damage[number])
    assert windows(made) == [0, 0]

    def labels(limited: Sequence[int]) -> list[int]:
        with limited_to(made.encoder, limited, WINDOW), torch.no_grad():
            return [
                label
                for batch in made.data.batches(checked, 8)
                for label in made.encoder(**batch.inputs)[batch.tokens].argmax(dim=1).tolist()
            ]

    exact = np.array(labels([]))
    one, both = (float(np.mean(np.array(labels(some)) == exact)) for some in ([best], [0, 1]))
    assert both < one < 1
    for least, expected in ((both, {0, 1}), (one, {best}), (1.0, set())):
        made.data.details.clear()
        step(min_agreement_basis_points=int(least * 10_000)).apply(made.encoder, made.data)
        assert {n for n, window in enumerate(windows(made)) if window} == expected
        for layer in made.encoder.encoder_layers():
            layer.window = 0


def test_sensitivity_is_of_one_layer_at_a_time(tmp_path: Path) -> None:
    """The mean divergence of answers, beside one that is computed from them in numpy."""
    made = bench(tmp_path, long_texts(12), labels=("a", "b", "c"))
    batches = list(made.data.batches(range(12), 4))
    found = sensitivity(made.encoder, [0, 1], batches, window=WINDOW)
    exact = answers(made, range(12)).double().softmax(dim=1).numpy()
    with limited_to(made.encoder, [0], WINDOW):
        limited = answers(made, range(12)).double().softmax(dim=1).numpy()
    # The exact answer is the expected one.
    expected = (exact * np.log(exact / limited)).sum(axis=1).mean()
    assert found[0] == pytest.approx(expected, rel=1e-3)
    # The last layer is asked for the first token alone.
    assert abs(found[1]) < 1e-6 < found[0]


def test_it_stays_on_the_models_device(tmp_path: Path) -> None:
    """What is made without saying where has no numbers here, and the report is the same."""
    made = bench(tmp_path, long_texts(140), each_token=True)
    data = replace(made.data, device=torch.device("cpu"), details={})
    limit = step(min_agreement_basis_points=5000)
    expected = limit.apply(made.encoder, made.data)
    for layer in made.encoder.encoder_layers():
        layer.window = 0
    with torch.device("meta"):
        assert limit.apply(made.encoder, data) == expected
    assert data.details == made.data.details


def test_short_texts_alone_are_refused(tmp_path: Path) -> None:
    """With how many there are, and how many it takes."""
    made = bench(tmp_path, long_texts(100) + ["short"] * 60)
    with pytest.raises(
        StepInvalid,
        match=r"needs at least 128 texts of more than 16 tokens, and .*"
        r" has 100 of 160",
    ):
        step().apply(made.encoder, made.data)


def test_a_window_that_no_text_is_longer_than_is_refused(tmp_path: Path) -> None:
    """The model's length is what texts are cut to."""
    made = bench(tmp_path, long_texts(140))
    whole = LimitAttention(AttentionScope(window_tokens=40))
    with pytest.raises(
        StepInvalid, match=r"windowTokens is 40, but model\.maxSequenceLength is 40"
    ):
        whole.apply(made.encoder, made.data)


def test_a_model_with_nothing_to_limit_is_refused(tmp_path: Path) -> None:
    """Of one layer, a classifier reads the first token's row alone."""
    made = bench(tmp_path, long_texts(140))
    made.encoder.keep_layers([0])
    with pytest.raises(StepInvalid, match="attentionScope finds no layer to limit"):
        step().apply(made.encoder, made.data)


def test_wrong_recipes_are_refused_before_any_work() -> None:
    """Before prune, and for relative positions, with the steps that can."""
    scope = Step.model_validate({"attentionScope": {}})
    prune = Step.model_validate({"prune": {"ffnKeepPermille": 500}})
    with pytest.raises(StepInvalid, match="layers that prune leaves, so it must come after it"):
        split([scope, prune])
    assert split([prune, scope]) == ([prune, scope], [])
    with pytest.raises(
        StepInvalid,
        match=r"the step attentionScope is for models with absolute .*"
        "trimVocabulary, prune, distill, quantize, calibrate can",
    ):
        check_positions([prune, scope], relative=True)
    check_positions([prune, scope], relative=False)


METHOD_NAMES = [
    "DynamicInt8",
    "StaticInt8",
    "WeightOnly",
    "Float16",
    pytest.param("OpenVinoInt8", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_limited_graph_is_quantized_as_any(tmp_path: Path, method: str) -> None:
    """Narrowed to the first token before; ranges come from short texts too, which have but one
    block. Answers stay near those of the limited model, padded or not, and far from those of the
    model without windows.
    """
    texts = long_texts(64) + long_texts(32, least=1)
    made = bench(tmp_path / "checkpoint", texts)
    made.encoder.encoder_layers()[0].window = WINDOW
    graph, narrowed = Graph(tmp_path / "graph"), Graph(tmp_path / "narrowed")
    graph.folder.mkdir()
    narrowed.folder.mkdir()
    export(made.encoder, graph.path, input_names=made.data.input_names)
    encodings = made.data.encodings
    assert compute_first_token(graph.path, narrowed.path, encodings[:4])
    data = GraphData(
        tokenizer=tmp_path / "checkpoint" / "tokenizer.json",
        max_sequence_length=40,
        texts=[text for pair in zip(texts[:32], texts[64:], strict=True) for text in pair],
        threads=1,
    )
    bits = 8 if method == "WeightOnly" else 4
    parameters = Quantize.model_validate({"method": method, "samples": 32, "weightBits": bits})
    result, _ = METHODS[method].make(parameters).apply(narrowed, tmp_path / "small", data)
    session = open_files(result.path, result.runtime, result.precision, longest=40, threads=1)
    inputs = pad(encodings, pad_id=0, input_names=session.input_names)
    together = session.run(inputs)[:64]
    alone = np.concatenate(
        [session.run(pad([e], pad_id=0, input_names=session.input_names)) for e in encodings[:64]]
    )
    limited = answers(made, range(64)).numpy()
    made.encoder.encoder_layers()[0].window = 0
    whole = answers(made, range(64)).numpy()
    for found in (together, alone):
        assert np.abs(found - limited).mean() < 0.5 * np.abs(whole - limited).mean()


def test_it_composes_and_resumes(
    task: Callable[..., CompressTask], imported: ImportResult, place: Places, tmp_path: Path
) -> None:
    """After prune and before distill, lowRank and quantize; another recipe that begins alike goes
    on from the stored windows.
    """
    texts = long_texts(200)
    uri = write_jsonl(tmp_path / "long.jsonl", [{"text": text} for text in texts])
    steps: list[dict[str, Any]] = [
        {"prune": {"headKeepPermille": 700, "samples": 16}},
        {"attentionScope": {"windowTokens": WINDOW, "minAgreementBasisPoints": 5000}},
    ]
    # Random weights answer at random: with more, the student only forgets.
    rate = {"learningRateMicros": 10}
    rest = [
        {"lowRank": {"keepPermille": 900, "samples": 16}},
        {"distill": {"examples": 64} | rate},
    ]
    made = place()
    result = compress(task(*steps, *rest, {"quantize": {}}, training={"uri": uri}), made)
    assert "1 of 2 layers look at 16 tokens" in result.summary
    assert made.details["attentionScope"]["windows"] == [WINDOW, 0]
    assert made.details["firstTokenOnly"]
    assert made.details["parity"] < 1e-4
    again = place()
    more = {"distill": {"examples": 96} | rate}
    other = compress(task(*steps, more, training={"uri": uri}), again)
    assert again.details["resumedAfterSteps"] == 2
    assert other.artifact_digest != result.artifact_digest
    folder = next((again.scratch).glob("resumed-*"))
    assert inspect(folder, origin="test").windows == (WINDOW, 0)
