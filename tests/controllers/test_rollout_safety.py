# SPDX-License-Identifier: Apache-2.0
"""The rules of safety over random histories: crashes between any two writes, old reads, outages of
metrics and gateway, pods that break, people who abort, promote, delete and change their minds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.rollout_cluster import Behaviour
from tests.rollout_rules import watch
from tests.rollout_world import CANDIDATE, OTHER, OVER, STABLE, STRATEGY, World, service_of

from kompakt.api import names
from kompakt.controllers import objects
from kompakt.controllers.plan import Action, RolloutObserved

GOOD = Behaviour()
BEHAVIOURS = {
    "good": GOOD,
    "disagrees": Behaviour(differ=0.4),
    "slow": Behaviour(slow=0.8),
    "fails": Behaviour(error=0.4),
    "inaccurate": Behaviour(lost=80),
}
QUICK: dict[str, Any] = {
    "requests_per_second": 20,
    "shadow": {"percent": 100, "minimumPairs": 30},
    "canary": {
        "steps": [
            {"weightPermille": 200, "minimumRequests": 10},
            {"weightPermille": 500, "minimumRequests": 30},
        ]
    },
    "slos": [STRATEGY["slos"][0] | {"goodBasisPoints": 8000}, *STRATEGY["slos"][1:]],
    "watchSeconds": 3,
    "deadlineSeconds": 90,
}

Event = Callable[[World], object]
EVENTS: dict[str, Event] = {
    "nothing": lambda _: None,
    "candidate breaks": lambda w: w.break_pods(CANDIDATE),
    "candidate is mended": lambda w: w.break_pods(CANDIDATE, broken=False),
    "candidate restarts": lambda w: w.restart_pods(CANDIDATE),
    "stable breaks": lambda w: w.break_pods(STABLE),
    "stable is mended": lambda w: w.break_pods(STABLE, broken=False),
    "gateway breaks": lambda w: setattr(w, "gateway_works", False),
    "gateway is mended": lambda w: setattr(w, "gateway_works", True),
    "metrics break": lambda w: setattr(w, "metrics_work", False),
    "metrics are mended": lambda w: setattr(w, "metrics_work", True),
    "abort": lambda w: w.annotate("abort"),
    "promote": lambda w: w.annotate("promote"),
    "status is lost": lambda w: w.lose_status(),
    "other candidate": lambda w: w.change_candidate(OTHER),
    "rollout is deleted": lambda w: w.delete_rollout(),
    "policy is deleted": lambda w: w.delete_policy(),
}
HARMLESS = [e for e in EVENTS if not e.startswith(("rollout is", "policy is", "status", "other"))]

moments = st.lists(
    st.tuples(
        st.integers(0, 8),  # undisturbed seconds before it
        st.sampled_from(sorted(EVENTS)),
        st.none() | st.integers(0, 5),  # actions that the operator carries out before it dies
        st.booleans(),  # what it reads is old
    ),
    max_size=10,
)
behaviours = st.sampled_from(sorted(BEHAVIOURS))


def live_through(world: World, history: Sequence[tuple[int, str, int | None, bool]]) -> None:
    """Let it all happen, then let everything heal."""
    for seconds, event, die_after, stale in history:
        world.run(seconds)
        EVENTS[event](world)
        world.step(die_after=die_after, stale=stale)
    world.heal()
    world.run(150)


def serving_variant(world: World) -> str:
    """What serves, as the labels of route and Deployments tell it, and nothing else."""
    live = world.live
    assert (live.candidate_permille, live.mirror_percent) == (0, 0)
    labels = world.deployments[live.stable_backend].labels
    name = live.annotations[names.STABLE_ANNOTATION]
    assert labels[names.VARIANT_LABEL if names.VARIANT_LABEL in labels else names.DIGEST_LABEL]
    digest = world.variants[name].spec.digest
    assert labels[names.DIGEST_LABEL] == objects.digest_label(digest)
    assert labels[names.ROLE_LABEL] == names.ROLE_SERVING
    return digest


@settings(max_examples=60)
@given(history=moments, behaviour=behaviours, seed=st.integers(0, 5))
def test_no_history_breaks_a_rule(
    history: Sequence[tuple[int, str, int | None, bool]], behaviour: str, seed: int
) -> None:
    """Whatever happens, no write breaks a rule, and in the end one variant serves all users, which
    route and labels alone tell.
    """
    world = World(behaviour=BEHAVIOURS[behaviour], seed=seed, watch=watch, **QUICK)

    live_through(world, history)

    assert world.stage in {*OVER, "Held", None}
    if world.stage != "Held":
        digest = serving_variant(world)
        assert world.deployments[service_of(digest)].ready(world.now)
        assert world.services >= {service_of(digest)}
    if world.stage in OVER:
        assert not [n for n in world.deployments if n.endswith(("-reference", "-comparator"))]
    if world.stage == "RolledBack" and world.status.stable_digest is not None:
        assert serving_variant(world) == world.status.stable_digest


@settings(max_examples=15)
@given(
    history=st.lists(
        st.tuples(
            st.integers(0, 8),
            st.sampled_from(sorted({*HARMLESS} - {"abort", "promote"})),
            st.none() | st.integers(0, 5),
            st.booleans(),
        ),
        max_size=8,
    ),
    behaviour=st.sampled_from(sorted(set(BEHAVIOURS) - {"good"})),
)
def test_a_bad_candidate_is_never_promoted(
    history: Sequence[tuple[int, str, int | None, bool]], behaviour: str
) -> None:
    """Outages and crashes delay the judge; they do not blind it."""
    world = World(behaviour=BEHAVIOURS[behaviour], watch=watch, **QUICK)

    live_through(world, history)

    assert world.stage in {"RolledBack", "Held"}
    assert "CanaryPassed" not in world.reasons


class Death(Exception):  # noqa: N818 -- nothing is wrong
    """The operator dies."""


def outcome(world: World) -> tuple[str | None, str, set[str], list[str]]:
    """What a rollout came to: its end, what serves, what is left, and every decision."""
    return world.stage, serving_variant(world), set(world.deployments), world.reasons


def killed_at(action_number: int, behaviour: str) -> tuple[World, bool]:
    """A history in which the operator dies just before one of its writes, and is started again."""
    count = 0
    died = False

    def kill(world: World, observed: RolloutObserved, action: Action) -> None:
        nonlocal count, died
        watch(world, observed, action)
        count += 1
        if count == action_number + 1:
            died = True
            raise Death

    world = World(behaviour=BEHAVIOURS[behaviour], **QUICK)
    world.watch = kill
    for _ in range(150):
        try:
            world.step()
        except Death:
            continue
        if world.stage in OVER:
            break
    return world, died


@pytest.mark.parametrize("behaviour", ["good", "disagrees", "slow"])
def test_wherever_the_operator_dies_the_end_is_the_same(behaviour: str) -> None:
    """Killed before any one of its writes and started again, it comes to the same end by the same
    decisions.
    """
    undisturbed, _ = killed_at(-1, behaviour)
    expected = outcome(undisturbed)
    assert expected[0] in OVER

    number = 0
    while True:
        world, died = killed_at(number, behaviour)
        if not died:
            break
        assert outcome(world) == expected, f"killed before action {number}"
        assert world.failed == 0
        number += 1

    assert number > 15


def test_no_request_is_counted_twice_or_forgotten() -> None:
    """The operator keeps nothing in mind: each plan is made from the status and the pods' counters
    alone. At the end of a step, its evidence is exactly what the candidate has answered in it.
    """
    steps = [{"weightPermille": 500, "minimumRequests": 400}]
    world = World(watch=watch, canary={"steps": steps})
    world.run(60, until=("Canary",))
    while world.status.stage_started_unix_milliseconds is None:
        world.step()
    before = world.answered_by(CANDIDATE)

    world.run(60, until=("Promoting",))

    (latency,) = (e for e in world.status.evidence if e.slo == "latency")
    assert latency.candidate.total == world.answered_by(CANDIDATE) - before
    assert world.statuses_written < 15
