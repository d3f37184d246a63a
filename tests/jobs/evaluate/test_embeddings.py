# SPDX-License-Identifier: Apache-2.0
"""Embeddings beside the baseline's, and pairs of texts beside what people say."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray

from kompakt.jobs.data.examples import Dataset, Example, in_selection
from kompakt.jobs.evaluate.embeddings import Pairs, cosine_figures, cosines, nearest
from kompakt.jobs.evaluate.paired import MAX_SLICES, evaluate
from kompakt.jobs.models.session import Logits

RNG = np.random.default_rng(0)


def vectors(count: int, width: int = 8) -> Logits:
    """Random ones of all lengths."""
    found = RNG.normal(size=(count, width)) * RNG.uniform(0.5, 3, (count, 1))
    return found.astype(np.float32)


def moved(before: Logits, by: float) -> Logits:
    """All of them, by about so much."""
    return (before + by * RNG.normal(size=before.shape)).astype(np.float32)


def test_cosines_are_those_of_scipy() -> None:
    """Of any length; what is not a number is as far away as can be."""
    one, other = vectors(20), vectors(20)
    expected = [1 - scipy.spatial.distance.cosine(a, b) for a, b in zip(one, other, strict=True)]
    found = cosines(one, other)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    one[3, 0] = np.nan
    broken = cosines(one, other)
    assert math.isnan(broken[3])
    assert nearest(broken, 10)[3] == -1
    np.testing.assert_allclose(
        nearest(found, 10), np.minimum(expected[:10], expected[10:]), atol=1e-6
    )
    figures = cosine_figures(found)
    assert figures.mean_basis_points == round(float(np.mean(found)) * 1e4)
    assert figures.least_basis_points == round(float(np.min(found)) * 1e4)
    assert figures.fifth_percentile_basis_points == round(float(np.percentile(found, 5)) * 1e4)
    assert cosine_figures(broken).least_basis_points == -10_000


def dataset(count: int, *, pairs: bool) -> Dataset:
    """Texts with a slice; of pairs a second text."""
    examples = tuple(
        Example(
            text=f"text {number}",
            second=f"other {number}" if pairs else None,
            slices={"part": "even" if number % 2 == 0 else "odd"},
        )
        for number in range(count)
    )
    return Dataset(uri="file:///x", digest="sha256:" + "0" * 64, examples=examples)


def test_texts_alone_are_right_as_long_as_they_stay_near() -> None:
    """Lost are those whose vector went too far from the baseline's; nothing can be gained."""
    before = vectors(200)
    after = moved(before, 1.0)
    found = evaluate(
        dataset(200, pairs=False),
        [math.nan] * 200,
        task="SentenceEmbedding",
        tolerance=0.1,
        baseline=before,
        candidate=after,
        selection_permille=300,
    )
    far = cosines(before, after) < 0.9
    chosen = np.array([in_selection(f"text {n}", 300) for n in range(200)])
    assert 0 < far.sum() < 200
    for counts, among in ((found.selection, chosen), (found.confirmation, ~chosen)):
        assert counts.examples == counts.baseline_correct == among.sum()
        assert counts.lost == counts.disagreements == (far & among).sum()
        assert counts.candidate_correct == (~far & among).sum()
        assert counts.gained == 0
    assert found.cosines == cosine_figures(cosines(before, after))
    assert found.confirmation_correlation is found.selection_correlation is None
    assert [s.correlation for s in found.slices] == [None, None]
    assert found.baseline_calibration_error is None


def test_pairs_are_correlated_with_their_scores() -> None:
    """Spearman's of each split and slice, as scipy has it; a pair is right where both texts are."""
    firsts, seconds = vectors(300), vectors(300)
    scores = cosines(firsts, seconds) + RNG.normal(size=300) / 2
    before = np.concatenate([firsts, seconds])
    after = moved(before, 0.5)
    found = evaluate(
        dataset(300, pairs=True),
        list(scores.round(1)),
        task="SentenceEmbedding",
        tolerance=0.1,
        baseline=before,
        candidate=after,
        selection_permille=400,
    )
    chosen = np.array([in_selection(f"text {n}", 400) for n in range(300)])
    odd = np.arange(300) % 2 == 1
    slices = {s.value: s for s in found.slices}
    for correlation, among in (
        (found.selection_correlation, chosen),
        (found.confirmation_correlation, ~chosen),
        (slices["odd"].correlation, ~chosen & odd),
    ):
        assert correlation is not None
        theirs, ours = (
            scipy.stats.spearmanr(cosines(*np.split(v, 2))[among], scores.round(1)[among]).statistic
            for v in (before, after)
        )
        assert correlation.pairs == among.sum()
        assert correlation.baseline_basis_points == round(theirs * 1e4)
        assert correlation.candidate_basis_points == round(ours * 1e4)
        assert correlation.drop_micros == round((theirs - ours) * 1e6)
    near = cosines(before, after)
    lost = np.minimum(near[:300], near[300:]) < 0.9
    assert found.confirmation.lost == (lost & ~chosen).sum()


def test_no_more_slices_are_correlated_than_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes hundreds of draws, and a field may have as many values as there are pairs; that
    some are left out is told.
    """
    looked: list[int] = []

    def count(_pairs: Pairs, among: NDArray[np.bool_]) -> None:
        looked.append(int(among.sum()))

    monkeypatch.setattr(Pairs, "correlation", count)
    both = vectors(200)
    data = dataset(100, pairs=True)
    many = [replace(e, slices=e.slices | {"id": e.text}) for e in data.examples]
    found = evaluate(
        replace(data, examples=tuple(many)),
        [1.0] * 100,
        task="SentenceEmbedding",
        tolerance=0.1,
        baseline=both,
        candidate=both,
        selection_permille=300,
    )
    assert len(looked) == 2 + MAX_SLICES == 2 + len(found.slices)
    assert looked[2:] == [entry.examples for entry in found.slices]
    assert found.cut_slice_fields == ["id"]


@pytest.mark.slow
def test_the_standard_error_is_that_of_new_samples() -> None:
    """Of what the drop would be on other pairs; much less than unpaired, for both variants fail on
    the same pairs.
    """

    def sample(count: int) -> Pairs:
        truth = RNG.normal(size=count)
        noise = RNG.normal(size=count)
        scores = (truth + RNG.normal(size=count) / 2).round(1)
        return Pairs(scores, truth + noise / 2, truth + noise / 2 + RNG.normal(size=count) / 4)

    everything = np.ones(400, dtype=np.bool_)
    drops = []
    for _ in range(300):
        found = sample(400)
        theirs, ours = (
            scipy.stats.spearmanr(cosine, found.scores).statistic
            for cosine in (found.baseline, found.candidate)
        )
        drops.append(theirs - ours)
    told = [sample(400).correlation(everything) for _ in range(3)]
    for one in told:
        assert one is not None
        assert one.standard_error_micros / 1e6 == pytest.approx(np.std(drops), rel=0.3)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_pairs_correlate_with_nothing(count: int) -> None:
    """Two points are always on a line."""
    pairs = Pairs(np.arange(5.0), np.arange(5.0), np.arange(5.0))
    assert pairs.correlation(np.arange(5) < count) is None


def test_what_does_not_vary_has_no_correlation() -> None:
    """A model that answers the same to all, or people who do."""
    some, same = np.arange(5.0), np.ones(5)
    for pairs in (Pairs(same, some, some), Pairs(some, same, some), Pairs(some, some, same)):
        assert pairs.correlation(np.ones(5, dtype=np.bool_)) is None
