# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special

from kompakt.api.steps import Calibrate
from kompakt.jobs.compress.graph import Graph, GraphData, Labelled
from kompakt.jobs.compress.temperature import Temperature, fit, negative_log_likelihood
from kompakt.jobs.errors import StepInvalid
from kompakt.jobs.evaluate.paired import calibration_error

pytestmark = pytest.mark.slow


def drawn(temperature: float, *, count: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn with the probabilities that they give at a temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=3.0, size=(count, 3)).astype(np.float32)
    chances = special.softmax(logits.astype(float) / temperature, axis=1)
    labels = np.array([rng.choice(3, p=row) for row in chances])
    return logits, labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_is_found(temperature: float) -> None:
    """Scores of labels that were drawn at a temperature become true by it."""
    logits, labels = drawn(temperature)
    found = fit(logits, labels.tolist())
    assert found == pytest.approx(temperature, rel=0.12)
    fresh, truth = drawn(temperature, seed=1)
    assert calibration_error((fresh / found).astype(np.float32), truth) < 0.03
    if temperature != 1.0:
        assert calibration_error(fresh, truth) > 0.05


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.3, 4.0))
def test_it_is_scipys_minimum(seed: int, temperature: float) -> None:
    """Of the negative log-likelihood by scipy's own softmax and search."""
    logits, labels = drawn(temperature, count=200, seed=seed)

    def loss(logarithm: float) -> float:
        scaled = special.log_softmax(logits.astype(float) / np.exp(logarithm), axis=1)
        return float(-scaled[np.arange(len(labels)), labels].mean())

    best = optimize.minimize_scalar(
        loss, bounds=(np.log(0.05), np.log(20)), method="bounded", options={"xatol": 1e-9}
    )
    found = fit(logits, labels.tolist())
    assert loss(np.log(found)) <= best.fun + 1e-8
    assert negative_log_likelihood(logits, labels.tolist(), found) == pytest.approx(
        loss(np.log(found))
    )


def test_a_model_that_is_always_right_stays_within_bounds() -> None:
    """No likelihood is largest there; the manifest's smallest temperature is taken."""
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2] * 20] * 5
    assert fit(logits, [0, 1, 2] * 20) == pytest.approx(0.05)
    assert fit(logits, [1, 2, 0] * 20) == pytest.approx(20.0)


def test_the_step_changes_scores_and_nothing_else(
    graph_of: Callable[[str], Graph], graph_data: GraphData, tmp_path: Path
) -> None:
    """The model's files are the same; the temperature is that of its own answers."""
    graph = graph_of("bert")
    labelled = tuple(Labelled(text, number % 3) for number, text in enumerate(graph_data.texts))
    data = replace(graph_data, labelled=labelled)
    made, note = Temperature(Calibrate()).apply(graph, tmp_path / "unused", data)
    assert (made.folder, made.runtime) == (graph.folder, graph.runtime)
    expected = fit(data.logits(graph, graph_data.texts), [entry.label for entry in labelled])
    assert made.temperature_micros == round(expected * 1e6)
    assert note == f"temperature {expected:.3f} from 64 labels"
    found = data.details["calibrate"]["negativeLogLikelihood"]
    assert found["after"] < found["before"]


def test_one_label_is_no_evidence(
    graph_of: Callable[[str], Graph], graph_data: GraphData, tmp_path: Path
) -> None:
    """Data of a single class would make every model infinitely sure."""
    data = replace(graph_data, labelled=tuple(Labelled(t, 1) for t in graph_data.texts))
    with pytest.raises(StepInvalid, match="have the same label"):
        Temperature(Calibrate()).apply(graph_of("bert"), tmp_path, data)
