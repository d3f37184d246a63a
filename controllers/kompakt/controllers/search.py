# SPDX-License-Identifier: Apache-2.0
"""Which parameters to try next: Optuna's ask and tell, without a database.

The study is rebuilt from the run's status for each proposal, and its sampler is seeded by run and
trial number: the same status gives the same proposal, whoever asks and however often.

Invariants:

- no combination of steps is tried twice, whatever its origin and its end;
- what did not fit (memory, diverged training) is told as a broken constraint, what could not be
  tried (a bug, a lost node) is not told at all;
- constraints are the gates and the target's limits, by point estimates on the selection split: the
  confirmation split is never searched on.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from kompakt.api.artifact import canonical_json, sha256_digest
from kompakt.api.policy import Gate, Optimize, Search, Target
from kompakt.api.recipe import CompressionRecipeSpec, SearchRange, Step
from kompakt.api.run import Parameter, PriorTrial, TargetResult, Trial
from kompakt.controllers.bounds import drop_basis_points
from kompakt.controllers.ranges import resolve
from kompakt.controllers.select import drops_seen, evidence, limits, objective

if TYPE_CHECKING:
    import optuna

_ASKS = 32
"""Duplicates that the sampler may propose before the next untried point is taken instead."""
_ENUMERABLE = 4096
_MOST_RANDOM_STARTS = 10
_DID_NOT_FIT = 1.0
"""How far an infeasible trial is beyond its constraint: as far as one that is twice too slow."""
_BUDGET_SHARE_AT_RANDOM = 3
_POPULATION = 6
"""Trials of a generation: a budget of some tens has room for several generations."""
_GENERATION = "NSGAIISampler:generation"
"""Where Optuna keeps the generation of a trial."""


@dataclass(frozen=True)
class Goal:
    """What the search is for."""

    target: Target
    """Each target gets its own choice; one of them leads the search."""
    gates: tuple[Gate, ...]
    optimize_for: Optimize


@dataclass(frozen=True)
class Proposal:
    """The next trial."""

    recipe: str
    parameters: tuple[Parameter, ...]
    steps: tuple[Step, ...]
    """The recipe's, with the parameters put in."""
    because: str


