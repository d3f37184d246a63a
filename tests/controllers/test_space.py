# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
from tests.planning import recipe

from kompakt.api.recipe import CompressionRecipeSpec
from kompakt.controllers.space import Point, features, shuffled, size

PLAIN = CompressionRecipeSpec.model_validate({"steps": [{"quantize": {"method": "BFloat16"}}]})


def test_recipes_that_share_a_step_share_its_features() -> None:
    """The same pruning is the same number in both recipes, though their ranges differ."""
    space = {
        "a": recipe(prune__ffnKeepPermille=(300, 700, 200)),
        "b": recipe(prune__ffnKeepPermille=(100, 500, 400), distill__examples=(1000, 3000, 1000)),
    }
    pruned = [Point("a", (500,)), Point("b", (500, 2000)), Point("b", (100, 2000))]
    table = features([*pruned, Point("a", (700,))], space)

    (column,) = [c for c in table.T if len({*c[:2]}) == 1 and len({*c}) == 3]
    np.testing.assert_allclose(column, [2 / 3, 2 / 3, 0, 1])


def test_what_is_always_the_same_is_no_feature() -> None:
    """One range gives one feature, and no range one that tells nothing."""
    space = {"a": recipe(prune__ffnKeepPermille=(300, 700, 200))}
    points = list(shuffled(space, 0))

    np.testing.assert_allclose(
        features(points, space)[:, 0], [(p.values[0] - 300) / 400 for p in points]
    )
    assert features(points, space).shape == (3, 1)
    assert not features([Point("a", (300,))], space).any()


def test_other_steps_and_other_methods_are_told_apart() -> None:
    """No two points of a space have the same features."""
    space = {
        "a": recipe(prune__ffnKeepPermille=(300, 700, 200)),
        "plain": PLAIN,
        "static": PLAIN.evolve(steps=[PLAIN.steps[0].model_validate({"quantize": {}})]),
    }
    table = features(list(shuffled(space, 0)), space)

    assert len(np.unique(table, axis=0)) == size(space) == 5
    assert table.min() == 0
    assert table.max() == 1
