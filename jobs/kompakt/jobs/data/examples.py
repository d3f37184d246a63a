# SPDX-License-Identifier: Apache-2.0
"""What data is, once read: texts with the label as written in the file, resolved against a model's
labels later (`targets`).

The split of an example follows from a hash of its text alone, so that it is the same in every Job,
whatever else the file holds, and equal texts never sit on both sides.
"""

from __future__ import annotations

import hashlib
import heapq
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
    second: str | None = None
    """The other text of a pair."""
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

    @property
    def all_texts(self) -> list[str]:
        """The texts, and after them the second ones of pairs."""
        return [*self.texts, *(e.second for e in self.examples if e.second is not None)]


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


def draw_again(weights: Sequence[float], count: int, *, seed: int) -> list[int]:
    """So many places in a random order, again and again: each as often as its weight says, to less
    than one, and spread evenly (stride scheduling, Waldspurger & Weihl 1995, MIT/LCS/TM-528).
    """
    rng = random.Random(seed)
    turns = [(rng.random() / weight, place) for place, weight in enumerate(weights)]
    heapq.heapify(turns)
    drawn = []
    for _ in range(count):
        turn, place = turns[0]
        drawn.append(place)
        heapq.heapreplace(turns, (turn + 1 / weights[place], place))
    return drawn


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


def first_look(
    examples: Sequence[Example], *, selection: int, share: int, by_label: bool = True
) -> list[int]:
    """Indices of a part of the selection split, ascending, each label in proportion.

    Which texts these are follows from their hashes: all trials are looked at with the same ones,
    and a larger share has the texts of a smaller one. At least one of each label.

    Args:
        examples: Of the whole data.
        selection: Share of the data in the selection split, in permille.
        share: Of the selection split, in permille.
        by_label: Whether there are a few labels, rather than numbers or labels of words.
    """
    strata: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        if in_selection(example.text, selection):
            strata.setdefault(str(example.label) if by_label else "", []).append(index)
    chosen: list[int] = []
    for members in strata.values():
        # Other bytes of the hash than those that choose the split: these are all alike in it.
        members.sort(key=lambda i: hashlib.sha256(examples[i].text.encode()).digest()[8:])
        chosen += members[: -(-len(members) * share // 1000)]
    return sorted(chosen)


def in_selection(text: str, permille: int) -> bool:
    """Whether a text belongs to the split that variants are chosen on."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 1000 < permille
