# SPDX-License-Identifier: Apache-2.0
"""A rollout, its policy or its candidate goes or changes in the middle of everything."""

from __future__ import annotations

import pytest
from tests.rollout_rules import at, world
from tests.rollout_world import (
    CANDIDATE,
    OTHER,
    STABLE,
    name_of,
    service_of,
)


@pytest.mark.parametrize("stage", ["Pending", "Shadow", "Canary"])
def test_a_deleted_rollout_puts_traffic_back_first(stage: str) -> None:
    """The finalizer holds it until the gateway has taken the route to the stable variant."""
    found = world(requests_per_second=20)
    found.run(60, until=(stage,))
    found.step()

    found.delete_rollout()

    assert found.run(40) is None
    assert (found.live.stable_backend, found.live.candidate_permille) == (service_of(STABLE), 0)
    assert set(found.deployments) == {service_of(STABLE)}
    assert found.failed == 0


def test_a_rollout_that_is_deleted_after_the_promotion_leaves_it() -> None:
    """What was promoted is the stable variant."""
    found = at("Watching")

    found.delete_rollout()

    assert found.run(40) is None
    assert set(found.deployments) == {service_of(CANDIDATE)}
    assert found.failed == 0


def test_a_deleted_policy_leaves_what_serves() -> None:
    """Without its policy a canary ends, and users are answered on by the stable variant."""
    found = at("Canary")

    found.delete_policy()

    assert found.run(60) is None
    assert (found.live.stable_backend, found.live.candidate_permille) == (service_of(STABLE), 0)
    assert found.failed == 0


def test_a_rollout_of_one_s_own_ends_with_its_policy() -> None:
    """Nobody deletes it, but there is nothing to roll out to any more."""
    found = at("Canary")

    found.policy = None

    assert found.run(60) == "RolledBack"
    assert found.status.decisions[-2].reason == "PolicyDeleted"


def test_a_policy_that_takes_everything_with_it() -> None:
    """With deletionPolicy Delete nothing is left, and nothing is made again."""
    found = at("Canary", deletion_policy="Delete")

    found.delete_policy()

    assert found.run(60) is None
    assert (found.route, found.deployments) == (None, {})


def test_another_candidate_starts_over() -> None:
    """Traffic goes back first, then the new candidate has its turn."""
    found = at("Canary")

    found.change_candidate(OTHER)

    assert found.run(200) == "Succeeded"
    assert "CandidateChanged" in found.reasons
    assert set(found.deployments) == {service_of(OTHER)}
    assert found.status.stable_variant == name_of(STABLE)
    assert found.failed == 0


def test_a_rollout_that_is_over_can_have_another_candidate() -> None:
    """The promoted variant is the stable one of the next attempt; an old wish is not obeyed
    again.
    """
    found = at("Shadow", requests_per_second=10)
    found.annotate("promote")
    found.run(60)
    assert found.reasons[1] == "PromotedByHand"

    found.change_candidate(OTHER)
    found.run(1)
    found.run(200)

    assert found.status.stable_variant == name_of(CANDIDATE)
    assert found.reasons.count("PromotedByHand") == 1
    assert found.reasons[-1] == "Succeeded"


def test_a_lost_status_is_recovered_from_the_route() -> None:
    """While a promotion is watched, the route itself tells the way back."""
    found = at("Watching")
    found.lose_status()
    found.step()
    assert (found.stage, found.status.stable_variant) == ("Watching", name_of(STABLE))

    found.annotate("abort")

    assert found.run(40) == "RolledBack"
    assert found.live.stable_backend == service_of(STABLE)
