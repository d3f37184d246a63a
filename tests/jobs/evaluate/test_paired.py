# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from kompakt.jobs.data.examples import Dataset, Example, in_selection
from kompakt.jobs.evaluate.classifier import Logits
from kompakt.jobs.evaluate.paired import calibration_error, evaluate


def reference_calibration_error(logits: Logits, truth: np.ndarray) -> float:
    """Definition 2 of Guo et al., bin by bin and example by example, in plain Python."""
    rows = []
    for row, label in zip(logits.tolist(), truth.tolist(), strict=True):
        weights = [np.exp(value - max(row)) for value in row]
        best = max(range(len(row)), key=lambda i: row[i])
        rows.append((weights[best] / sum(weights), best == label))
    error = 0.0
    for number in range(15):
        inside = [r for r in rows if number / 15 < r[0] <= (number + 1) / 15]
        if inside:
            confidence = sum(r[0] for r in inside) / len(inside)
            accuracy = sum(r[1] for r in inside) / len(inside)
            error += len(inside) / len(rows) * abs(confidence - accuracy)
    return error


def dataset(count: int, *, domains: int = 3) -> Dataset:
    """Examples with two slice fields."""
    examples = tuple(
        Example(text=f"text {i}", slices={"domain": f"d{i % domains}", "parity": str(i % 2)})
        for i in range(count)
    )
    return Dataset(uri="file:///x", digest="sha256:" + "0" * 64, examples=examples)


def random_logits(count: int, *, labels: int, seed: int) -> Logits:
    """Answers of all confidences."""
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.1, 5.0, (count, 1))
    return (rng.normal(size=(count, labels)) * scale).astype(np.float32)


@given(st.integers(1, 300), st.integers(2, 6), st.integers(0, 2**16))
def test_calibration_error_is_that_of_the_paper(count: int, labels: int, seed: int) -> None:
    """The vectorized sum equals the definition, on any number of examples and labels."""
    logits = random_logits(count, labels=labels, seed=seed)
    truth = np.random.default_rng(seed + 1).integers(0, labels, count)
    assert calibration_error(logits, truth) == pytest.approx(
        reference_calibration_error(logits, truth), abs=1e-6
    )


def test_calibration_errors_of_known_size() -> None:
    """Sure and always right is 0, sure and always wrong is 1, a coin that says so is 0."""
    sure = np.array([[50.0, 0.0]] * 10, dtype=np.float32)
    assert calibration_error(sure, np.zeros(10, dtype=np.int64)) == pytest.approx(0.0)
    assert calibration_error(sure, np.ones(10, dtype=np.int64)) == pytest.approx(1.0)
    coin = np.zeros((10, 2), dtype=np.float32)
    assert calibration_error(coin, np.array([0, 1] * 5)) == pytest.approx(0.0)


@given(st.integers(1, 200), st.integers(0, 2**16), st.sampled_from([0, 250, 500, 1000]))
def test_counts_are_those_of_a_contingency_table(count: int, seed: int, permille: int) -> None:
    """Lost, gained and disagreements equal scikit-learn's table and a count one by one."""
    data = dataset(count)
    truth = np.random.default_rng(seed).integers(0, 3, count)
    baseline = random_logits(count, labels=3, seed=seed + 1)
    candidate = random_logits(count, labels=3, seed=seed + 2)
    found = evaluate(
        data,
        truth.tolist(),
        baseline=baseline,
        candidate=candidate,
        selection_permille=permille,
    )
    theirs, ours = baseline.argmax(1), candidate.argmax(1)
    for counts, wanted in ((found.selection, True), (found.confirmation, False)):
        chosen = [i for i in range(count) if in_selection(f"text {i}", permille) is wanted]
        assert counts.examples == len(chosen)
        if not chosen:
            continue
        table = confusion_matrix(
            (theirs == truth)[chosen], (ours == truth)[chosen], labels=[False, True]
        )
        assert counts.gained == table[0, 1]
        assert counts.lost == table[1, 0]
        assert counts.baseline_correct == table[1].sum()
        assert counts.candidate_correct == table[:, 1].sum()
        assert counts.disagreements == sum(theirs[i] != ours[i] for i in chosen)
    assert found.selection.examples + found.confirmation.examples == count


def test_slices_are_of_the_confirmation_split() -> None:
    """The slices of each field together are the split, the largest first."""
    data = dataset(400)
    logits = random_logits(400, labels=3, seed=0)
    found = evaluate(data, [0] * 400, baseline=logits, candidate=logits, selection_permille=250)
    assert {(s.field, s.value) for s in found.slices} == {
        ("domain", "d0"),
        ("domain", "d1"),
        ("domain", "d2"),
        ("parity", "0"),
        ("parity", "1"),
    }
    for field in ("domain", "parity"):
        total = sum(s.examples for s in found.slices if s.field == field)
        assert total == found.confirmation.examples
    sizes = [s.examples for s in found.slices]
    assert sizes == sorted(sizes, reverse=True)
    assert all(s.lost == s.gained == s.disagreements == 0 for s in found.slices)


def test_more_slices_than_a_status_holds_are_cut() -> None:
    """The largest 32 stay."""
    logits = random_logits(300, labels=2, seed=0)
    found = evaluate(
        dataset(300, domains=60),
        [0] * 300,
        baseline=logits,
        candidate=logits,
        selection_permille=0,
    )
    assert len(found.slices) == 32
    assert {s.field for s in found.slices} == {"parity", "domain"}
