# SPDX-License-Identifier: Apache-2.0
"""Which parameters to try next: ask and tell, without a database.

What samplers know is rebuilt from the run's status for each proposal, and they are seeded by run
and trial number: the same status gives the same proposal, whoever asks and however often.

Invariant: no combination of steps is tried twice, whatever its origin and its end.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from kompakt.api.artifact import sha256_digest
from kompakt.api.policy import Search
from kompakt.api.recipe import CompressionRecipeSpec, Step
from kompakt.api.run import Parameter, PriorTrial, Trial
from kompakt.controllers.space import (
    Point,
    Space,
    grid,
    key,
    parameters_of,
    point_of,
    shuffled,
    size,
    steps_of,
)
from kompakt.controllers.told import Goal, Told, tell, tell_before

if TYPE_CHECKING:
    import optuna

_BECAUSE_MOST = 256
_ASKS = 32
"""Duplicates that the sampler may propose before the next untried point is taken instead."""
_MOST_RANDOM_STARTS = 10
_BUDGET_SHARE_AT_RANDOM = 3
_POPULATION = 6
"""Trials of a generation: a budget of some tens has room for several generations."""
_GENERATION = "NSGAIISampler:generation"
"""Where Optuna keeps the generation of a trial."""


@dataclass(frozen=True)
class Proposal:
    """The next trial."""

    recipe: str
    parameters: tuple[Parameter, ...]
    steps: tuple[Step, ...]
    """The recipe's, with the parameters put in."""
    because: str


def propose(
    search: Search,
    recipes: Mapping[str, CompressionRecipeSpec],
    *,
    trials: Sequence[Trial],
    goal: Goal,
    run_uid: str,
    prior: Sequence[PriorTrial] = (),
) -> Proposal | None:
    """The next trial; None when every combination was tried.

    Args:
        search: The policy's; its budget is the caller's business.
        recipes: By name, as they were when the run was made.
        trials: All trials of the run so far.
        goal: What is minimized and what must be kept.
        run_uid: Seeds the sampler, together with the number of trials.
        prior: What was found for an earlier state of the model. The study learns from it, but it
            counts as untried: this model may be another.
    """
    space = {ref.name: recipes[ref.name] for ref in search.recipes}
    number = len(trials)
    seed = int(sha256_digest(f"{run_uid}/{number}".encode())[-8:], 16)
    tried = {key(trial.steps) for trial in trials}

    def is_new(point: Point) -> bool:
        return key(steps_of(point, space)) not in tried

    told = [*tell_before(prior, space, goal), *tell(trials, space, goal)]
    searched = sum(trial.origin == "Search" for trial in trials)
    sampled = _sampled(
        search, space, told, goal=goal, searched=searched, run_uid=run_uid, seed=seed
    )
    found = next(((p, why) for p, why in sampled if is_new(p)), None)
    if found is None:
        why = "all that the sampler proposed was tried already: the next that was not"
        found = next(((p, why) for p in shuffled(space, seed) if is_new(p)), None)
    if found is None:
        return None
    point, because = found
    return Proposal(
        recipe=point.recipe,
        parameters=tuple(parameters_of(point, space)),
        steps=tuple(steps_of(point, space)),
        because=because[:_BECAUSE_MOST],
    )


def remember(
    trials: Sequence[Trial], recipes: Mapping[str, CompressionRecipeSpec], *, target: str
) -> list[PriorTrial]:
    """What a later search can learn from the trials of a run that were measured on all the data.

    Args:
        trials: Of a run that has ended.
        recipes: Those that will be searched.
        target: Name of the target that leads.
    """
    found = []
    for trial in trials:
        point = point_of(trial, recipes)
        if point is None or trial.state not in {"Complete", "Infeasible"}:
            continue
        figures = next((t for t in trial.targets if t.target == target), None)
        if figures is not None and figures.evaluation is not None:
            # Slices are for gates, which look at this run's own.
            figures = figures.evolve(evaluation=figures.evaluation.evolve(slices=[]))
        found.append(
            PriorTrial(
                recipe=trial.recipe,
                parameters=parameters_of(point, recipes),
                state="Complete" if trial.state == "Complete" else "Infeasible",
                size_bytes=trial.size_bytes,
                figures=figures,
            )
        )
    return found


# --- samplers ------------------------------------------------------------------------------------


