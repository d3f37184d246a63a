# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
from tests.planning import policy_spec
from tests.run_world import (
    LOST_NODE,
    RUN,
    TWO_POOLS,
    TWO_TARGETS,
    Outcome,
    RunWorld,
    essence,
    settled,
    succeed,
    succeeded,
    world,
)

from kompakt.api.job import TaskSpec
from kompakt.api.policy import CompressionPolicySpec
from kompakt.api.recipe import Step
from kompakt.api.run import CompressionRunStatus, Trial
from kompakt.controllers.ablation import parts, proposed


def asking(**changes: Any) -> CompressionPolicySpec:
    """A policy that asks for an ablation; its only recipe prunes and quantizes."""
    return policy_spec(ablation="Enabled", recipes=[{"name": "prune-int8"}], **changes)


def test_each_step_is_measured_once_the_choice_is_made() -> None:
    """The chain is cut after its first step; what it brought and what the second added are told."""
    made = settled(asking())
    first, second = made.status.contributions

    assert made.started[-2:] == [f"{RUN}-compress-1", f"{RUN}-measure-1-0"]
    assert succeeded(made.at_creation[f"{RUN}-compress-1"]) == ("True", "Chosen")
    assert (first.step, second.step) == ("prune", "quantize")
    assert (first.trial, second.trial) == (1, 0)
    assert None not in {first.speedup_permille, first.factor_permille, second.factor_permille}
    assert first.factor_permille == first.speedup_permille
    assert first.accuracy_drop_basis_points == first.added_drop_basis_points
    assert [event.reason for event in made.events if event.reason == "Ablated"] == ["Ablated"]
    assert made.status.current is None


def test_the_steps_multiply_to_the_whole() -> None:
    """Factors multiply to the chain's speed-up, and added drops sum to its drop."""
    made = settled(asking())
    whole = made.status.contributions[-1]
    product = 1.0
    for one in made.status.contributions:
        product *= (one.factor_permille or 0) / 1000

    assert whole.speedup_permille is not None
    assert product == pytest.approx(whole.speedup_permille / 1000, rel=0.01)
    assert whole.accuracy_drop_basis_points == sum(
        one.added_drop_basis_points or 0 for one in made.status.contributions
    )


def test_the_choice_does_not_wait_and_does_not_change() -> None:
    """The same variant is chosen as without the question, and no part of a chain is a variant."""
    asked, plain = settled(asking()), settled(asking().evolve(ablation="Disabled"))

    assert asked.status.choices == plain.status.choices
    assert set(asked.variants) == set(plain.variants)
    assert plain.status.contributions == []


def test_what_was_measured_is_not_measured_again() -> None:
    """A part of the chain that is a trial already lends its figures."""
    made = settled(policy_spec(ablation="Enabled"))
    chain = next(t for t in made.status.trials if t.number == made.status.choices[0].trial)

    assert len(made.status.contributions) == len(chain.steps)
    assert len(made.status.trials) == 2 + len(chain.steps) - 1


def test_training_for_a_quantization_is_one_part_with_it() -> None:
    """Cut before the quantization that it trains for, such a chain would be no recipe."""
    wire: list[dict[str, Any]] = [
        {"prune": {"ffnKeepPermille": 500}},
        {"distill": {"quantizationAware": "Enabled"}},
        {"quantize": {"method": "WeightOnly", "weightBits": 2}},
        {"calibrate": {}},
    ]
    steps = [Step.model_validate(step) for step in wire]
    chain = Trial(number=0, recipe="two-bits", origin="Recipe", steps=steps, state="Complete")
    found = proposed(CompressionRunStatus(trials=[chain]), chain)

    assert [trial.steps for trial in found.trials[1:]] == [steps[:1], steps[:3]]
    assert [trial.number for trial in parts(found.trials, chain)] == [1, 2, 0]


def test_it_is_about_the_target_that_is_served() -> None:
    """With several targets the parts are measured on the one that leads, and on no other."""
    made = settled(asking(targets=TWO_TARGETS), profiles=TWO_POOLS)
    part = made.status.trials[1]

    assert part.origin == "Ablation"
    assert [result.target for result in part.targets] == ["edge"]


def test_a_part_that_fails_leaves_a_gap() -> None:
    """The others are told nevertheless, and the run stays what it was."""

    def work(task: TaskSpec) -> Outcome:
        alone = task.compress is not None and len(task.compress.steps) == 1
        return LOST_NODE if alone else succeed(task)

    made = settled(asking(), work=work)
    first, second = made.status.contributions

    assert first.factor_permille is None
    assert second.factor_permille == second.speedup_permille
    assert succeeded(made.status) == ("True", "Chosen")


@pytest.mark.parametrize("die_after", [0, 1, 2])
def test_a_crash_changes_nothing(die_after: int) -> None:
    """Dying between any two writes of the ablation gives the same contributions."""
    plain = settled(asking())
    made: RunWorld = world(asking())
    for _ in range(200):
        made.plan(die_after=die_after)
        plan = made.plan()
        if running := made.running():
            made.finish(running[0])
        elif not plan.actions:
            break

    assert essence(made.status)["contributions"] == essence(plain.status)["contributions"]
