# SPDX-License-Identifier: Apache-2.0
"""The good way of a rollout, from its beginning to its end, and what keeps it from beginning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.planning import SETTINGS
from tests.rollout_cluster import START
from tests.rollout_rules import at, kinds, ready, world
from tests.rollout_world import (
    CANDIDATE,
    NAME,
    OVER,
    STABLE,
    STRATEGY,
    World,
    name_of,
    service_of,
)

from kompakt.api import names
from kompakt.controllers.conditions import find
from kompakt.controllers.plan import Emit, Plan, SetFinalizer, WriteStatus
from kompakt.controllers.rollout import plan_rollout

HAPPY = ["ShadowStarted", "ShadowPassed", "StepPassed", "CanaryPassed", "Promoted", "Succeeded"]


def test_a_good_candidate_is_promoted() -> None:
    """Shadow, every step, promotion, watch; no user notices, and only what serves is left."""
    found = world()

    assert found.run(120) == "Succeeded"

    assert found.reasons == HAPPY
    assert [d.weight_permille for d in found.status.decisions] == [0, 100, 500, 1000, 1000, 1000]
    assert (found.failed, set(found.deployments)) == (0, {service_of(CANDIDATE)})
    assert found.live.annotations == {names.STABLE_ANNOTATION: name_of(CANDIDATE)}
    assert found.rollout is not None
    assert found.rollout.meta.finalizers == ()
    assert (ready(found).status, ready(found).reason) == ("True", "Succeeded")


def test_shadow_traffic_reaches_no_user() -> None:
    """While requests are mirrored, the candidate's answers go to the comparator alone."""
    found = at("Shadow", requests_per_second=20)

    assert (found.live.mirror_backend, found.live.mirror_percent) == (f"{NAME}-comparator", 100)
    assert found.live.candidate_permille == 0
    assert found.answered_by(CANDIDATE) == 0


def test_each_event_tells_one_transition() -> None:
    """Events and the decision log tell the same story, with counts."""
    found = world()
    found.run(120)

    assert [event.reason for event in found.events] == ["Preparing", *HAPPY]
    assert not any(event.warning for event in found.events)
    assert found.status.decisions[1].message.startswith("60 answers compared; latency Undecided")


def test_the_status_is_not_written_each_second() -> None:
    """Between two checkpoints the evidence follows from the counters; only decisions, verdicts and
    every tenth second are written.
    """
    found = at("Watching", watchSeconds=600)
    found.run(20)
    before = found.statuses_written

    found.run(100)

    assert found.statuses_written - before <= 11


def test_without_a_mirror_there_is_no_shadow() -> None:
    """At 0 % mirrored traffic the canary comes first, and nothing is made for a comparison."""
    slos = [slo for slo in STRATEGY["slos"] if slo["type"] in {"Latency", "Availability"}]
    found = world(shadow={"percent": 0}, slos=slos)

    found.run(8)

    assert found.reasons[0] == "CanaryStarted"
    assert set(found.deployments) == {service_of(STABLE), service_of(CANDIDATE)}
    assert found.run(120) == "Succeeded"


def test_without_objectives_the_minimum_of_samples_counts() -> None:
    """A rollout without objectives still goes step by step."""
    found = world(slos=[])

    assert found.run(120) == "Succeeded"
    assert found.reasons == HAPPY
    assert "no objectives" in found.status.decisions[1].message


def test_a_certificate_takes_the_requests_that_it_takes() -> None:
    """The minimum of requests is no certificate: the last step lasts until there is one."""
    slo = STRATEGY["slos"][0] | {"goodBasisPoints": 9970}
    found = world(slos=[slo], deadlineSeconds=3000)
    found.behaviours.clear()
    found.run(30)
    assert (found.stage, found.status.step) == ("Canary", 1)
    assert found.status.stage_samples is not None
    assert found.status.stage_samples > 100
    assert "latency is not certified" in ready(found).message

    assert found.run(200) == "Succeeded"
    assert found.status.verdicts[0].certified == "True"


def test_a_step_of_all_traffic_works() -> None:
    """At the last step the stable variant may be left without requests."""
    steps = [{"weightPermille": 1000, "minimumRequests": 100}]
    found = world(canary={"steps": steps})

    assert found.run(120) == "Succeeded"


def test_a_person_approves_where_the_strategy_asks_for_it() -> None:
    """Everything has passed, and nothing happens until somebody says so; who it was is recorded."""
    found = world(approval="Manual", deadlineSeconds=3000)
    found.run(100)
    assert (found.stage, ready(found).reason) == ("Canary", "AwaitingApproval")

    found.annotate("promote", actor="bob")

    assert found.run(60) == "Succeeded"
    promoted = found.status.decisions[-3]
    assert (promoted.reason, promoted.actor) == ("PromotedByHand", "bob")


@pytest.mark.parametrize("stage", ["Shadow", "Canary"])
def test_a_person_may_promote_what_is_undecided(stage: str) -> None:
    """A recorded human decision stands in for the judge, from any stage of the test."""
    found = at(stage, requests_per_second=1)

    found.annotate("promote")
    found.step()

    assert found.stage == "Promoting"
    assert found.run(60) == "Succeeded"


def test_the_action_field_does_what_the_annotation_does() -> None:
    """Who keeps the object in Git edits its spec."""
    found = at("Canary", requests_per_second=1)
    assert found.rollout is not None
    spec = found.rollout.spec.evolve(action="Abort")
    found.rollout = replace(found.rollout, spec=spec)

    assert found.run(30) == "RolledBack"
    assert found.status.decisions[-2].actor == "spec.action"


# --- before it begins ----------------------------------------------------------------------------


def refuse_policy(found: World) -> None:
    """No policy."""
    found.policy = None


