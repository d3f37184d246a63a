# SPDX-License-Identifier: Apache-2.0
"""The choice for a target: gates first, then the Pareto front, then what the policy optimizes for.

Variants are ranked, and the hopeless ones dropped, by the selection split of the evaluation data.
The gates are decided on the confirmation split, which had no part in that: the best of twelve is
biased on the split that chose it. Each gate is a bound on the paired accuracy drop at its
confidence, shared among the variants that are tried (Bonferroni), so that it holds for whichever of
them is chosen.

Invariants:

- what was not measured, or only in part, is never ranked: it is rejected with a reason;
- the source itself takes part with a drop of zero, and is the choice when nothing else passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kompakt.api.measure import Benchmark, Evaluation, LatencyFigures, PairedCounts
from kompakt.api.policy import Gate, Optimize, Target
from kompakt.api.run import Choice, Rejection, TargetResult
from kompakt.controllers.bounds import drop_basis_points, upper_bound_basis_points
from kompakt.controllers.gates import Excess, confidence_among, drops_seen, gates_failed

NO_VARIANT = "NoVariantPassesGates"
"""The reason of a choice that is no variant: the source goes on."""
_FULL = 10_000
_MEBIBYTE = 2**20
_MILLION = 1_000_000
_MESSAGE_MAX = 1000
_DEFAULT_CONFIDENCE_PERCENT = 95
_BEST: dict[Optimize, str] = {
    "Cost": "LowestCost",
    "Latency": "LowestLatency",
    "Size": "SmallestSize",
    "Energy": "LowestEnergy",
    "Accuracy": "HighestAccuracy",
}


@dataclass(frozen=True)
class Candidate:
    """A variant that may be chosen for a target, as far as it got."""

    name: str
    """For people: the recipe."""
    trial: int | None = None
    """None for the source itself."""
    variant: str | None = None
    """Name of its ModelVariant."""
    size_bytes: int | None = None
    figures: TargetResult | None = None
    """On the target."""
    reason: str = "NotMeasured"
    message: str = ""
    """Why it has no figures."""

    @property
    def label(self) -> str:
        """How messages call it."""
        return self.name if self.trial is None else f"trial {self.trial} ({self.name})"


@dataclass(frozen=True)
class Evidence:
    """A complete measurement on a target."""

    evaluation: Evaluation
    benchmark: Benchmark
    size_bytes: int


@dataclass(frozen=True)
class _Verdict:
    candidate: Candidate
    evidence: Evidence
    excesses: tuple[Excess, ...]


def evidence(figures: TargetResult | None, *, size_bytes: int | None) -> Evidence | None:
    """The figures on a target, if they are all there; zeros are what a Job leaves out."""
    if figures is None or figures.state != "Measured" or not size_bytes:
        return None
    evaluation, benchmark = figures.evaluation, figures.benchmark
    if evaluation is None or benchmark is None:
        return None
    splits = (evaluation.selection, evaluation.confirmation)
    timed = (benchmark.baseline, benchmark.candidate)
    whole = all(split.examples for split in splits) and all(
        side.mean_microseconds and side.p50_microseconds for side in timed
    )
    return Evidence(evaluation, benchmark, size_bytes) if whole else None


def latency(figures: LatencyFigures, percentile: str) -> int:
    """A percentile in microseconds: of P99 its upper bound, if samples sufficed for one."""
    if percentile == "P99":
        return figures.p99_upper_microseconds or figures.p99_microseconds
    by_name = {
        "P50": figures.p50_microseconds,
        "P90": figures.p90_microseconds,
        "P95": figures.p95_microseconds,
    }
    return by_name[percentile]


def objective(found: Evidence, *, optimize_for: Optimize, target: Target) -> float:
    """What is minimized. Times are relative to the baseline's in the same benchmark: benchmarks run
    one after the other, and what slowed one of them slowed both its sides.
    """
    if optimize_for == "Size":
        return float(found.size_bytes)
    if optimize_for == "Accuracy":
        return _rate(found.evaluation.selection)
    if optimize_for == "Latency":
        percentile = target.latency.percentile if target.latency else "P50"
        candidate = latency(found.benchmark.candidate, percentile)
        return candidate / max(1, latency(found.benchmark.baseline, percentile))
    # On one target cost and energy are both proportional to the time that a request takes.
    return _relative_mean(found)


def limits(found: Evidence, *, target: Target) -> list[Excess]:
    """The limits of the target that a variant does not keep."""
    excesses = []
    if target.latency is not None:
        bound, percentile = target.latency.threshold_microseconds, target.latency.percentile
        seen = latency(found.benchmark.candidate, percentile)
        if seen == 0 or seen > bound:
            text = f"its {percentile} latency is {seen} µs, {bound} µs are allowed"
            missing = f"its {percentile} latency was not measured"
            excesses.append(Excess("TooSlow", text if seen else missing, seen / bound - 1))
    if target.max_size_mebibytes is not None:
        most = target.max_size_mebibytes * _MEBIBYTE
        if found.size_bytes > most:
            size = found.size_bytes / _MEBIBYTE
            text = f"it has {size:.1f} MiB, {target.max_size_mebibytes} MiB are allowed"
            excesses.append(Excess("TooLarge", text, found.size_bytes / most - 1))
    return excesses


def choose(
    target: Target,
    candidates: Sequence[Candidate],
    *,
    gates: Sequence[Gate],
    optimize_for: Optimize,
) -> Choice:
    """The choice for a target, with a reason for each variant that is not it.

    Args:
        target: Where it must run, and what it must keep there.
        candidates: All trials, and the source itself.
        gates: What a variant may lose.
        optimize_for: What decides among those that pass.
    """
    rejections: list[Rejection] = []
    contenders: list[_Verdict] = []
    source = next((c for c in candidates if c.trial is None), None)
    for candidate in candidates:
        found = evidence(candidate.figures, size_bytes=candidate.size_bytes)
        if found is None:
            text = candidate.message or f"it was not measured on {target.name}"
            _reject(rejections, candidate, reason=candidate.reason, message=text)
            continue
        excesses = limits(found, target=target)
        if candidate.trial is not None:
            excesses += drops_seen(found.evaluation, gates)
        if excesses:
            _reject_for(rejections, candidate, excesses)
        contenders.append(_Verdict(candidate, found, tuple(excesses)))

    eligible = [v for v in contenders if not v.excesses]
    tried = max(1, sum(v.candidate.trial is not None for v in eligible))
    passing: list[_Verdict] = []
    for verdict in sorted(eligible, key=_order(optimize_for, target)):
        failed = (
            gates_failed(verdict.evidence.evaluation, gates, tried=tried)
            if verdict.candidate.trial is not None
            else []
        )
        if failed:
            _reject_for(rejections, verdict.candidate, failed)
        else:
            passing.append(verdict)
    if all(verdict.candidate.trial is None for verdict in passing):
        return _none(target, source, rejections)
    best, others = passing[0], passing[1:]
    for other in others:
        text = f"it passes, but {best.candidate.label} is better by {optimize_for}"
        _reject(rejections, other.candidate, reason="NotBest", message=text)
    bound = _strictest(best.evidence.evaluation, gates, tried=tried)
    drop = drop_basis_points(best.evidence.evaluation.confirmation)
    is_source = best.candidate.trial is None
    return Choice(
        target=target.name,
        trial=best.candidate.trial,
        variant=best.candidate.variant,
        accuracy_drop_basis_points=0 if is_source else drop,
        accuracy_drop_upper_bound_basis_points=0 if is_source else bound,
        reason="SourceIsBest" if is_source else _BEST[optimize_for],
        message=_praise(best, drop=drop, bound=bound, passing=len(passing)),
        pareto_front=_front([v for v in passing if v.candidate.trial is not None]),
        rejections=sorted(rejections, key=lambda r: r.trial),
    )


def _strictest(evaluation: Evaluation, gates: Sequence[Gate], *, tried: int) -> int | None:
    percents = [g.confidence_percent for g in gates if g.slice is None]
    confidence = confidence_among(max(percents, default=_DEFAULT_CONFIDENCE_PERCENT), tried)
    return upper_bound_basis_points(evaluation.confirmation, confidence=confidence)


# --- ranking -------------------------------------------------------------------------------------


def _rate(counts: PairedCounts) -> float:
    return (counts.lost - counts.gained) / counts.examples


def _relative_mean(found: Evidence) -> float:
    timed = found.benchmark
    return timed.candidate.mean_microseconds / timed.baseline.mean_microseconds


def _order(
    optimize_for: Optimize, target: Target
) -> Callable[[_Verdict], tuple[float, float, int, int]]:
    """By the objective; what is equal in it by speed, by size, then by age."""

    def key(verdict: _Verdict) -> tuple[float, float, int, int]:
        found, trial = verdict.evidence, verdict.candidate.trial
        return (
            objective(found, optimize_for=optimize_for, target=target),
            _relative_mean(found),
            found.size_bytes,
            _FULL if trial is None else trial,
        )

    return key


def _front(verdicts: Sequence[_Verdict]) -> list[int]:
    """Trials that no other beats in drop, median latency, size and cost at once."""

    def point(verdict: _Verdict) -> tuple[float, float, int, float]:
        found = verdict.evidence
        counts = (found.evaluation.selection, found.evaluation.confirmation)
        drop = sum(c.lost - c.gained for c in counts) / sum(c.examples for c in counts)
        timed = found.benchmark
        median = timed.candidate.p50_microseconds / timed.baseline.p50_microseconds
        return drop, median, found.size_bytes, _relative_mean(found)

    points = {v.candidate.trial: point(v) for v in verdicts}

    def beaten(mine: tuple[float, ...]) -> bool:
        return any(
            other != mine and all(a <= b for a, b in zip(other, mine, strict=True))
            for other in points.values()
        )

    return sorted(t for t, mine in points.items() if t is not None and not beaten(mine))


# --- words ---------------------------------------------------------------------------------------


def _praise(best: _Verdict, *, drop: int | None, bound: int | None, passing: int) -> str:
    found = best.evidence
    cost = best.candidate.figures and best.candidate.figures.cost_micros_per_million
    timed = found.benchmark
    parts = [
        f"{timed.speedup_permille / 1000:.2f} times as fast as the source",
        f"median {timed.candidate.p50_microseconds} µs",
        f"{found.size_bytes / _MEBIBYTE:.1f} MiB",
    ]
    if best.candidate.trial is not None:
        parts.append(f"accuracy drop {drop} basis points, at most {bound}")
    if best.candidate.trial is not None and (pairs := found.evaluation.confirmation_correlation):
        theirs, ours = pairs.baseline_basis_points / 100, pairs.candidate_basis_points / 100
        parts.append(f"Spearman's correlation {ours:.2f}, the source's {theirs:.2f}")
    if cost:
        parts.append(f"{cost / _MILLION:.3f} per million inferences, in the profile's currency")
    return f"{best.candidate.label}, best of {passing} that pass: {', '.join(parts)}"


def _reject(
    rejections: list[Rejection], candidate: Candidate, *, reason: str, message: str
) -> None:
    if candidate.trial is not None:
        rejections.append(
            Rejection(trial=candidate.trial, reason=reason, message=message[:_MESSAGE_MAX])
        )


def _reject_for(
    rejections: list[Rejection], candidate: Candidate, excesses: Sequence[Excess]
) -> None:
    worst = max(excesses, key=lambda e: e.relative)
    text = "; ".join(e.message for e in excesses)
    _reject(rejections, candidate, reason=worst.reason, message=text)


def _none(target: Target, source: Candidate | None, rejections: list[Rejection]) -> Choice:
    ordered = sorted(rejections, key=lambda r: r.trial)
    why = "; ".join(f"trial {r.trial}: {r.message}" for r in ordered)
    text = f"no variant passes, the source goes on: {why or 'there is none'}"
    return Choice(
        target=target.name,
        variant=source.variant if source else None,
        reason=NO_VARIANT,
        message=text[:_MESSAGE_MAX],
        rejections=ordered,
    )
