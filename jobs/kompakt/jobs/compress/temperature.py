# SPDX-License-Identifier: Apache-2.0
"""Temperature scaling (Guo et al. 2017, arXiv:1706.04599, section 4.2): one number that the logits
are divided by, so that a score of 0.8 is right in 8 cases of 10. No label changes by it.

Compression hurts the scores before it hurts the labels. The number is fitted on the answers of the
finished variant, in its runtime, to labelled texts that no step was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from kompakt.api.steps import Calibrate
from kompakt.jobs.compress.graph import Graph, GraphData
from kompakt.jobs.compress.steps import GraphStep
from kompakt.jobs.errors import StepInvalid
from kompakt.jobs.models.session import Logits

LOWEST, HIGHEST = 0.05, 20.0
MICROS = 1_000_000
_HALVINGS = 60


class Temperature(GraphStep):
    """The step `calibrate`."""

    def __init__(self, parameters: Calibrate) -> None:
        self._parameters = parameters

    @override
    def apply(self, graph: Graph, target: Path, data: GraphData) -> tuple[Graph, str]:
        del target  # the model stays as it is
        logits = data.logits(graph, [example.text for example in data.labelled])
        labels = [example.label for example in data.labelled]
        if len(set(labels)) == 1:
            raise StepInvalid(
                "all of the texts that calibrate looks at have the same label, so any confidence"
                " would be right; name texts with several labels"
            )
        temperature = fit(logits, labels)
        before, after = (negative_log_likelihood(logits, labels, t) for t in (1.0, temperature))
        data.details["calibrate"] = {
            "examples": len(labels),
            "temperature": temperature,
            "negativeLogLikelihood": {"before": before, "after": after},
        }
        made = replace(graph, temperature_micros=round(temperature * MICROS))
        return made, f"temperature {temperature:.3f} from {len(labels)} labels"


def fit(logits: Logits, labels: Sequence[int]) -> float:
    """The temperature with the least negative log-likelihood, between 0.05 and 20.

    In β = 1/T it is convex: its slope, the mean of (expected logit − the label's logit), rises with
    β, so that halving finds where it is zero.
    """
    scores = logits.astype(np.float64)
    chosen = scores[np.arange(len(labels)), labels]
    low, high = 1 / HIGHEST, 1 / LOWEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        expected = (_softmax(scores * middle) * scores).sum(axis=1)
        if (expected - chosen).mean() > 0:
            high = middle
        else:
            low = middle
    return 2 / (low + high)


def negative_log_likelihood(logits: Logits, labels: Sequence[int], temperature: float) -> float:
    """Mean over the examples, in nats."""
    scaled = logits.astype(np.float64) / temperature
    shifted = scaled - scaled.max(axis=1, keepdims=True)
    normal = np.log(np.exp(shifted).sum(axis=1))
    return float((normal - shifted[np.arange(len(labels)), labels]).mean())


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities
