# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kompakt.jobs.compress.gates import Units
from kompakt.jobs.compress.importance import fisher
from kompakt.jobs.compress.prune import shrink
from kompakt.jobs.compress.refit import RIDGE, LeastSquares, refit, states_of
from kompakt.jobs.compress.selection import by_share
from kompakt.jobs.models.encoder import Encoder

pytestmark = pytest.mark.slow

Benches = Callable[[str], Any]


def half_of_all(encoder: Encoder, batches: Any, labels: Any) -> Units:
    """The better half of the heads and of the neurons."""
    scores = fisher(encoder, batches, labels=labels)
    return Units(
        heads=by_share(scores.heads, keep_permille=500, multiple=1, least=1),
        neurons=by_share(scores.neurons, keep_permille=500, multiple=16, least=32),
    )


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "electra"])
def test_refitting_halves_the_damage(model_type: str, bench_of: Benches) -> None:
    """On other texts than those it was fitted on, the refitted model is closer to the original."""
    bench = bench_of(model_type)
    order = bench.data.order()
    batches = list(bench.data.batches(order[:64], 16))
    whole = copy.deepcopy(bench.encoder)
    kept = half_of_all(whole, batches, bench.data.labels)
    plain = copy.deepcopy(whole)
    shrink(plain, kept)
    fitted = copy.deepcopy(plain)
    errors = refit(fitted, whole, [0, 1], batches)
    assert all(0.0 < error < 1.0 for error in (*errors.attention, *errors.feed_forward))

    def damage(encoder: Encoder) -> float:
        total = 0.0
        with torch.no_grad():
            for batch in bench.data.batches(order[64:], 16):
                total += float((encoder(**batch.inputs) - whole(**batch.inputs)).square().sum())
        return total

    assert damage(fitted) < damage(plain) / 2


def test_refitting_a_whole_model_changes_nothing(bench_of: Benches) -> None:
    """With everything kept, the former weights are the best fit."""
    bench = bench_of("electra")
    whole = copy.deepcopy(bench.encoder)
    errors = refit(bench.encoder, whole, [0, 1], list(bench.data.batches(range(64), 16)))
    assert max(*errors.attention, *errors.feed_forward) < 1e-3
    for ours, theirs in zip(bench.encoder.encoder_layers(), whole.encoder_layers(), strict=True):
        for name in ("attended", "down"):
            for kind in ("weight", "bias"):
                one, other = (getattr(getattr(layer, name), kind) for layer in (ours, theirs))
                torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-2)


def test_the_layer_after_a_dropped_one_does_part_of_its_work(bench_of: Benches) -> None:
    """Fitted to the states of the whole model, the second layer mends the loss of the first."""
    bench = bench_of("bert")
    order = bench.data.order()
    whole = copy.deepcopy(bench.encoder)
    plain = copy.deepcopy(whole)
    plain.keep_layers([1])
    fitted = copy.deepcopy(plain)
    refit(fitted, whole, [1], list(bench.data.batches(order[:64], 16)))

    def distance(encoder: Encoder) -> float:
        total = 0.0
        with torch.no_grad():
            for batch in bench.data.batches(order[64:], 16):
                x, mask = encoder.embed(**batch.inputs)
                y = x
                for layer in encoder.encoder_layers():
                    x = layer(x, mask)
                for layer in whole.encoder_layers():
                    y = layer(y, mask)
                total += float((x - y)[batch.inputs["attention_mask"].bool()].square().sum())
        return total

    assert distance(fitted) < 0.7 * distance(plain)


