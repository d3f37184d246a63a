# SPDX-License-Identifier: Apache-2.0
"""Text in, a vector out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from kompakt.serving.model import TextModel
from kompakt.serving.protocol import EMBEDDING, Output, tensor


@dataclass(frozen=True, slots=True)
class Embeddings:
    """A vector for each text, pooled and normalized as the graph does it."""

    labels: list[str]
    """What each text is counted by: there is nothing to tell them apart."""
    vectors: NDArray[np.float32]
    """[texts, width]"""

    def tensors(self) -> dict[str, dict[str, Any]]:
        """All outputs."""
        return {
            EMBEDDING: tensor(EMBEDDING, "FP32", self.vectors.shape, self.vectors.ravel()),
        }


class Embedder(TextModel):
    """A SentenceEmbedding."""

    @override
    def answer(self, texts: Sequence[str]) -> Embeddings:
        vectors = np.stack([self.read(text, index)[1] for index, text in enumerate(texts)])
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            index = int(np.flatnonzero(~finite)[0])
            raise ArithmeticError(f"the model's embedding of text {index} is not finite")
        return Embeddings([self.labels[0]] * len(texts), vectors)

    @property
    @override
    def outputs(self) -> tuple[Output, ...]:
        return (Output(EMBEDDING, "FP32", (self.manifest.width,)),)
