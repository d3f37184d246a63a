# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.jobs.compress.conftest import make_bench
from tests.jobs.conftest import PARTS, write_checkpoint

from kompakt.api.steps import Distill, TrimVocabulary
from kompakt.jobs.compress import distill
from kompakt.jobs.compress.distill import Distillation
from kompakt.jobs.compress.trim import TrimTokens
from kompakt.jobs.data.words import first_tokens
from kompakt.jobs.errors import StepInvalid, TrainingDiverged
from kompakt.jobs.evaluate.classifier import Logits

pytestmark = pytest.mark.slow

Benches = Callable[[str], Any]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices are slower on more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pruned(bench: Any) -> Any:
    """The same bench with half of the neurons gone."""
    for layer in bench.encoder.encoder_layers():
        layer.keep_neurons(torch.arange(64))
    return bench


def test_the_small_model_learns_the_large_ones_answers(bench_of: Benches) -> None:
    """The loss on texts that it never saw falls to a fraction."""
    bench = pruned(bench_of("bert"))
    note = Distillation(Distill(examples=640, batch_size=16, learning_rate_micros=2000)).apply(
        bench.encoder, bench.data
    )
    losses = bench.data.details["distill"]["heldOutLosses"]
    assert min(losses) < losses[0] / 2
    assert note.startswith("distilled on 640 texts, held-out loss ")
    assert not bench.encoder.training


def test_embedding_tables_stay_as_they_are(bench_of: Benches) -> None:
    """Tables are frozen, everything else learns."""
    bench = pruned(bench_of("electra"))
    before = {name: p.clone() for name, p in bench.encoder.state_dict().items()}
    Distillation(Distill(examples=64, learning_rate_micros=50)).apply(bench.encoder, bench.data)
    changed = {n for n, p in bench.encoder.state_dict().items() if not torch.equal(p, before[n])}
    assert {"word.weight", "position.weight"}.isdisjoint(changed)
    assert {"projection.weight", "layers.0.up.weight", "out.bias"} <= changed


