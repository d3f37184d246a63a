# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
from tests.planning import BASELINE_DIGEST, counts, digest_of, measurement, variant

from kompakt.api.rollout import CounterPoint, Evidence, SloVerdict
from kompakt.api.strategy import Rollout
from kompakt.controllers import objectives
from kompakt.controllers.evidence import Ledger, counted
from kompakt.controllers.objectives import Assessment, Scope
from kompakt.controllers.plan import Variant

LATENCY = {
    "name": "latency",
    "type": "Latency",
    "thresholdMicroseconds": 25_000,
    "goodBasisPoints": 9900,
}
ERRORS = {"name": "errors", "type": "Availability", "goodBasisPoints": 9990}
AGREEMENT = {"name": "agreement", "type": "Disagreement", "maxExcessBasisPoints": 200}
ACCURACY = {"name": "accuracy", "type": "Accuracy", "maxDropBasisPoints": 150}
FRESH = {"Comparator": 1, "Candidate": 1, "Stable": 1}
SHADOW, CANARY = Scope(shadow=True, compares=False), Scope(shadow=False, compares=True)


def strategy(*slos: dict[str, Any]) -> Rollout:
    """A strategy with these objectives, and one step."""
    return Rollout.model_validate(
        {"canary": {"steps": [{"weightPermille": 500}]}, "slos": list(slos)}
    )


def assess(
    wire: dict[str, Any],
    candidate: tuple[int, int],
    *,
    reference: tuple[int, int] = (0, 1000),
    pooled: tuple[int, int] | None = None,
    others: tuple[dict[str, Any], ...] = (),
    scope: Scope = SHADOW,
    **changes: Any,
) -> Assessment:
    """The word on one objective, given (bad, total) of both variants."""
    rules = strategy(wire, *others)
    points = [
        CounterPoint(total=total, bad=bad)
        for bad, total in (candidate, reference, pooled or candidate)
    ]
    slo = rules.slos[0]
    evidence = Evidence(
        slo=slo.name,
        stage="Shadow",
        candidate=points[0],
        reference=points[1],
        pooled=points[2],
        counted=counted(slo),
    )
    defaults: dict[str, Any] = {"fresh": FRESH, "before": [], "restarts": 0, "offline": 0.02}
    ledger = Ledger(evidence=[evidence])
    return objectives.assess(rules, ledger, scope=scope, **(defaults | changes))[0]


def measured(digest: str, *, disagreements: int, examples: int = 3000) -> Variant:
    """A variant that differed from the baseline on so many examples."""
    found = measurement(digest)
    confirmation = counts(examples).evolve(disagreements=disagreements)
    figures = {
        "target": "edge",
        "state": "Measured",
        "evaluation": found.evaluation.evolve(confirmation=confirmation).to_wire(),
    }
    return variant(digest, figures=[figures], lineage={"baselineDigest": BASELINE_DIGEST})


@pytest.mark.parametrize(
    ("wire", "candidate", "reason"),
    [
        (LATENCY, (30, 100), "LatencyObjectiveMissed"),
        (ERRORS, (30, 100), "AvailabilityObjectiveMissed"),
        (AGREEMENT, (30, 100), "DisagreementExceeded"),
    ],
)
def test_what_is_clearly_bad_fails(
    wire: dict[str, Any], candidate: tuple[int, int], reason: str
) -> None:
    """Each type of objective has its own reason and its own words."""
    found = assess(wire, candidate)

    assert (found.failed, objectives.FAIL_REASONS[found.slo.type]) == (True, reason)
    assert found.verdict.message.startswith("30 of 100 mirrored")


@pytest.mark.parametrize(
    ("scope", "silent"),
    [(SHADOW, "Comparator"), (CANARY, "Candidate"), (CANARY, "Stable")],
)
def test_old_figures_decide_nothing(scope: Scope, silent: str) -> None:
    """Counts that say Fail are Undecided when nobody has heard of the pods for a while."""
    fresh = {role: pods for role, pods in FRESH.items() if role != silent}

    found = assess(LATENCY, (30, 100), scope=scope, fresh=fresh)

    assert found.verdict.verdict == "Undecided"
    assert f"no fresh figures of the {silent.lower()}" in found.verdict.message
    assert found.verdict.bad == 30


