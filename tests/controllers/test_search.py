# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from tests.planning import RECIPES, measured, policy_spec, recipe

from kompakt.api.policy import Search, Target
from kompakt.api.recipe import CompressionRecipeSpec
from kompakt.api.run import Parameter, Trial
from kompakt.controllers.ranges import resolve
from kompakt.controllers.search import Proposal, propose, remember
from kompakt.controllers.told import Goal, tell, tell_before

GOAL = Goal(policy_spec().targets[0], tuple(policy_spec().gates), "Cost")
Measure = Callable[[int], Trial]


def searching(**changes: Any) -> Search:
    """A search over the recipe with a range."""
    return Search.model_validate({"recipes": [{"name": "prune-int8"}]} | changes)


def tried(proposal: Proposal, number: int, **changes: Any) -> Trial:
    """The trial of a proposal."""
    return Trial(
        number=number,
        recipe=proposal.recipe,
        origin="Search",
        parameters=list(proposal.parameters),
        steps=list(proposal.steps),
        state=changes.pop("state", "Complete"),
        **changes,
    )


def kept(trial: Trial) -> int:
    """The share of neurons that a trial keeps."""
    (prune,) = [step.prune for step in trial.steps if step.prune is not None]
    return prune.ffn_keep_permille


def as_measured(proposal: Proposal, number: int) -> Trial:
    """A world in which keeping less is faster, and less than 500 permille loses too much."""
    trial = tried(proposal, number)
    share = kept(trial)
    lost = max(0, 500 - share)
    result = measured(mean=2000 + 8 * share, lost=3 * lost, selection_lost=lost)
    return trial.evolve(targets=[result], size_bytes=share)


def search_on(
    search: Search,
    recipes: dict[str, CompressionRecipeSpec],
    *,
    run_uid: str = "uid",
    finish: Callable[[Proposal, int], Trial] = as_measured,
    goal: Goal = GOAL,
) -> list[Trial]:
    """All trials of a search, one after the other."""
    trials: list[Trial] = []
    while len(trials) < search.max_trials:
        proposal = propose(search, recipes, trials=trials, goal=goal, run_uid=run_uid)
        if proposal is None:
            break
        trials.append(finish(proposal, len(trials)))
    return trials


def ask(
    search: Search, trials: list[Trial], recipes: dict[str, CompressionRecipeSpec] = RECIPES
) -> Proposal:
    """The next proposal, which there is."""
    found = propose(search, recipes, trials=trials, goal=GOAL, run_uid="uid")
    assert found is not None
    return found


@pytest.mark.parametrize("sampler", ["TPE", "NSGAII", "GaussianProcess", "Grid", "Random"])
def test_nothing_is_tried_twice(sampler: str) -> None:
    """A search with more trials than there are combinations tries each once, and ends."""
    space = {"prune-int8": recipe(prune__ffnKeepPermille=(300, 800, 100))}
    search = searching(sampler=sampler, maxTrials=40)

    trials = search_on(search, space)

    assert sorted(kept(trial) for trial in trials) == [300, 400, 500, 600, 700, 800]


def test_a_recipe_s_own_parameters_are_not_searched_again() -> None:
    """What a recipe's own trial has tried, or is trying, no search proposes."""
    space = {"prune-int8": recipe(prune__ffnKeepPermille=(350, 450, 100))}
    own = Trial(
        number=0,
        recipe="prune-int8",
        origin="Recipe",
        steps=space["prune-int8"].steps,
        state="Compressing",
    )

    proposal = ask(searching(), [own], space)

    assert proposal.parameters == (Parameter(step="prune", name="ffnKeepPermille", value=450),)


def test_failed_trials_are_not_repeated() -> None:
    """What failed or did not fit stays tried, and the search goes on elsewhere."""
    space = {"prune-int8": recipe(prune__ffnKeepPermille=(300, 500, 100))}
    states = iter(["Failed", "Infeasible", "Failed"])

    trials = search_on(
        searching(maxTrials=9), space, finish=lambda p, n: tried(p, n, state=next(states))
    )

    assert sorted(kept(trial) for trial in trials) == [300, 400, 500]


