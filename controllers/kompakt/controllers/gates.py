# SPDX-License-Identifier: Apache-2.0
"""What a variant may lose: a policy's gates, beside what was measured.

A gate is decided on the confirmation split by an upper confidence bound of the drop: of accuracy by
the score test of paired counts, of Spearman's correlation by the bootstrapped standard error of the
paired difference (`kompakt.controllers.bounds`). The confidence is shared among the variants that
one is chosen from (Bonferroni), so that it holds for whichever of them is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kompakt.api.measure import Evaluation, PairedCorrelation, PairedCounts, SliceCounts
from kompakt.api.policy import Gate
from kompakt.controllers.bounds import (
    FEWEST_PAIRS,
    correlation_bound_basis_points,
    correlation_drop_basis_points,
    drop_basis_points,
    examples_needed,
    upper_bound_basis_points,
)

NOTHING_MEASURED = 100.0
"""How far beyond its limit a gate is counted that nothing is known of, in percentage points."""


@dataclass(frozen=True)
class Excess:
    """A limit that a variant does not keep."""

    reason: str
    message: str
    relative: float
    """How far it is beyond, as a share of the limit; for accuracy in percentage points."""


@dataclass(frozen=True)
class _Part:
    """What a gate looks at."""

    counts: PairedCounts | None
    correlation: PairedCorrelation | None
    where: str


def drops_seen(evaluation: Evaluation, gates: Sequence[Gate]) -> list[Excess]:
    """The gates that a variant is beyond by what was seen on the selection split."""
    excesses = []
    for gate in gates:
        correlated = gate.metric == "SpearmanCorrelation"
        drop = (
            correlation_drop_basis_points(evaluation.selection_correlation)
            if correlated
            else drop_basis_points(evaluation.selection)
        )
        if gate.slice is None and drop is not None and drop > gate.max_drop_basis_points:
            what = "ten-thousandths of Spearman's correlation" if correlated else "basis points"
            text = (
                f"gate {gate.name}: it loses {drop} {what} on the selection split,"
                f" {gate.max_drop_basis_points} are allowed"
            )
            reason = "CorrelationDropSeen" if correlated else "AccuracyDropSeen"
            excesses.append(Excess(reason, text, (drop - gate.max_drop_basis_points) / 100))
    return excesses


def gates_failed(evaluation: Evaluation, gates: Sequence[Gate], *, tried: int = 1) -> list[Excess]:
    """The gates that a variant does not pass on the confirmation split.

    Args:
        evaluation: Its measurement.
        gates: The policy's.
        tried: Among how many variants one is chosen.
    """
    return [
        excess
        for gate in gates
        for excess in [
            *(_excess(gate, part, tried=tried) for part in _parts(evaluation, gate)),
            _left_out(evaluation, gate),
        ]
        if excess is not None
    ]


def confidence_among(percent: int, tried: int) -> float:
    """Of each of so many bounds, so that all hold together with the confidence that is asked."""
    return 1 - (1 - percent / 100) / tried


def _parts(evaluation: Evaluation, gate: Gate) -> list[_Part]:
    """The whole, or each value of a slice field."""
    if gate.slice is None:
        return [_Part(evaluation.confirmation, evaluation.confirmation_correlation, "")]
    slices = [
        _Part(s, s.correlation, f" on {_name(s)}")
        for s in evaluation.slices
        if s.field == gate.slice
    ]
    return slices or [_Part(None, None, f" on {gate.slice}")]


def _left_out(evaluation: Evaluation, gate: Gate) -> Excess | None:
    """What is not there must not pass for kept."""
    if gate.slice not in evaluation.cut_slice_fields:
        return None
    text = (
        f"gate {gate.name}: {gate.slice} has more values than the result of a measurement has room"
        " for; divide the data into fewer, or name fewer sliceFields"
    )
    return Excess("GateNotMeasured", text, NOTHING_MEASURED)


def _name(counts: SliceCounts) -> str:
    return f"{counts.field}={counts.value}"


def _excess(gate: Gate, part: _Part, *, tried: int) -> Excess | None:
    confidence = confidence_among(gate.confidence_percent, tried)
    if gate.metric == "SpearmanCorrelation":
        return _of_correlation(gate, part.correlation, where=part.where, confidence=confidence)
    return _of_accuracy(gate, part.counts, where=part.where, confidence=confidence)


def _of_accuracy(
    gate: Gate, counts: PairedCounts | None, *, where: str, confidence: float
) -> Excess | None:
    if counts is None or counts.examples == 0:
        text = f"gate {gate.name}: nothing was measured{where}"
        return Excess("GateNotMeasured", text, NOTHING_MEASURED)
    bound = upper_bound_basis_points(counts, confidence=confidence)
    if bound is None or bound <= gate.max_drop_basis_points:
        return None
    beyond = bound - gate.max_drop_basis_points
    text = (
        f"gate {gate.name}: the drop{where} may be {bound} basis points at {confidence:.1%}"
        f" confidence (seen: {drop_basis_points(counts)}), {gate.max_drop_basis_points} are"
        f" allowed: {beyond} too many"
    )
    needed = examples_needed(gate.max_drop_basis_points, confidence=confidence)
    if needed is None or counts.examples < needed:
        least = "no number of them" if needed is None else f"at least {needed}"
        text += f"; {counts.examples} examples cannot show less, {least} could"
    return Excess("GateFailed", text, beyond / 100)


def _of_correlation(
    gate: Gate, found: PairedCorrelation | None, *, where: str, confidence: float
) -> Excess | None:
    if found is None or (bound := _bound(found, confidence)) is None:
        pairs = 0 if found is None else found.pairs
        text = (
            f"gate {gate.name}: {pairs} pairs with a correlation{where} are too few for a bound, at"
            f" least {FEWEST_PAIRS} are needed, in which scores differ"
        )
        return Excess("GateNotMeasured", text, NOTHING_MEASURED)
    if bound <= gate.max_drop_basis_points:
        return None
    beyond = bound - gate.max_drop_basis_points
    text = (
        f"gate {gate.name}: Spearman's correlation{where} may have dropped by {bound}"
        f" ten-thousandths at {confidence:.1%} confidence (seen:"
        f" {correlation_drop_basis_points(found)}), {gate.max_drop_basis_points} are allowed:"
        f" {beyond} too many"
    )
    return Excess("GateFailed", text, beyond / 100)


def _bound(found: PairedCorrelation, confidence: float) -> int | None:
    return correlation_bound_basis_points(found, confidence=confidence)