def test_the_budget_for_rollbacks_is_split_over_objectives_and_stages() -> None:
    """The same counts fail one objective alone, and are not enough when there are five of them."""
    others = tuple(ERRORS | {"name": f"other-{i}"} for i in range(15))
    candidate = next(
        (bad, 200) for bad in range(1, 200) if assess(LATENCY, (bad, 200), scope=CANARY).failed
    )

    assert not assess(LATENCY, candidate, scope=CANARY, others=others).failed
    assert not assess(LATENCY, candidate, scope=CANARY, restarts=6).failed


def test_agreement_is_compared_with_what_was_measured_offline() -> None:
    """A variant that was known to differ may differ, and a little more."""
    assert assess(AGREEMENT, (30, 300), offline=0.0).failed
    assert not assess(AGREEMENT, (30, 300), offline=0.1).failed
    unknown = assess(AGREEMENT, (30, 300), offline=None)
    assert unknown.failed
    assert "nothing was measured offline" in unknown.verdict.message


def test_offline_disagreement_is_an_upper_bound() -> None:
    """2 % of 3,000 examples may well be 2.5 % of all."""
    candidate = measured(digest_of("a"), disagreements=60)
    stable = variant(BASELINE_DIGEST)

    found = objectives.offline_disagreement(candidate, stable, target="edge")

    assert found is not None
    assert 0.023 < found < 0.032
    assert objectives.offline_disagreement(candidate, stable, target="other") is None


def test_two_compressed_variants_may_differ_by_both_their_shares() -> None:
    """Figures compare with the baseline: where another variant is stable, its share is added."""
    candidate = measured(digest_of("a"), disagreements=60)
    stable = measured(digest_of("b"), disagreements=60)
    alone = objectives.offline_disagreement(candidate, variant(BASELINE_DIGEST), target="edge")

    both = objectives.offline_disagreement(candidate, stable, target="edge")

    assert alone is not None
    assert both == pytest.approx(2 * alone)


def test_a_certificate_lasts() -> None:
    """Once passed, an objective need not pass again; another limit needs another certificate."""
    certify = LATENCY | {"mode": "Certify"}
    earned = assess(certify, (0, 100), pooled=(1, 5000), scope=CANARY)
    assert (earned.verdict.verdict, earned.certified) == ("Pass", True)

    later = assess(certify, (1, 50), scope=CANARY, before=[earned.verdict])
    other = assess(
        certify | {"goodBasisPoints": 9950}, (1, 50), scope=CANARY, before=[earned.verdict]
    )

    assert (later.verdict.verdict, later.certified) == ("Undecided", True)
    assert not other.certified


def test_a_guard_needs_no_certificate() -> None:
    """It only stops what is bad."""
    assert assess(LATENCY, (0, 10)).certified


def test_what_breaks_the_limit_is_no_reason_to_go_on() -> None:
    """A broken limit that the stable variant may break as well is no Fail, but noticed."""
    found = assess(LATENCY, (30, 100), reference=(2, 20))

    assert (found.failed, found.broken, found.environment) == (False, True, False)


def test_each_pass_over_the_golden_set_is_a_look() -> None:
    """The tenth look at the same examples must be much clearer than the first."""
    first = assess(ACCURACY, (40, 600), reference=(1, 5), pooled=(0, 1))
    tenth = assess(ACCURACY, (40, 600), reference=(1, 5), pooled=(0, 60))

    assert (first.failed, tenth.failed) == (True, False)
    assert isinstance(first.verdict, SloVerdict)


@pytest.mark.parametrize(("expected", "possible"), [(100, False), (1000, True)])
def test_what_cannot_be_certified_in_time_is_said(expected: float, possible: bool) -> None:  # noqa: FBT001
    """1 % at 95 % confidence takes some four hundred good requests."""
    rules = strategy(LATENCY | {"mode": "Certify"})

    text = objectives.shortfall(rules.slos[0], rules, Ledger(), expected=expected)

    assert (text == "") == possible
    assert possible or "needs about 410 more requests, and at most 100 will come" in text
