# SPDX-License-Identifier: Apache-2.0
"""Text in, label and scores out: the tokenizer and the session of one artifact.

Each text runs alone, also when a request brings many. On CPUs a batch takes about as long as its
items one by one (padding can only add to that), and in a dynamically quantized model the scale of
the activations spans the batch: an item's answer would depend on its neighbours. So the same text
always gets the same answer, and two variants can be compared request by request.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kompakt.api.artifact import TOKENIZER_NAME
from kompakt.serving.artifact import Artifact, ArtifactError
from kompakt.serving.sessions import open_session

# Rust's thread pool would fight the session's thread for the pod's one core.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
from tokenizers import Tokenizer


class NoTokensError(ValueError):
    """A text in which the tokenizer finds nothing; `index` is its place in the request."""

    def __init__(self, index: int) -> None:
        super().__init__(f"text {index} has no tokens")
        self.index = index


@dataclass(frozen=True, slots=True)
class Prediction:
    """Answers to the texts of one request, in their order."""

    labels: list[str]
    scores: NDArray[np.float32]
    """Softmax over the logits, calibrated where the artifact says how, [texts, labels]."""


class Classifier:
    """One artifact, ready to run. Safe to call from so many threads at a time as it is made for."""

    def __init__(self, artifact: Artifact, *, threads: int = 1) -> None:
        manifest = artifact.manifest
        self.labels: Final = tuple(manifest.labels)
        self.max_length: Final = manifest.max_sequence_length
        try:
            self._tokenizer = Tokenizer.from_file(str(artifact.tokenizer_path))
        except Exception as error:  # the bindings raise Exception itself
            raise ArtifactError(
                f"{TOKENIZER_NAME} is no fast tokenizer ({error}): "
                "export it with tokenizer.save_pretrained"
            ) from error
        self._tokenizer.enable_truncation(self.max_length)
        # Checkpoints for sentence similarity come with padding to a fixed length: pure waste here.
        self._tokenizer.no_padding()
        # Of the scores alone: it never changes which is best.
        self._temperature = np.float32((manifest.temperature_micros or 1_000_000) / 1e6)
        self._model_name = artifact.model_path.name
        self._session = open_session(artifact, threads=threads)

    def classify(self, texts: Sequence[str]) -> Prediction:
        """Label and scores of each text.

        Raises NoTokensError for a text without tokens, ArithmeticError when the model's answer is
        not finite.
        """
        labels: list[str] = []
        scores = np.empty((len(texts), len(self.labels)), dtype=np.float32)
        for index, text in enumerate(texts):
            encoding = self._tokenizer.encode(text)
            ids = encoding.ids
            if not ids:
                raise NoTokensError(index)
            logits = self._session.run(ids, encoding.type_ids)
            best = int(logits.argmax())
            weights = np.exp((logits - logits[best]) / self._temperature)
            total = float(weights.sum())
            if not math.isfinite(total):
                raise ArithmeticError(f"the model's logits for text {index} are not finite")
            np.divide(weights, total, out=scores[index])
            labels.append(self.labels[best])
        return Prediction(labels, scores)

    def warm_up(self) -> None:
        """Run every length class, so that the first caller pays for no allocation.

        Raises ArtifactError when the model does not run, or has another number of labels than the
        manifest.
        """
        shape = self._session.warm_up()
        if shape != (len(self.labels),):
            raise ArtifactError(
                f"{self._model_name} answers with shape {list(shape)} for a text, "
                f"the manifest names {len(self.labels)} labels"
            )
