# SPDX-License-Identifier: Apache-2.0
"""Gates on a correlation; those on accuracy are tested where variants are chosen by them."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.controllers.test_halving import looked
from tests.planning import measured, policy_spec
from tests.run_world import HALVING

from kompakt.api.measure import Evaluation, PairedCorrelation, SliceCounts
from kompakt.api.policy import Gate
from kompakt.api.run import FirstLook
from kompakt.controllers.bounds import (
    FEWEST_PAIRS,
    correlation_bound_basis_points,
    correlation_drop_basis_points,
)
from kompakt.controllers.gates import drops_seen, gates_failed
from kompakt.controllers.halving import decided
from kompakt.jobs.evaluate.embeddings import Pairs

RANKS = Gate(name="ranks", metric="SpearmanCorrelation", max_drop_basis_points=200)


def correlation(drop: int, error: int, *, pairs: int = 1000) -> PairedCorrelation:
    """Of 0.82 before; drop and error in ten-thousandths."""
    return PairedCorrelation(
        pairs=pairs,
        baseline_basis_points=8200,
        candidate_basis_points=8200 - drop,
        drop_micros=drop * 100,
        standard_error_micros=error * 100,
    )


def evaluation(**correlations: PairedCorrelation | None) -> Evaluation:
    """With correlations by split; accuracy is beyond any gate."""
    found = measured(lost=2000).evaluation
    assert found is not None
    return found.evolve(**correlations)


@pytest.mark.parametrize(
    ("found", "tried", "reason"),
    [
        (correlation(100, 60), 1, None),  # 100 + 1.645 * 60 = 198.7
        (correlation(100, 61), 1, "GateFailed"),  # 200.3
        (correlation(100, 60), 2, "GateFailed"),  # one of two: 1.96 * 60
        (correlation(-300, 60), 9, None),
        (correlation(0, 0), 1, None),
        (correlation(0, 0, pairs=FEWEST_PAIRS - 1), 1, "GateNotMeasured"),
        (None, 1, "GateNotMeasured"),
    ],
)
def test_a_correlation_is_bounded(
    found: PairedCorrelation | None, tried: int, reason: str | None
) -> None:
    """By its standard error, at a confidence that is shared among those that were tried."""
    excesses = gates_failed(evaluation(confirmation_correlation=found), [RANKS], tried=tried)
    assert [excess.reason for excess in excesses] == ([] if reason is None else [reason])


def test_what_fails_is_said_with_its_figures() -> None:
    """And what lacks with what is needed."""
    [excess] = gates_failed(evaluation(confirmation_correlation=correlation(180, 60)), [RANKS])
    assert "may have dropped by 279 ten-thousandths at 95.0% confidence (seen: 180)" in (
        excess.message
    )
    assert excess.relative == pytest.approx(0.79)
    [excess] = gates_failed(evaluation(), [RANKS])
    assert "0 pairs with a correlation are too few for a bound, at least 100" in excess.message


def test_every_value_of_a_slice_must_keep_its_correlation() -> None:
    """Of those that have pairs, and of those that have too few."""
    gate = RANKS.evolve(slice="domain")
    parts = [
        SliceCounts(field="domain", value=value, examples=9, correlation=found)
        for value, found in (("a", correlation(0, 50)), ("b", correlation(300, 50)), ("c", None))
    ]
    found = gates_failed(evaluation().evolve(slices=parts), [gate])
    assert [excess.reason for excess in found] == ["GateFailed", "GateNotMeasured"]
    assert "on domain=b" in found[0].message
    assert "on domain=c" in found[1].message


@pytest.mark.parametrize("metric", ["Accuracy", "SpearmanCorrelation"])
def test_a_gate_on_slices_holds_for_none_that_was_left_out(metric: Any) -> None:
    """All values that are there keep it, and others are not there; another field is no matter."""
    gate = RANKS.evolve(metric=metric, slice="domain")
    counts = {"examples": 900, "baseline_correct": 800, "candidate_correct": 800}
    whole = evaluation().evolve(
        slices=[SliceCounts(field="domain", value="a", **counts, correlation=correlation(0, 50))],
        cut_slice_fields=["author"],
    )
    assert gates_failed(whole, [gate]) == []
    [excess] = gates_failed(whole.evolve(cut_slice_fields=["author", "domain"]), [gate])
    assert excess.reason == "GateNotMeasured"
    assert "gate ranks: domain has more values than" in excess.message
    assert gates_failed(whole.evolve(cut_slice_fields=["domain"]), []) == []


def test_the_selection_split_drops_the_hopeless() -> None:
    """By what was seen, without a bound; where nothing was, nothing is held against it."""
    seen = drops_seen(evaluation(selection_correlation=correlation(201, 500)), [RANKS])
    assert [excess.reason for excess in seen] == ["CorrelationDropSeen"]
    assert drops_seen(evaluation(selection_correlation=correlation(200, 500)), [RANKS]) == []
    assert drops_seen(evaluation(), [RANKS]) == []
    accuracy = RANKS.evolve(metric="Accuracy")
    assert [e.reason for e in drops_seen(evaluation(), [accuracy])] == ["AccuracyDropSeen"]


@pytest.mark.parametrize(("drop", "stops"), [(250, False), (400, True)])
def test_a_first_look_stops_what_cannot_pass(drop: int, stops: bool) -> None:  # noqa: FBT001
    """By the lower bound of the drop: 250 may be noise, 400 is none."""
    spec = policy_spec(search=HALVING).evolve(gates=[RANKS])
    trial = looked(1)
    assert trial.first_look is not None
    look = trial.first_look.evaluation.evolve(selection_correlation=correlation(drop, 80))
    trial = trial.evolve(first_look=trial.first_look.evolve(evaluation=look))
    [found] = decided([trial], spec)
    assert isinstance(found.first_look, FirstLook)
    reason = found.first_look.reason
    assert (reason == "DropTooLarge") == stops
    if stops:
        assert "1000 pairs of the selection split" in found.first_look.message


def test_nothing_is_bounded_by_few_pairs() -> None:
    """And a drop that nobody saw is none."""
    assert correlation_bound_basis_points(correlation(0, 1, pairs=99), confidence=0.95) is None
    assert correlation_drop_basis_points(None) is None


@given(
    drop=st.integers(-1800, 5000),
    error=st.integers(0, 5000),
    confidence=st.floats(0.51, 0.999),
)
def test_the_bound_is_above_what_was_seen(drop: int, error: int, confidence: float) -> None:
    """By the normal quantile, and rounded up."""
    found = correlation(drop, error)
    bound = correlation_bound_basis_points(found, confidence=confidence)
    assert bound is not None
    exact = drop + NormalDist().inv_cdf(confidence) * error
    assert exact - 1e-6 <= bound < exact + 1 + 1e-6
    assert correlation_drop_basis_points(found) == drop


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"noise": 0.3, "rounded": 1}, {"noise": 1.0, "rounded": 0}])
def test_the_bound_covers_the_true_drop(settings: dict[str, Any]) -> None:
    """Nineteen times of twenty, of fewest pairs too, with scores on a scale of some grades."""
    draw = np.random.default_rng(1)

    def sample(count: int) -> Pairs:
        truth = draw.normal(size=count)
        scores = (truth + draw.normal(size=count) / 2).round(settings["rounded"])
        theirs = truth + draw.normal(size=count) / 2
        return Pairs(scores, theirs, theirs + draw.normal(size=count) * settings["noise"])

    many = sample(200_000).correlation(np.ones(200_000, dtype=np.bool_), draws=2)
    assert many is not None
    covered = 0
    for _ in range(200):
        found = sample(FEWEST_PAIRS).correlation(np.ones(FEWEST_PAIRS, dtype=np.bool_), draws=100)
        assert found is not None
        bound = correlation_bound_basis_points(found, confidence=0.95)
        assert bound is not None
        covered += bound >= many.drop_micros / 100
    assert 0.9 <= covered / 200 <= 0.995
