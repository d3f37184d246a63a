# SPDX-License-Identifier: Apache-2.0
"""Text in, a number out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from kompakt.serving.model import TextModel
from kompakt.serving.protocol import SCORE, Output, tensor


@dataclass(frozen=True, slots=True)
class Numbers:
    """A number for each text, as the model's head gives it."""

    labels: list[str]
    """What the number is called, for each text."""
    scores: NDArray[np.float32]
    """[texts]"""

    def tensors(self) -> dict[str, dict[str, Any]]:
        """All outputs."""
        return {SCORE: tensor(SCORE, "FP32", self.scores.shape, self.scores)}


class Regressor(TextModel):
    """A Regression."""

    @override
    def answer(self, texts: Sequence[str]) -> Numbers:
        scores = np.array(
            [self.read(text, index)[1][0] for index, text in enumerate(texts)], dtype=np.float32
        )
        if not np.isfinite(scores).all():
            index = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise ArithmeticError(f"the model's number for text {index} is not finite")
        return Numbers([self.labels[0]] * len(texts), scores)

    @property
    @override
    def outputs(self) -> tuple[Output, ...]:
        return (Output(SCORE, "FP32", ()),)
