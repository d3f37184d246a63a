# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.planning import PROFILES, policy_spec
from tests.run_world import (
    LOST_NODE,
    OUT_OF_MEMORY,
    RUN,
    SEARCH,
    TWO_POOLS,
    TWO_TARGETS,
    Outcome,
    advance_to_trials,
    broken,
    fail,
    settled,
    succeed,
    succeeded,
    world,
)

from kompakt.api.job import TaskSpec
from kompakt.api.policy import CompressionPolicySpec
from kompakt.controllers.conditions import find, is_true
from kompakt.controllers.plan import Delete


@pytest.mark.parametrize("kind", ["Import", "Compress", "Measure"])
def test_a_wrong_input_ends_the_run_at_once(kind: str) -> None:
    """Exit code 42: the run fails once, with the Job's reason and sentence in condition and Event,
    and what still runs is stopped.
    """
    text = "data.evaluation: no field sentiment in pvc://data/eval.jsonl; correct textField"
    work = broken(kind, lambda t: fail(t, "DataInvalid", outcome="InvalidInput", message=text))

    made = settled(work=work)

    assert succeeded(made.status) == ("False", "DataInvalid")
    assert is_true(made.status.conditions, "Stalled")
    assert len(made.started) == len(set(made.started))
    assert made.running() == []
    (event,) = [e for e in made.events if e.reason == "RunFailed"]
    assert event.warning
    assert event.message == f"DataInvalid: {text}"


def test_a_failed_run_stops_its_other_jobs() -> None:
    """A wrong input found by one Job stops those that run beside it."""
    made = world(work=broken("Measure", lambda t: fail(t, "DataInvalid", outcome="InvalidInput")))
    advance_to_trials(made)
    made.finish(f"{RUN}-compress-0")
    made.plan()
    made.finish(f"{RUN}-measure-0-0")

    plan = made.plan()

    assert [a.name for a in plan.actions if isinstance(a, Delete)] == [f"{RUN}-compress-1"]
    assert made.running() == []


@pytest.mark.parametrize(
    ("outcome", "state", "reason"),
    [
        (lambda _: OUT_OF_MEMORY, "Infeasible", "OutOfMemory"),
        (lambda t: fail(t, "TrainingDiverged"), "Infeasible", "TrainingDiverged"),
        (lambda t: fail(t, "StoreUnavailable"), "Failed", "StoreUnavailable"),
        (lambda _: LOST_NODE, "Failed", "JobFailed"),
    ],
)
def test_one_bad_trial_does_not_stop_the_others(
    outcome: Callable[[TaskSpec], Outcome], state: str, reason: str
) -> None:
    """A trial that cannot be, or could not be tried, is marked so; the search goes on."""

    def work(task: TaskSpec) -> Outcome:
        return (
            outcome(task)
            if task.compress and task.compress.recipe == "dynamic-int8"
            else succeed(task)
        )

    made = settled(policy_spec(search=SEARCH), work=work)
    first = made.status.trials[0]

    assert (first.state, first.reason) == (state, reason)
    assert [trial.state for trial in made.status.trials[1:]] == ["Complete"] * 3
    assert succeeded(made.status) == ("True", "Chosen")
    assert (0, reason) in {(r.trial, r.reason) for r in made.status.choices[0].rejections}
    assert any(e.reason == f"Trial{state}" and e.warning for e in made.events)


def test_a_step_that_a_search_proposed_wrongly_is_infeasible() -> None:
    """Values that only the search came up with do not end the run when a Job refuses them."""

    def work(task: TaskSpec) -> Outcome:
        pruned = task.compress.steps[0].prune if task.compress is not None else None
        if pruned is None or pruned.ffn_keep_permille == 350:
            return succeed(task)
        return fail(task, "StepInvalid", outcome="InvalidInput")

    made = settled(policy_spec(search=SEARCH), work=work)

    assert [t.state for t in made.status.trials] == [
        "Complete",
        "Complete",
        "Infeasible",
        "Infeasible",
    ]
    assert succeeded(made.status) == ("True", "Chosen")