def test_the_same_seed_gives_the_same_model(bench_of: Benches) -> None:
    """Two runs with one seed on one machine agree bit by bit."""
    step = Distillation(Distill(examples=64))
    states = []
    for _ in range(2):
        bench = pruned(bench_of("bert"))
        step.apply(bench.encoder, bench.data)
        states.append(bench.encoder.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_few_texts_are_repeated(bench_of: Benches) -> None:
    """`examples` counts texts shown; each pass shows every text once."""
    bench = pruned(bench_of("bert"))
    asked: list[list[str]] = []

    def teacher(texts: list[str]) -> Logits:
        asked.append(texts)
        answers: Logits = bench.data.teacher(texts)
        return answers

    data = replace(bench.data, teacher=teacher)
    Distillation(Distill(examples=200)).apply(bench.encoder, data)
    details = data.details["distill"]
    assert details["textsShown"] == 200
    assert details["textsDistinct"] == 96 - details["textsHeldOut"]
    assert [len(texts) for texts in asked] == [96], "the teacher answers each text once"


@pytest.mark.parametrize("hidden", [0, 1000])
def test_few_texts_are_crossed(hidden: int, bench_of: Benches) -> None:
    """The second pass has new texts, answered by the teacher; the data stays as it was."""
    bench = pruned(bench_of("bert"))
    texts = len(bench.data)
    parameters = Distill(
        examples=3 * texts,
        hidden_weight_permille=hidden,
        crossover="Enabled",
        learning_rate_micros=1000,
    )
    Distillation(parameters).apply(bench.encoder, bench.data)
    told = bench.data.details["distill"]
    assert told["textsShown"] == told["textsDistinct"] == 3 * texts
    assert min(told["heldOutLosses"]) < told["heldOutLosses"][0] / 2
    assert len(bench.data) == texts


def test_a_rate_that_is_too_high_fails_with_the_mend(bench_of: Benches) -> None:
    """Divergence is a failure that names the parameter, and the best model so far is kept."""
    bench = bench_of("bert")
    start = {name: p.clone() for name, p in bench.encoder.state_dict().items()}
    data = replace(bench.data, keep=lambda: "sha256:kept")
    with pytest.raises(TrainingDiverged, match=r"lower learningRateMicros \(now 100000\).*kept"):
        Distillation(Distill(examples=320, learning_rate_micros=100_000)).apply(bench.encoder, data)
    restored = bench.encoder.state_dict()
    assert all(torch.equal(restored[name], start[name]) for name in start)


def test_training_that_does_not_help_is_undone(bench_of: Benches) -> None:
    """A model that was better before keeps its weights, and the summary says so."""
    bench = bench_of("bert")  # not pruned: there is nothing to learn
    start = {name: p.clone() for name, p in bench.encoder.state_dict().items()}
    data = bench.data
    note = Distillation(Distill(examples=32, learning_rate_micros=100)).apply(bench.encoder, data)
    losses = data.details["distill"]["heldOutLosses"]
    assert min(losses[1:]) > losses[0], "this rate must be too high for the test to mean anything"
    assert note.startswith("distillation did not help")
    found = bench.encoder.state_dict()
    assert all(torch.equal(found[name], start[name]) for name in start)


def test_what_is_not_a_number_fails_at_once(bench_of: Benches) -> None:
    """A loss that is not a number ends the training in that step."""
    bench = pruned(bench_of("bert"))
    with torch.no_grad():
        bench.encoder.layers[0].norm.bias[0] = float("nan")
    with pytest.raises(TrainingDiverged, match="the loss is nan after 0 steps"):
        Distillation(Distill(examples=64)).apply(bench.encoder, bench.data)


def test_a_model_that_is_right_already_is_left_alone(bench_of: Benches) -> None:
    """Without pruning there is nothing to learn, which is no divergence."""
    bench = bench_of("bert")
    Distillation(Distill(examples=64, learning_rate_micros=1)).apply(bench.encoder, bench.data)
    assert bench.data.details["distill"]["heldOutLosses"][0] < 1e-6


def test_too_few_texts_are_refused(bench_of: Benches) -> None:
    """The message says how many there are and how many it takes."""
    bench = bench_of("bert")
    few = replace(bench.data.dataset, examples=bench.data.dataset.examples[:20])
    with pytest.raises(StepInvalid, match="at least 32 training texts; file:///x has 20"):
        Distillation(Distill()).apply(bench.encoder, replace(bench.data, dataset=few))


def test_the_rate_warms_up_and_decays() -> None:
    """Linear up over the first tenth, linear down to almost nothing."""
    rates = [distill.schedule(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[-1] == pytest.approx(1 / 90)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert all(0 < rate <= 1 for rate in (distill.schedule(0, 1), distill.schedule(1, 2)))


ALL: dict[str, Any] = {
    "hidden_weight_permille": 300,
    "relation_weight_permille": 2000,
    "label_weight_permille": 100,
}


@pytest.mark.parametrize(
    ("model_type", "layers", "weights"),
    [
        ("bert", [0, 1], {"hidden_weight_permille": 1000}),
        ("electra", [1], {"hidden_weight_permille": 1000, "logits_weight_permille": 0}),
        ("electra", [0, 1], {"relation_weight_permille": 1000}),
        ("roberta", [0], ALL),
        ("bert", [0, 1], {"label_weight_permille": 1000, "logits_weight_permille": 0}),
    ],
)
def test_each_loss_gets_smaller(
    bench_of: Benches, model_type: str, layers: list[int], weights: dict[str, Any]
) -> None:
    """On texts that are never trained on, also where layers and heads are gone."""
    bench = bench_of(model_type)
    bench.encoder.keep_layers(layers)
    for layer in bench.encoder.encoder_layers():
        layer.keep_heads(torch.tensor([0, 2]))
        layer.keep_neurons(torch.arange(64))
    texts = bench.data.dataset.texts
    labels = [None if place % 5 == 0 else int("good" in t) for place, t in enumerate(texts)]
    data = replace(bench.data, labels=labels)
    parameters = Distill(examples=640, batch_size=16, learning_rate_micros=1000, **weights)
    Distillation(parameters).apply(bench.encoder, data)
    details = data.details["distill"]
    wanted = {"logits": 1000} | {name.split("_")[0]: weight for name, weight in weights.items()}
    names = {"relation": "relations", "label": "labels"}
    expected = {names.get(name, name) for name, weight in wanted.items() if weight}
    assert set(details["heldOutLossesByName"]) == expected
    for name, losses in details["heldOutLossesByName"].items():
        assert min(losses[1:]) < 0.85 * losses[0], name
    looks_inside = expected & {"hidden", "relations"}
    matched = [1] if len(layers) == 1 else [0, 1]
    assert details["layersMatched"] == (matched if looks_inside else [])


def test_hidden_states_are_learned_across_tokenizers(tmp_path: Path) -> None:
    """After words were split, only tokens that both models have are compared."""
    bench = make_bench(write_checkpoint(tmp_path / "parts", extra=PARTS))
    TrimTokens(TrimVocabulary(least_occurrences=38)).apply(bench.encoder, bench.data)
    bench.encoder.keep_layers([0])
    split = sum(
        ours.tokens != theirs.tokens
        for ours, theirs in zip(bench.data.encodings, bench.data.original_encodings, strict=True)
    )
    assert 10 < split < 90
    weights: dict[str, Any] = {"hidden_weight_permille": 1000, "relation_weight_permille": 100}
    parameters = Distill(examples=960, batch_size=16, learning_rate_micros=1000, **weights)
    Distillation(parameters).apply(bench.encoder, bench.data)
    losses = bench.data.details["distill"]["heldOutLossesByName"]
    assert min(losses["hidden"]) < 0.8 * losses["hidden"][0]
    assert min(losses["logits"]) < 0.8 * losses["logits"][0]


def test_a_model_as_it_was_has_nothing_to_learn_from_the_original(bench_of: Benches) -> None:
    """The unchanged model's losses are zero, which proves that both are asked the same."""
    bench = bench_of("electra")
    weights: dict[str, Any] = {"hidden_weight_permille": 1000, "relation_weight_permille": 1000}
    parameters = Distill(examples=32, learning_rate_micros=1, **weights)
    Distillation(parameters).apply(bench.encoder, bench.data)
    for losses in bench.data.details["distill"]["heldOutLossesByName"].values():
        assert losses[0] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"logits_weight_permille": 0}, "nothing to learn from: set at least one of logits"),
        ({"label_weight_permille": 1}, r"needs labelled texts: set data\.training\.labelField"),
        ({"relation_weight_permille": 1}, "needs attention heads, and this model has none left"),
    ],
)
def test_losses_without_a_ground_are_refused(
    bench_of: Benches, weights: dict[str, Any], message: str
) -> None:
    """The message names the weight and how to mend it."""
    bench = bench_of("bert")
    for layer in bench.encoder.encoder_layers():
        layer.keep_heads(torch.arange(0))
    data = replace(bench.data, labels=[None] * len(bench.data))
    with pytest.raises(StepInvalid, match=message):
        Distillation(Distill(**weights)).apply(bench.encoder, data)


