# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.planning import counts, measured, policy_spec
from tests.run_world import (
    HALVING,
    RUN,
    TWO_POOLS,
    TWO_TARGETS,
    broken,
    settled,
    succeed,
    succeeded,
    world,
)

from kompakt.api.job import TaskSpec
from kompakt.api.measure import PairedCounts
from kompakt.api.policy import CompressionPolicySpec
from kompakt.api.run import FirstLook, Trial
from kompakt.controllers.halving import decided


def policy(**search: Any) -> CompressionPolicySpec:
    """A policy whose search halves; its gate allows 200 basis points."""
    return policy_spec(search=HALVING | search)


def looked(
    number: int,
    *,
    mean: int = 4000,
    lost: int = 0,
    examples: int = 500,
    size: int = 10_000_000,
    **changes: Any,
) -> Trial:
    """A trial after its first look: so slow, so much lost of some examples."""
    figures = measured(mean=mean)
    assert figures.evaluation is not None
    assert figures.benchmark is not None
    seen = figures.evaluation.evolve(
        selection=counts(examples, lost=lost), confirmation=PairedCounts(), slices=[]
    )
    look = FirstLook(evaluation=seen, benchmark=figures.benchmark)
    result = figures.evolve(state="Pending", evaluation=None, benchmark=None)
    trial = Trial(number=number, recipe="a", origin="Search", state="Measuring")
    return trial.evolve(targets=[result], first_look=look, size_bytes=size, **changes)


def decisions(trials: list[Trial], spec: CompressionPolicySpec | None = None) -> list[str]:
    """What became of each trial, and why, in the order of the trials."""
    found = []
    for trial in decided(trials, spec or policy()):
        look = trial.first_look
        assert look is not None
        assert look.message
        assert (trial.state == "Stopped") == (look.decision == "Stop")
        found.append(f"{look.decision}: {look.reason}")
    return found


GO, STOP, DROP = "GoOn: Promising", "Stop: NotPromising", "Stop: DropTooLarge"


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        pytest.param([looked(0, mean=9000)], [GO], id="the first, however slow"),
        pytest.param([looked(0, lost=40)], [DROP], id="beyond the gate by its lower bound"),
        pytest.param([looked(0, lost=15)], [GO], id="beyond the gate, but perhaps not really"),
        pytest.param([looked(0, lost=15, examples=50)], [DROP], id="15 of 50 are enough"),
        pytest.param(
            [looked(0), looked(1, mean=3000), looked(2, mean=3500)],
            [STOP, GO, GO],
            id="looks that come at once are decided beside each other",
        ),
        pytest.param(
            [looked(0, mean=3000, lost=15), looked(1, mean=5000)],
            [GO, GO],
            id="none stops for one that is fast and wrong",
        ),
    ],
)
def test_who_goes_on(trials: list[Trial], expected: list[str]) -> None:
    """The better half by what is optimized for, of those that may pass the gates."""
    assert decisions(trials) == expected


def test_a_sampler_of_fronts_keeps_the_front() -> None:
    """What is slower but smaller, or slower but truer, goes on; what is worse in all stops."""
    trials = [
        looked(0, mean=3000, size=20_000_000, lost=3),
        looked(1, mean=5000, size=10_000_000, lost=3),
        looked(2, mean=5000, size=20_000_000, lost=0),
        looked(3, mean=6000, size=30_000_000, lost=5),
    ]
    assert decisions(trials, policy(sampler="GaussianProcess")) == [GO, GO, GO, STOP]
    assert decisions(trials, policy(sampler="TPE")) == [GO, GO, GO, STOP]
    strict = {"halving": {"keepPermille": 250}}
    assert decisions(trials, policy(sampler="GaussianProcess", **strict)) == [GO, GO, GO, STOP]
    assert decisions(trials, policy(sampler="TPE", **strict)) == [GO, STOP, STOP, STOP]


@given(st.lists(st.tuples(st.integers(2000, 9000), st.integers(0, 40)), min_size=1, max_size=9))
def test_decisions_stay_and_the_best_is_never_stopped(figures: list[tuple[int, int]]) -> None:
    """Deciding again changes nothing, nor do later looks; the fastest of those that keep the gate
    as seen goes on.
    """
    trials = [looked(n, mean=mean, lost=lost) for n, (mean, lost) in enumerate(figures)]
    spec = policy()
    once = decided(trials, spec)

    assert decided(once, spec) == once
    assert decided([*once, looked(60, mean=1500)], spec)[: len(once)] == once
    keep = [(mean, n) for n, (mean, lost) in enumerate(figures) if lost <= 10]
    if keep:
        assert once[min(keep)[1]].state == "Measuring"


def test_only_the_search_s_own_trials_are_halved() -> None:
    """What the policy's recipes name, and a search without halving, is left alone."""
    own = looked(0, lost=40, origin="Recipe")
    assert decided([own], policy()) == [own]
    trial = looked(0, lost=40)
    assert decided([trial], policy(halving=None)) == [trial]


def test_a_halved_run() -> None:
    """Each trial of the search is looked at first; those that stop are neither measured whole nor
    published, and the choice says why. Other targets wait for the look.
    """
    made = settled(policy_spec(search=HALVING, targets=TWO_TARGETS), profiles=TWO_POOLS)
    trials = [trial for trial in made.status.trials if trial.origin == "Search"]
    stopped = [trial for trial in trials if trial.state == "Stopped"]

    assert {trial.state for trial in trials} == {"Complete", "Stopped"}
    for trial in trials:
        jobs = [name for name in made.started if f"-{trial.number}-" in name]
        whole = [f"{RUN}-measure-{trial.number}-{place}" for place in (0, 1)]
        look = f"{RUN}-look-{trial.number}-0"
        assert jobs[0] == look
        assert set(jobs[1:]) == (set() if trial in stopped else set(whole))
        tasks = [made.tasks[name].measure for name in jobs]
        shares = [task.first_look_permille for task in tasks if task is not None]
        assert shares == [500, *[None] * (len(jobs) - 1)]
        assert trial.first_look is not None
        assert (trial.reason is not None) == (trial in stopped)
    published = {v.spec.lineage.trial for v in made.variants.values()}
    assert published.isdisjoint({trial.number for trial in stopped})
    for choice in made.status.choices:
        reasons = {r.trial: (r.reason, r.message) for r in choice.rejections}
        for trial in stopped:
            assert reasons[trial.number] == (trial.reason, trial.message)
    assert {e.reason for e in made.events if "Stopped" in e.reason} == {"TrialStopped"}


def test_a_stopped_trial_teaches_the_search() -> None:
    """What its look showed counts for the next proposal."""
    made = settled(policy_spec(recipes=[], search=HALVING))
    numbers = {t.number for t in made.status.trials if t.state == "Stopped"}
    last = made.status.trials[-1]

    assert numbers - {last.number}
    assert last.proposed_because.startswith("TPE over 7 trials")


def test_nothing_promising_is_no_failure() -> None:
    """All beyond the gate at first sight: the source goes on, and the run says so."""

    def hopeless(task: TaskSpec) -> Any:
        result = succeed(task)
        assert result.measured is not None
        found = result.measured.measurement
        bad = found.evaluation.evolve(selection=counts(500, lost=100))
        return result.evolve(
            measured=result.measured.evolve(measurement=found.evolve(evaluation=bad))
        )

    made = world(policy_spec(recipes=[], search=HALVING), work=broken("Measure", hopeless))
    made.settle()

    assert {trial.reason for trial in made.status.trials} == {"DropTooLarge"}
    assert succeeded(made.status) == ("True", "NoVariantPassesGates")
