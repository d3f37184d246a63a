# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from kompakt.api.recipe import Step
from kompakt.jobs.compress.agreement import TASKS, Rule
from kompakt.jobs.compress.mixed import Groups, best_choices, mix
from kompakt.jobs.compress.steps import check_task
from kompakt.jobs.errors import StepInvalid

NAMES = "abcdef"


def subsets(names: str) -> list[Groups]:
    """All of them."""
    return [
        frozenset(chosen)
        for count in range(len(names) + 1)
        for chosen in combinations(names, count)
    ]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 12), st.floats(0, 1)), min_size=1, max_size=6))
def test_choices_are_those_of_trying_everything(items: list[tuple[int, float]]) -> None:
    """For each amount, no other groups of that amount or less gain more; ends are none and all."""
    names = NAMES[: len(items)]
    costs = {name: cost for name, (cost, _) in zip(names, items, strict=True)}
    gains = {name: gain for name, (_, gain) in zip(names, items, strict=True)}
    choices = best_choices(costs, gains)
    assert choices[0] == frozenset()
    assert choices[-1] == frozenset(names)
    for choice in choices[:-1]:
        amount = sum(costs[name] for name in choice)
        most = max(
            sum(gains[name] for name in other)
            for other in subsets(names)
            if sum(costs[name] for name in other) <= amount
        )
        assert sum(gains[name] for name in choice) == pytest.approx(most)
    amounts = [sum(costs[name] for name in choice) for choice in choices]
    assert amounts == sorted(set(amounts))


def test_large_costs_are_rounded_and_stay_in_order() -> None:
    """Costs without a common divisor do not make the table large."""
    costs = {"a": 1_000_003, "b": 2_000_029, "c": 4_000_037}
    gains = {"a": 0.1, "b": 1.0, "c": 0.2}
    choices = best_choices(costs, gains)
    assert choices[:3] == [frozenset(), frozenset("a"), frozenset("b")]
    assert choices[-1] == frozenset("abc")


def test_divergence_is_scipys() -> None:
    """Mean over the texts, of the original's distribution from the other's."""
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=(20, 3)).astype(np.float32) for _ in range(2))
    expected = np.mean(
        [
            stats.entropy(special.softmax(p.astype(float)), special.softmax(q.astype(float)))
            for p, q in zip(first, second, strict=True)
        ]
    )
    assert Rule().divergence(first, second) == pytest.approx(expected)
    assert Rule().divergence(first, first) == 0.0


class World:
    """Groups whose quantization each flips the label of some texts."""

    def __init__(self, flips: dict[str, int]) -> None:
        self.flips = flips
        self.calls: list[tuple[Groups, int]] = []

    def run(self, floating: Groups, texts: Sequence[str]) -> np.ndarray:
        """Class 0 everywhere, but for the texts that quantized groups spoil."""
        self.calls.append((floating, len(texts)))
        logits = np.tile(np.array([[2.0, 0.0]], np.float32), (len(texts), 1))
        start = 0
        for name in sorted(self.flips):
            if name not in floating:
                logits[start : start + self.flips[name]] = [0.0, 2.0]
            start += self.flips[name]
        return logits

    def original(self, texts: Sequence[str]) -> np.ndarray:
        """Class 0 everywhere."""
        return np.tile(np.array([[2.0, 0.0]], np.float32), (len(texts), 1))


COSTS = {"a": 10, "b": 10, "c": 40, "d": 40}
FLIPS = {"a": 1, "b": 12, "c": 2, "d": 9}
TEXTS = [f"text {number}" for number in range(100)]


@pytest.mark.parametrize(
    ("agreement", "floating"),
    [(0.7, ""), (0.85, "b"), (0.885, "ab"), (0.96, "bd"), (0.975, "abd"), (1.0, "abcd")],
)
def test_the_cheapest_that_agrees_is_chosen(agreement: float, floating: str) -> None:
    """Flips add up here, so what must stay in floating point can be worked out by hand."""
    world = World(FLIPS)
    found = mix(
        COSTS,
        world.run,
        original=world.original,
        ranking=TEXTS,
        check=TEXTS,
        agreement=agreement,
        rule=Rule(),
    )
    assert found is not None
    assert found.floating == frozenset(floating)
    assert found.agreement >= agreement
    assert found.agreement == 1 - sum(n for g, n in FLIPS.items() if g not in floating) / 100
    if floating:
        assert max(found.divergences, key=lambda name: found.divergences[name]) == "b"


def test_nothing_is_ranked_when_all_may_be_quantized() -> None:
    """One model is made."""
    world = World(dict.fromkeys(COSTS, 0))
    found = mix(
        COSTS,
        world.run,
        original=world.original,
        ranking=TEXTS[:20],
        check=TEXTS,
        agreement=1.0,
        rule=Rule(),
    )
    assert found is not None
    assert (found.floating, found.divergences) == (frozenset(), {})
    assert [length for _, length in world.calls] == [100]


def test_ranking_and_checking_see_their_own_texts() -> None:
    """What is chosen on some texts is confirmed on others, and few models are made."""
    world = World(FLIPS)
    mix(
        COSTS,
        world.run,
        original=world.original,
        ranking=TEXTS[:50],
        check=TEXTS,
        agreement=0.9,
        rule=Rule(),
    )
    alone = [floating for floating, length in world.calls if length == 50]
    assert sorted(map(len, alone)) == [3, 3, 3, 3, 4]
    assert len(world.calls) < 3 * len(COSTS)


def test_numbers_and_vectors_agree_by_the_models_tolerance() -> None:
    """And diverge as Gaussians of unit variance: half the squared distance."""
    numbers = Rule("Regression", 0.5)
    one, other = (np.array(v, dtype=np.float32)[:, None] for v in ([0, 1, 2], [0.5, 2, 2]))
    assert numbers.same(one, other).tolist() == [True, False, True]
    assert numbers.divergence(one, other) == pytest.approx((0.25 + 1) / 2 / 3)
    vectors = Rule("SentenceEmbedding", 0.1)
    one = np.array([[1, 0], [0, 1], [3, 0]], dtype=np.float32)
    other = np.array([[0.8, 0.6], [0, 7], [3, 1]], dtype=np.float32)
    assert vectors.same(one, other).tolist() == [False, True, True]
    assert vectors.divergence(one[:1], other[:1]) == pytest.approx(1 - 0.8)


def test_a_task_with_many_answers_to_a_text_is_refused() -> None:
    """There is nothing to count; of numbers and vectors there is."""
    step = Step.model_validate({"quantize": {"method": "StaticInt8", "mixed": "Enabled"}})
    for task in TASKS:
        check_task([step], task)
    with pytest.raises(StepInvalid, match="a model of the task TokenClassification has several"):
        check_task([step], "TokenClassification")


def test_what_cannot_be_had_is_not_made_up() -> None:
    """Where not even all groups in floating point agree, nothing is chosen, and nothing ranked."""
    world = World(FLIPS)

    def other(texts: Sequence[str]) -> np.ndarray:
        return world.original(texts)[:, ::-1]

    found = mix(
        COSTS,
        world.run,
        original=other,
        ranking=TEXTS[:50],
        check=TEXTS,
        agreement=0.9,
        rule=Rule(),
    )
    assert found is None
    assert {length for _, length in world.calls} == {100}
