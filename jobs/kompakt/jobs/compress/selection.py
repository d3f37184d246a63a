# SPDX-License-Identifier: Apache-2.0
"""Which heads and neurons stay: the best of all layers together, so that each keeps what it needs.

Two ways to say how much: a share of the units, or a share of the latency that a table of
measurements estimates. The second weighs heads against neurons, and layers against layers, by what
they cost on this hardware and by the damage that was measured, as ZipLM does (Kurtic et al. 2023,
arXiv:2302.04089, section 3): a multiple-choice knapsack, solved exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kompakt.jobs.compress.gates import Units

LEAST_HEADS = 1
LEAST_NEURONS = 32
"""Of a layer, where no table says what a layer without any would save."""
MULTIPLE = 16
"""Of neurons in a layer: matrix kernels work in blocks of that width."""
BINS = 10_000
"""Steps in which the knapsack counts the budget; each choice is rounded up to the next."""

Cost = Callable[[int], float]
"""From a number of units in one layer to the latency that they cost."""
Damage = Callable[[int], float]
"""From a number of units in one layer to the damage by the absence of the others."""


def by_share(
    scores: Sequence[torch.Tensor], *, keep_permille: int, multiple: int, least: int
) -> list[torch.Tensor]:
    """Sorted indices of the units that stay in each layer.

    Each layer's number is rounded to a multiple, and never falls below the least.
    """
    joined = torch.cat(list(scores))
    if not len(joined):
        return [torch.arange(0, device=joined.device) for _ in scores]
    keep = max(1, len(joined) * keep_permille // 1000)
    threshold = joined.sort(descending=True).values[keep - 1]
    kept = []
    for layer in scores:
        above = int((layer >= threshold).sum())
        rounded = max(least, round(above / multiple) * multiple)
        count = len(layer) if above == len(layer) else min(len(layer), rounded)
        kept.append(best(layer, count))
    return kept


def by_latency(
    scores: Units, damages: Sequence[Damage], costs: Sequence[Cost], *, budget: float
) -> Units | None:
    """The units that do the least damage together by their absence, within the budget.

    Within a half of a layer the best stay; how many of each half is what is chosen. One head at
    least stays in some layer, since without any the first token sees no other. None when even that
    alone costs more.

    Args:
        scores: Of each unit.
        damages: Of each half, in the order of `Units.all`, by the number of its units that stay.
        costs: Of each half, likewise.
        budget: In the unit of the costs.
    """
    multiples = [1] * len(scores.heads) + [MULTIPLE] * len(scores.neurons)
    counts = [
        sorted({*range(0, len(layer) + 1, multiple), len(layer)})
        for layer, multiple in zip(scores.all, multiples, strict=True)
    ]
    values = [
        np.array([-damage(count) for count in some])
        for damage, some in zip(damages, counts, strict=True)
    ]
    prices = [
        np.array([cost(count) for count in some]) for cost, some in zip(costs, counts, strict=True)
    ]
    chosen = knapsack(values, prices, budget)
    if chosen is not None and not any(chosen[: len(scores.heads)]):
        chosen = _with_a_head(values, prices, budget, layers=len(scores.heads))
    if chosen is None:
        return None
    kept = [
        best(layer, some[choice])
        for layer, some, choice in zip(scores.all, counts, chosen, strict=True)
    ]
    return Units(heads=kept[: len(scores.heads)], neurons=kept[len(scores.heads) :])


def _with_a_head(
    values: list[NDArray[np.float64]],
    costs: list[NDArray[np.float64]],
    budget: float,
    *,
    layers: int,
) -> list[int] | None:
    """The best choice among those that leave the attention of some layer a head."""
    best_sum, best_choice = -np.inf, None
    for number in range(layers):
        forced = values.copy()
        forced[number] = np.where(np.arange(len(values[number])) == 0, -np.inf, values[number])
        choice = knapsack(forced, costs, budget)
        if choice is None:
            continue
        total = sum(float(value[c]) for value, c in zip(forced, choice, strict=True))
        if total > best_sum:
            best_sum, best_choice = total, choice
    return best_choice


def knapsack(
    values: Sequence[NDArray[np.float64]], costs: Sequence[NDArray[np.float64]], budget: float
) -> list[int] | None:
    """One option of each group, with the largest sum of values within the budget.

    Exact but for rounding: each cost is rounded up to a ten-thousandth of the budget, so what is
    chosen keeps the budget, and what is best without rounding may be missed by that much a group.
    """
    if sum(float(group.max()) for group in costs) <= budget:
        return [int(group.argmax()) for group in values]
    if budget <= 0:
        return None
    # best[b]: the largest sum of values that costs at most b bins, over the groups so far.
    sums = np.zeros(BINS + 1)
    choices: list[NDArray[np.int32]] = []
    for value, cost in zip(values, costs, strict=True):
        total = np.full(BINS + 1, -np.inf)
        choice = np.zeros(BINS + 1, dtype=np.int32)
        for option, bins in enumerate(_bins(cost, budget)):
            if bins > BINS:
                continue
            candidate = sums[: BINS + 1 - bins] + value[option]
            better = candidate > total[bins:]
            total[bins:][better] = candidate[better]
            choice[bins:][better] = option
        sums = total
        choices.append(choice)
    if not np.isfinite(sums[BINS]):
        return None
    left = BINS
    chosen: list[int] = []
    for choice, cost in zip(reversed(choices), reversed(costs), strict=True):
        chosen.append(int(choice[left]))
        left -= int(_bins(cost, budget)[chosen[-1]])
    return chosen[::-1]


def best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Sorted indices of the highest scores."""
    return scores.sort(descending=True, stable=True).indices[:count].sort().values


def _bins(cost: NDArray[np.float64], budget: float) -> NDArray[np.int64]:
    # What is a whole number of bins but for an error of rounding stays so.
    share = np.minimum(cost, 2 * budget) / budget
    bins: NDArray[np.int64] = np.ceil(share * BINS - 1e-6).astype(np.int64)
    return bins
