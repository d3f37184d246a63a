# SPDX-License-Identifier: Apache-2.0
"""Text in, label and scores out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from kompakt.serving.artifact import Artifact
from kompakt.serving.model import TextModel
from kompakt.serving.protocol import LABEL, SCORES, Output, tensor


@dataclass(frozen=True, slots=True)
class Prediction:
    """A label and scores for each text."""

    labels: list[str]
    scores: NDArray[np.float32]
    """Softmax over the logits, calibrated where the artifact says how, [texts, labels]."""

    def tensors(self) -> dict[str, dict[str, Any]]:
        """All outputs."""
        # Serialized as FP32, a score has the fewest digits that give it back exactly.
        return {
            LABEL: tensor(LABEL, "BYTES", [len(self.labels)], self.labels),
            SCORES: tensor(SCORES, "FP32", self.scores.shape, self.scores.ravel()),
        }


class Classifier(TextModel):
    """A TextClassification."""

    def __init__(self, artifact: Artifact, *, threads: int = 1) -> None:
        super().__init__(artifact, threads=threads)
        # Of the scores alone: it never changes which is best.
        self._temperature = np.float32((artifact.manifest.temperature_micros or 1_000_000) / 1e6)

    @override
    def answer(self, texts: Sequence[str]) -> Prediction:
        labels: list[str] = []
        scores = np.empty((len(texts), len(self.labels)), dtype=np.float32)
        for index, text in enumerate(texts):
            _, logits = self.read(text, index)
            best = int(logits.argmax())
            weights = np.exp((logits - logits[best]) / self._temperature)
            total = float(weights.sum())
            if not math.isfinite(total):
                raise ArithmeticError(f"the model's logits for text {index} are not finite")
            np.divide(weights, total, out=scores[index])
            labels.append(self.labels[best])
        return Prediction(labels, scores)

    @property
    @override
    def outputs(self) -> tuple[Output, ...]:
        return (Output(LABEL, "BYTES", ()), Output(SCORES, "FP32", (len(self.labels),)))