def refuse_serving(found: World) -> None:
    """A policy that serves nothing."""
    assert found.policy is not None
    found.policy = replace(found.policy, spec=found.policy.spec.evolve(serving=None))


def suspend(found: World) -> None:
    """A suspended policy."""
    assert found.policy is not None
    found.policy = replace(found.policy, spec=found.policy.spec.evolve(suspend="Enabled"))


def lose_golden_set(found: World) -> None:
    """No labelled data."""
    assert found.policy is not None
    data = found.policy.spec.data.evolve(golden_set=None)
    found.policy = replace(found.policy, spec=found.policy.spec.evolve(data=data))


def rename_labels(found: World) -> None:
    """Another label set."""
    old = found.variants[name_of(CANDIDATE)]
    spec = old.spec.evolve(labels=["negative", "neutral"])
    found.variants[name_of(CANDIDATE)] = replace(old, spec=spec)


def unready(found: World) -> None:
    """A variant that nobody has looked at."""
    old = found.variants[name_of(CANDIDATE)]
    found.variants[name_of(CANDIDATE)] = replace(old, status=old.status.evolve(conditions=[]))


def forget_route(found: World) -> None:
    """Nothing serves yet."""
    found.route = found.taken = None


@pytest.mark.parametrize(
    ("spoil", "reason", "says"),
    [
        (refuse_policy, "PolicyNotFound", "CompressionPolicy sentiment not found"),
        (refuse_serving, "PolicyServesNothing", "spec.serving"),
        (suspend, "PolicySuspended", "spec.suspend"),
        (lambda w: w.variants.pop(name_of(CANDIDATE)), "VariantNotFound", name_of(CANDIDATE)),
        (lambda w: w.variants.pop(name_of(STABLE)), "StableVariantNotFound", name_of(STABLE)),
        (unready, "VariantNotReady", name_of(CANDIDATE)),
        (rename_labels, "LabelsDiffer", "neutral, positive"),
        (forget_route, "NothingServed", "first variant"),
        (lose_golden_set, "GoldenSetMissing", "spec.data.goldenSet"),
        (lambda w: setattr(w, "gateway_works", False), "GatewayNotReady", "not programmed"),
    ],
)
def test_a_rollout_that_cannot_begin_says_why(spoil: Any, reason: str, says: str) -> None:
    """It touches nothing, names what is missing, and says it once."""
    found = world()
    before = set(found.deployments)
    spoil(found)

    found.step()
    again = found.step()

    assert (found.stage, ready(found).reason) == ("Pending", reason)
    assert says in ready(found).message
    assert (set(found.deployments), kinds(again)) == (before, [])
    assert len(found.events) <= 1


def test_a_rollout_heals_when_what_was_missing_appears() -> None:
    """Nobody has to touch the rollout itself."""
    found = world()
    missing = found.variants.pop(name_of(CANDIDATE))
    found.run(20)
    assert find(found.status.conditions, "Stalled") is not None

    found.variants[missing.meta.name] = missing

    assert found.run(120) == "Succeeded"
    assert find(found.status.conditions, "Stalled") is None


def test_certifying_agreement_needs_mirrored_requests() -> None:
    """What could never be measured is refused at the door."""
    slo = STRATEGY["slos"][2] | {"mode": "Certify"}
    found = world(slos=[slo], shadow={"percent": 0})

    found.step()

    assert ready(found).reason == "ObjectiveNotMeasurable"


def test_what_serves_already_needs_no_rollout() -> None:
    """Success, and nothing touched."""
    found = world()
    found.change_candidate(STABLE)

    assert found.run(3) == "Succeeded"
    assert (ready(found).reason, set(found.deployments)) == ("AlreadyServing", {service_of(STABLE)})


def test_the_oldest_rollout_goes_first() -> None:
    """One at a time; the younger one names whom it waits for."""
    found = at("Canary")
    elder = found.rollout
    assert elder is not None
    young = world()
    assert young.rollout is not None
    meta = replace(young.rollout.meta, name="sentiment-2", created_unix_seconds=int(START) + 5)
    young.rollout = replace(young.rollout, meta=meta)
    young.others = (elder,)

    young.step()

    assert (young.stage, ready(young).reason) == ("Pending", "RolloutUnderWay")
    assert NAME in ready(young).message


def test_of_two_that_have_begun_the_younger_one_yields() -> None:
    """Should both have begun at the same moment, one of them goes back."""
    found = at("Canary")
    assert found.rollout is not None
    elder = replace(
        found.rollout,
        meta=replace(found.rollout.meta, name="sentiment-0", created_unix_seconds=1),
    )
    found.others = (elder,)

    found.step()

    assert found.reasons[-1] == "Superseded"
    # The elder has the same candidate: its pods stay.
    assert found.run(40) == "RolledBack"
    assert service_of(CANDIDATE) in found.deployments


def test_the_finalizer_is_there_before_the_first_pod() -> None:
    """Nothing is made that a deletion would not undo."""
    found = world()

    plan = plan_rollout(found.observe())

    assert isinstance(plan.actions[0], SetFinalizer)
    assert isinstance(plan.actions[1], WriteStatus)
    assert isinstance(plan.actions[-1], Emit)
    services = [i for i, kind in enumerate(kinds(plan)) if kind == "Service"]
    deployments = [i for i, kind in enumerate(kinds(plan)) if kind == "Deployment"]
    assert all(s < d for s, d in zip(services, deployments, strict=True))
    assert SETTINGS.serving_image


def test_over_means_over() -> None:
    """A finished rollout asks for nothing, not even to be looked at again."""
    found = world()
    found.run(120)

    assert found.stage in OVER
    assert plan_rollout(found.observe()) == Plan()
