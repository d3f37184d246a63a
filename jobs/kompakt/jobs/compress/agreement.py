# SPDX-License-Identifier: Apache-2.0
"""Whether a model answers a text as the original does, and how far it is from that, by task. No
torch here.

The same rules as of the measurement and of the servers' comparator, so that what a step keeps is
what will be looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kompakt.api.base import Task
from kompakt.jobs.evaluate.embeddings import cosines
from kompakt.jobs.models.session import Logits

TASKS: tuple[Task, ...] = ("TextClassification", "Regression", "SentenceEmbedding")
"""Of which a text has one answer."""


@dataclass(frozen=True)
class Rule:
    """For the answers [texts, outputs] of two models."""

    task: Task = "TextClassification"
    tolerance: float = 0.0
    """How far apart two numbers may be; of embeddings how far their cosine may be from 1."""

    def same(self, one: Logits, other: Logits) -> NDArray[np.bool_]:
        """Of each text, whether both gave it the same answer."""
        found: NDArray[np.bool_]
        if self.task == "Regression":
            found = (np.abs(one - other) <= self.tolerance).all(axis=1)
        elif self.task == "SentenceEmbedding":
            found = cosines(one, other) >= 1 - self.tolerance
        else:
            found = one.argmax(axis=1) == other.argmax(axis=1)
        return found

    def divergence(self, exact: Logits, other: Logits) -> float:
        """Mean Kullback-Leibler divergence of the answers from the exact ones, in nats; numbers are
        taken for means of Gaussians of unit variance.
        """
        if self.task in {"Regression", "SentenceEmbedding"}:
            distances = exact.astype(np.float64) - other
            return float(np.square(distances).sum(axis=1).mean() / 2)
        p, q = (_log_softmax(logits) for logits in (exact, other))
        return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def _log_softmax(logits: Logits) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    scores: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return scores
