# SPDX-License-Identifier: Apache-2.0
"""The space of a search: recipes, each with a value for each of its ranges.

Recipes that share steps share them here too: `features` describes a point by the parameters of its
resolved steps, so that what one recipe shows about pruning is known for the others.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from kompakt.api.artifact import canonical_json
from kompakt.api.recipe import CompressionRecipeSpec, SearchRange, Step
from kompakt.api.run import Parameter, Trial
from kompakt.controllers.ranges import resolve

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ENUMERABLE = 4096
"""Points of a larger space are drawn, not listed."""

Space = Mapping[str, CompressionRecipeSpec]


@dataclass(frozen=True)
class Point:
    """A recipe with a value for each of its ranges."""

    recipe: str
    values: tuple[int, ...]


def grid(r: SearchRange) -> range:
    """The values of a range."""
    return range(r.minimum, r.maximum + 1, r.increment)


def steps_of(point: Point, space: Space) -> list[Step]:
    """The recipe's steps with the values put in."""
    return resolve(space[point.recipe], parameters_of(point, space))


def parameters_of(point: Point, space: Space) -> list[Parameter]:
    """The values by the names of their ranges."""
    return [
        Parameter(step=r.step, name=r.parameter, value=value)
        for r, value in zip(space[point.recipe].ranges, point.values, strict=True)
    ]


def key(steps: Sequence[Step]) -> bytes:
    """What two trials share that are the same."""
    return canonical_json([step.to_wire() for step in steps])


def point_of(trial: Trial, space: Space) -> Point | None:
    """Where in the space a trial lies: a recipe's own parameters may be beside the ranges."""
    recipe = space.get(trial.recipe)
    if recipe is None:
        return None
    values: list[int] = []
    wire = [step.to_wire() for step in trial.steps]
    for r in recipe.ranges:
        found = {step[r.step].get(r.parameter) for step in wire if r.step in step}
        # Steps of one name that differ lie beside the space, as values beside the grid do.
        value = found.pop() if len(found) == 1 else None
        if not isinstance(value, int) or value not in grid(r):
            return None
        values.append(value)
    return Point(trial.recipe, tuple(values))


def size(space: Space) -> int:
    """How many points there are."""
    return sum(math.prod(len(grid(r)) for r in recipe.ranges) for recipe in space.values())


def shuffled(space: Space, seed: int) -> Iterator[Point]:
    """All points of a small space in a seeded order, or many points of a large one."""
    draw = random.Random(seed)
    if size(space) <= ENUMERABLE:
        every = [
            Point(name, values)
            for name, recipe in space.items()
            for values in product(*(grid(r) for r in recipe.ranges))
        ]
        draw.shuffle(every)
        yield from every
        return
    names = sorted(space)
    for _ in range(ENUMERABLE):
        name = draw.choice(names)
        yield Point(name, tuple(draw.choice(grid(r)) for r in space[name].ranges))


def features(points: Sequence[Point], space: Space) -> NDArray[np.float64]:
    """[points, features] between 0 and 1, at least one, each of them other for some of the points.

    A feature is an integer parameter of a step, whether a parameter has some other value, or
    whether a step is there. A parameter of a step that is not there is 0.
    """
    import numpy as np

    described = {name: _described(recipe) for name, recipe in space.items()}
    rows = []
    for point in points:
        row = dict(described[point.recipe])
        for r, value in zip(space[point.recipe].ranges, point.values, strict=True):
            for place in row:
                if place[0] == r.step and place[2] == r.parameter:
                    row[place] = float(value)
        rows.append(row)
    names = sorted({place for row in described.values() for place in row})
    table = np.array([[row.get(name, math.nan) for name in names] for row in rows])
    there = np.isfinite(table)
    least = np.min(np.where(there, table, np.inf), axis=0)
    most = np.max(np.where(there, table, -np.inf), axis=0)
    scaled = (table - least) / np.where(most > least, most - least, 1.0)
    columns = np.hstack([np.where(there, scaled, 0.0), there.astype(np.float64)])
    columns = np.unique(columns, axis=1)
    varying = columns[:, np.ptp(columns, axis=0) > 0]
    return varying if varying.shape[1] else np.zeros((len(points), 1))


_Place = tuple[str, int, str, str]
"""Step, which of its name, parameter, and value where that is no integer."""


def _described(recipe: CompressionRecipeSpec) -> dict[_Place, float]:
    """The recipe's own parameters."""
    found: dict[_Place, float] = {}
    counts: dict[str, int] = {}
    for step in recipe.steps:
        for name, parameters in step.to_wire().items():
            counts[name] = counts.get(name, 0) + 1
            found[name, counts[name], "", ""] = 1.0
            for parameter, value in parameters.items():
                if isinstance(value, int):
                    found[name, counts[name], parameter, ""] = float(value)
                else:
                    other = canonical_json(value).decode()
                    found[name, counts[name], parameter, other] = 1.0
    return found
