# SPDX-License-Identifier: Apache-2.0
"""A recipe's ranges: other values for some of its parameters."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError

from kompakt.api.recipe import CompressionRecipeSpec, Step
from kompakt.api.run import Parameter


class RecipeError(ValueError):
    """A recipe whose ranges do not fit its steps. The message names the range and the mend."""


def resolve(recipe: CompressionRecipeSpec, parameters: Sequence[Parameter]) -> list[Step]:
    """The steps of a recipe with other values for some parameters, in every step of their name.

    Raises:
        RecipeError: A parameter is not one of a step, or its value is out of the step's bounds.
    """
    wire = [step.to_wire() for step in recipe.steps]
    for p in parameters:
        holders = [step[p.step] for step in wire if p.step in step]
        if not holders:
            raise RecipeError(f"a range is for {p.step}.{p.name}, but no step is {p.step}")
        for holder in holders:
            if not isinstance(holder.get(p.name), int):
                known = ", ".join(sorted(k for k, v in holder.items() if isinstance(v, int)))
                raise RecipeError(
                    f"{p.step} sets no integer parameter {p.name}; it sets {known or 'none'}"
                )
            holder[p.name] = p.value
    try:
        return [Step.model_validate(step) for step in wire]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecipeError(f"{where}: {first['msg']}, not {first['input']}") from error


def recipe_problem(recipe: CompressionRecipeSpec) -> str | None:
    """What is wrong with the ranges of a recipe; None when a search can use it."""
    places = [(r.step, r.parameter) for r in recipe.ranges]
    if len(set(places)) < len(places):
        return "two ranges are for the same parameter: leave one"
    for r in recipe.ranges:
        for value in (r.minimum, r.maximum):
            try:
                resolve(recipe, [Parameter(step=r.step, name=r.parameter, value=value)])
            except RecipeError as error:
                return str(error)
    return None
