# SPDX-License-Identifier: Apache-2.0
"""The ways back, what holds a rollout, and what decides nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.rollout_cluster import Behaviour
from tests.rollout_rules import at, kinds, ready, world
from tests.rollout_world import (
    CANDIDATE,
    NAME,
    STABLE,
    STRATEGY,
    name_of,
    service_of,
)

from kompakt.api import names
from kompakt.controllers import objects
from kompakt.controllers.plan import Plan
from kompakt.controllers.rollout import plan_rollout

SLOW, DISAGREES = Behaviour(slow=0.3), Behaviour(differ=0.3)


def test_disagreement_is_caught_before_a_user_sees_it() -> None:
    """An over-pruned candidate is rolled back within seconds of shadow traffic."""
    found = world(behaviour=DISAGREES)
    found.run(60, until=("Shadow",))
    started = found.now

    assert found.run(60, until=("RollingBack",)) == "RollingBack"

    assert found.now - started <= 5
    assert found.answered_by(CANDIDATE) == 0
    assert found.run(60) == "RolledBack"
    assert (ready(found).reason, ready(found).status) == ("DisagreementExceeded", "False")
    assert "mirrored answers differ from the stable variant's" in ready(found).message
    assert "above the limit of 5 %" in ready(found).message
    assert set(found.deployments) == {service_of(STABLE)}
    assert found.failed == 0


def test_a_starved_canary_is_caught_by_its_latency() -> None:
    """A candidate that becomes slow at its first step is rolled back within seconds, while the
    stable variant keeps its objective.
    """
    steps = [{"weightPermille": 100, "minimumRequests": 100_000}]
    found = at("Canary", canary={"steps": steps})
    found.run(5)
    started = found.now

    found.behaviours[objects.digest_label(CANDIDATE)] = SLOW

    assert found.run(60, until=("RollingBack",)) == "RollingBack"
    assert found.now - started <= 15
    assert found.reasons[-1] == "LatencyObjectiveMissed"
    assert found.live.candidate_permille == 0
    assert found.run(30) == "RolledBack"
    assert found.failed == 0


def test_the_transition_is_written_before_the_route_and_the_event_last() -> None:
    """A Fail is in the status first: whoever makes the next plan goes on rolling back."""
    found = at("Shadow", behaviour=DISAGREES, requests_per_second=0)
    found.requests_per_second = 200

    plan = found.step()

    assert kinds(plan) == ["WriteStatus", "HTTPRoute", "Emit"]


def test_a_drop_of_accuracy_is_caught_by_the_golden_set() -> None:
    """Labels catch what agrees with nobody's expectation of disagreement."""
    found = world(behaviour=Behaviour(lost=60), shadow={"percent": 1, "minimumPairs": 1})

    assert found.run(120) == "RolledBack"
    assert "AccuracyDropped" in found.reasons


def test_a_regression_after_promotion_returns_to_the_former_variant() -> None:
    """While it is watched, the former stable variant is warm: the way back is one route write."""
    found = at("Watching")
    assert found.deployments[service_of(STABLE)].ready(found.now)

    found.behaviours[objects.digest_label(CANDIDATE)] = Behaviour(error=0.2)

    assert found.run(60) == "RolledBack"
    assert found.reasons[-2:] == ["AvailabilityObjectiveMissed"] * 2
    assert found.live.annotations == {names.STABLE_ANNOTATION: name_of(STABLE)}
    assert set(found.deployments) == {service_of(STABLE)}
    assert found.failed == 0


def test_an_unready_candidate_loses_its_weight_at_once() -> None:
    """Weight is never kept on pods that do not answer."""
    found = at("Canary")

    found.break_pods(CANDIDATE)
    found.step()

    assert (found.stage, found.reasons[-1]) == ("RollingBack", "CandidateUnready")
    assert found.live.candidate_permille == 0


def test_the_way_back_waits_for_the_former_variant() -> None:
    """While the promoted variant answers, users are not sent to pods that do not."""
    found = at("Watching")
    found.break_pods(STABLE)
    found.annotate("abort")
    found.run(15)
    assert (found.stage, found.live.stable_backend) == ("RollingBack", service_of(CANDIDATE))
    assert "waiting for the pods of" in ready(found).message

    found.break_pods(STABLE, broken=False)

    assert found.run(30) == "RolledBack"
    assert (found.live.stable_backend, found.failed) == (service_of(STABLE), 0)


def test_when_nobody_answers_the_stable_variant_is_the_better_bet() -> None:
    """With both variants down, traffic goes where it is known to have worked."""
    found = at("Watching")
    found.break_pods(STABLE)
    found.break_pods(CANDIDATE)

    found.step()

    assert (found.stage, found.live.stable_backend) == ("RollingBack", service_of(STABLE))


