# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kompakt.api.job import CompressTask
from kompakt.api.steps import Prune
from kompakt.jobs.compress import sparsity
from kompakt.jobs.compress.chain import compress
from kompakt.jobs.compress.distill import Distillation
from kompakt.jobs.compress.gates import Units, gated
from kompakt.jobs.compress.importance import fisher
from kompakt.jobs.compress.prune import PruneUnits, shrink
from kompakt.jobs.compress.selection import by_share
from kompakt.jobs.compress.sparsity import HIGH, LOW, SHIFT, TEMPERATURE, Learned, fold, learn
from kompakt.jobs.errors import StepInvalid, TrainingDiverged
from kompakt.jobs.models.architectures import ARCHITECTURES
from kompakt.jobs.task import Workplace

from .conftest import Bench

Benches = Callable[[str], Bench]


def learned_by(bench: Bench, *, head_share: float, neuron_share: float, examples: int) -> Learned:
    """From the order of Fisher on."""
    data = bench.data
    scores = fisher(bench.encoder, list(data.batches(range(16), 16)), labels=data.labels)
    return learn(
        bench.encoder,
        data,
        scores,
        head_share=head_share,
        neuron_share=neuron_share,
        examples=examples,
    )


@pytest.mark.parametrize("location", [-4.0, SHIFT, 0.0, 2.0])
def test_gates_are_hard_concrete(location: float) -> None:
    """Zero as often as the distribution function says, one as often as the other end of it says;
    without chance, the stretched sigmoid.
    """
    gates = sparsity._Gates([torch.zeros(30_000), torch.zeros(10_000)], share=0.5)
    with torch.no_grad():
        gates.location.fill_(location)
    drawn = gates.draw(torch.Generator().manual_seed(0))
    assert [len(layer) for layer in drawn] == [30_000, 10_000]
    values = torch.cat(drawn).detach().numpy()

    def below(end: float) -> float:
        """The distribution function of the concrete distribution, stretched (equation 11)."""
        u = (end - LOW) / (HIGH - LOW)
        return float(1 / (1 + np.exp(-(TEMPERATURE * np.log(u / (1 - u)) - location))))

    assert (values == 0).mean() == pytest.approx(below(0.0), abs=0.01)
    assert (values == 1).mean() == pytest.approx(1 - below(1.0), abs=0.01)
    assert 1 - below(0.0) == pytest.approx(1 / (1 + np.exp(-(location - SHIFT))), abs=1e-6)
    settled = (HIGH - LOW) / (1 + np.exp(-location)) + LOW
    assert float(gates.values()[0][0]) == pytest.approx(np.clip(settled, 0, 1), abs=1e-6)


@given(
    st.lists(st.floats(-6, 6, width=32), min_size=1, max_size=60),
    st.floats(0.02, 0.98),
)
def test_the_constraint_holds_after_every_step(locations: list[float], share: float) -> None:
    """In expectation, and whatever the loss did to the gates before; who was more open stays so."""
    gates = sparsity._Gates([torch.zeros(len(locations))], share=0.5)
    with torch.no_grad():
        gates.location.copy_(torch.tensor(locations))
    gates.hold(share)
    found = gates.location.detach()
    assert float(torch.sigmoid(found - SHIFT).mean()) == pytest.approx(share, abs=2e-3)