@dataclass(frozen=True)
class _Point:
    """A recipe with a value for each of its ranges."""

    recipe: str
    values: tuple[int, ...]


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
    tried = {_key(trial.steps) for trial in trials}

    def is_new(point: _Point) -> bool:
        return _key(_steps(point, space)) not in tried

    searched = sum(trial.origin == "Search" for trial in trials)
    starts = max(2, min(_MOST_RANDOM_STARTS, search.max_trials // _BUDGET_SHARE_AT_RANDOM))
    told = [*_told_before(prior, space, goal), *_told(trials, space, goal)]
    if search.sampler == "Grid":
        # One order for the whole run: whatever budget it has, it is spread over the space.
        sampled = _untried(space, int(sha256_digest(run_uid.encode())[-8:], 16))
    else:
        sampled = _sample(space, told, sampler=search.sampler, starts=starts, seed=seed)
    point = next((p for p in sampled if is_new(p)), None)
    because = _because(search, told, space, searched=searched, starts=starts)
    if point is None:
        point = next((p for p in _untried(space, seed) if is_new(p)), None)
        because = "all that the sampler proposed was tried already: the next that was not"
    if point is None:
        return None
    return Proposal(
        recipe=point.recipe,
        parameters=tuple(_parameters(point, space)),
        steps=tuple(_steps(point, space)),
        because=because,
    )


def remember(
    trials: Sequence[Trial], recipes: Mapping[str, CompressionRecipeSpec], *, target: str
) -> list[PriorTrial]:
    """What a later search can learn from the trials of a run.

    Args:
        trials: Of a run that has ended.
        recipes: Those that will be searched.
        target: Name of the target that leads.
    """
    found = []
    for trial in trials:
        point = _point(trial, recipes)
        if point is None or trial.state not in {"Complete", "Infeasible"}:
            continue
        figures = next((t for t in trial.targets if t.target == target), None)
        if figures is not None and figures.evaluation is not None:
            # Slices are for gates, which look at this run's own.
            figures = figures.evolve(evaluation=figures.evaluation.evolve(slices=[]))
        found.append(
            PriorTrial(
                recipe=trial.recipe,
                parameters=_parameters(point, recipes),
                state="Complete" if trial.state == "Complete" else "Infeasible",
                size_bytes=trial.size_bytes,
                figures=figures,
            )
        )
    return found


# --- the space -----------------------------------------------------------------------------------


def _grid(r: SearchRange) -> range:
    return range(r.minimum, r.maximum + 1, r.increment)


def _steps(point: _Point, space: Mapping[str, CompressionRecipeSpec]) -> list[Step]:
    return resolve(space[point.recipe], _parameters(point, space))


def _parameters(point: _Point, space: Mapping[str, CompressionRecipeSpec]) -> list[Parameter]:
    return [
        Parameter(step=r.step, name=r.parameter, value=value)
        for r, value in zip(space[point.recipe].ranges, point.values, strict=True)
    ]


def _key(steps: Sequence[Step]) -> bytes:
    return canonical_json([step.to_wire() for step in steps])


def _point(trial: Trial, space: Mapping[str, CompressionRecipeSpec]) -> _Point | None:
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
        if not isinstance(value, int) or value not in _grid(r):
            return None
        values.append(value)
    return _Point(trial.recipe, tuple(values))


def _size(space: Mapping[str, CompressionRecipeSpec]) -> int:
    """How many points there are."""
    return sum(math.prod(len(_grid(r)) for r in recipe.ranges) for recipe in space.values())


def _untried(space: Mapping[str, CompressionRecipeSpec], seed: int) -> Iterator[_Point]:
    """All points of a small space in a seeded order, or many points of a large one."""
    draw = random.Random(seed)
    if _size(space) <= _ENUMERABLE:
        every = [
            _Point(name, values)
            for name, recipe in space.items()
            for values in product(*(_grid(r) for r in recipe.ranges))
        ]
        draw.shuffle(every)
        yield from every
        return
    names = sorted(space)
    for _ in range(_ENUMERABLE):
        name = draw.choice(names)
        yield _Point(name, tuple(draw.choice(_grid(r)) for r in space[name].ranges))


# --- the study -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Told:
    """What the study learns about one trial."""

    point: _Point
    value: float | None = None
    """What is optimized for; less is better."""
    drop: float = 0.0
    """Of accuracy, as seen on the selection split, in basis points."""
    violation: float = 0.0
    running: bool = False


def _told(
    trials: Sequence[Trial], space: Mapping[str, CompressionRecipeSpec], goal: Goal
) -> list[_Told]:
    told = []
    for trial in trials:
        point = _point(trial, space)
        if point is None or trial.state == "Failed":
            continue
        if trial.state == "Infeasible":
            told.append(_Told(point, violation=_DID_NOT_FIT))
            continue
        if trial.state != "Complete":
            told.append(_Told(point, running=True))
            continue
        figures = next((t for t in trial.targets if t.target == goal.target.name), None)
        if (one := _measured(point, figures, trial.size_bytes, goal)) is not None:
            told.append(one)
    return told


def _told_before(
    prior: Sequence[PriorTrial], space: Mapping[str, CompressionRecipeSpec], goal: Goal
) -> list[_Told]:
    told = []
    for trial in prior:
        recipe = space.get(trial.recipe)
        if recipe is None:
            continue
        known = {(p.step, p.name): p.value for p in trial.parameters}
        values = [known.get((r.step, r.parameter)) for r in recipe.ranges]
        if any(v not in _grid(r) for v, r in zip(values, recipe.ranges, strict=True)):
            continue  # the ranges are others now
        point = _Point(trial.recipe, tuple(v for v in values if v is not None))
        if trial.state == "Infeasible":
            told.append(_Told(point, violation=_DID_NOT_FIT))
        elif (one := _measured(point, trial.figures, trial.size_bytes, goal)) is not None:
            told.append(one)
    return told


def _measured(
    point: _Point, figures: TargetResult | None, size_bytes: int | None, goal: Goal
) -> _Told | None:
    found = evidence(figures, size_bytes=size_bytes)
    if found is None:
        return None
    excesses = [*limits(found, target=goal.target), *drops_seen(found, goal.gates)]
    value = objective(found, optimize_for=goal.optimize_for, target=goal.target)
    drop = drop_basis_points(found.evaluation.selection) or 0
    return _Told(point, value=value, drop=drop, violation=sum(e.relative for e in excesses))


def _sample(
    space: Mapping[str, CompressionRecipeSpec],
    told: Sequence[_Told],
    *,
    sampler: Literal["TPE", "NSGAII", "Random"],
    starts: int,
    seed: int,
) -> Iterator[_Point]:
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
        yield _Point(recipe, tuple(values))


def _distributions(
    name: str, recipe: CompressionRecipeSpec
) -> dict[str, optuna.distributions.IntDistribution]:
    from optuna.distributions import IntDistribution

    return {
        f"{name}/{r.step}/{r.parameter}": IntDistribution(r.minimum, _grid(r)[-1], step=r.increment)
        for r in recipe.ranges
    }


def _frozen(
    one: _Told, space: Mapping[str, CompressionRecipeSpec], *, generation: int | None
) -> optuna.trial.FrozenTrial:
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
    told: Sequence[_Told],
    space: Mapping[str, CompressionRecipeSpec],
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
        return f"grid, {searched + 1} of {_size(space)} points"
    if search.sampler == "NSGAII":
        generation = sum(one.value is not None for one in told) // _POPULATION
        return f"NSGA-II, generation {generation} of {_POPULATION} trials each, after {seen}"
    if len(measured) < starts:
        return f"random start of the search: {len(measured)} of {starts} measured trials are there"
    return f"TPE over {seen}"
