# SPDX-License-Identifier: Apache-2.0
"""An artifact that answers as a server does: one text at a time.

Dynamic quantization takes its scale from the whole batch, so that in a batch a text's answer
depends on its neighbours, and one would measure a model that nobody serves. A graph without it
gives the same answers in small batches of equal length, a quarter faster.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kompakt.api.artifact import (
    MANIFEST_NAME,
    MODEL_NAME,
    TOKENIZER_NAME,
    ArtifactManifest,
    padded_lengths,
)
from kompakt.api.device import Device
from kompakt.jobs.data.words import first_tokens
from kompakt.jobs.models.session import Logits, open_model
from kompakt.jobs.models.text import length_batches, open_tokenizer, pad
from kompakt.jobs.progress import Progress

if TYPE_CHECKING:
    from tokenizers import Encoding

__all__ = ["Classifier", "Logits"]

TOKENIZE_AT_ONCE = 4096
"""Texts; the tokenizer uses all threads for a batch, and memory stays small."""
BATCH = 8
"""Texts; larger batches are no faster on a CPU."""
QUANTIZES_AT_RUN_TIME = b"DynamicQuantizeLinear"


class Classifier:
    """A fetched artifact, opened."""

    def __init__(self, folder: Path, *, threads: int, device: Device = "Cpu") -> None:
        manifest = ArtifactManifest.model_validate_json((folder / MANIFEST_NAME).read_bytes())
        self._longest = manifest.max_sequence_length
        self._tokenizer = open_tokenizer(folder / TOKENIZER_NAME, max_sequence_length=self._longest)
        self._session = open_model(folder, manifest, threads=threads, device=device)
        one_by_one = manifest.runtime == "OnnxRuntime" and _mentions(
            folder / MODEL_NAME, QUANTIZES_AT_RUN_TIME
        )
        self._batch = 1 if one_by_one else BATCH
        self._each_token = manifest.task == "TokenClassification"
        self._temperature = np.float32((manifest.temperature_micros or 1_000_000) / 1e6)

    @property
    def accelerator(self) -> str | None:
        """The execution provider that it runs on, where that is not the CPU's."""
        return self._session.accelerator

    def warm_up(self) -> None:
        """Runs every length that a runtime prepares for, as a server does before it is ready."""
        for tokens in padded_lengths(self._longest):
            batch = {
                name: np.full((1, tokens), name == "attention_mask", dtype=np.int64)
                for name in self._session.input_names
            }
            self._session.run(batch)

    def answer(self, text: str) -> Logits:
        """The logits of one text, as its scores are made of them; tokenization included."""
        encoding = self._tokenizer.encode(text)
        logits: Logits = self._run([encoding])[0]
        return _of_words(encoding, text, logits) if self._each_token else logits

    def answer_all(self, texts: Sequence[str], *, progress: Progress | None = None) -> Logits:
        """The logits of many texts, [texts, labels]; of a TokenClassification those of all their
        words, [words, labels], with minus infinity where a word has no token.
        """
        parts: list[Logits] = []
        for start in range(0, len(texts), TOKENIZE_AT_ONCE):
            part = list(texts[start : start + TOKENIZE_AT_ONCE])
            encodings = self._tokenizer.encode_batch(part)
            answers: dict[int, Logits] = {}
            for members in length_batches(encodings, self._batch):
                logits = self._run([encodings[index] for index in members])
                answers.update(zip(members, logits, strict=True))
                if progress is not None:
                    progress.advance(len(members))
            if self._each_token:
                parts += [_of_words(encodings[i], part[i], answers[i]) for i in range(len(part))]
            else:
                parts += [answers[index][None] for index in range(len(part))]
        return np.concatenate(parts)

    def _run(self, encodings: Sequence[Encoding]) -> Logits:
        # What fills a batch up is masked, so any id will do.
        feed = pad(encodings, pad_id=0, input_names=self._session.input_names)
        logits: Logits = self._session.run(feed) / self._temperature
        return logits


def _of_words(encoding: Encoding, text: str, logits: Logits) -> Logits:
    """From [tokens, labels] to [words, labels]."""
    places = first_tokens(encoding, text)
    rows = np.full((len(places), logits.shape[1]), -np.inf, dtype=np.float32)
    for row, place in enumerate(places):
        if place is not None:
            rows[row] = logits[place]
    return rows


def _mentions(path: Path, name: bytes) -> bool:
    """Whether a graph has an operator of that name, without parsing it."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(name) >= 0