def test_a_former_variant_that_somebody_deleted_is_made_again() -> None:
    """What must be warm is made warm."""
    found = at("Watching")
    found.remove_pods(service_of(STABLE))

    found.step()

    assert service_of(STABLE) in found.deployments


@pytest.mark.parametrize("stage", ["Pending", "Shadow", "Canary", "Promoting", "Watching"])
def test_an_abort_works_in_every_stage(stage: str) -> None:
    """All traffic on the stable variant, everything else removed, and who asked for it recorded."""
    found = world(requests_per_second=20)
    found.run(120, until=(stage,))

    found.annotate("abort", actor="eve")

    assert found.run(60) == "RolledBack"
    assert found.status.decisions[-2].actor == "eve"
    assert (found.live.stable_backend, found.live.candidate_permille) == (service_of(STABLE), 0)
    assert set(found.deployments) == {service_of(STABLE)}
    assert found.failed == 0


def test_a_rollout_that_is_over_does_not_obey() -> None:
    """An annotation that stays behind moves nothing."""
    found = world(behaviour=DISAGREES)
    found.run(60)
    found.annotate("promote")

    plan = found.step()

    assert plan == Plan()


def test_a_gateway_that_refuses_the_route_is_an_error() -> None:
    """When a working gateway does not take the candidate's weight, the rollout goes back."""
    found = at("Shadow", requests_per_second=10)
    found.run(60, until=("Canary",))
    found.gateway_refuses = True
    found.run(40, until=("RollingBack",))
    assert found.reasons[-1] == "RouteNotAccepted"

    found.gateway_refuses = False

    assert found.run(30) == "RolledBack"


def test_a_candidate_that_never_starts_is_given_up() -> None:
    """Preparation has the same deadline as the rest."""
    found = world(deadlineSeconds=30)
    found.step()
    found.break_pods(CANDIDATE)

    assert found.run(60) == "RolledBack"
    assert found.reasons[0] == "CandidateNotReady"
    assert "0 of 1 ready" in found.status.decisions[0].message


def test_an_old_read_does_not_end_the_way_back() -> None:
    """Before pods are deleted, the gateway must have taken the route at two looks: one of them may
    have shown a state from before.
    """
    found = world(requests_per_second=10)
    found.run(60, until=("Shadow",))
    found.step()
    found.gateway_refuses = True
    found.annotate("abort")
    found.step()
    found.step(stale=True)
    assert found.status.stage_started_unix_milliseconds is not None

    found.run(30)

    assert found.stage == "RollingBack"
    assert f"{NAME}-comparator" in found.deployments
    found.gateway_refuses = False
    assert found.run(30) == "RolledBack"


def test_weight_waits_for_every_pod() -> None:
    """A candidate that is made for all traffic gets none while a part of its pods is missing, and
    keeps what it has while one of them answers.
    """
    found = at("Canary", requests_per_second=10)
    before = found.observe()
    service = service_of(CANDIDATE)
    state = replace(before.deployments[service], desired=3, ready=2)
    partly = replace(before, deployments={**before.deployments, service: state})
    assert before.route is not None
    drifted = replace(partly, route=replace(before.route, candidate_permille=0))

    assert "HTTPRoute" not in kinds(plan_rollout(partly))
    assert "HTTPRoute" not in kinds(plan_rollout(drifted))
    assert "HTTPRoute" in kinds(plan_rollout(replace(drifted, deployments=before.deployments)))


# --- held ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["Shadow", "Canary"])
def test_a_gateway_that_is_down_holds_the_rollout(stage: str) -> None:
    """Traffic stays as it is, the condition says why, and it goes on when the gateway is back."""
    found = at(stage, requests_per_second=10)
    weight = found.live.candidate_permille
    found.gateway_works = False
    found.run(20)
    assert (found.stage, found.live.candidate_permille) == ("Held", weight)
    assert ready(found).reason == "GatewayNotReady"
    assert ready(found).message.startswith("the gateway does not work")

    found.gateway_works = True

    assert found.run(120) == "Succeeded"
    assert "GatewayReady" in found.reasons


