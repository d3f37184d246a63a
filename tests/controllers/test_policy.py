# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.planning import NAMESPACE, RECIPES, policy, policy_spec
from tests.policy_world import PolicyWorld, chosen, only, ready, said, serving_source, stable_of
from tests.run_world import broken, fail

from kompakt.api import names
from kompakt.controllers.conditions import find
from kompakt.controllers.plan import Create, Meta
from kompakt.controllers.policy import inputs_digest


def test_the_whole_way() -> None:
    """A run; the source serves; a choice; a rollout; the choice serves."""
    made = PolicyWorld()
    made.settle()
    assert ready(made) == ("False", "Compressing")
    assert (made.route, made.deployments) == (None, {})

    made.import_run()
    made.settle()
    source = made.run.status.baseline_variant
    assert stable_of(made) == source == made.status.serving_variant
    assert said(made, "Serving").status == "True"
    assert ready(made) == ("False", "Compressing")
    assert made.status.url == "http://10.88.0.1:80/v2/models/sentiment"

    made.end_run()
    made.settle()
    (name,) = made.rollouts
    choice = made.run.status.choices[0]
    assert made.rollouts[name].spec.candidate_ref.name == choice.variant
    assert (made.status.rollout, ready(made)) == (name, ("False", "RollingOut"))
    assert said(made, "VariantChosen").status == "True"

    made.promote(name, stage="Watching")
    made.settle()
    assert ready(made) == ("False", "RollingOut")
    made.set_stage(name, "Succeeded")
    made.settle()
    assert ready(made) == ("True", "Serving")
    assert made.status.serving_variant == choice.variant
    assert len(made.created) == 2


def test_events_tell_each_transition_once() -> None:
    """One Event for each change of Ready's reason, and one for the choice; none is a warning."""
    made = chosen()
    made.promote(only(made.rollouts))
    made.settle()
    made.settle()

    assert [event.reason for event in made.events] == [
        "Compressing",
        "VariantChosen",
        "RollingOut",
        "Serving",
    ]
    assert not any(event.warning for event in made.events)


def test_the_status_has_the_chosen_one_s_figures() -> None:
    """What was chosen for each target, with its figures on it."""
    made = chosen()
    figures = only(made.status.chosen)
    trial = made.run.status.trials[made.run.status.choices[0].trial or 0]

    assert (figures.target, figures.digest, figures.recipe) == ("edge", trial.digest, trial.recipe)
    assert figures.variant in made.variants
    assert figures.size_bytes == trial.size_bytes
    assert trial.targets[0].benchmark is not None
    assert figures.speedup_permille == trial.targets[0].benchmark.speedup_permille
    assert figures.p99_microseconds == trial.targets[0].benchmark.candidate.p99_microseconds
    assert figures.cost_micros_per_million == trial.targets[0].cost_micros_per_million
    assert figures.accuracy_drop_basis_points is not None
    assert figures.accuracy_drop_upper_bound_basis_points is not None
    assert figures.accuracy_drop_basis_points < figures.accuracy_drop_upper_bound_basis_points
    assert made.status.source_digest is not None
    assert set(made.status.data_digests or {}) == {"evaluation"}


def test_a_run_is_a_snapshot() -> None:
    """The run holds policy and recipes as they were, belongs to the policy, and says why it is."""
    made = PolicyWorld()
    plan = made.plan()
    (manifest,) = [a.manifest for a in plan.actions if isinstance(a, Create)]

    assert made.run.spec.policy == made.policy.spec
    assert {r.name: r.spec for r in made.run.spec.recipes} == RECIPES
    assert made.run.spec.trigger == "the policy is new"
    assert manifest["metadata"]["ownerReferences"][0]["uid"] == "uid-policy"
    assert made.run.spec.inputs_digest == made.status.run_inputs_digest


def test_a_policy_that_serves_nothing_is_ready_with_its_choice() -> None:
    """Without spec.serving variants are published: no pods, no route, no rollout, no gateway."""
    made = PolicyWorld(policy(policy_spec(serving=None)), gateway=None)
    made.settle()
    made.end_run()
    made.settle()

    assert ready(made) == ("True", "Published")
    assert find(made.status.conditions, "Serving") is None
    assert (made.deployments, made.route, made.rollouts) == ({}, None, {})
    assert only(made.status.chosen).variant in made.variants