def test_bf16_teaches_nearly_the_same(bench_of: Benches) -> None:
    """The models that both arithmetics give differ far less than either from its start."""
    answers = []
    (batch,) = bench_of("bert").data.batches(list(range(48)), 48)
    for precision in ("Float32", "BFloat16"):
        bench = pruned(bench_of("bert"))
        with torch.no_grad():
            start = bench.encoder(**batch.inputs)
        parameters = Distill(
            examples=320,
            learning_rate_micros=300,
            hidden_weight_permille=500,
            precision=precision,
        )
        Distillation(parameters).apply(bench.encoder, bench.data)
        details = bench.data.details["distill"]
        assert details["precision"] == precision.lower()
        assert details["bfloat16Speedup"] is None
        assert min(details["heldOutLosses"]) < 0.9 * details["heldOutLosses"][0]
        assert all(p.dtype == torch.float32 for p in bench.encoder.parameters())
        with torch.no_grad():
            answers.append(bench.encoder(**batch.inputs))
    float32, bfloat16 = answers
    assert not torch.equal(float32, bfloat16)
    assert (float32 - bfloat16).norm() < 0.1 * (float32 - start).norm()


def test_steps_have_as_many_tokens_each(bench_of: Benches) -> None:
    """So that bf16 kernels are compiled for few shapes; every text is shown once in each pass."""
    data = bench_of("bert").data
    shown = list(range(90)) * 2
    batches = distill.shuffled(data, shown, size=30)
    assert sorted(i for batch in batches for i in batch.indices) == sorted(shown)
    sizes = [batch.inputs["input_ids"].numel() for batch in batches]
    mean = sum(len(data.encodings[index]) for index in range(90)) / 3
    assert max(sizes) == pytest.approx(mean, abs=120)
    assert sum(size == max(sizes) for size in sizes) >= len(sizes) - 2
    for batch in batches:
        longest = max(len(data.encodings[index]) for index in batch.indices)
        assert longest <= batch.inputs["input_ids"].shape[1] <= 40