def test_what_could_not_be_tried_teaches_nothing() -> None:
    """A bug or a lost node says nothing about the parameters; a lack of memory does."""
    proposal = ask(searching(), [])
    states = ("Failed", "Infeasible", "Compressing")
    failed, infeasible, running = (
        tell([tried(proposal, 0, state=state)], RECIPES, GOAL) for state in states
    )

    assert failed == []
    assert [one.violation > 0 for one in infeasible] == [True]
    assert [one.running for one in running] == [True]


def test_the_same_status_gives_the_same_proposal() -> None:
    """Whoever asks, and however often: a proposal follows from the run and its status alone."""
    search = searching(maxTrials=12)
    trials: list[Trial] = []
    for number in range(5):
        trials.append(as_measured(ask(search, trials), number))

    assert ask(search, trials) == ask(search, trials)


@pytest.mark.slow
def test_a_search_goes_on_where_an_earlier_run_ended() -> None:
    """What an earlier run found guides the first trials already, which else are at random; nothing
    of it counts as tried.
    """
    space = {"prune-int8": recipe(prune__ffnKeepPermille=(20, 1000, 5))}
    search = searching(maxTrials=6)

    def near(*, told: bool) -> int:
        close = 0
        for uid in "abcdef":
            earlier = search_on(searching(maxTrials=24), space, run_uid=f"before {uid}")
            prior = remember(earlier, space, target=GOAL.target.name) if told else []
            trials: list[Trial] = []
            while len(trials) < search.max_trials:
                found = propose(search, space, trials=trials, goal=GOAL, run_uid=uid, prior=prior)
                assert found is not None
                trials.append(as_measured(found, len(trials)))
            close += sum(450 <= kept(trial) <= 650 for trial in trials)
        return close

    assert near(told=True) > 1.5 * near(told=False)


def test_what_is_remembered_is_what_was_measured() -> None:
    """Trials that ended, with the values of the ranges, also those of a recipe's own trial; what
    failed is forgotten, and so are values that the ranges do not have any more.
    """
    space = {"prune-int8": recipe(prune__ffnKeepPermille=(300, 500, 100))}
    proposal = ask(searching(), [], space)
    trials = [
        as_measured(proposal, 0),
        tried(proposal, 1, state="Infeasible"),
        tried(proposal, 2, state="Failed"),
    ]
    found = remember(trials, space, target=GOAL.target.name)
    other = {"prune-int8": recipe(prune__ffnKeepPermille=(600, 800, 100))}

    assert [trial.state for trial in found] == ["Complete", "Infeasible"]
    assert found[0].parameters == list(proposal.parameters)
    assert len(tell_before(found, space, GOAL)) == 2
    assert tell_before(found, other, GOAL) == []
    assert remember(trials, {}, target=GOAL.target.name) == []


@pytest.mark.slow
def test_generations_find_the_front() -> None:
    """NSGA-II looks for both ends and what is between: later generations lie near the front of
    speed and accuracy half as often again as random ones do.
    """
    space = {
        "prune-int8": recipe(prune__ffnKeepPermille=(300, 800, 5), distill__examples=(32, 3200, 32))
    }

    def finish(proposal: Proposal, number: int) -> Trial:
        """Off 1,600 examples a variant is slower and worse, so that the front is a line."""
        trial = tried(proposal, number)
        (distill,) = [step.distill for step in trial.steps if step.distill is not None]
        off = abs(distill.examples - 1600)
        share = kept(trial)
        lost = max(0, 800 - share) + off // 4
        return trial.evolve(
            targets=[measured(mean=2000 + 8 * share + off, lost=lost, selection_lost=lost)],
            size_bytes=share,
        )

    def near(sampler: str) -> int:
        trials = [
            trial
            for uid in "abcd"
            for trial in search_on(
                searching(sampler=sampler, maxTrials=48), space, run_uid=uid, finish=finish
            )[30:]
        ]
        steps = [step.distill.examples for t in trials for step in t.steps if step.distill]
        return sum(abs(examples - 1600) <= 400 for examples in steps)

    assert near("NSGAII") > 1.5 * near("Random")


