# SPDX-License-Identifier: Apache-2.0
"""Families: one recipe, and a variant for each of several latencies.

Each member goes on from the one before it: it prunes what that left, and distils again. So the last
one has been pruned in as many small steps as there are members, each followed by distillation, and
costs no more than its own step, since Jobs keep the result of every prefix of a chain.
"""

from __future__ import annotations

from kompakt.api.recipe import CompressionRecipeSpec, Step

MOST_STEPS = 16
"""Of a chain: what a task can hold."""
_MILLE = 1000


class FamilyError(ValueError):
    """A recipe that can have no such family. The message names the field and the mend."""


def chains(recipe: CompressionRecipeSpec) -> list[list[Step]]:
    """The steps of each member, the slowest first; of a recipe without a family, its own.

    Raises:
        FamilyError: There is no single prune step to repeat, or a chain would be too long.
    """
    shares = recipe.family
    if not shares:
        return [list(recipe.steps)]
    places = [place for place, step in enumerate(recipe.steps) if step.prune is not None]
    if len(places) != 1:
        raise FamilyError(
            f"a family repeats the recipe's prune step, and there are {len(places)}: leave one, or"
            " leave family out"
        )
    start = places[0]
    # After these nothing can be pruned: they come once, at the end of each chain.
    last = [n for n, step in enumerate(recipe.steps) if step.works_on_graph or step.ends_pruning]
    end = last[0] if last else len(recipe.steps)
    longest = start + len(shares) * (end - start) + len(recipe.steps) - end
    if longest > MOST_STEPS:
        raise FamilyError(
            f"the last of {len(shares)} members would have {longest} steps, {MOST_STEPS} are"
            " possible: shorten family"
        )
    found: list[list[Step]] = []
    body: list[Step] = []
    former = _MILLE
    for share in shares:
        body += [_pruning(step, share, former) for step in recipe.steps[start:end]]
        former = share
        found.append([*recipe.steps[:start], *body, *recipe.steps[end:]])
    return found


def problem(recipe: CompressionRecipeSpec) -> str | None:
    """What is wrong with a recipe's family; None when it can be made, or there is none."""
    try:
        chains(recipe)
    except FamilyError as error:
        return str(error)
    return None


def _pruning(step: Step, share: int, former: int) -> Step:
    """The step with the share of latency that leads from one member to the next."""
    if step.prune is None:
        return step
    relative = round(_MILLE * share / former)
    prune = step.prune.evolve(
        latency_keep_permille=relative, ffn_keep_permille=_MILLE, head_keep_permille=_MILLE
    )
    return step.evolve(prune=prune)
