# SPDX-License-Identifier: Apache-2.0
"""What data is, once read: texts with the label as written in the file, resolved against a model's
labels later (`targets`).

The split of an example follows from a hash of its text alone, so that it is the same in every Job,
whatever else the file holds, and equal texts never sit on both sides.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from kompakt.api.base import Digest

Label = str | float | tuple[str | float, ...]
"""As written in the file: a label's name or its index, or a number, or one of these for each
word."""


@dataclass(frozen=True)
class Example:
    """One text."""

    text: str
    label: Label | None = None
    """None where there is none."""
    slices: dict[str, str] = field(default_factory=dict)
    weight: float = 1.0
    """How much oftener than others it is drawn."""
    line: int = 0
    """Where in the file it stands, for error messages."""


@dataclass(frozen=True)
class Dataset:
    """The examples of one source, in the order of the file."""

    uri: str
    digest: Digest
    """Of the file's bytes."""
    examples: tuple[Example, ...]

    @property
    def texts(self) -> list[str]:
        """The texts alone."""
        return [example.text for example in self.examples]


def draw(examples: Sequence[Example], *, seed: int) -> list[int]:
    """All indices in a random order in which those of twice the weight come twice as early.

    Weighted sampling without replacement by exponential keys (Efraimidis & Spirakis 2006,
    Information Processing Letters 97:181-185): any number of them from the start is a sample.
    """
    rng = random.Random(seed)
    indices = list(range(len(examples)))
    if all(example.weight == 1.0 for example in examples):
        rng.shuffle(indices)
        return indices
    keys = [draw_key(rng.random(), example.weight) for example in examples]
    return sorted(indices, key=keys.__getitem__)


def draw_key(uniform: float, weight: float) -> float:
    """What a sample without replacement is ordered by, from a number in [0, 1): smallest first."""
    return -math.log1p(-uniform) / weight


def texts_digest(texts: Iterable[str]) -> Digest:
    """Content address of texts in their order: what predictions are cached by."""
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    return f"sha256:{digest.hexdigest()}"


def in_selection(text: str, permille: int) -> bool:
    """Whether a text belongs to the split that variants are chosen on."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 1000 < permille
