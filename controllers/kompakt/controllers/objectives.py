# SPDX-License-Identifier: Apache-2.0
"""Objectives of a rollout: limits, error budgets, and the judge's word on each.

Invariants:

- figures that are missing or old give Undecided, whatever the counts say;
- the budget for wrong rollbacks is split over objectives and stages, since any one of them rolls
  back; the budget for wrong promotions is not, since promotion needs every one;
- a certificate, once earned, stays as long as the objective is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kompakt.api.measure import PairedCounts
from kompakt.api.rollout import CounterPoint, SloVerdict
from kompakt.api.strategy import Rollout, Slo
from kompakt.controllers import judge
from kompakt.controllers.evidence import Ledger, Role
from kompakt.controllers.judge import Finding, Odds
from kompakt.controllers.plan import Variant

FULL = 10_000
FAIL_REASONS = {
    "Latency": "LatencyObjectiveMissed",
    "Availability": "AvailabilityObjectiveMissed",
    "Disagreement": "DisagreementExceeded",
    "Accuracy": "AccuracyDropped",
}
_OFFLINE_ALPHA = 0.05
_OFFLINE_LIMIT = 0.05
_MESSAGE_MAX = 1024


@dataclass(frozen=True)
class Scope:
    """Where the figures of a stage come from."""

    shadow: bool
    """From the comparator, of mirrored requests; else from the pods that answer users."""
    compares: bool
    """The stable variant answers users at the same time."""

    def roles(self, slo: Slo) -> tuple[Role, ...]:
        """Whose figures must be fresh."""
        if slo.type == "Accuracy":
            return ()
        if self.shadow:
            return ("Comparator",)
        if slo.type == "Disagreement":
            return ()
        return ("Candidate", "Stable") if self.compares else ("Candidate",)


@dataclass(frozen=True)
class Assessment:
    """The judge's word on one objective."""

    slo: Slo
    verdict: SloVerdict
    broken: bool = False
    """The limit is broken, whoever is to blame: no reason to go on."""
    environment: bool = False

    @property
    def failed(self) -> bool:
        """Whether it rolls back."""
        return self.verdict.verdict == "Fail"

    @property
    def certified(self) -> bool:
        """Whether it lets the candidate be promoted, as far as certificates go."""
        return self.slo.mode != "Certify" or self.verdict.certified == "True"


def offline_disagreement(candidate: Variant, stable: Variant, *, target: str) -> float | None:
    """Upper bound of the share of inputs on which the two variants differ, from what was measured
    before; None when nothing was.

    Figures compare a variant with the baseline. Where the stable variant is another one, the two
    shares add up at most.
    """
    ours = _disagreements(candidate, target)
    if ours is None:
        return None
    theirs = None if _is_baseline_of(stable, candidate) else _disagreements(stable, target)
    return sum(
        judge.upper_bound(
            CounterPoint(total=counts.examples, bad=counts.disagreements),
            _OFFLINE_ALPHA,
            limit=_OFFLINE_LIMIT,
        )
        for counts in (ours, theirs)
        if counts is not None
    )


def limit(slo: Slo, *, offline: float | None) -> float:
    """The largest ratio of bad ones, or the largest drop, that keeps an objective."""
    if slo.type == "Accuracy":
        return (slo.max_drop_basis_points or 0) / FULL
    if slo.type == "Disagreement":
        return min(1.0, (offline or 0.0) + (slo.max_excess_basis_points or 0) / FULL)
    return 1 - (slo.good_basis_points or 0) / FULL


def assess(
    strategy: Rollout,
    ledger: Ledger,
    *,
    scope: Scope,
    fresh: Mapping[Role, int],
    before: Sequence[SloVerdict],
    restarts: int,
    offline: float | None,
) -> list[Assessment]:
    """The judge's word on every objective."""
    earlier = {v.slo: v for v in before}
    return [
        _assess(
            slo,
            ledger,
            odds=_odds(slo, strategy, restarts=restarts, looks=ledger.of(slo).pooled.total),
            scope=scope,
            silent=[role for role in scope.roles(slo) if not fresh.get(role)],
            before=earlier.get(slo.name),
            offline=offline,
        )
        for slo in strategy.slos
    ]


