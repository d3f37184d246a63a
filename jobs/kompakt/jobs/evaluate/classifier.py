# SPDX-License-Identifier: Apache-2.0
"""An artifact that answers, one text at a time, exactly as a server does.

One at a time on purpose: dynamic quantization takes its scale from the whole batch, so that in a
batch a text's answer depends on its neighbours, and one would measure a model that nobody serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kompakt.api.artifact import MODEL_NAME, TOKENIZER_NAME
from kompakt.jobs.models.session import open_session
from kompakt.jobs.models.text import open_tokenizer
from kompakt.jobs.progress import Progress

if TYPE_CHECKING:
    from tokenizers import Encoding

Logits = NDArray[np.float32]
TOKENIZE_AT_ONCE = 4096
"""Texts; the tokenizer uses all threads for a batch, and memory stays small."""


class Classifier:
    """A fetched artifact, opened."""

    def __init__(self, folder: Path, *, max_sequence_length: int, threads: int) -> None:
        self._tokenizer = open_tokenizer(
            folder / TOKENIZER_NAME, max_sequence_length=max_sequence_length
        )
        self._session = open_session(folder / MODEL_NAME, threads=threads)
        self._inputs = {entry.name for entry in self._session.get_inputs()}

    def answer(self, text: str) -> Logits:
        """The logits of one text, tokenization included."""
        return self._run(self._tokenizer.encode(text))

    def answer_all(self, texts: Sequence[str], *, progress: Progress | None = None) -> Logits:
        """The logits of many texts, [texts, labels]."""
        rows = []
        for start in range(0, len(texts), TOKENIZE_AT_ONCE):
            for encoding in self._tokenizer.encode_batch(
                list(texts[start : start + TOKENIZE_AT_ONCE])
            ):
                rows.append(self._run(encoding))
                if progress is not None:
                    progress.advance()
        return np.stack(rows)

    def _run(self, encoding: Encoding) -> Logits:
        ids = np.asarray([encoding.ids], dtype=np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        if "token_type_ids" in self._inputs:
            feed["token_type_ids"] = np.asarray([encoding.type_ids], dtype=np.int64)
        logits: Logits = self._session.run(["logits"], feed)[0][0]
        return logits