def test_nothing_left_is_no_variant() -> None:
    """When every trial failed, so has the run; the source's variant is there nevertheless."""
    made = settled(work=broken("Compress", lambda t: fail(t, "StoreUnavailable")))

    assert succeeded(made.status) == ("False", "NoVariant")
    assert "trial 1 (prune-int8): it broke" in made.status.conditions[1].message
    assert [v.spec.lineage.recipe for v in made.variants.values()] == ["Source"]


def test_a_variant_that_fits_no_target_is_infeasible() -> None:
    """Killed for memory on its only target: the variant is not for it."""
    made = settled(work=broken("Measure", lambda _: OUT_OF_MEMORY))

    assert {(t.state, t.reason) for t in made.status.trials} == {("Infeasible", "OutOfMemory")}


def test_a_target_that_could_not_be_measured_gets_no_choice() -> None:
    """A variant measured on one of two targets is chosen there, and only there."""
    work = broken(
        "Measure",
        lambda t: OUT_OF_MEMORY if t.measure and t.measure.target == "edge" else succeed(t),
    )
    made = settled(policy_spec(targets=TWO_TARGETS), work=work, profiles=TWO_POOLS)
    edge, cloud = made.status.choices

    assert {trial.state for trial in made.status.trials} == {"Complete"}
    assert (edge.trial, edge.reason) == (None, "NoVariantPassesGates")
    assert {r.reason for r in edge.rejections} == {"OutOfMemory"}
    assert cloud.trial is not None


def test_an_import_without_memory_says_what_to_do() -> None:
    """The message names the profile that is too small."""
    made = settled(work=broken("Import", lambda _: OUT_OF_MEMORY))
    failed = find(made.status.conditions, "Succeeded")

    assert failed is not None
    assert failed.reason == "OutOfMemory"
    assert "HardwareProfile cpu-large more jobMemoryMebibytes" in failed.message


def test_no_gate_passed_is_a_success_with_the_source() -> None:
    """A run that found nothing good enough has done its work: the choice is the source."""
    spec = policy_spec(gates=[{"name": "strict", "maxDropBasisPoints": 0}])
    made = settled(spec)

    assert succeeded(made.status) == ("True", "NoVariantPassesGates")
    assert made.status.choices[0].variant == made.status.baseline_variant


def test_a_missing_profile_holds_the_run() -> None:
    """A profile that is gone is named; outcomes are recorded meanwhile, and the run heals."""
    made = world()
    advance_to_trials(made)
    made.finish(f"{RUN}-compress-0")
    made.profiles = {"cpu-large": PROFILES["cpu-large"]}
    plan = made.plan()

    assert succeeded(made.status) == ("Unknown", "HardwareProfileNotFound")
    assert "edge-small" in (made.status.current or "")
    assert made.status.trials[0].digest is not None
    assert plan.requeue_after is not None
    made.profiles = PROFILES
    made.settle()
    assert succeeded(made.status) == ("True", "Chosen")


def test_a_job_that_waits_for_quota_is_no_failure() -> None:
    """A Job that Kueue has not admitted is shown as waiting."""
    made = world(policy_spec(jobs={"queueName": "team-a"}))
    made.plan()
    made.plan()

    assert made.status.current == (
        "importing pvc://models/sentiment, waiting for quota of queue team-a"
    )
    assert succeeded(made.status) == ("Unknown", "Running")


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (policy_spec(recipes=[{"name": "unheard-of"}]), "RecipeNotFound"),
        (policy_spec(search=SEARCH | {"recipes": [{"name": "unheard-of"}]}), "RecipeNotFound"),
    ],
)
def test_a_run_that_somebody_wrote_wrongly(spec: CompressionPolicySpec, reason: str) -> None:
    """A run that names a recipe which it does not hold fails with a sentence, not with a crash."""
    made = settled(spec)

    assert succeeded(made.status) == ("False", reason)
    assert made.started == []


def test_a_run_that_is_deleted_is_left_alone() -> None:
    """Owner references delete its Jobs; the plan does nothing."""
    made = world()
    made.run = type(made.run)(
        type(made.run.meta)("x", "team", uid="u", deleting=True), made.run.spec, made.run.status
    )

    assert made.plan().actions == ()


def test_the_status_is_written_only_when_it_changed() -> None:
    """A plan for an unchanged world has nothing to do."""
    made = world()
    advance_to_trials(made)
    made.plan()
    made.now += 3600

    assert made.plan().actions == ()
