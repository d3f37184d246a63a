# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from kompakt.api.recipe import Prune
from kompakt.jobs.compress.prune import (
    PruneFeedForward,
    choose,
    fisher_importance,
    refit,
    shrink,
)
from kompakt.jobs.errors import StepInvalid
from kompakt.jobs.models.architectures import ARCHITECTURES
from kompakt.jobs.models.encoder import Encoder

Benches = Callable[[str], Any]


def masked(encoder: Encoder, kept: list[torch.Tensor]) -> Encoder:
    """The same model with the other neurons set to zero, in its former size."""
    result = copy.deepcopy(encoder)
    for layer, keep in zip(result.encoder_layers(), kept, strict=True):
        mask = torch.zeros(layer.ffn_size)
        mask[keep] = 1.0
        with torch.no_grad():
            layer.down.weight *= mask
    return result


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_a_pruned_model_is_the_masked_one(model_type: str, bench_of: Benches) -> None:
    """Taking neurons out of the matrices gives the same logits as setting them to zero."""
    bench = bench_of(model_type)
    batches = list(bench.data.batches(bench.data.order(), 16))
    importance = fisher_importance(bench.encoder, batches, labels=bench.data.labels)
    kept = choose(importance, keep_permille=400)
    reference = masked(bench.encoder, kept)
    shrink(bench.encoder, kept)
    assert sum(layer.ffn_size for layer in bench.encoder.encoder_layers()) < 2 * 128
    with torch.no_grad():
        for batch in batches:
            expected = reference(**batch.inputs)
            torch.testing.assert_close(
                bench.encoder(**batch.inputs), expected, atol=1e-5, rtol=1e-5
            )


def test_importance_is_the_squared_gradient_of_each_sample(bench_of: Benches) -> None:
    """Gates for all samples at once equal gradients computed sample by sample."""
    bench = bench_of("bert")
    indices = bench.data.order()[:6]
    found = fisher_importance(
        bench.encoder, list(bench.data.batches(indices, 4)), labels=bench.data.labels
    )
    expected = [torch.zeros(128), torch.zeros(128)]
    for batch in bench.data.batches(indices, 1):
        gates = [torch.ones(128, requires_grad=True) for _ in range(2)]
        x, mask = bench.encoder.embed(**batch.inputs)
        for layer, gate in zip(bench.encoder.encoder_layers(), gates, strict=True):
            x = layer.attend(x, mask)
            x = layer.norm(layer.down(layer.neurons(x) * gate) + x)
        logits = bench.encoder.out(bench.encoder.head_activation(bench.encoder.head(x[:, 0])))
        label = torch.tensor([bench.data.labels[index] for index in batch.indices])
        loss = nn.functional.cross_entropy(logits, label)
        for number, gradient in enumerate(torch.autograd.grad(loss, gates)):
            expected[number] += gradient**2
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-7)


def test_importance_needs_no_labels(bench_of: Benches) -> None:
    """Without labels the model's own answers stand in, which is the same where they agree."""
    bench = bench_of("bert")
    batches = list(bench.data.batches(bench.data.order()[:32], 16))
    own: dict[int, int] = {}
    with torch.no_grad():
        for batch in batches:
            answers = bench.encoder(**batch.inputs).argmax(dim=1).tolist()
            own.update(zip(batch.indices, answers, strict=True))
    labels = [own.get(index, 0) for index in range(len(bench.data))]
    nothing: list[int | None] = [None] * len(bench.data)
    without = fisher_importance(bench.encoder, batches, labels=nothing)
    having = fisher_importance(bench.encoder, batches, labels=labels)
    for one, other in zip(without, having, strict=True):
        torch.testing.assert_close(one, other)


def test_weights_can_learn_again_after_ranking(bench_of: Benches) -> None:
    """Ranking leaves neither frozen weights nor hooks behind."""
    bench = bench_of("bert")
    batches = list(bench.data.batches(bench.data.order()[:8], 8))
    fisher_importance(bench.encoder, batches, labels=bench.data.labels)
    assert all(parameter.requires_grad for parameter in bench.encoder.parameters())
    bench.encoder(**batches[0].inputs).sum().backward()