@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
def test_a_classifier_s_last_layer_is_fitted_to_the_token_that_is_read(
    model_type: str, bench_of: Benches
) -> None:
    """Its answers come nearer to the original's than where each token counts, and what it gives for
    the other tokens does not matter.
    """
    bench = bench_of(model_type)
    batches = list(bench.data.batches(bench.data.order(), 16))
    whole = copy.deepcopy(bench.encoder)

    def distance(encoder: Encoder) -> float:
        with torch.no_grad():
            pairs = [(encoder(**b.inputs), whole(**b.inputs)) for b in batches]
        return sum(float((ours - theirs).square().sum()) for ours, theirs in pairs)

    heads, neurons = torch.arange(4), torch.arange(128)
    shrink(bench.encoder, Units(heads=[heads, heads[:1]], neurons=[neurons, neurons[:8]]))
    every = copy.deepcopy(bench.encoder)
    refit(bench.encoder, whole, [0, 1], batches)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "read_of", lambda _self, _number, tokens: tokens)
        refit(every, whole, [0, 1], batches)
    assert distance(bench.encoder) < 0.98 * distance(every)
    ours, theirs = (e.encoder_layers()[0].state_dict() for e in (bench.encoder, every))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_empty_halves_keep_their_mean(bench_of: Benches) -> None:
    """Without heads and neurons, the biases are fitted to the mean of what was there."""
    bench = bench_of("bert")
    batches = list(bench.data.batches(bench.data.order(), 16))
    whole = copy.deepcopy(bench.encoder)
    none = torch.arange(0)
    shrink(bench.encoder, Units(heads=[none, none], neurons=[none, none]))
    errors = refit(bench.encoder, whole, [0, 1], batches)
    former, layer = whole.encoder_layers()[0], bench.encoder.encoder_layers()[0]
    changes, weights = [], []
    with torch.no_grad():
        for state in states_of(whole, batches):
            change = former.attended(former.mix(state.x, state.mask))
            changes.append(change[state.tokens])
            weights.append(1 / (change + state.x)[state.tokens].var(dim=1, correction=0))
    change, weight = torch.cat(changes), torch.cat(weights)
    mean = (change * weight[:, None]).sum(dim=0) / weight.sum()
    torch.testing.assert_close(layer.attended.bias.detach(), mean, atol=1e-4, rtol=1e-3)
    assert 0 < errors.attention[0] < 1


def test_the_fit_is_that_of_numpy() -> None:
    """Weighted least squares with a free bias, held to former weights: as one larger system."""
    draw = np.random.default_rng(0)
    x, w0 = draw.normal(size=(200, 6)) + 1.0, draw.normal(size=(3, 6))
    target = np.tanh(x @ w0.T) + draw.normal(size=(200, 3)) + 2.0
    sums = draw.normal(size=(200, 8)) * draw.uniform(0.5, 20.0, size=(200, 1))
    matrix = nn.Linear(6, 3)
    squares = LeastSquares.of(matrix)
    tensors = [torch.from_numpy(a).float() for a in (x, target, sums)]
    squares.add(*(t[:50] for t in tensors))
    squares.add(*(t[50:] for t in tensors))
    weight, bias, error = squares.solve(torch.from_numpy(w0).float())

    scale = 1 / sums.std(axis=1, keepdims=True)
    centred = (x - (x * scale**2).sum(axis=0) / (scale**2).sum()) * scale
    strength = RIDGE * (centred**2).sum(axis=0).mean()
    rows = np.hstack([x, np.ones((200, 1))]) * scale
    hold = np.hstack([np.eye(6), np.zeros((6, 1))]) * strength**0.5
    solution, *_ = np.linalg.lstsq(
        np.vstack([rows, hold]), np.vstack([target * scale, w0.T * strength**0.5])
    )
    np.testing.assert_allclose(weight.numpy(), solution[:6].T, atol=1e-4)
    np.testing.assert_allclose(bias.numpy(), solution[6], atol=1e-4)
    residual = np.linalg.norm(rows @ solution - target * scale)
    assert error == pytest.approx(residual / np.linalg.norm(target * scale), rel=1e-3)


def test_a_few_large_states_do_not_decide_the_fit() -> None:
    """Tokens with states a hundred times as large count like others: the norm makes them so."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 5, generator=generator)
    target = x @ torch.randn(5, 8, generator=generator)
    sums = target + torch.randn(400, 8, generator=generator)
    for some in (target, sums):
        some[::20] += 1000.0 * torch.randn(20, 8, generator=generator)
    squares = LeastSquares.of(nn.Linear(5, 8))
    squares.add(x, target, sums)
    weight, bias, _ = squares.solve(torch.zeros(8, 5))
    others = torch.arange(400) % 20 != 0
    error = (x @ weight.T + bias - target)[others]
    assert float(error.norm() / target[others].norm()) < 0.2