def test_what_both_variants_suffer_is_the_environment() -> None:
    """Both are slow: nobody is to blame, the rollout is held, and goes on when it is over."""
    found = at("Canary", canary={"steps": [{"weightPermille": 500, "minimumRequests": 1000}]})
    for digest in (STABLE, CANDIDATE):
        found.behaviours[objects.digest_label(digest)] = SLOW
    found.run(60, until=("Held",))
    assert found.status.held_reason == "EnvironmentDegraded"
    assert "the stable variant misses it too" in ready(found).message
    found.run(70)
    assert (found.stage, found.live.candidate_permille) == ("Held", 500)

    found.behaviours.clear()

    assert found.run(200) == "Succeeded"
    assert "EnvironmentRecovered" in found.reasons


@pytest.mark.parametrize("stage", ["Shadow", "Canary"])
def test_a_stable_variant_that_is_always_too_slow_holds_nothing_for_good(stage: str) -> None:
    """It may be why there is a rollout at all: once the candidate keeps what both missed, it goes
    on.
    """
    found = at(stage, canary={"steps": [{"weightPermille": 500, "minimumRequests": 1000}]})
    for digest in (STABLE, CANDIDATE):
        found.behaviours[objects.digest_label(digest)] = SLOW
    found.run(60, until=("Held",))
    assert found.status.held_reason == "EnvironmentDegraded"

    del found.behaviours[objects.digest_label(CANDIDATE)]

    assert found.run(300) == "Succeeded"
    assert "EnvironmentRecovered" in found.reasons


def test_a_candidate_that_is_worse_is_rolled_back_from_a_hold() -> None:
    """Being held is no shelter."""
    found = at("Canary", canary={"steps": [{"weightPermille": 500, "minimumRequests": 1000}]})
    for digest in (STABLE, CANDIDATE):
        found.behaviours[objects.digest_label(digest)] = SLOW
    found.run(60, until=("Held",))

    found.behaviours[objects.digest_label(STABLE)] = Behaviour()

    assert found.run(60) == "RolledBack"
    assert found.reasons[-1] == "LatencyObjectiveMissed"


def test_a_metric_outage_decides_nothing() -> None:
    """Without figures there is neither a promotion nor a rollback, and the reason is told."""
    found = at("Canary", canary={"steps": [{"weightPermille": 500, "minimumRequests": 300}]})
    found.metrics_work = False
    found.run(60)
    assert (found.stage, found.reasons) == ("Canary", ["ShadowStarted", "ShadowPassed"])
    assert "no fresh figures" in ready(found).message
    assert {v.verdict for v in found.status.verdicts if v.slo in {"latency", "errors"}} == {
        "Undecided"
    }

    found.metrics_work = True

    assert found.run(120) == "Succeeded"


@pytest.mark.parametrize(("policy_says", "stage"), [("Hold", "Held"), ("Rollback", "RolledBack")])
def test_what_is_undecided_at_the_deadline(policy_says: str, stage: str) -> None:
    """Too little traffic to decide: a person must, or it goes back. Never is it promoted."""
    found = world(requests_per_second=1, deadlineSeconds=40, onInconclusive=policy_says)

    found.run(200)

    assert found.stage == stage
    assert "DeadlineExceeded" in found.reasons
    assert "of 60 answers compared" in found.status.decisions[1].message


def test_a_person_decides_what_is_held() -> None:
    """The hint in the message works."""
    found = world(requests_per_second=1, deadlineSeconds=60)
    found.run(200)
    assert "kompakt.dev/action" in ready(found).message

    found.annotate("promote")

    assert found.run(60) == "Succeeded"


def test_a_certificate_that_cannot_come_is_told_early() -> None:
    """At this traffic the objective needs more requests than the deadline leaves room for."""
    slo = STRATEGY["slos"][0] | {"goodBasisPoints": 9999}
    found = at("Canary", slos=[slo], requests_per_second=5)

    found.run(30)

    assert "objective latency cannot be certified before the deadline" in ready(found).message


def test_a_broken_limit_is_no_reason_to_go_on() -> None:
    """The minimum of samples is there, the objective is missed, and only whether the stable variant
    is any better is not clear yet: no user is to find out.
    """
    found = world(
        behaviour=Behaviour(slow=0.35),
        stable=Behaviour(slow=0.12),
        shadow={"percent": 100, "minimumPairs": 30},
        requests_per_second=30,
    )

    found.run(100)

    assert "ShadowPassed" not in found.reasons
    assert found.answered_by(CANDIDATE) == 0


def test_a_restarted_pod_is_written_down_at_once() -> None:
    """Between two checkpoints its counters could pass those of the old process unnoticed."""
    found = at("Canary", canary={"steps": [{"weightPermille": 100, "minimumRequests": 9999}]})
    found.run(30)
    while kinds(found.step()) == []:
        pass
    assert kinds(found.step()) == []

    found.restart_pods(STABLE)

    assert kinds(found.step()) == ["WriteStatus"]
