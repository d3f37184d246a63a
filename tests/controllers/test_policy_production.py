# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest
from tests.policy_world import PolicyWorld, chosen, only, ready, said, serving_source, stable_of

from kompakt.api import names
from kompakt.controllers import objects
from kompakt.controllers.plan import Apply, DeploymentState, GatewayState
from kompakt.controllers.render.route import TrafficPlan


def test_the_first_route_waits_for_pods() -> None:
    """No route leads to pods that are not ready."""
    made = PolicyWorld(pods_start=False)
    made.settle()
    made.import_run()
    made.settle()
    assert made.route is None
    assert said(made, "Serving").reason == "PodsNotReady"

    made.pods_start = True
    made.settle()
    assert said(made, "Serving").status == "True"


def test_deleted_pods_come_back() -> None:
    """Somebody deletes the stable variant's Deployment, with or without a rollout under way."""
    made = chosen()
    made.set_stage(only(made.rollouts), "Canary")
    service = objects.serving_name("sentiment", made.status.serving_digest or "")
    made.deployments.pop(service)
    made.services.clear()

    made.settle()

    assert made.deployments[service].available
    assert made.services == {service}


def test_scaled_down_pods_come_back() -> None:
    """Somebody scales the stable variant to zero."""
    made = serving_source()
    name = only(made.deployments)
    made.deployments[name] = DeploymentState(name, {}, desired=0, ready=0)
    made.settle()

    assert made.deployments[name].available


def test_a_deleted_route_comes_back_to_what_served() -> None:
    """The route of a promoted variant is deleted: the new one leads to it, not to the source."""
    made = chosen()
    made.promote(only(made.rollouts))
    made.settle()
    served = stable_of(made)
    made.route = None

    made.settle()

    assert stable_of(made) == served != made.run.status.baseline_variant


def test_what_serves_is_told_by_the_route_alone() -> None:
    """After every status was lost, the promoted variant still serves and is recorded again."""
    made = chosen()
    made.promote(only(made.rollouts))
    made.settle()
    before = made.status
    made.policy = replace(made.policy, status=type(before)())

    made.settle()

    assert made.status.serving_variant == before.serving_variant
    assert made.status.chosen == before.chosen
    assert len(made.rollouts) == 1


def test_shares_of_a_route_are_kept() -> None:
    """New host names change the route and leave its traffic as it is."""
    made = serving_source()
    stable = stable_of(made)
    backend = objects.serving_name("sentiment", made.status.serving_digest or "")
    made.move_traffic(TrafficPlan(backend, "other", 250), stable=stable, candidate="other-variant")
    serving = made.policy.spec.serving
    assert serving is not None
    made.change(serving=serving.to_wire() | {"hostnames": ["new.example.com"]})
    made.settle()

    assert made.route is not None
    assert made.route["spec"]["hostnames"] == ["new.example.com"]
    weights = {b["name"]: b["weight"] for b in made.route["spec"]["rules"][0]["backendRefs"]}
    assert weights == {backend: 750, "other": 250}
    assert stable_of(made) == stable
    assert made.route["metadata"]["annotations"][names.CANDIDATE_ANNOTATION] == "other-variant"


@pytest.mark.parametrize(
    "stage", ["Pending", "Shadow", "Canary", "Promoting", "Watching", "Held", "RollingBack"]
)
def test_the_route_is_the_rollout_s_while_it_is_under_way(stage: str) -> None:
    """No plan of the policy writes the route between the beginning of a rollout and its end."""
    made = chosen()
    made.set_stage(only(made.rollouts), stage)
    made.change(serving={"target": "edge", "gatewayRef": {"name": "public"}, "hostnames": ["x.y"]})

    kinds = [a.manifest["kind"] for a in made.plan().actions if isinstance(a, Apply)]

    assert "HTTPRoute" not in kinds
    assert "Deployment" in kinds


def test_a_foreign_route_is_left_alone() -> None:
    """A route of that name that is not ours is not taken over; the policy says what to do."""
    made = PolicyWorld()
    made.route = {"metadata": {"name": "sentiment"}, "spec": {"parentRefs": [], "rules": [{}]}}
    made.settle()
    made.end_run()
    foreign = made.route

    made.settle()

    assert made.route is foreign
    assert ready(made) == ("False", "RouteExists")
    assert made.rollouts == {}


def test_a_gateway_that_is_down_is_said_to_be() -> None:
    """A Gateway that exists and does not work: the pods run, and Serving says why nobody is
    answered.
    """
    made = serving_source()
    made.gateway = GatewayState("public", "gateways", False, None, message="no data plane")
    made.settle()

    assert said(made, "Serving").reason == "GatewayNotReady"
    assert "no data plane" in said(made, "Serving").message
    assert made.status.url is not None


def test_a_policy_that_is_deleted_is_left_to_its_owner_references() -> None:
    """A policy under deletion does nothing: what serves stays, or goes with its owner."""
    made = chosen()
    made.policy = replace(made.policy, meta=replace(made.policy.meta, deleting=True))

    assert made.plan().actions == ()