# --- inputs and triggers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"gates": [{"name": "quality", "maxDropBasisPoints": 10}]},
        {"recipes": [{"name": "dynamic-int8"}]},
        {"optimizeFor": "Size"},
        {"model": {"uri": "pvc://models/another"}},
        {"jobs": {"hardwareProfileRef": {"name": "cpu-large"}, "seed": 7}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_inputs_are_another_run(change: dict[str, Any]) -> None:
    """Whatever a result depends on starts a new run when it changes; the old one is stopped, and
    going back finds the first run again.
    """
    made = PolicyWorld()
    made.settle()
    first = made.run.meta.name
    before = made.policy.spec

    made.change(**change)
    made.settle()

    assert made.run.meta.name != first
    assert made.run.spec.trigger == "the policy or a recipe changed"
    made.change(**before.to_wire())
    made.settle()
    assert made.run.meta.name == first


@pytest.mark.parametrize(
    "change",
    [
        {"rollout": {"watchSeconds": 7}},
        {"jobs": {"hardwareProfileRef": {"name": "cpu-large"}, "ttlSecondsAfterFinished": 99}},
        {"model": {"uri": "pvc://models/sentiment", "secretRef": {"name": "rotated"}}},
        {"serving": {"target": "edge", "replicas": 3, "gatewayRef": {"name": "public"}}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_results_do_not_depend_on_starts_no_run(change: dict[str, Any]) -> None:
    """How a variant is served, rolled out or queued, and by whose keys, changes no run."""
    made = PolicyWorld()
    before = inputs_digest(made.observe())

    made.change(**change)

    assert inputs_digest(made.observe()) == before


def test_a_changed_recipe_is_another_run() -> None:
    """A recipe's content counts, not only its name."""
    made = PolicyWorld()
    before = inputs_digest(made.observe())
    made.recipes = {**RECIPES, "prune-int8": RECIPES["dynamic-int8"]}

    assert inputs_digest(made.observe()) != before


def test_the_trigger_annotation_starts_a_run() -> None:
    """Any new value runs everything anew, once; what the first run chose may serve meanwhile."""
    made = chosen()
    made.promote(only(made.rollouts))
    made.settle()
    made.annotate(names.TRIGGER_ANNOTATION, "monday")
    made.settle()
    made.settle()

    assert [name.split("/")[0] for name in made.created] == [
        "CompressionRun",
        "VariantRollout",
        "CompressionRun",
    ]
    assert made.status.last_trigger == "monday"
    assert made.status.chosen == []
    again = made.runs[made.status.run or ""]
    assert again.spec.trigger == "annotation kompakt.dev/trigger: monday"
    made.end_run(again.meta.name)
    made.settle()
    assert ready(made) == ("True", "Serving")
    assert len(made.rollouts) == 1


def test_a_search_starts_from_the_run_before() -> None:
    """A new run of a policy that searches has the figures of the last one that went well."""
    made = PolicyWorld(policy(policy_spec(search={"recipes": [{"name": "prune-int8"}]})))
    made.settle()
    first = made.run
    assert first.spec.prior is None
    made.end_run(first.meta.name)
    made.settle()
    made.annotate(names.TRIGGER_ANNOTATION, "monday")
    made.settle()
    prior = made.runs[made.status.run or ""].spec.prior

    assert prior is not None
    assert prior.run == first.meta.name
    assert {trial.recipe for trial in prior.trials} == {"prune-int8"}


def test_a_run_that_ended_is_kept_when_inputs_change() -> None:
    """Only unfinished runs are stopped, and only those that a policy made."""
    made = chosen()
    ended = made.run.meta.name
    foreign = replace(
        made.run, meta=Meta("by-hand", NAMESPACE, uid="x"), status=type(made.run.status)()
    )
    made.runs["by-hand"] = foreign

    made.change(optimizeFor="Size")
    made.settle()

    assert {ended, "by-hand"} < set(made.runs)


def test_a_deleted_run_is_not_repeated_after_its_choice() -> None:
    """Tidying up old runs starts nothing; deleting one that failed, or goes on, starts it again."""
    done, failed, going = chosen(), PolicyWorld(), serving_source()
    failed.settle()
    failed.end_run(work=broken("Import", lambda t: fail(t, "DataInvalid", outcome="InvalidInput")))
    for made in (done, failed, going):
        made.settle()
        made.runs.clear()
        made.settle()

    assert done.runs == {}
    assert ready(done)[0] == "True"
    assert len(failed.runs) == len(going.runs) == 1


def test_a_suspended_policy_starts_nothing() -> None:
    """No run and no rollout starts while suspended; what serves goes on, also after a deletion."""
    made = PolicyWorld(policy(policy_spec(suspend="Enabled")))
    made.settle()
    assert (made.created, ready(made)) == ([], ("False", "Suspended"))

    made = serving_source()
    made.change(suspend="Enabled")
    made.end_run()
    made.deployments.clear()
    made.settle()
    assert made.rollouts == {}
    assert ready(made) == ("False", "Suspended")
    assert len(made.deployments) == 1
    made.change(suspend="Disabled")
    made.settle()
    assert len(made.rollouts) == 1
