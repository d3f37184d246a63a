# SPDX-License-Identifier: Apache-2.0
"""When two answers to a text are the same, and when one is right: by the task of the model.

The same rules that the Jobs measure by, so that a disagreement in production can be compared with
the one measured offline.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import mul
from typing import Any, Protocol

from typing_extensions import override

from kompakt.serving.protocol import EMBEDDING, LABEL, OFFSETS, SCORE, WORDS

_WORD = re.compile(r"\S+")

Tag = tuple[int, int, str]
"""Begin and end of a word, in characters, and its label."""


@dataclass(frozen=True, slots=True)
class Vector:
    """An embedding. In plain Python: the comparator needs no numpy for anything else."""

    numbers: tuple[float, ...]

    def times(self, other: Vector) -> float:
        """The inner product."""
        total: float = sum(map(mul, self.numbers, other.numbers))
        return total


Answer = str | float | tuple[Tag, ...] | Vector
"""A label's name, or a number, or the words of a text, or a vector."""
Truth = str | int | float | tuple[str | int, ...]
"""As a golden set has it: also a label's index, or one of both for each word."""


class Agreement(Protocol):
    """The rule of a task."""

    outputs: tuple[str, ...]
    """Names of the tensors that hold what is compared."""
    names: tuple[str, ...]
    """What pairs are counted by."""
    needs_labels: bool
    """Whether a golden set must say what is right; if not, the reference does."""

    def counted(self, answer: Answer) -> str:
        """Which of the names an answer is counted by."""

    def same(self, one: Answer, other: Answer) -> bool:
        """Whether two answers agree."""

    def truth(self, written: Truth, text: str) -> Answer | None:
        """What a golden set's label means; None when it is no answer of the model."""

    def right(self, answer: Answer, truth: Answer) -> bool:
        """Whether an answer is the true one."""
        return self.same(answer, truth)


@dataclass(frozen=True)
class SameLabel(Agreement):
    """Of a TextClassification: the same label."""

    names: tuple[str, ...] = ()
    outputs: tuple[str, ...] = (LABEL,)
    needs_labels: bool = True

    @override
    def counted(self, answer: Answer) -> str:
        return str(answer)

    @override
    def same(self, one: Answer, other: Answer) -> bool:
        return one == other

    @override
    def truth(self, written: Truth, text: str) -> Answer | None:
        return _name(written, self.names)


@dataclass(frozen=True)
class WithinTolerance(Agreement):
    """Of a Regression: numbers that are no farther apart than its tolerance."""

    names: tuple[str, ...]
    tolerance: float
    outputs: tuple[str, ...] = (SCORE,)
    needs_labels: bool = True

    @override
    def counted(self, answer: Answer) -> str:
        return self.names[0]

    @override
    def same(self, one: Answer, other: Answer) -> bool:
        if isinstance(one, int | float) and isinstance(other, int | float):
            return abs(one - other) <= self.tolerance
        return False

    @override
    def truth(self, written: Truth, text: str) -> Answer | None:
        try:
            return None if isinstance(written, tuple) else float(written)
        except ValueError:
            return None


@dataclass(frozen=True)
class SameTags(Agreement):
    """Of a TokenClassification: the same label for every word. Texts are counted, not words: those
    of one text are not independent.
    """

    labels: tuple[str, ...]
    names: tuple[str, ...] = ("text",)
    outputs: tuple[str, ...] = (LABEL, OFFSETS, WORDS)
    needs_labels: bool = True

    @override
    def counted(self, answer: Answer) -> str:
        return self.names[0]

    @override
    def same(self, one: Answer, other: Answer) -> bool:
        return one == other

    @override
    def truth(self, written: Truth, text: str) -> Answer | None:
        """Labels are of words that white space divides."""
        spans = [found.span() for found in _WORD.finditer(text)]
        parts = tuple(written.split()) if isinstance(written, str) else written
        if not isinstance(parts, tuple) or len(parts) != len(spans):
            return None
        names = [_name(part, self.labels) for part in parts]
        if None in names:
            return None
        pairs = zip(spans, names, strict=True)
        return tuple((begin, end, str(name)) for (begin, end), name in pairs)

    @override
    def right(self, answer: Answer, truth: Answer) -> bool:
        """Of a word that the server cuts into several, the first counts, as in the Jobs."""
        if not (isinstance(answer, tuple) and isinstance(truth, tuple)):
            return False
        rest = iter(answer)
        found = next(rest, None)
        for begin, end, label in truth:
            while found is not None and found[1] <= begin:
                found = next(rest, None)
            if found is None or found[0] >= end or found[2] != label:
                return False
        return True


@dataclass(frozen=True)
class NearVectors(Agreement):
    """Of a SentenceEmbedding: vectors whose cosine is at least so much. There is no true vector: of
    a golden set, what the reference answers is right.
    """

    names: tuple[str, ...]
    min_cosine: float
    outputs: tuple[str, ...] = (EMBEDDING,)
    needs_labels: bool = False

    @override
    def counted(self, answer: Answer) -> str:
        return self.names[0]

    @override
    def same(self, one: Answer, other: Answer) -> bool:
        if not (isinstance(one, Vector) and isinstance(other, Vector)):
            return False
        if len(one.numbers) != len(other.numbers):
            return False
        # Also False for what is not a number; two vectors of zeros have no direction to share.
        scale = math.sqrt(one.times(one) * other.times(other))
        return scale > 0 and one.times(other) >= self.min_cosine * scale

    @override
    def truth(self, written: Truth, text: str) -> Answer | None:
        return None


def agreement_of(task: str, labels: Sequence[str], parameters: Mapping[str, Any]) -> Agreement:
    """The rule for what a server says that it does, with the parameters of its metadata."""
    if task == "Regression":
        return WithinTolerance(tuple(labels), parameters.get("tolerance_micros", 0) / 1e6)
    if task == "SentenceEmbedding":
        return NearVectors(tuple(labels), parameters["min_cosine_basis_points"] / 1e4)
    if task == "TokenClassification":
        return SameTags(tuple(labels))
    return SameLabel(tuple(labels))


def _name(written: Truth, names: Sequence[str]) -> str | None:
    if isinstance(written, int) and 0 <= written < len(names):
        return names[written]
    return str(written) if written in names else None
