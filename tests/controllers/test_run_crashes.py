# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.planning import NOW, policy_spec
from tests.run_world import (
    HALVING,
    OUT_OF_MEMORY,
    SEARCH,
    TWO_POOLS,
    TWO_TARGETS,
    Outcome,
    RunWorld,
    broken,
    essence,
    fail,
    settled,
    succeed,
    succeeded,
    world,
)

from kompakt.api import names
from kompakt.api.job import TaskSpec
from kompakt.api.policy import CompressionPolicySpec
from kompakt.controllers.conditions import find
from kompakt.controllers.plan import Create, WriteStatus
from kompakt.controllers.run import plan_run

EVENTS = st.one_of(
    st.tuples(st.just("plan"), st.integers(0, 4)),
    st.tuples(st.just("finish"), st.integers(0, 5)),
    st.tuples(st.just("delete"), st.integers(0, 5)),
    st.tuples(st.just("expire"), st.just(0)),
)


def disturb(made: RunWorld, events: Iterable[tuple[str, int]]) -> None:
    """Let things happen in any order: the operator dies after so many actions, Jobs end, are
    deleted while they run, or expire once they ended and the next plan has seen it.
    """
    for kind, number in events:
        running = made.running()
        if kind == "plan":
            made.plan(die_after=number)
        elif kind == "finish" and running:
            made.finish(running[number % len(running)])
        elif kind == "delete" and running:
            made.remove(running[number % len(running)])
        elif kind == "expire":
            made.plan(die_after=1)
            for name in [n for n in made.jobs if n not in made.running()]:
                made.remove(name)


def mixed(task: TaskSpec) -> Outcome:
    """Work in which one recipe fails."""
    if task.compress is not None and task.compress.recipe == "dynamic-int8":
        return OUT_OF_MEMORY
    return succeed(task)


WORLDS: dict[str, tuple[CompressionPolicySpec, Callable[[TaskSpec], Outcome]]] = {
    "recipes": (policy_spec(), succeed),
    "one recipe fails": (policy_spec(), mixed),
    "search": (policy_spec(search=SEARCH), succeed),
    "halving": (
        policy_spec(search=HALVING | {"sampler": "Random", "maxTrials": 4}, targets=TWO_TARGETS),
        succeed,
    ),
    "two targets": (policy_spec(targets=TWO_TARGETS), succeed),
    "wrong input": (
        policy_spec(),
        broken("Measure", lambda t: fail(t, "DataInvalid", outcome="InvalidInput")),
    ),
}
UNDISTURBED = {
    name: settled(spec, work=work, profiles=TWO_POOLS) for name, (spec, work) in WORLDS.items()
}


@settings(max_examples=60)
@given(st.sampled_from(list(WORLDS)), st.lists(EVENTS, max_size=40))
def test_whatever_happens_the_outcome_is_the_same(name: str, events: list[tuple[str, int]]) -> None:
    """Crashes between any two actions, Jobs deleted under way, Jobs expired after their outcome was
    written: the run ends with the same status and the same variants.
    """
    spec, work = WORLDS[name]
    made = world(spec, work=work, profiles=TWO_POOLS)

    disturb(made, events)
    made.settle()

    expected = UNDISTURBED[name]
    if name != "wrong input":  # how far the others came by then is a matter of time
        assert essence(made.status) == essence(expected.status)
        assert made.variants == expected.variants
    assert succeeded(made.status) == succeeded(expected.status)
    assert made.running() == []


@settings(max_examples=40)
@given(st.lists(EVENTS, max_size=40))
def test_at_all_times(events: list[tuple[str, int]]) -> None:
    """In any history: at most one measurement on the pool, every trial of a Job is in the status,
    and no trial's state goes backwards.
    """
    order = ["Proposed", "Compressing", "Measuring", "Complete"]
    made = world()
    before: dict[int, int] = {}
    for event in events:
        disturb(made, [event])
        trials = {t.number: order.index(t.state) for t in made.status.trials}
        assert all(trials[n] >= rank for n, rank in before.items())
        before = trials
        assert sum("measure" in name for name in made.running()) <= 1
        for name in made.jobs:
            number = made.jobs[name].labels.get(names.TRIAL_LABEL)
            assert number is None or int(number) in trials


@pytest.mark.parametrize(
    "name",
    # It has by far the longest history.
    [pytest.param(n, marks=pytest.mark.slow) if n == "halving" else n for n in WORLDS],
)
def test_a_crash_between_any_two_actions(name: str) -> None:
    """The operator dies once, after each action of the whole history in turn: nothing is lost, done
    twice, or left running.
    """
    spec, work = WORLDS[name]
    deaths = 0
    while True:
        made = world(spec, work=work, profiles=TWO_POOLS)
        if not _die_after(made, deaths):
            break
        _plan_until_quiet(made)
        if find(made.status.conditions, "Stalled"):
            assert made.running() == []
        made.settle()
        assert essence(made.status) == essence(UNDISTURBED[name].status)
        assert made.variants == UNDISTURBED[name].variants
        assert sorted(made.started) == sorted(UNDISTURBED[name].started)
        deaths += 1
    assert deaths > 10


def _die_after(made: RunWorld, actions: int) -> bool:
    """Go the way of `settle`, and die after so many actions; False when there are not so many."""
    for _ in range(300):
        ahead = len(plan_run(made.observe()).actions)
        if actions < ahead:
            made.plan(die_after=actions)
            return True
        actions -= ahead
        made.plan()
        if made.running():
            made.finish(made.running()[0])
        elif ahead == 0:
            return False
    raise AssertionError("the run never comes to rest")


def _plan_until_quiet(made: RunWorld) -> None:
    while made.plan().actions:
        pass


def test_the_status_precedes_the_jobs_in_each_plan() -> None:
    """In every plan the status is written before any Job of it is created."""
    made = world(policy_spec(search=SEARCH))
    for _ in range(30):
        plan = made.plan()
        kinds = [
            "job" if isinstance(a, Create) and a.manifest["kind"] == "Job" else "status"
            for a in plan.actions
            if isinstance(a, WriteStatus) or (isinstance(a, Create) and a.manifest["kind"] == "Job")
        ]
        assert kinds == sorted(kinds, reverse=True)
        if made.running():
            made.finish(made.running()[0])
    assert made.now > NOW
