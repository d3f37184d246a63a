# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.policy_world import PolicyWorld, only, ready, stable_of

from kompakt.controllers.policy import plan_policy
from kompakt.controllers.rollout_case import is_under_way

Step = Callable[[PolicyWorld], None]


def _end_runs(made: PolicyWorld) -> None:
    for name in list(made.runs):
        made.end_run(name)


def _promote(made: PolicyWorld) -> None:
    made.promote(only(made.rollouts))


HISTORY: tuple[Step, ...] = (
    lambda _: None,
    lambda made: made.import_run(),
    _end_runs,
    _promote,
)
"""What others do, each after the policy has come to rest."""


def outcome(made: PolicyWorld) -> tuple[Any, ...]:
    """All that is in the end, without the times in it."""
    wire = made.status.to_wire()
    for condition in wire["conditions"]:
        condition.pop("lastTransitionTime")
    return (wire, sorted(made.runs), sorted(made.rollouts), made.deployments, made.route)


def whole() -> PolicyWorld:
    """The history without a crash."""
    made = PolicyWorld()
    for step in HISTORY:
        step(made)
        made.settle()
    return made


UNDISTURBED = whole()


def test_a_crash_between_any_two_actions() -> None:
    """The operator dies once, after each action of the whole history in turn: the same objects are
    there in the end, none is made twice.
    """
    deaths = 0
    while True:
        made = PolicyWorld()
        left = deaths
        died = False
        for step in HISTORY:
            step(made)
            for _ in range(5):
                ahead = len(plan_policy(made.observe()).actions)
                if not died and left < ahead:
                    made.plan(die_after=left)
                    died = True
                elif not died:
                    left -= ahead
                    made.plan()
            made.settle()
        if not died:
            break
        assert outcome(made) == outcome(UNDISTURBED)
        assert sorted(made.created) == sorted(UNDISTURBED.created)
        deaths += 1
    assert deaths > 20


MISHAPS = st.one_of(
    st.tuples(st.just("plan"), st.integers(0, 6)),
    st.tuples(st.sampled_from(["import", "end", "pods", "route", "status", "promote"]), st.just(0)),
)


def disturb(made: PolicyWorld, mishaps: Iterable[tuple[str, int]]) -> None:
    """Anything in any order: crashes, work that ends, deleted pods and routes, a lost status."""
    for kind, number in mishaps:
        if kind == "plan":
            made.plan(die_after=number)
        elif kind == "import" and made.runs and not made.variants:
            made.import_run(only(made.runs))
        elif kind == "end" and made.runs:
            made.end_run(only(made.runs))
        elif kind == "pods":
            made.deployments.clear()
        elif kind == "route":
            made.route = None
        elif kind == "promote":
            for name in [n for n, r in made.rollouts.items() if r.status.stage is None]:
                made.promote(name)


@settings(max_examples=60)
@given(st.lists(MISHAPS, max_size=25))
def test_whatever_happens_the_choice_serves(mishaps: list[tuple[str, int]]) -> None:
    """In the end one run was made and one rollout, and the promoted variant serves."""
    made = PolicyWorld()
    disturb(made, mishaps)
    for step in ("end", "promote", "plan"):
        made.settle()
        disturb(made, [(step, 99)])
    made.settle()

    assert sorted(made.created) == sorted(UNDISTURBED.created)
    assert ready(made) == ("True", "Serving")
    assert stable_of(made) == stable_of(UNDISTURBED)


@settings(max_examples=60)
@given(st.lists(MISHAPS, max_size=25))
def test_at_all_times(mishaps: list[tuple[str, int]]) -> None:
    """At any moment: at most one rollout is under way, and a route once made leads somewhere."""
    made = PolicyWorld()
    for mishap in mishaps:
        disturb(made, [mishap])
        assert sum(is_under_way(r) for r in made.rollouts.values()) <= 1
        if made.route is not None:
            assert stable_of(made) in made.variants
            weights = [b["weight"] for b in made.route["spec"]["rules"][0]["backendRefs"]]
            assert sum(weights) == 1000
