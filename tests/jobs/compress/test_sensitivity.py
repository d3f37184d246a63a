# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from kompakt.jobs.compress.gates import Units
from kompakt.jobs.compress.refit import LeastSquares, states_of
from kompakt.jobs.compress.selection import best
from kompakt.jobs.compress.sensitivity import Curve, sensitivity

pytestmark = pytest.mark.slow

Benches = Callable[[str], Any]


def random_scores(seed: int = 0) -> Units:
    """Of two layers with 4 heads and 128 neurons."""
    generator = torch.Generator().manual_seed(seed)
    return Units(
        heads=[torch.rand(4, generator=generator) for _ in range(2)],
        neurons=[torch.rand(128, generator=generator) for _ in range(2)],
    )


@pytest.mark.parametrize(("half", "count"), [(0, 1), (1, 0), (1, 2), (2, 16), (2, 0), (3, 64)])
def test_the_damage_is_that_of_the_refitted_model(half: int, count: int, bench_of: Benches) -> None:
    """Each point equals a copy with this one half shrunk and fitted, run as a whole."""
    bench = bench_of("bert")
    order = bench.data.order()
    fit_on = list(bench.data.batches(order[:48], 16))
    check_on = list(bench.data.batches(order[48:80], 16))
    scores = random_scores()
    curves = sensitivity(bench.encoder, scores, fit_on=fit_on, check_on=check_on)

    pruned = copy.deepcopy(bench.encoder)
    number, is_head = half % 2, half < 2
    layer, former = pruned.encoder_layers()[number], bench.encoder.encoder_layers()[number]
    keep = best(scores.all[half], count)
    if is_head:
        layer.keep_heads(keep)
    else:
        layer.keep_neurons(keep)
    matrix = layer.attended if is_head else layer.down
    sums = LeastSquares.of(matrix)
    with torch.no_grad():
        for state in states_of(bench.encoder, fit_on):
            x = state.x
            for earlier in bench.encoder.encoder_layers()[:number]:
                x = earlier(x, state.mask)
            if is_head:
                change, values = (
                    former.attended(former.mix(x, state.mask)),
                    layer.mix(x, state.mask),
                )
            else:
                x = former.attend(x, state.mask)
                change, values = former.down(former.neurons(x)), layer.neurons(x)
            at = state.tokens
            if number == 1:  # of the last layer only the first token is read
                at = at & (torch.arange(at.shape[1]) == 0)
            sums.add(values[at], change[at], (change + x)[at])
        weight, bias, _ = sums.solve(matrix.weight)
        matrix.weight.copy_(weight)
        matrix.bias.copy_(bias)
        total = 0.0
        for batch in check_on:
            whole = bench.encoder(**batch.inputs).double().softmax(dim=1)
            found = pruned(**batch.inputs).double().softmax(dim=1)
            total += float((whole * (whole / found).log()).sum())
    points = curves[half].points
    # What is less than with more units left is raised to that: noise.
    expected = max(total / 32, *(points[c] for c in points if c > count))
    assert points[count] == pytest.approx(expected, rel=0.02, abs=1e-4)


def test_curves_fall_to_nothing(bench_of: Benches) -> None:
    """The fewer units, the more damage; with all of them, none. The model is left as it was."""
    bench = bench_of("roberta")
    before = copy.deepcopy(bench.encoder.state_dict())
    batches = list(bench.data.batches(bench.data.order()[:32], 16))
    curves = sensitivity(bench.encoder, random_scores(), fit_on=batches, check_on=batches)
    assert len(curves) == 4
    for curve, units in zip(curves, (4, 4, 128, 128), strict=True):
        damages = [curve.at(count) for count in range(units + 1)]
        assert damages == sorted(damages, reverse=True)
        assert damages[-1] == 0.0
        assert damages[0] > 0.0
    after = bench.encoder.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_halves_that_are_empty_already_cannot_be_damaged(bench_of: Benches) -> None:
    """A layer without heads or neurons has one point."""
    bench = bench_of("bert")
    first, second = bench.encoder.encoder_layers()
    first.keep_heads(torch.arange(0))
    second.keep_neurons(torch.arange(0))
    scores = random_scores()
    scores = Units([torch.rand(0), scores.heads[1]], [scores.neurons[0], torch.rand(0)])
    batches = list(bench.data.batches(bench.data.order()[:16], 16))
    curves = sensitivity(bench.encoder, scores, fit_on=batches, check_on=batches)
    assert curves[0].points == curves[3].points == {0: 0.0}


def test_between_points_the_damage_falls_by_a_factor() -> None:
    """Interpolation is by the logarithm, and not from none to one, where a cliff is."""
    curve = Curve({0: 0.5, 2: 0.1, 4: 0.001, 8: 0.0})
    assert curve.at(0) == 0.5
    assert curve.at(1) == pytest.approx(0.1)
    assert curve.at(3) == pytest.approx(0.01)
    assert 0.0 < curve.at(7) < curve.at(6) < 0.001
    assert curve.at(8) == 0.0
