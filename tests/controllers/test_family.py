# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.planning import policy_spec, run_object
from tests.run_world import RunWorld, succeeded

from kompakt.api.recipe import CompressionRecipeSpec, Step
from kompakt.controllers.family import FamilyError, chains

STEPS: list[dict[str, Any]] = [
    {"trimVocabulary": {}},
    {"prune": {"latencyKeepPermille": 900}},
    {"distill": {}},
    {"quantize": {}},
]


def recipe(*shares: int, steps: list[dict[str, Any]] | None = None) -> CompressionRecipeSpec:
    """A recipe with a family."""
    return CompressionRecipeSpec.model_validate(
        {"steps": STEPS if steps is None else steps, "family": list(shares)}
    )


def names(steps: list[Step]) -> str:
    """The first letters of the steps."""
    return "".join(next(iter(step.to_wire()))[0] for step in steps)


def test_each_member_goes_on_from_the_one_before() -> None:
    """What is shared is a prefix, and the graph's steps come once, last."""
    found = chains(recipe(700, 500, 250))

    assert [names(steps) for steps in found] == ["tpdq", "tpdpdq", "tpdpdpdq"]
    for one, next_one in itertools.pairwise(found):
        assert next_one[: len(one) - 1] == one[:-1]
        assert next_one[-1] == one[-1]


@pytest.mark.parametrize("name", ["lowRank", "attentionScope"])
def test_what_ends_pruning_comes_once(name: str) -> None:
    """Nothing can be pruned after these, so they and what follows end each chain."""
    found = chains(recipe(700, 500, steps=[*STEPS[:3], {name: {}}, *STEPS[2:]]))

    assert [names(steps) for steps in found] == [f"tpd{name[0]}dq", f"tpdpd{name[0]}dq"]


@given(st.lists(st.integers(20, 999), min_size=1, max_size=6, unique=True))
def test_the_shares_multiply_to_what_was_asked_for(shares: list[int]) -> None:
    """Each step's share is of what the step finds; together they are the member's own."""
    ordered = sorted(shares, reverse=True)
    for steps, share in zip(chains(recipe(*ordered)), ordered, strict=True):
        product = 1.0
        for step in steps:
            if step.prune is not None:
                assert step.prune.latency_keep_permille is not None
                product *= step.prune.latency_keep_permille / 1000
        assert product * 1000 == pytest.approx(share, abs=4)


def test_without_a_family_a_recipe_is_itself() -> None:
    """One chain: its own steps."""
    plain = recipe()

    assert chains(plain) == [plain.steps]


@pytest.mark.parametrize(
    ("steps", "shares", "message"),
    [
        ([{"distill": {}}], (500,), "there are 0: leave one"),
        ([*STEPS[:3], *STEPS[1:]], (500,), "there are 2: leave one"),
        (STEPS, (900, 800, 700, 600, 500, 400, 300, 200), "18 steps, 16 are possible"),
    ],
    ids=["nothing to prune", "two to prune", "too long"],
)
def test_what_can_have_no_family(
    steps: list[dict[str, Any]], shares: tuple[int, ...], message: str
) -> None:
    """The message says what is in the way and what to do."""
    with pytest.raises(FamilyError, match=message):
        chains(recipe(*shares, steps=steps))


def family_run(spec: CompressionRecipeSpec) -> RunWorld:
    """A run of one recipe, at its end."""
    run = run_object(policy_spec(recipes=[{"name": "ladder"}]), recipes={"ladder": spec})
    made = RunWorld(run)
    made.settle()
    return made


def test_a_run_has_a_trial_for_each_member() -> None:
    """All are measured, and each says which share it is."""
    made = family_run(recipe(700, 500, 250))

    assert [names(trial.steps) for trial in made.status.trials] == ["tpdq", "tpdpdq", "tpdpdpdq"]
    assert [trial.state for trial in made.status.trials] == ["Complete"] * 3
    assert "250 permille" in made.status.trials[2].proposed_because
    assert succeeded(made.status) == ("True", "Chosen")


def test_an_impossible_family_ends_the_run() -> None:
    """Before any work, with the recipe's name."""
    made = family_run(recipe(500, steps=[{"distill": {}}]))

    assert succeeded(made.status) == ("False", "RecipeInvalid")
    assert made.started == []