def shortfall(slo: Slo, strategy: Rollout, ledger: Ledger, *, expected: float) -> str:
    """Why an objective cannot be certified any more, when so many requests are still to come; empty
    when it can.
    """
    if slo.mode != "Certify" or slo.type not in {"Latency", "Availability"}:
        return ""
    pooled = ledger.of(slo).pooled
    needed = judge.samples_needed(
        limit=limit(slo, offline=None),
        alpha=strategy.error_budgets.wrong_promotion_basis_points / FULL,
        ratio=pooled.bad / pooled.total if pooled.total else 0.0,
    )
    if needed is None or needed - pooled.total <= expected:
        return ""
    return (
        f"objective {slo.name} cannot be certified before the deadline: it needs about"
        f" {needed - pooled.total} more requests, and at most {int(expected)} will come at this"
        f" traffic; extend deadlineSeconds, lower goodBasisPoints, or use mode Guard"
    )


def _disagreements(variant: Variant, target: str) -> PairedCounts | None:
    figures = next((f for f in variant.spec.figures if f.target == target), None)
    if figures is None or figures.evaluation is None:
        return None
    counts = figures.evaluation.confirmation
    return counts if counts.examples else None


def _is_baseline_of(stable: Variant, candidate: Variant) -> bool:
    return stable.spec.digest == candidate.spec.lineage.baseline_digest


def _odds(slo: Slo, strategy: Rollout, *, restarts: int, looks: int) -> Odds:
    budgets = strategy.error_budgets
    wrong_fail = budgets.wrong_rollback_basis_points / FULL / len(strategy.slos)
    wrong_pass = budgets.wrong_promotion_basis_points / FULL
    if slo.type == "Accuracy":
        # The passes are looks at one sample.
        look = max(1, looks)
        return Odds(judge.share(wrong_fail, look), judge.share(wrong_pass, look))
    if slo.type == "Disagreement":
        return Odds(wrong_fail, wrong_pass)
    # Shadow, the steps, and Watching; each may begin anew after the environment was at fault.
    stages = len(strategy.canary.steps) + 2
    return Odds(judge.share(wrong_fail / stages, restarts + 1), wrong_pass)


def _claim(slo: Slo, *, shadow: bool) -> str:
    """What bad means, after a count."""
    if slo.type == "Disagreement":
        return "mirrored answers differ from the stable variant's"
    requests = "mirrored requests" if shadow else "requests"
    if slo.type == "Latency":
        milliseconds = f"{(slo.threshold_microseconds or 0) / 1000:g}"
        return f"{requests} took longer than {milliseconds} ms"
    return f"{requests} were not answered"


def _assess(
    slo: Slo,
    ledger: Ledger,
    *,
    odds: Odds,
    scope: Scope,
    silent: Sequence[Role],
    before: SloVerdict | None,
    offline: float | None,
) -> Assessment:
    evidence = ledger.of(slo)
    most = limit(slo, offline=offline)
    if slo.type == "Accuracy":
        found = judge.judge_drop(
            pairs=evidence.candidate.total,
            lost=evidence.candidate.bad,
            gained=evidence.reference.bad,
            limit=most,
            odds=odds,
        )
    else:
        compares = slo.type != "Disagreement" and (scope.shadow or scope.compares)
        found = judge.judge_ratio(
            evidence.candidate,
            claim=_claim(slo, shadow=scope.shadow),
            limit=most,
            odds=odds,
            pooled=evidence.pooled,
            reference=evidence.reference if compares else None,
            margin=slo.margin_basis_points / FULL,
        )
    verdict, message, environment = found.verdict, found.message, found.environment
    if silent:
        whose = " and the ".join(role.lower() for role in silent)
        verdict, environment = "Undecided", False
        message = f"no fresh figures of the {whose}; so far {message}"
    if slo.type == "Disagreement" and offline is None:
        message = f"{message} (nothing was measured offline: the limit is maxExcessBasisPoints)"
    return Assessment(
        slo=slo,
        verdict=SloVerdict(
            slo=slo.name,
            verdict=verdict,
            certified="True" if _certified(slo, found, verdict, before) else "False",
            total=found.total,
            bad=found.bad,
            low_basis_points=_basis_points(found.low),
            high_basis_points=_basis_points(found.high),
            limit_basis_points=_basis_points(most),
            message=message[:_MESSAGE_MAX],
        ),
        broken=found.broken,
        environment=environment,
    )


def _certified(slo: Slo, found: Finding, verdict: str, before: SloVerdict | None) -> bool:
    if slo.mode != "Certify":
        return False
    same = before is not None and before.limit_basis_points == _basis_points(found.limit)
    earlier = same and before is not None and before.certified == "True"
    return verdict == "Pass" or (earlier and verdict != "Fail")


def _basis_points(ratio: float) -> int:
    return min(FULL, max(0, round(FULL * ratio)))
