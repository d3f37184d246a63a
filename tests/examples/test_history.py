# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from examples.demo.history import History
from examples.demo.narrate import describe_trial, describe_verdict, narrate
from examples.demo.observe import Route, Snapshot
from examples.demo.scenario import compressed_all

from kompakt.api.rollout import SloVerdict
from kompakt.api.run import Trial

from .conftest import SMALL, MadeUp, World, figures, the_run


def test_a_route_is_read_as_the_gateway_was_told() -> None:
    """Shares come from the weights, whatever they sum to; an absent weight means one."""
    backends = [{"name": "s", "weight": 3}, {"name": "c"}]
    mirror = {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "m"}}}

    assert Route.of({"spec": {"rules": [{"backendRefs": backends}]}}) == Route(250, 0)
    assert Route.of(
        {"spec": {"rules": [{"backendRefs": [{"name": "s"}], "filters": [mirror]}]}}
    ) == (Route(0, 100))
    assert Route.of({}) == Route(0, 0)


def test_nothing_is_said_twice() -> None:
    """Two looks at the same objects have no news."""
    world = World()
    world.rollout("r", SMALL, "Shadow", verdict="Fail")
    one, other = world.look(), world.look()

    assert narrate(one, other) == []
    assert narrate(Snapshot(time=0.0), one) != []


def test_each_decision_is_told_with_its_reason() -> None:
    """A transition is a line: from where, to where, why."""
    world, history = World(), History()
    history.add(world.look())
    world.rollout("r", SMALL, "Shadow")
    world.rollout("r", SMALL, "Canary", step=0)

    told = [note.text for note in history.add(world.look())]

    assert "Shadow → Canary, 0 % of the users: Because: now Canary" in told
    assert len(told) == 2


def test_stages_of_a_rollout_follow_each_other(demo: MadeUp) -> None:
    """Spans of one rollout do not overlap, and none is lost."""
    spans = demo.history.spans_of("good")

    assert [s.stage for s in spans] == ["Shadow", "Canary/0", "Watching", "Succeeded"]
    assert all(a.end == b.start for a, b in pairwise(spans))


def test_the_mirror_starts_when_it_was_surely_not_there(demo: MadeUp) -> None:
    """A regression in Shadow is measured from the last look at which nothing was mirrored."""
    started = demo.history.mirror_started(after=demo.bad_started)

    assert started == demo.bad_started


def test_traffic_is_back_when_the_route_says_so(demo: MadeUp) -> None:
    """Neither the end of the mirror at the start of a canary nor an older rollback counts."""
    returned = demo.history.traffic_returned(after=demo.bad_started)

    assert returned == demo.bad_started + 9 * 0.5
    assert demo.history.traffic_returned(after=demo.world.time) is None


def test_a_trial_is_told_with_its_figures() -> None:
    """The line of a trial has what decides: size, speed with its interval, accuracy."""
    complete, failed = the_run().status.trials

    assert "19.1 MiB" in describe_trial(complete)
    assert "2.50× [2.40–2.60]" in describe_trial(complete)
    assert "accuracy -0.36% on 5,500" in describe_trial(complete)
    assert describe_trial(failed) == "trial 1 hopeless: Failed (Broken)"
    assert figures().state == "Measured"


def test_a_verdict_is_told_with_its_counts() -> None:
    """Counts, bounds and the limit: everything that the verdict follows from."""
    verdict = SloVerdict(
        slo="latency",
        verdict="Fail",
        total=1200,
        bad=300,
        low_basis_points=1850,
        high_basis_points=3190,
        limit_basis_points=500,
    )

    assert describe_verdict(verdict) == (
        "latency Fail: 300 of 1,200 bad, truly between 18.5 and 31.9 %, at most 5.0 % allowed"
    )


@pytest.mark.parametrize(
    ("states", "planned", "expected"),
    [
        (["Compressing"], 1, "waits"),
        (["Measuring"], 2, "waits"),
        (["Complete", "Proposed"], 2, "waits"),
        (["Complete", "Measuring"], 2, "done"),
        (["Failed", "Complete"], 2, "done"),
        ([], 0, "waits"),
    ],
)
def test_all_is_compressed_when_nothing_waits(
    states: list[Any], planned: int, expected: str
) -> None:
    """A trial that was not proposed yet is missing from the list; the total tells."""
    run = the_run()
    trials = [
        Trial(number=number, recipe="r", origin="Recipe", state=state)
        for number, state in enumerate(states)
    ]
    status = run.status.evolve(trials=trials, trials_total=planned)

    assert compressed_all(replace(run, status=status)) is (expected == "done")


def test_nothing_is_compressed_before_there_is_a_run() -> None:
    """The first looks at the cluster see none."""
    assert not compressed_all(None)
