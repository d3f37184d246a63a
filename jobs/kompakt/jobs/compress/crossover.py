# SPDX-License-Identifier: Apache-2.0
"""New texts from few: the beginning of one and the end of another (instance crossover, Luque 2019,
arXiv:1909.11241).

Their author crosses texts of one label, to keep it. A teacher answers whatever it reads, so any two
may be crossed, and what does not fit together is near its decision boundaries, where a student errs
most.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate


def crossed(
    texts: Sequence[str], count: int, *, seed: int, weights: Sequence[float] | None = None
) -> list[str]:
    """So many new texts, each of two drawn at random, cut between words.

    Both are cut at about the same share of their length, so that new texts are as long as old ones.

    Args:
        texts: Blank ones give nothing; where all are blank, nothing is made.
        count: How many to make.
        seed: The same one gives the same texts.
        weights: How often texts are drawn, one beside the other; alike if there are none.
    """
    rng = random.Random(seed)
    words = [text.split() for text in texts]
    written = [place for place, split in enumerate(words) if split]
    if not written:
        return []
    sums = None if weights is None else list(accumulate(weights[place] for place in written))

    def drawn() -> list[str]:
        if sums is None:
            return words[rng.choice(written)]
        return words[rng.choices(written, cum_weights=sums)[0]]

    made = []
    for _ in range(count):
        first, second = drawn(), drawn()
        share = rng.random()
        begin, end = first[: round(share * len(first))], second[round(share * len(second)) :]
        made.append(" ".join(begin + end) or " ".join(first))
    return made