def test_units_without_a_target_have_no_gates() -> None:
    """Of heads, when only neurons go; and of nothing nothing."""
    for gates in (
        sparsity._Gates([torch.zeros(4)] * 2, share=1.0),
        sparsity._Gates([torch.zeros(0)] * 2, share=0.5),
    ):
        before = gates.location.detach().clone()
        gates.hold(0.5)
        assert torch.equal(gates.location, before)
        assert all((layer == 1).all() for layer in gates.draw(torch.Generator()))
        assert gates.settled_share == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_masked_equals_shrunk(model_type: str, bench_of: Benches) -> None:
    """With the gates' values, and zero for what goes, the whole model answers as the small one."""
    bench = bench_of(model_type)
    learned = learned_by(bench, head_share=0.5, neuron_share=0.5, examples=96)
    kept = Units(
        by_share(learned.locations.heads, keep_permille=500, multiple=1, least=1),
        by_share(learned.locations.neurons, keep_permille=500, multiple=16, least=32),
    )
    masks = [torch.zeros_like(value) for value in learned.values.all]
    for mask, units, value in zip(masks, kept.all, learned.values.all, strict=True):
        mask[units] = value[units]
    batches = list(bench.data.batches(bench.data.order(), 32))
    with torch.no_grad():
        with gated(bench.encoder, Units(masks[:2], masks[2:])):
            masked = torch.cat([bench.encoder(**batch.inputs) for batch in batches])
        fold(bench.encoder, learned.values)
        shrink(bench.encoder, kept)
        small = torch.cat([bench.encoder(**batch.inputs) for batch in batches])
    assert [layer.heads for layer in bench.encoder.encoder_layers()] != [4, 4]
    torch.testing.assert_close(small, masked, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_as_many_gates_close_as_are_wanted(share: float, bench_of: Benches) -> None:
    """Without chance too, not only in expectation: most gates end at one side."""
    bench = bench_of("bert")
    learned = learned_by(bench, head_share=1.0, neuron_share=share, examples=640)
    values = torch.cat(learned.values.neurons)
    found = float((values > 0).float().mean())
    assert found == pytest.approx(share, abs=0.05)
    assert learned.report["openNeurons"] == pytest.approx(found, abs=1e-4)
    assert learned.report["openHeads"] == 1.0
    assert float(((values > 0) & (values < 1)).float().mean()) < 0.3
    assert (torch.cat(learned.values.heads) == 1).all()


@pytest.mark.slow
def test_units_that_do_nothing_go_first(bench_of: Benches) -> None:
    """Half of the neurons and heads have no way out."""
    bench = bench_of("bert")
    for layer in bench.encoder.encoder_layers():
        with torch.no_grad():
            layer.matrix("down").get_parameter("weight")[:, ::2] = 0
            layer.matrix("attended").get_parameter("weight")[:, : 2 * layer.width] = 0
    learned = learned_by(bench, head_share=0.5, neuron_share=0.5, examples=640)
    neurons = torch.stack(learned.locations.neurons)
    assert float((neurons[:, 1::2] > neurons[:, ::2]).float().mean()) > 0.9
    heads = torch.stack(learned.locations.heads)
    assert heads[:, 2:].mean() > heads[:, :2].mean() + 4


def test_gates_begin_in_the_order_of_importance() -> None:
    """Over all layers together, nearly all open."""
    gates = sparsity._Gates([torch.tensor([3.0, 1.0]), torch.tensor([2.0])], share=0.5)
    assert gates.location.tolist() == [6.0, 2.0, 4.0]
    assert gates.settled_share == 1.0


@pytest.mark.slow
def test_the_step_keeps_what_its_shares_say(bench_of: Benches) -> None:
    """And reports what the gates became."""
    bench = bench_of("roberta")
    note = PruneUnits(
        Prune(importance="L0", head_keep_permille=500, ffn_keep_permille=500, sparsity_examples=320)
    ).apply(bench.encoder, bench.data)
    layers = bench.encoder.encoder_layers()
    assert sum(layer.heads for layer in layers) == 4
    assert sum(layer.ffn_size for layer in layers) == pytest.approx(128, abs=16)
    assert note.startswith("kept heads ")
    details = bench.data.details["prune"]
    assert details["importance"] == "L0"
    assert details["gates"]["textsShown"] == 320
    assert len(details["relativeRefitErrors"]["attention"]) == 2


@pytest.mark.slow
def test_what_it_cannot_do_is_said(bench_of: Benches) -> None:
    """Before any work, or when it fails."""
    bench = bench_of("bert")
    latency = Prune(importance="L0", latency_keep_permille=500)
    with pytest.raises(StepInvalid, match="set headKeepPermille and ffnKeepPermille instead of"):
        PruneUnits(latency).apply(bench.encoder, bench.data)
    few = replace(bench.data.dataset, examples=bench.data.dataset.examples[:20])
    data = replace(bench.data, dataset=few, labels=bench.data.labels[:20])
    with pytest.raises(StepInvalid, match=r"L0 learns from at least 32 training texts; .* has 20"):
        learned_by(replace(bench, data=data), head_share=0.5, neuron_share=0.5, examples=64)
    with torch.no_grad():
        bench.encoder.embedding_norm.weight.fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match="L0 failed: the loss is nan after 0 steps; take"):
        learned_by(bench, head_share=0.5, neuron_share=0.5, examples=64)


@pytest.mark.slow
def test_a_killed_job_has_learned_its_gates(
    task: Callable[..., CompressTask],
    place: Callable[[], Workplace],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was pruned is kept; only what follows is done again."""
    prune = {"importance": "L0", "ffnKeepPermille": 500, "sparsityExamples": 64}
    steps = [{"prune": prune}, {"distill": {"examples": 32, "learningRateMicros": 1}}]

    class Killed(BaseException):
        """As a signal would end the process."""

    def die(*_arguments: object) -> str:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Distillation, "apply", die)
        with pytest.raises(Killed):
            compress(task(*steps), place())
    resumed, again = place(), place()
    result = compress(task(*steps), resumed)
    assert resumed.details["resumedAfterSteps"] == 1
    assert "prune" not in resumed.seconds
    assert compress(task(*steps), again).artifact_digest == result.artifact_digest
