# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from kompakt.jobs.compress import importance
from kompakt.jobs.compress.gates import Units
from kompakt.jobs.compress.importance import fisher, layers_to_drop, movement
from kompakt.jobs.compress.training import Batch
from kompakt.jobs.models.architectures import ARCHITECTURES
from kompakt.jobs.models.encoder import Encoder

pytestmark = pytest.mark.slow

Benches = Callable[[str], Any]


def gated_loss(encoder: Encoder, batch: Batch, gates: Units, labels: Sequence[int]) -> torch.Tensor:
    """The loss with gates of [units], written out."""
    x, mask = encoder.embed(**batch.inputs)
    for number, layer in enumerate(encoder.encoder_layers()):
        heads = gates.heads[number].repeat_interleave(layer.width)
        x = layer.attention_norm(layer.attended(layer.mix(x, mask) * heads) + x)
        x = layer.norm(layer.down(layer.neurons(x) * gates.neurons[number]) + x)
    target = torch.tensor([labels[index] for index in batch.indices])
    return nn.functional.cross_entropy(encoder.classify(x, torch.ones(x.shape[:2])), target)


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_fisher_is_the_squared_gradient_of_each_text(model_type: str, bench_of: Benches) -> None:
    """Gates for all texts at once equal gradients computed text by text."""
    bench = bench_of(model_type)
    indices = bench.data.order()[:6]
    found = fisher(bench.encoder, list(bench.data.batches(indices, 4)), labels=bench.data.labels)
    expected = [torch.zeros(4), torch.zeros(4), torch.zeros(128), torch.zeros(128)]
    for batch in bench.data.batches(indices, 1):
        gates = Units(
            heads=[torch.ones(4, requires_grad=True) for _ in range(2)],
            neurons=[torch.ones(128, requires_grad=True) for _ in range(2)],
        )
        loss = gated_loss(bench.encoder, batch, gates, bench.data.labels)
        for number, gradient in enumerate(torch.autograd.grad(loss, gates.all)):
            expected[number] += gradient**2
    for ours, theirs in zip(found.all, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_fisher_needs_no_labels(bench_of: Benches) -> None:
    """Where a text has no label the model's own answer stands in."""
    bench = bench_of("bert")
    batches = list(bench.data.batches(bench.data.order()[:32], 16))
    own: dict[int, int] = {}
    with torch.no_grad():
        for batch in batches:
            answers = bench.encoder(**batch.inputs).argmax(dim=1).tolist()
            own.update(zip(batch.indices, answers, strict=True))
    count = len(bench.data)
    without = fisher(bench.encoder, batches, labels=[None] * count)
    having = fisher(bench.encoder, batches, labels=[own.get(index, 0) for index in range(count)])
    for one, other in zip(without.all, having.all, strict=True):
        torch.testing.assert_close(one, other)


def test_empty_layers_have_no_scores(bench_of: Benches) -> None:
    """A layer that lost its heads or neurons before is ranked as it is."""
    bench = bench_of("bert")
    first, second = bench.encoder.encoder_layers()
    first.keep_heads(torch.arange(0))
    second.keep_neurons(torch.arange(0))
    batches = list(bench.data.batches(bench.data.order()[:8], 8))
    for score in (fisher, movement):
        found = score(bench.encoder, batches, labels=bench.data.labels)
        assert [len(layer) for layer in found.all] == [0, 4, 128, 0]
        assert found.heads[1].abs().min() > 0


def test_movement_is_the_way_of_the_weights(
    bench_of: Benches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It equals minus weight times gradient, summed over a unit's weights and steps of AdamW."""
    monkeypatch.setattr(importance, "MOVEMENT_STEPS", 3)
    bench = bench_of("bert")
    batches = list(bench.data.batches(bench.data.order()[:16], 16))
    found = movement(bench.encoder, batches, labels=bench.data.labels)

    student = copy.deepcopy(bench.encoder)
    for table in student.tables:
        table.requires_grad_(False)
    learning = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1.0, weight_decay=0.01)
    expected = [torch.zeros(4), torch.zeros(4), torch.zeros(128), torch.zeros(128)]
    (batch,) = batches
    target = torch.tensor([bench.data.labels[index] for index in batch.indices])
    for step in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(student(**batch.inputs), target).backward()
        for number, layer in enumerate(student.encoder_layers()):
            for place, matrix, width in ((0, layer.attended, 16), (2, layer.down, 1)):
                assert matrix.weight.grad is not None
                by_input = (matrix.weight * matrix.weight.grad).sum(dim=0).detach()
                expected[place + number] -= by_input.view(-1, width).sum(dim=1)
        nn.utils.clip_grad_norm_(learning, importance.LARGEST_GRADIENT)
        optimizer.param_groups[0]["lr"] = importance.MOVEMENT_RATE * (1 - step / 3)
        optimizer.step()
    for ours, theirs in zip(found.all, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("score", [importance.fisher, importance.movement])
def test_ranking_leaves_the_model_alone(score: Any, bench_of: Benches) -> None:
    """Neither weights nor hooks nor frozen weights are left behind."""
    bench = bench_of("bert")
    before = copy.deepcopy(bench.encoder.state_dict())
    batches = list(bench.data.batches(bench.data.order()[:8], 8))
    score(bench.encoder, batches, labels=bench.data.labels)
    after = bench.encoder.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(parameter.requires_grad for parameter in bench.encoder.parameters())
    bench.encoder(**batches[0].inputs).sum().backward()


def test_a_head_that_does_nothing_is_worth_nothing(bench_of: Benches) -> None:
    """A head whose output nobody reads has score zero, by both ways."""
    bench = bench_of("electra")
    layer = bench.encoder.encoder_layers()[0]
    with torch.no_grad():
        layer.attended.weight[:, 32:48] = 0.0
    batches = list(bench.data.batches(bench.data.order()[:8], 8))
    found = fisher(bench.encoder, batches, labels=bench.data.labels).heads[0]
    assert int(found.argmin()) == 2
    assert float(found[2]) == 0.0


def deep(bench: Any, layers: int) -> Encoder:
    """A model of more layers, all of them random."""
    torch.manual_seed(1)
    config = replace(bench.encoder.config, head_counts=(4,) * layers, ffn_sizes=(128,) * layers)
    encoder = Encoder(config).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, 2 * parameter.shape[1] ** -0.5)
    return encoder


def test_layers_go_that_the_answers_miss_least(bench_of: Benches) -> None:
    """One after the other, by the divergence of the answers from the whole model's."""
    bench = bench_of("bert")
    encoder = deep(bench, 4)
    batches = list(bench.data.batches(bench.data.order()[:24], 8))
    dropped = layers_to_drop(encoder, batches, 2)

    def divergence(gone: set[int]) -> float:
        rest = copy.deepcopy(encoder)
        rest.keep_layers([n for n in range(4) if n not in gone])
        total = 0.0
        with torch.no_grad():
            for batch in batches:
                whole = encoder(**batch.inputs).double().softmax(dim=1)
                found = rest(**batch.inputs).double().softmax(dim=1)
                total += float((whole * (whole / found).log()).sum())
        return total / 24

    one = min(range(4), key=lambda number: divergence({number}))
    two = min({0, 1, 2, 3} - {one}, key=lambda number: divergence({one, number}))
    assert [drop.number for drop in dropped] == [one, two]
    assert dropped[0].divergence == pytest.approx(divergence({one}), rel=1e-3)
    assert dropped[1].divergence == pytest.approx(divergence({one, two}), rel=1e-3)
    assert layers_to_drop(encoder, batches, 0) == []
