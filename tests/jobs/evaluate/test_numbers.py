# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kompakt.jobs.data.examples import Dataset, Example, in_selection
from kompakt.jobs.evaluate.numbers import correlation, number_figures, ranks
from kompakt.jobs.evaluate.paired import evaluate


@given(st.integers(3, 200), st.integers(0, 2**16), st.integers(0, 2))
def test_figures_are_those_of_scipy(count: int, seed: int, decimals: int) -> None:
    """Correlations also with ties, which rounding makes."""
    rng = np.random.default_rng(seed)
    labels = np.round(rng.normal(size=count), decimals)
    found = np.round(labels + rng.normal(size=count), decimals)
    figures = number_figures(found, labels)
    errors = found - labels
    assert figures.mean_absolute_error_micros == round(np.mean(np.abs(errors)) * 1e6)
    assert figures.root_mean_squared_error_micros == round(np.mean(errors**2) ** 0.5 * 1e6)
    np.testing.assert_allclose(ranks(found), stats.rankdata(found))
    if np.ptp(found) == 0 or np.ptp(labels) == 0:
        assert (figures.pearson_basis_points, figures.spearman_basis_points) == (None, None)
        return
    pearson, spearman = stats.pearsonr(found, labels)[0], stats.spearmanr(found, labels)[0]
    assert figures.pearson_basis_points == pytest.approx(pearson * 10_000, abs=0.51)
    assert figures.spearman_basis_points == pytest.approx(spearman * 10_000, abs=0.51)


def test_what_does_not_vary_has_no_correlation() -> None:
    """A model that answers always the same is not told to be uncorrelated, nor to be perfect."""
    assert correlation(np.array([0.1, 0.1, 0.1]), np.array([1.0, 2.0, 3.0])) is None
    assert correlation(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 4.0])) == pytest.approx(1.0)


@given(st.integers(1, 100), st.integers(0, 2**16), st.floats(0.01, 2.0))
def test_a_number_is_right_within_the_tolerance(count: int, seed: int, tolerance: float) -> None:
    """Counted one by one; two numbers disagree that are farther apart than it."""
    rng = np.random.default_rng(seed)
    examples = tuple(Example(text=f"text {i}") for i in range(count))
    labels = rng.normal(size=count)
    theirs, ours = (
        (labels[:, None] + rng.normal(size=(count, 1))).astype(np.float32) for _ in range(2)
    )
    found = evaluate(
        Dataset(uri="file:///x", digest="sha256:" + "0" * 64, examples=examples),
        labels.tolist(),
        baseline=theirs,
        candidate=ours,
        selection_permille=250,
        task="Regression",
        tolerance=tolerance,
    )
    assert found.baseline_calibration_error is None
    assert found.candidate_numbers == number_figures(ours[:, 0].astype(np.float64), labels)
    for counts, wanted in ((found.selection, True), (found.confirmation, False)):
        chosen = [i for i in range(count) if in_selection(f"text {i}", 250) is wanted]
        before = [abs(float(theirs[i, 0]) - labels[i]) <= tolerance for i in chosen]
        after = [abs(float(ours[i, 0]) - labels[i]) <= tolerance for i in chosen]
        apart = [abs(float(ours[i, 0]) - float(theirs[i, 0])) > tolerance for i in chosen]
        assert counts.examples == len(chosen)
        assert counts.baseline_correct == sum(before)
        assert counts.candidate_correct == sum(after)
        assert counts.lost == sum(b and not a for b, a in zip(before, after, strict=True))
        assert counts.gained == sum(a and not b for b, a in zip(before, after, strict=True))
        assert counts.disagreements == sum(apart)