def test_a_grid_is_walked_whole_and_says_where_it_is() -> None:
    """Each combination once, in an order of the run's own, whatever came out."""
    space = {
        "prune-int8": recipe(prune__ffnKeepPermille=(300, 500, 100), distill__examples=(32, 64, 32))
    }
    search = searching(sampler="Grid", maxTrials=10)

    trials = search_on(search, space)
    again = search_on(search, space, finish=lambda p, n: tried(p, n, state="Failed"))

    assert len({tuple(trial.parameters) for trial in trials}) == 6
    assert [t.parameters for t in again] == [t.parameters for t in trials]
    assert ask(search, trials[:2], space).because == "grid, 3 of 6 points"


def test_runs_search_differently() -> None:
    """The sampler is seeded by the run: another run of the same policy looks elsewhere."""
    space = {"prune-int8": recipe(prune__ffnKeepPermille=(20, 1000, 1))}
    search = searching(maxTrials=4)

    assert search_on(search, space, run_uid="a") != search_on(search, space, run_uid="b")


def late_trials(sampler: str, finish: Callable[[Proposal, int], Trial], goal: Goal) -> list[Trial]:
    """The second halves of three searches over a fine grid."""
    space = {"prune-int8": recipe(prune__ffnKeepPermille=(20, 1000, 5))}
    search = searching(sampler=sampler, maxTrials=24)
    return [
        trial
        for uid in "abc"
        for trial in search_on(search, space, run_uid=uid, finish=finish, goal=goal)[12:]
    ]


@pytest.mark.slow
def test_constraints_guide_the_search() -> None:
    """Where the fastest lose too much, later trials crowd at the boundary: half as many again, or
    more, as by chance.
    """

    def near(sampler: str) -> int:
        trials = late_trials(sampler, as_measured, GOAL)
        return sum(450 <= kept(trial) <= 650 for trial in trials)

    assert near("TPE") > 1.5 * near("Random")
    assert near("GaussianProcess") > 1.5 * near("Random")


@pytest.mark.slow
def test_what_does_not_fit_is_avoided() -> None:
    """Trials that were killed for memory push the search to where there is room, even against the
    objective.
    """

    def finish(proposal: Proposal, number: int) -> Trial:
        trial = as_measured(proposal, number)
        return trial if kept(trial) < 300 else tried(proposal, number, state="Infeasible")

    def fit(sampler: str) -> int:
        trials = late_trials(sampler, finish, Goal(GOAL.target, (), "Accuracy"))
        return sum(trial.state == "Complete" for trial in trials)

    assert fit("TPE") > 1.5 * fit("Random")
    assert fit("GaussianProcess") > 1.5 * fit("Random")


@pytest.mark.parametrize("sampler", ["TPE", "GaussianProcess"])
def test_parallel_trials_spread(sampler: str) -> None:
    """Trials under way are known to the sampler: it proposes others beside them."""
    search = searching(sampler=sampler, maxTrials=12, maxParallelTrials=4)
    trials: list[Trial] = []
    for number in range(4):
        trials.append(tried(ask(search, trials), number, state="Compressing"))

    assert len({kept(trial) for trial in trials}) == 4


def test_several_recipes_are_one_space() -> None:
    """A search over recipes with different ranges chooses among them too."""
    space = {
        "prune-int8": recipe(prune__ffnKeepPermille=(300, 800, 100)),
        "distilled": recipe(
            prune__ffnKeepPermille=(310, 810, 100), distill__learningRateMicros=(100, 300, 100)
        ),
        "plain": RECIPES["dynamic-int8"],
    }
    search = searching(recipes=[{"name": name} for name in space], maxTrials=48)

    trials = search_on(search, space, finish=lambda p, n: tried(p, n, state="Failed"))

    assert len(trials) == 6 + 6 * 3 + 1
    assert {trial.recipe for trial in trials} == set(space)


def test_a_large_space_is_no_burden() -> None:
    """Ten million combinations are sampled, not enumerated."""
    space = {
        "prune-int8": recipe(
            prune__ffnKeepPermille=(20, 1000, 1), distill__examples=(1000, 1_000_000, 1)
        )
    }

    assert len(search_on(searching(maxTrials=4), space)) == 4