@pytest.mark.parametrize(
    "weights",
    [{}, {"hidden_weight_permille": 1000}, {"label_weight_permille": 1000}],
    ids=["answers", "hidden", "labels"],
)
def test_numbers_are_learned(tmp_path: Path, weights: dict[str, Any]) -> None:
    """Those of the original, and labels where there are some."""
    bench = pruned(make_bench(write_checkpoint(tmp_path / "model", labels=("stars",))))
    texts = bench.data.dataset.texts
    labels = [None if i % 5 == 0 else len(t.split()) / 4 - 2 for i, t in enumerate(texts)]
    data = replace(bench.data, labels=labels)
    parameters = Distill(examples=640, batch_size=16, learning_rate_micros=1000, **weights)
    Distillation(parameters).apply(bench.encoder, data)
    found = data.details["distill"]["heldOutLossesByName"]
    # The labels are none of the teacher's, and pull away from its numbers.
    for name in {"labels"} & set(found) or set(found):
        assert min(found[name][1:]) < 0.85 * found[name][0], name


@pytest.mark.parametrize("hidden", [0, 1000])
def test_labels_of_words_are_learned(tmp_path: Path, hidden: int) -> None:
    """By the first token of each word from the stored answers, by every token from inside."""
    bench = pruned(make_bench(write_checkpoint(tmp_path / "model", each_token=True)))
    data = bench.data

    def teacher(texts: list[str]) -> Logits:
        answers = [data.teacher([text])[0] for text in texts]
        encodings = data.tokenizer.encode_batch(texts)
        rows = [
            answer[[place for place in first_tokens(encoding, text) if place is not None]]
            for answer, encoding, text in zip(answers, encodings, texts, strict=True)
        ]
        return np.concatenate(rows)

    parameters = Distill(
        examples=640, batch_size=16, learning_rate_micros=1000, hidden_weight_permille=hidden
    )
    Distillation(parameters).apply(bench.encoder, replace(data, teacher=teacher))
    for name, losses in data.details["distill"]["heldOutLossesByName"].items():
        assert min(losses[1:]) < 0.85 * losses[0], name


def test_labels_of_words_are_no_loss(tmp_path: Path) -> None:
    """Said before any work."""
    bench = make_bench(write_checkpoint(tmp_path / "model", each_token=True))
    with pytest.raises(StepInvalid, match=r"labelWeightPermille is for models that answer once"):
        Distillation(Distill(label_weight_permille=100)).apply(bench.encoder, bench.data)
