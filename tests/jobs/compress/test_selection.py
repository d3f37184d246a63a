# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kompakt.jobs.compress.gates import Units
from kompakt.jobs.compress.selection import BINS, by_latency, by_share, knapsack


def neurons(scores: list[torch.Tensor], keep: int) -> list[torch.Tensor]:
    """As the step chooses neurons."""
    return by_share(scores, keep_permille=keep, multiple=16, least=32)


def test_layers_keep_what_they_need() -> None:
    """All layers are ranked together: a layer of important neurons keeps more."""
    strong, weak = torch.rand(128) + 1.0, torch.rand(128)
    kept = neurons([strong, weak], 600)
    assert [len(keep) for keep in kept] == [128, 32]
    assert sorted(kept[1].tolist()) == sorted(weak.topk(32).indices.tolist())


@pytest.mark.parametrize("keep", [20, 333, 500, 777, 1000])
def test_sizes_suit_kernels(keep: int) -> None:
    """Every layer keeps a multiple of 16, at least 32, and together about what was asked for."""
    generator = torch.Generator().manual_seed(keep)
    scores = [torch.rand(512, generator=generator) ** power for power in (1, 2, 4)]
    kept = neurons(scores, keep)
    for indices in kept:
        assert len(indices) % 16 == 0
        assert len(indices) >= 32
        assert indices.tolist() == sorted(set(indices.tolist()))
    assert abs(sum(map(len, kept)) - max(96, 1536 * keep / 1000)) <= 3 * 24


def test_small_and_empty_layers_stay_as_they_are() -> None:
    """A layer below the least is not grown, and one without units does not get any."""
    kept = neurons([torch.rand(40), torch.rand(8), torch.rand(0)], 1000)
    assert [len(keep) for keep in kept] == [40, 8, 0]
    assert [len(keep) for keep in neurons([torch.rand(0)], 500)] == [0]


def test_the_best_heads_stay() -> None:
    """Heads go one by one; every layer keeps its best."""
    scores = [torch.tensor([3.0, 9.0, 1.0, 8.0]), torch.tensor([0.2, 0.1, 0.4, 0.3])]
    kept = by_share(scores, keep_permille=400, multiple=1, least=1)
    assert [keep.tolist() for keep in kept] == [[0, 1, 3], [2]]


groups = st.lists(
    st.lists(st.tuples(st.floats(-10, 10), st.floats(0, 100)), min_size=1, max_size=4),
    min_size=1,
    max_size=4,
)


@given(options=groups, share=st.floats(0.0, 1.1))
def test_the_knapsack_is_exact(options: list[list[tuple[float, float]]], share: float) -> None:
    """Within the budget, and as good as the best of all combinations but for rounding."""
    values = [np.array([value for value, _ in group]) for group in options]
    costs = [np.array([cost for _, cost in group]) for group in options]
    budget = share * sum(float(cost.max()) for cost in costs)
    chosen = knapsack(values, costs, budget)
    safe = budget * (1 - len(options) / BINS)
    best = {
        limit: max(
            (
                sum(v[c] for v, c in zip(values, choice, strict=True))
                for choice in product(*(range(len(group)) for group in options))
                if sum(k[c] for k, c in zip(costs, choice, strict=True)) <= limit
            ),
            default=None,
        )
        for limit in (budget, safe)
    }
    if chosen is None:
        assert best[safe] is None or budget <= 0
        return
    assert sum(k[c] for k, c in zip(costs, chosen, strict=True)) <= budget * (1 + 1e-6)
    found = sum(v[c] for v, c in zip(values, chosen, strict=True))
    least = best[safe]
    assert least is None or found >= least - 1e-9


def some_scores() -> Units:
    """Two layers of four heads and 64 neurons."""
    generator = torch.Generator().manual_seed(0)
    return Units(
        heads=[torch.rand(4, generator=generator) for _ in range(2)],
        neurons=[torch.rand(64, generator=generator) for _ in range(2)],
    )


def test_a_budget_takes_from_where_it_hurts_least() -> None:
    """What goes is what costs most for the least damage; within a half the best stay."""
    scores = some_scores()
    kept = by_latency(
        scores,
        [
            lambda heads: 4.0 - heads,
            lambda heads: 0.1 * (4 - heads),
            lambda count: 0.001 * (64 - count),
            lambda count: 1.0 * (64 - count),
        ],
        [lambda heads: 10.0 * heads] * 2 + [lambda count: 1.0 * count] * 2,
        budget=150.0,
    )
    assert kept is not None
    assert [len(layer) for layer in kept.all] == [4, 4, 0, 64]
    kept = by_latency(
        scores,
        [lambda heads: 4.0 - heads] * 2 + [lambda count: 0.001 * (64 - count)] * 2,
        [lambda heads: 10.0 * heads] * 2 + [lambda count: 1.0 * count] * 2,
        budget=65.0,
    )
    assert kept is not None
    assert sum(len(layer) for layer in kept.heads) == 6
    for layer, keep in zip(scores.heads, kept.heads, strict=True):
        assert sorted(keep.tolist()) == sorted(layer.topk(len(keep)).indices.tolist())


def test_a_whole_budget_prunes_nothing() -> None:
    """When everything fits, everything stays."""
    kept = by_latency(
        some_scores(),
        [lambda count: -1.0 * count] * 4,
        [lambda heads: 10.0 * heads] * 2 + [lambda count: 1.0 * count] * 2,
        budget=208.0,
    )
    assert kept is not None
    assert [len(layer) for layer in kept.all] == [4, 4, 64, 64]


def test_a_budget_below_the_least_has_no_answer() -> None:
    """Layers cost something even without heads and neurons."""
    costs = [lambda count: 5.0 + count] * 4
    damages = [lambda count: -1.0 * count] * 4
    assert by_latency(some_scores(), damages, costs, budget=19.0) is None
    kept = by_latency(some_scores(), damages, costs, budget=21.01)
    assert kept is not None
    assert sorted(len(layer) for layer in kept.all) == [0, 0, 0, 1]


def test_one_head_stays_somewhere() -> None:
    """However little the heads are worth: the one that is worth most."""
    kept = by_latency(
        some_scores(),
        [
            lambda heads: 1e-9 * (4 - heads),
            lambda heads: 2e-9 * (4 - heads),
            *[lambda count: 64.0 - count] * 2,
        ],
        [lambda heads: 10.0 * heads] * 2 + [lambda count: 1.0 * count] * 2,
        budget=128.0,
    )
    assert kept is not None
    assert [len(layer) for layer in kept.heads] == [0, 1]
    assert sum(len(layer) for layer in kept.neurons) == 64 + 48
