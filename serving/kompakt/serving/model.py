# SPDX-License-Identifier: Apache-2.0
"""Texts in, answers out: the tokenizer and the session of one artifact.

Each text runs alone, also when a request brings many. On CPUs a batch takes about as long as its
items one by one (padding can only add to that), and in a dynamically quantized model the scale of
the activations spans the batch: an item's answer would depend on its neighbours. So the same text
always gets the same answer, and two variants can be compared request by request.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final, Protocol

from kompakt.api.artifact import TOKENIZER_NAME
from kompakt.serving.artifact import Artifact, ArtifactError
from kompakt.serving.protocol import ModelFacts, Output
from kompakt.serving.sessions import Logits, open_session

# Rust's thread pool would fight the session's thread for the pod's one core.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
from tokenizers import Encoding, Tokenizer


class NoTokensError(ValueError):
    """A text in which the tokenizer finds nothing; `index` is its place in the request."""

    def __init__(self, index: int) -> None:
        super().__init__(f"text {index} has no tokens")
        self.index = index


class Answers(Protocol):
    """Answers to the texts of one request, in their order."""

    @property
    def labels(self) -> list[str]:
        """What each text is counted by."""

    def tensors(self) -> dict[str, dict[str, Any]]:
        """All outputs of the model, by name."""


class TextModel(ABC):
    """One artifact, ready to run. Safe to call from so many threads at a time as it is made for."""

    def __init__(self, artifact: Artifact, *, threads: int = 1) -> None:
        manifest = artifact.manifest
        self.labels: Final = tuple(manifest.labels)
        self.max_length: Final = manifest.max_sequence_length
        self.manifest: Final = manifest
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
        self._model_name = artifact.model_path.name
        self._session = open_session(artifact, threads=threads)

    @abstractmethod
    def answer(self, texts: Sequence[str]) -> Answers:
        """What the model says to each text.

        Raises NoTokensError for a text without tokens, ArithmeticError when the model's answer is
        not finite.
        """

    @property
    @abstractmethod
    def outputs(self) -> tuple[Output, ...]:
        """The tensors of an answer."""

    @property
    def facts(self) -> ModelFacts:
        """For the metadata."""
        manifest = self.manifest
        parameters: dict[str, str | int] = {
            "max_sequence_length": self.max_length,
            "task": manifest.task,
        }
        if manifest.tolerance_micros is not None:
            parameters["tolerance_micros"] = manifest.tolerance_micros
        if manifest.min_cosine_basis_points is not None:
            parameters["min_cosine_basis_points"] = manifest.min_cosine_basis_points
        if self._session.accelerator is not None:
            parameters["execution_provider"] = self._session.accelerator
        return ModelFacts(self.outputs, self.labels, parameters)

    def read(self, text: str, index: int) -> tuple[Encoding, Logits]:
        """The tokens and the logits of the text at a place in the request."""
        encoding = self._tokenizer.encode(text)
        ids = encoding.ids
        if not ids:
            raise NoTokensError(index)
        return encoding, self._session.run(ids, encoding.type_ids)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the logits of a text may have this shape."""
        return shape == (self.manifest.width,)

    def warm_up(self) -> None:
        """Run every length class, so that the first caller pays for no allocation.

        Raises ArtifactError when the model does not run, or answers with another number of values
        than the manifest says.
        """
        shape = self._session.warm_up()
        if not self.fits(shape):
            width = self.manifest.embedding_width
            told = f"{len(self.labels)} labels" if width is None else f"a width of {width}"
            raise ArtifactError(
                f"{self._model_name} answers with shape {list(shape)} for a text, "
                f"the manifest names {told}"
            )