def test_proposals_say_why() -> None:
    """The trial tells what the sampler knew."""
    search = searching(maxTrials=12)
    trials = search_on(search, RECIPES)
    first = ask(search, [])
    later = ask(search, trials[:6])

    assert first.because == "random start of the search: 0 of 4 measured trials are there"
    assert later.because.startswith("TPE over 6 trials, of which ")
    assert ask(searching(sampler="Random"), []).because == "random sampling, 1 of 12"


def test_steps_carry_the_parameters() -> None:
    """A proposal's steps are the recipe's with the proposed values in, and nothing else changed."""
    proposal = ask(searching(), [])
    (parameter,) = proposal.parameters
    own, changed = RECIPES["prune-int8"].steps, list(proposal.steps)

    assert changed[0].prune is not None
    assert changed[0].prune.ffn_keep_permille == parameter.value
    assert changed[1:] == own[1:]
    assert own[0].prune is not None
    assert own[0].prune.ffn_keep_permille == 350


STAGES = CompressionRecipeSpec.model_validate(
    {
        "steps": [
            {"prune": {"ffnKeepPermille": 700}},
            {"distill": {"examples": 1000}},
            {"prune": {"ffnKeepPermille": 700}},
            {"distill": {"examples": 4000}},
        ],
        "ranges": [
            {"step": "prune", "parameter": "ffnKeepPermille", "minimum": 600, "maximum": 700}
            | {"increment": 100},
        ],
    }
)


def test_a_range_is_for_every_step_of_its_name() -> None:
    """A staged recipe keeps the same share in each stage, and knows which it tried."""
    space = {"prune-int8": STAGES}
    first = propose(searching(), space, trials=[], goal=GOAL, run_uid="u")
    assert first is not None
    second = propose(searching(), space, trials=[tried(first, 0)], goal=GOAL, run_uid="u")
    assert second is not None
    shares = [
        [step.prune.ffn_keep_permille for step in proposal.steps if step.prune is not None]
        for proposal in (first, second)
    ]
    assert sorted(shares) == [[600, 600], [700, 700]]
    assert [step.distill.examples for step in second.steps if step.distill] == [1000, 4000]
    both = [tried(first, 0), tried(second, 1)]
    assert propose(searching(), space, trials=both, goal=GOAL, run_uid="u") is None


def test_stages_that_differ_lie_beside_the_space() -> None:
    """A recipe's own steps are a trial, but none that the sampler could have proposed."""
    steps = list(STAGES.steps)
    steps[2] = resolve(STAGES, [Parameter(step="prune", name="ffnKeepPermille", value=600)])[2]
    own = Trial(number=0, recipe="prune-int8", origin="Recipe", steps=steps, state="Measuring")
    assert tell([own], {"prune-int8": STAGES}, GOAL) == []
    same = own.evolve(steps=list(STAGES.steps))
    (told,) = tell([same], {"prune-int8": STAGES}, GOAL)
    assert told.point.values == (700,)


def test_optuna_is_silent_and_lazy(caplog: pytest.LogCaptureFixture) -> None:
    """Optuna says nothing, and an operator whose policies search for nothing never loads it."""
    with caplog.at_level(logging.DEBUG):
        ask(searching(), [])
    code = (
        "import sys, kompakt.controllers.run; sys.exit(bool({'optuna', 'numpy'} & {*sys.modules}))"
    )

    assert [record for record in caplog.records if record.name.startswith("optuna")] == []
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_target_leads() -> None:
    """The search minimizes on the target that it is given, not on another that was measured too."""
    other = Target.model_validate({"name": "other", "hardwareProfileRef": {"name": "x"}})
    search, elsewhere = searching(maxTrials=12), Goal(other, (), "Cost")
    trials = search_on(search, RECIPES)[:6]

    told = propose(search, RECIPES, trials=trials, goal=elsewhere, run_uid="uid")

    assert told is not None
    assert told.because == "random start of the search: 0 of 4 measured trials are there"
