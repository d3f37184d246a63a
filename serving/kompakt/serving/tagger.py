# SPDX-License-Identifier: Apache-2.0
"""Text in, a label for each of its words out.

A word is what the tokenizer's pre-tokenizer makes of the text (it parts punctuation off), and its
label that of its first token. Tokens are no part of the answer: a variant with fewer of them cuts
words otherwise, and would seem to disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from kompakt.serving.model import TextModel
from kompakt.serving.protocol import LABEL, OFFSETS, SCORE, WORDS, Output, tensor

if TYPE_CHECKING:
    from tokenizers import Encoding


@dataclass(frozen=True, slots=True)
class Tags:
    """Of all words of all texts, one text after the other."""

    labels: list[str]
    scores: NDArray[np.float32]
    """Probability of each label, [words]."""
    offsets: NDArray[np.int64]
    """Begin and end of each word in its text, in characters, [words, 2]."""
    words: list[int]
    """How many of them are of each text."""

    def tensors(self) -> dict[str, dict[str, Any]]:
        """All outputs."""
        return {
            LABEL: tensor(LABEL, "BYTES", [len(self.labels)], self.labels),
            SCORE: tensor(SCORE, "FP32", self.scores.shape, self.scores),
            OFFSETS: tensor(OFFSETS, "INT64", self.offsets.shape, self.offsets.ravel()),
            WORDS: tensor(WORDS, "INT64", [len(self.words)], self.words),
        }


class Tagger(TextModel):
    """A TokenClassification."""

    @override
    def answer(self, texts: Sequence[str]) -> Tags:
        labels: list[str] = []
        scores: list[float] = []
        offsets: list[tuple[int, int]] = []
        words: list[int] = []
        for index, text in enumerate(texts):
            encoding, logits = self.read(text, index)
            spans = word_tokens(encoding, text)
            chosen = logits[[first for first, _, _ in spans]]
            if not np.isfinite(chosen).all():
                raise ArithmeticError(f"the model's logits for text {index} are not finite")
            best = chosen.argmax(axis=1)
            weights = np.exp(chosen - chosen.max(axis=1, keepdims=True))
            scores += (1 / weights.sum(axis=1)).tolist()
            labels += [self.labels[number] for number in best]
            offsets += [(begin, end) for _, begin, end in spans]
            words.append(len(spans))
        return Tags(
            labels,
            np.array(scores, dtype=np.float32),
            np.array(offsets, dtype=np.int64).reshape(-1, 2),
            words,
        )

    @override
    def fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == 2 and shape[1] == len(self.labels)  # noqa: PLR2004 tokens, labels

    @property
    @override
    def outputs(self) -> tuple[Output, ...]:
        return (
            Output(LABEL, "BYTES", ()),
            Output(SCORE, "FP32", ()),
            Output(OFFSETS, "INT64", (2,)),
            Output(WORDS, "INT64", ()),
        )


def word_tokens(encoding: Encoding, text: str) -> list[tuple[int, int, int]]:
    """Of each word its first token, and where it begins and ends in the text."""
    found: dict[int, tuple[int, int, int]] = {}
    for place, (word, (begin, end)) in enumerate(
        zip(encoding.word_ids, encoding.offsets, strict=True)
    ):
        if word is None or end <= begin:
            continue
        first, start, _ = found.get(word, (place, begin, end))
        found[word] = (first, start, end)
    # Byte-level tokenizers may count the space before a word to it.
    return [
        (first, end - len(text[begin:end].lstrip()), end)
        for first, begin, end in found.values()
        if text[begin:end].strip()
    ]
