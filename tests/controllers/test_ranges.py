# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from tests.planning import RECIPES, recipe

from kompakt.api.run import Parameter
from kompakt.controllers.ranges import RecipeError, recipe_problem, resolve


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        ({"prune__ffnKeepPermille": (20, 2000, 10)}, "prune.ffnKeepPermille"),
        ({"prune__keep": (20, 200, 10)}, "prune sets no integer parameter keep; it sets dropL"),
        ({"prune__importance": (20, 200, 10)}, "prune sets no integer parameter importance"),
    ],
)
def test_wrong_ranges_are_explained(ranges: dict[str, tuple[int, int, int]], words: str) -> None:
    """A range that a step would refuse is found before any Job runs, and named."""
    problem = recipe_problem(recipe(**ranges))

    assert problem is not None
    assert words in problem


def test_a_range_for_a_step_that_is_not_there() -> None:
    """A range of a step that the recipe lacks is an error, and one range a parameter is enough."""
    with pytest.raises(RecipeError, match="no step is distill"):
        resolve(RECIPES["prune-int8"], [Parameter(step="distill", name="examples", value=1)])
    twice = RECIPES["prune-int8"].evolve(ranges=RECIPES["prune-int8"].ranges * 2)
    assert recipe_problem(twice) == "two ranges are for the same parameter: leave one"


@pytest.mark.parametrize("name", list(RECIPES))
def test_good_ranges_are_no_problem(name: str) -> None:
    """The recipes of these tests can be searched."""
    assert recipe_problem(RECIPES[name]) is None
