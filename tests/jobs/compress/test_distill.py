# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from kompakt.api.recipe import Distill
from kompakt.jobs.compress import distill
from kompakt.jobs.compress.distill import DistillLogits
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
    note = DistillLogits(Distill(examples=640, batch_size=16, learning_rate_micros=2000)).apply(
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
    DistillLogits(Distill(examples=64, learning_rate_micros=50)).apply(bench.encoder, bench.data)
    changed = {n for n, p in bench.encoder.state_dict().items() if not torch.equal(p, before[n])}
    assert {"word.weight", "position.weight"}.isdisjoint(changed)
    assert {"projection.weight", "layers.0.up.weight", "out.bias"} <= changed


def test_the_same_seed_gives_the_same_model(bench_of: Benches) -> None:
    """Two runs with one seed on one machine agree bit by bit."""
    step = DistillLogits(Distill(examples=64))
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
    DistillLogits(Distill(examples=200)).apply(bench.encoder, data)
    details = data.details["distill"]
    assert details["textsShown"] == 200
    assert details["textsDistinct"] == 96 - details["textsHeldOut"]
    assert [len(texts) for texts in asked] == [96], "the teacher answers each text once"


def test_a_rate_that_is_too_high_fails_with_the_mend(bench_of: Benches) -> None:
    """Divergence is a failure that names the parameter, and the best model so far is kept."""
    bench = bench_of("bert")
    start = {name: p.clone() for name, p in bench.encoder.state_dict().items()}
    data = replace(bench.data, keep=lambda: "sha256:kept")
    with pytest.raises(TrainingDiverged, match=r"lower learningRateMicros \(now 100000\).*kept"):
        DistillLogits(Distill(examples=320, learning_rate_micros=100_000)).apply(
            bench.encoder, data
        )
    restored = bench.encoder.state_dict()
    assert all(torch.equal(restored[name], start[name]) for name in start)


def test_training_that_does_not_help_is_undone(bench_of: Benches) -> None:
    """A model that was better before keeps its weights, and the summary says so."""
    bench = bench_of("bert")  # not pruned: there is nothing to learn
    start = {name: p.clone() for name, p in bench.encoder.state_dict().items()}
    data = bench.data
    note = DistillLogits(Distill(examples=32, learning_rate_micros=100)).apply(bench.encoder, data)
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
        DistillLogits(Distill(examples=64)).apply(bench.encoder, bench.data)


def test_a_model_that_is_right_already_is_left_alone(bench_of: Benches) -> None:
    """Without pruning there is nothing to learn, which is no divergence."""
    bench = bench_of("bert")
    DistillLogits(Distill(examples=64, learning_rate_micros=1)).apply(bench.encoder, bench.data)
    assert bench.data.details["distill"]["heldOutLosses"][0] < 1e-6


def test_too_few_texts_are_refused(bench_of: Benches) -> None:
    """The message says how many there are and how many it takes."""
    bench = bench_of("bert")
    few = replace(bench.data.dataset, examples=bench.data.dataset.examples[:20])
    with pytest.raises(StepInvalid, match="at least 32 training texts; file:///x has 20"):
        DistillLogits(Distill()).apply(bench.encoder, replace(bench.data, dataset=few))


def test_the_rate_warms_up_and_decays() -> None:
    """Linear up over the first tenth, linear down to almost nothing."""
    rates = [distill._schedule(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[-1] == pytest.approx(1 / 90)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert all(0 < rate <= 1 for rate in (distill._schedule(0, 1), distill._schedule(1, 2)))
