# SPDX-License-Identifier: Apache-2.0
"""When two answers to a text are the same, and when one is right: by the task of the model.

The same rules that the Jobs measure by, so that a disagreement in production can be compared with
the one measured offline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from typing_extensions import override

from kompakt.serving.protocol import LABEL, SCORE

Answer = str | float
"""A label's name, or a number."""
Truth = str | int | float
"""As a golden set has it: also a label's index."""


class Agreement(Protocol):
    """The rule of a task."""

    output: str
    """Name of the tensor that holds what is compared."""
    names: tuple[str, ...]
    """What pairs are counted by."""

    def counted(self, answer: Answer) -> str:
        """Which of the names an answer is counted by."""

    def same(self, one: Answer, other: Answer) -> bool:
        """Whether two answers agree."""

    def truth(self, written: Truth) -> Answer | None:
        """What a golden set's label means; None when it is no answer of the model."""


@dataclass(frozen=True)
class SameLabel(Agreement):
    """Of a TextClassification: the same label."""

    names: tuple[str, ...] = ()
    output: str = LABEL

    @override
    def counted(self, answer: Answer) -> str:
        return str(answer)

    @override
    def same(self, one: Answer, other: Answer) -> bool:
        return one == other

    @override
    def truth(self, written: Truth) -> Answer | None:
        if isinstance(written, int) and 0 <= written < len(self.names):
            return self.names[written]
        return str(written) if written in self.names else None


@dataclass(frozen=True)
class WithinTolerance(Agreement):
    """Of a Regression: numbers that are no farther apart than its tolerance."""

    names: tuple[str, ...]
    tolerance: float
    output: str = SCORE

    @override
    def counted(self, answer: Answer) -> str:
        return self.names[0]

    @override
    def same(self, one: Answer, other: Answer) -> bool:
        if isinstance(one, str) or isinstance(other, str):
            return False
        return abs(one - other) <= self.tolerance

    @override
    def truth(self, written: Truth) -> Answer | None:
        try:
            return float(written)
        except ValueError:
            return None


def agreement_of(task: str, labels: Sequence[str], tolerance_micros: int) -> Agreement:
    """The rule for what a server says that it does."""
    if task == "Regression":
        return WithinTolerance(tuple(labels), tolerance_micros / 1e6)
    return SameLabel(tuple(labels))