def _sampled(
    search: Search,
    space: Space,
    told: Sequence[Told],
    *,
    goal: Goal,
    searched: int,
    run_uid: str,
    seed: int,
) -> Iterator[tuple[Point, str]]:
    """What the sampler proposes, one after the other, with the reason."""
    starts = max(2, min(_MOST_RANDOM_STARTS, search.max_trials // _BUDGET_SHARE_AT_RANDOM))
    if search.sampler == "GaussianProcess":
        from kompakt.controllers import surrogate

        most = min(starts, surrogate.STARTS)
        yield from surrogate.propose(space, told, goal=goal, starts=most, seed=seed)
        return
    because = _because(search, told, space, searched=searched, starts=starts)
    if search.sampler == "Grid":
        # One order for the whole run: whatever budget it has, it is spread over the space.
        points = shuffled(space, int(sha256_digest(run_uid.encode())[-8:], 16))
    else:
        points = _sample(space, told, sampler=search.sampler, starts=starts, seed=seed)
    for point in points:
        yield point, because


def _sample(
    space: Space,
    told: Sequence[Told],
    *,
    sampler: Literal["TPE", "NSGAII", "Random"],
    starts: int,
    seed: int,
) -> Iterator[Point]:
    """Points that the sampler proposes, one after the other."""
    # Half a second and 40 MiB that an operator without a search does not pay.
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        # `multivariate` and `group` are marked experimental.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made: optuna.samplers.BaseSampler
        if sampler == "TPE":
            made = optuna.samplers.TPESampler(
                multivariate=True, group=True, n_startup_trials=starts, seed=seed
            )
        elif sampler == "NSGAII":
            made = optuna.samplers.NSGAIISampler(population_size=_POPULATION, seed=seed)
        else:
            made = optuna.samplers.RandomSampler(seed=seed)
        front = sampler == "NSGAII"
        study = optuna.create_study(sampler=made, directions=["minimize"] * (2 if front else 1))
    # A sampler by generations keeps a trial's generation beside it, which a rebuilt study has lost.
    complete = [one for one in told if one.value is not None]
    generations = {id(one): number // _POPULATION for number, one in enumerate(complete)}
    study.add_trials(
        [
            _frozen(one, space, generation=generations.get(id(one)) if front else None)
            for one in told
        ]
    )
    for _ in range(_ASKS):
        trial = study.ask()
        recipe = trial.suggest_categorical("recipe", sorted(space))
        values = [
            trial.suggest_int(name, d.low, d.high, step=d.step)
            for name, d in _distributions(recipe, space[recipe]).items()
        ]
        yield Point(recipe, tuple(values))


def _distributions(
    name: str, recipe: CompressionRecipeSpec
) -> dict[str, optuna.distributions.IntDistribution]:
    from optuna.distributions import IntDistribution

    return {
        f"{name}/{r.step}/{r.parameter}": IntDistribution(r.minimum, grid(r)[-1], step=r.increment)
        for r in recipe.ranges
    }


def _frozen(one: Told, space: Space, *, generation: int | None) -> optuna.trial.FrozenTrial:
    """A trial as Optuna keeps it; with a generation, one with two objectives."""
    from optuna.distributions import CategoricalDistribution
    from optuna.trial import TrialState, create_trial

    own = _distributions(one.point.recipe, space[one.point.recipe])
    distributions: dict[str, Any] = {"recipe": CategoricalDistribution(sorted(space)), **own}
    params = {"recipe": one.point.recipe, **dict(zip(own, one.point.values, strict=True))}
    if one.running:
        # Constant liar: parallel trials keep away from each other.
        return create_trial(state=TrialState.RUNNING, params=params, distributions=distributions)
    state = TrialState.PRUNED if one.value is None else TrialState.COMPLETE
    values = None if one.value is None else [one.value]
    if generation is not None and values is not None:
        values.append(one.drop)
    return create_trial(
        state=state,
        values=values,
        params=params,
        distributions=distributions,
        constraints={"gates": one.violation},
        system_attrs={} if generation is None else {_GENERATION: generation},
    )


def _because(
    search: Search,
    told: Sequence[Told],
    space: Space,
    *,
    searched: int,
    starts: int,
) -> str:
    measured = [one for one in told if not one.running]
    kept = sum(one.violation <= 0 for one in measured)
    seen = f"{len(measured)} trials, of which {kept} keep gates and limits"
    if search.sampler == "Random":
        return f"random sampling, {searched + 1} of {search.max_trials}"
    if search.sampler == "Grid":
        return f"grid, {searched + 1} of {size(space)} points"
    if search.sampler == "NSGAII":
        generation = sum(one.value is not None for one in told) // _POPULATION
        return f"NSGA-II, generation {generation} of {_POPULATION} trials each, after {seen}"
    if len(measured) < starts:
        return f"random start of the search: {len(measured)} of {starts} measured trials are there"
    return f"TPE over {seen}"