def test_layers_keep_what_they_need() -> None:
    """All layers are ranked together: a layer of important neurons keeps more."""
    strong, weak = torch.rand(128) + 1.0, torch.rand(128)
    kept = choose([strong, weak], keep_permille=600)
    assert [len(keep) for keep in kept] == [128, 32]
    assert sorted(kept[1].tolist()) == sorted(weak.topk(32).indices.tolist())


@pytest.mark.parametrize("keep", [20, 333, 500, 777, 1000])
def test_sizes_suit_kernels(keep: int) -> None:
    """Every layer keeps a multiple of 16, at least 32, and together about what was asked for."""
    generator = torch.Generator().manual_seed(keep)
    importance = [torch.rand(512, generator=generator) ** power for power in (1, 2, 4)]
    kept = choose(importance, keep_permille=keep)
    for indices in kept:
        assert len(indices) % 16 == 0
        assert len(indices) >= 32
        assert indices.tolist() == sorted(set(indices.tolist()))
    assert abs(sum(map(len, kept)) - max(96, 1536 * keep / 1000)) <= 3 * 24


def test_small_layers_stay_whole() -> None:
    """A layer that is no multiple of 16 is not grown."""
    assert len(choose([torch.rand(40)], keep_permille=1000)[0]) == 40


def test_refitting_halves_the_damage(bench_of: Benches) -> None:
    """On other texts than those it was fitted on, the refitted model is closer to the original."""
    bench = bench_of("bert")
    order = bench.data.order()
    batches = list(bench.data.batches(order[:64], 16))
    original = copy.deepcopy(bench.encoder)
    nothing: list[int | None] = [None] * len(bench.data)
    kept = choose(fisher_importance(original, batches, labels=nothing), keep_permille=500)
    plain = copy.deepcopy(original)
    shrink(plain, kept)
    fitted = copy.deepcopy(plain)
    errors = refit(fitted, original, kept, batches)
    assert all(0.0 < error < 1.0 for error in errors)

    def damage(encoder: Encoder) -> float:
        total = 0.0
        with torch.no_grad():
            for batch in bench.data.batches(order[64:], 16):
                total += float((encoder(**batch.inputs) - original(**batch.inputs)).square().sum())
        return total

    assert damage(fitted) < damage(plain) / 2


def test_refitting_a_whole_layer_changes_nothing(bench_of: Benches) -> None:
    """With all neurons kept, the former weights are the best fit."""
    bench = bench_of("electra")
    original = copy.deepcopy(bench.encoder)
    kept = [torch.arange(128)] * 2
    errors = refit(bench.encoder, original, kept, list(bench.data.batches(range(64), 16)))
    assert max(errors) < 1e-3
    for ours, theirs in zip(bench.encoder.encoder_layers(), original.encoder_layers(), strict=True):
        torch.testing.assert_close(ours.down.weight, theirs.down.weight, atol=1e-4, rtol=1e-3)


def test_the_step_says_what_it_kept(bench_of: Benches) -> None:
    """The summary names the neurons of each layer, and the report how it came to them."""
    bench = bench_of("roberta")
    note = PruneFeedForward(Prune(ffn_keep_permille=500, samples=32)).apply(
        bench.encoder, bench.data
    )
    sizes = [layer.ffn_size for layer in bench.encoder.encoder_layers()]
    assert note == f"FFN neurons kept by layer {sizes[0]} {sizes[1]} of 128"
    assert bench.data.details["prune"]["samples"] == 32
    assert bench.data.details["prune"]["neuronsAfter"] == sizes


def test_a_model_too_small_to_prune_is_refused(bench_of: Benches) -> None:
    """Layers below the minimum cannot be pruned, and the message says how small they are."""
    bench = bench_of("bert")
    shrink(bench.encoder, [torch.arange(16), torch.arange(16)])
    with pytest.raises(StepInvalid, match="at least 32 FFN neurons; this model has 16"):
        PruneFeedForward(Prune()).apply(bench.encoder, bench.data)


def test_the_same_seed_keeps_the_same_neurons(bench_of: Benches) -> None:
    """A Job that runs again prunes alike; another seed looks at other samples."""
    first, again, other = bench_of("bert"), bench_of("bert"), bench_of("bert")
    step = PruneFeedForward(Prune(ffn_keep_permille=500, samples=16))
    step.apply(first.encoder, first.data)
    step.apply(again.encoder, again.data)
    step.apply(other.encoder, replace(other.data, seed=1))
    weights = [bench.encoder.state_dict()["layers.0.up.weight"] for bench in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