# --- rollouts ------------------------------------------------------------------------------------


def test_a_rolled_back_choice_is_not_tried_again() -> None:
    """After a rollback the stable variant goes on, ready; only a new run makes a new rollout."""
    made = chosen()
    name = only(made.rollouts)
    made.set_stage(name, "RolledBack", why="objective latency failed: 12 % of answers were slow")
    made.settle()
    made.settle()

    assert ready(made) == ("True", "RolledBack")
    assert "objective latency failed" in said(made).message
    assert f"{made.status.serving_variant} answers" in said(made).message
    assert list(made.rollouts) == [name]
    assert (made.events[-1].reason, made.events[-1].warning) == ("RolledBack", True)

    made.annotate(names.TRIGGER_ANNOTATION, "again")
    made.settle()
    made.end_run(made.status.run)
    made.settle()
    assert len(made.rollouts) == 2


def test_a_deleted_rollout_is_not_tried_again() -> None:
    """Deleting the object of a rollout that ended does not start another."""
    made = chosen()
    made.set_stage(only(made.rollouts), "RolledBack")
    made.settle()
    made.rollouts.clear()
    made.settle()

    assert made.rollouts == {}
    assert ready(made) == ("True", "ServingAnother")


def test_one_rollout_at_a_time() -> None:
    """While another rollout is under way, whoever made it, the choice waits."""
    made = serving_source()
    source = made.run.status.baseline_variant or ""
    spec = {"policyRef": {"name": "sentiment"}, "candidateRef": {"name": source}}
    made.end_run()
    made._create(
        {"kind": "VariantRollout", "metadata": {"name": "by-hand", "labels": {}}, "spec": spec}
    )
    made.set_stage("by-hand", "Canary")
    made.settle()
    assert list(made.rollouts) == ["by-hand"]
    assert ready(made) == ("False", "RollingOut")

    made.set_stage("by-hand", "RolledBack")
    made.settle()
    assert len(made.rollouts) == 2


def test_a_rollout_that_waits_for_the_policy_does_not_block_it() -> None:
    """A rollout registered before anything serves waits for the first route, and not vice versa."""
    made = PolicyWorld()
    spec = {"policyRef": {"name": "sentiment"}, "candidateRef": {"name": "nobody"}}
    made._create(
        {"kind": "VariantRollout", "metadata": {"name": "early", "labels": {}}, "spec": spec}
    )
    made.settle()
    made.import_run()
    made.settle()

    assert said(made, "Serving").status == "True"


def test_a_held_rollout_wants_a_person() -> None:
    """Held: not ready, stalled, with the rollout's own words."""
    made = chosen()
    made.set_stage(only(made.rollouts), "Held", why="undecided after 7200 s")
    made.settle()

    assert ready(made) == ("False", "RolloutHeld")
    assert "undecided after 7200 s" in said(made, "Stalled").message


def test_no_rollout_starts_where_nothing_answers() -> None:
    """The rollout of a choice waits until the stable variant serves."""
    made = serving_source()
    made.pods_start = False
    made.deployments = {n: DeploymentState(n, {}, 1, 0) for n in made.deployments}
    made.end_run()
    made.settle()
    assert made.rollouts == {}
    assert ready(made) == ("False", "PodsNotReady")

    made.pods_start = True
    made.settle()
    assert len(made.rollouts) == 1


def test_what_a_person_promoted_stays() -> None:
    """After a hand-made rollout of another variant the policy does not roll its own again."""
    made = chosen()
    made.promote(only(made.rollouts))
    made.settle()
    other = next(
        v
        for v in made.variants.values()
        if v.meta.name not in {stable_of(made), made.run.status.baseline_variant}
    )
    spec = {"policyRef": {"name": "sentiment"}, "candidateRef": {"name": other.meta.name}}
    made._create(
        {"kind": "VariantRollout", "metadata": {"name": "by-hand", "labels": {}}, "spec": spec}
    )
    made.promote("by-hand")
    made.settle()

    assert stable_of(made) == other.meta.name
    assert len(made.rollouts) == 2
    assert ready(made) == ("True", "ServingAnother")


def test_a_new_source_that_nothing_beats_is_rolled_out() -> None:
    """When the variants of a new model all fail, its unchanged source replaces the old variant."""
    made = chosen()
    made.promote(only(made.rollouts))
    made.settle()
    made.change(gates=[{"name": "strict", "maxDropBasisPoints": 0}])
    made.settle()
    made.end_run(made.status.run)
    made.settle()
    newest = made.rollouts[made.status.rollout or ""]

    assert (
        newest.spec.candidate_ref.name == made.runs[made.status.run or ""].status.baseline_variant
    )


def test_an_unchanged_world_needs_no_status() -> None:
    """Nothing is written when nothing changed, however much time has passed."""
    made = chosen()
    made.now += 86_400
    plan = made.plan()

    assert {type(action) for action in plan.actions} == {Apply}
