# SPDX-License-Identifier: Apache-2.0
"""Which products stay in floating point, so that a quantized model agrees with the original as
often as it must.

Each group of products is quantized alone, and the divergence of the answers from the original's
counts as what it costs. Costs are taken to add up, which they do roughly; so for a given amount of
arithmetic that may stay in floating point the best groups are a knapsack's, found exactly. The
smallest amount that keeps the agreement on texts which the ranking has not seen is found by
halving. NNCF's accuracy control ranks anew and tries one group after the other instead; that takes
as many quantized models as groups, and nobody knows how many in advance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np

from kompakt.api.steps import Quantize
from kompakt.jobs.compress.agreement import Rule
from kompakt.jobs.compress.graph import Graph, GraphData
from kompakt.jobs.errors import StepInvalid
from kompakt.jobs.models.session import Logits

Groups = frozenset[str]
Run = Callable[[Groups, Sequence[str]], Logits]
"""The logits for some texts when these groups stay in floating point."""
UNITS = 4096
"""Into how many parts the arithmetic is divided at most, so that the knapsack stays small."""


@dataclass(frozen=True)
class Mixture:
    """What was chosen, and why."""

    floating: Groups
    agreement: float
    """With the original, on texts that the ranking has not seen; of 1."""
    divergences: dict[str, float]
    """What each group adds when it alone is quantized, in nats."""
    models: int
    """How many were tried."""


def mix(
    costs: Mapping[str, int],
    run: Run,
    *,
    original: Callable[[Sequence[str]], Logits],
    ranking: Sequence[str],
    check: Sequence[str],
    agreement: float,
    rule: Rule,
) -> Mixture | None:
    """The cheapest choice that agrees with the original often enough; None when none does, not even
    with every group in floating point.

    Args:
        costs: Multiply-accumulate operations that each group has for a text.
        run: Answers as a choice of groups would.
        original: Answers as the model before quantization.
        ranking: Texts that divergences are measured on.
        check: Other texts, that the agreement is measured on.
        agreement: Share of them that must be answered as by the original.
        rule: Which answers are the same.
    """
    everything = frozenset(costs)
    wanted = original(check)
    tried: dict[Groups, float] = {}

    def agrees(floating: Groups) -> bool:
        if floating not in tried:
            tried[floating] = float(rule.same(run(floating, check), wanted).mean())
        return tried[floating] >= agreement

    nothing: Groups = frozenset()
    if agrees(nothing):
        return Mixture(nothing, tried[nothing], {}, len(tried))
    if not agrees(everything):
        return None
    exact = original(ranking)
    # What a runtime or rounded weights change is in all of them, and nobody's choice.
    common = rule.divergence(exact, run(everything, ranking))
    divergences = {
        group: rule.divergence(exact, run(everything - {group}, ranking)) - common
        for group in costs
    }
    choices = best_choices(costs, divergences)
    # The last one is everything; halving takes agreement to rise with what stays in floating point.
    low, high = 0, len(choices) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if agrees(choices[middle]) else (middle, high)
    chosen = choices[high]
    return Mixture(chosen, tried[chosen], divergences, len(tried) + len(costs) + 1)


def choose(
    costs: Mapping[str, int], run: Run, *, graph: Graph, data: GraphData, parameters: Quantize
) -> Groups:
    """What stays in floating point of a graph, as a step asks for it; the report says why."""
    agreement = parameters.min_agreement_basis_points / 10_000
    mixture = mix(
        costs,
        run,
        original=lambda texts: data.logits(graph, texts),
        ranking=data.ranking_texts(parameters.samples),
        check=data.check_texts(parameters.samples),
        agreement=agreement,
        rule=data.rule,
    )
    if mixture is None:
        raise StepInvalid(
            f"even with all products in floating point fewer than {agreement:.2%} of the texts are"
            " answered as by the original; lower minAgreementBasisPoints, or take another method"
        )
    data.details["mixed"] = _report(mixture)
    return mixture.floating


def _report(mixture: Mixture) -> dict[str, Any]:
    return {
        "floating": sorted(mixture.floating),
        "agreement": mixture.agreement,
        "models": mixture.models,
        "divergences": dict(sorted(mixture.divergences.items(), key=lambda item: -item[1])),
    }


def best_choices(costs: Mapping[str, int], gains: Mapping[str, float]) -> list[Groups]:
    """For each amount of arithmetic the groups of that amount with the largest sum of gains, from
    none to all; those that cost more than another and gain no more are left out.

    A 0-1 knapsack by dynamic programming, exact up to the rounding of costs to `UNITS` parts.
    """
    names = sorted(costs)
    unit = max(gcd(*costs.values()), -(-sum(costs.values()) // UNITS))
    sizes = {name: max(1, round(costs[name] / unit)) for name in names}
    total = sum(sizes.values())
    best = np.full(total + 1, -np.inf)
    best[0] = 0.0
    taken = np.zeros((len(names), total + 1), dtype=np.bool_)
    for number, name in enumerate(names):
        size, gain = sizes[name], max(gains[name], 0.0)
        with_it = np.full(total + 1, -np.inf)
        with_it[size:] = best[: total + 1 - size] + gain
        taken[number] = with_it > best
        best = np.maximum(best, with_it)
    choices: list[Groups] = []
    most = -np.inf
    for amount in range(total + 1):
        if best[amount] <= most:
            continue
        most = float(best[amount])
        choices.append(_members(names, sizes, taken, amount))
    if choices[-1] != frozenset(names):
        choices.append(frozenset(names))
    return choices


def _members(
    names: Sequence[str], sizes: Mapping[str, int], taken: np.ndarray, amount: int
) -> Groups:
    """The groups that make up the best sum for an amount, read off backwards."""
    found = set()
    for number in range(len(names) - 1, -1, -1):
        if taken[number, amount]:
            found.add(names[number])
            amount -= sizes[names[number]]
    return frozenset(found)
