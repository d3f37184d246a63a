# SPDX-License-Identifier: Apache-2.0
"""Answers of simulated variants, and what a judge makes of them.

Every judge of a cell reads the same answers, whatever weights it gives at which time: an answer is
found by how much traffic its variant has had until then, not by the clock. Traffic is counted in
cells, the requests that a small share of all users' traffic brings between two looks; how many they
are is Poisson distributed, since users do not know of each other.

Requests are bad independently, or in runs: a two-state Markov chain over the requests of a variant
whose runs of bad ones have a mean length, with the same ratio in the long run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

UNDECIDED, PROMOTED, ROLLED_BACK = range(3)
WHOLE = 1000
"""All users' traffic, in permille."""
_BLOCK = 2000
"""Cells that are drawn at a time: as many as are asked for at the most, not the whole of them."""


class Answers(Protocol):
    """Those of one variant, in all rollouts of a batch."""

    def upto(self, at: Ints) -> tuple[Ints, Ints]:
        """How many requests until these cells, and how many bad ones; each [rollouts]."""
        ...


@dataclass(frozen=True)
class Kind:
    """What the requests of a variant are like."""

    ratio: float
    """Of bad ones."""
    run: float | None = None
    """Mean length of a run of bad requests; None: each is bad by itself."""


@dataclass(frozen=True)
class World:
    """The rollouts that a judge decides on."""

    candidate: Answers
    stable: Answers
    rollouts: int
    look: int
    """Seconds from one look to the next."""
    quantum: int
    """Permille of all traffic that fills a cell from one look to the next."""
    deadline: int
    """Seconds."""

    def cells(self, permille: int) -> int:
        """Those that a variant of this weight fills from one look to the next."""
        whole, rest = divmod(permille, self.quantum)
        if rest:
            raise ValueError(f"a weight of {permille} permille is no multiple of {self.quantum}")
        return whole

    def looks(self, seconds: int) -> int:
        """As many as fit in this time."""
        whole, rest = divmod(seconds, self.look)
        if rest:
            raise ValueError(f"{seconds} s are no multiple of the {self.look} s between two looks")
        return whole


@dataclass(frozen=True)
class Outcome:
    """What a judge decided, each [rollouts]."""

    verdict: Ints
    """UNDECIDED until the deadline, PROMOTED or ROLLED_BACK."""
    samples: Ints
    """Requests that the candidate had answered by then, mirrored ones too."""
    seconds: Ints


class Decisions:
    """An outcome in the making."""

    def __init__(self, world: World) -> None:
        self.verdict = np.full(world.rollouts, UNDECIDED, np.int64)
        self.samples = np.zeros(world.rollouts, np.int64)
        self.seconds = np.full(world.rollouts, world.deadline, np.int64)
        self.open: Mask = np.ones(world.rollouts, np.bool_)

    def end(self, which: Mask, verdict: int, *, samples: Ints, seconds: int) -> None:
        """Those of them that are still open get this verdict."""
        ends = which & self.open
        self.verdict[ends] = verdict
        self.samples[ends] = samples[ends]
        self.seconds[ends] = seconds
        self.open &= ~ends

    def outcome(self) -> Outcome:
        """As it is now."""
        return Outcome(self.verdict, self.samples, self.seconds)


class Stream:
    """Answers drawn when they are asked for; always the same ones for the same seed."""

    def __init__(
        self,
        kind: Kind,
        *,
        per_cell: float,
        rollouts: int,
        cells: int,
        seed: np.random.SeedSequence,
    ) -> None:
        self._kind, self._per_cell = kind, per_cell
        self._random = np.random.default_rng(seed)
        self._rows = np.arange(rollouts)
        self._total = np.zeros((rollouts, cells + 1), np.int32)
        self._bad = np.zeros((rollouts, cells + 1), np.int32)
        self._known = 0
        self._next_bad = np.full(rollouts, kind.ratio)
        """Probability that the next request is bad."""

    def upto(self, at: Ints) -> tuple[Ints, Ints]:
        """How many requests until these cells, and how many bad ones."""
        while self._known < at.max():
            self._draw()
        total, bad = self._total[self._rows, at], self._bad[self._rows, at]
        return total.astype(np.int64), bad.astype(np.int64)

    def _draw(self) -> None:
        begin, end = self._known, min(self._known + _BLOCK, self._total.shape[1] - 1)
        shape, kind = (len(self._rows), end - begin), self._kind
        if kind.run is None:
            good = self._random.poisson(self._per_cell * (1 - kind.ratio), shape)
            bad = self._random.poisson(self._per_cell * kind.ratio, shape).cumsum(axis=1)
            total = good.cumsum(axis=1) + bad
        else:
            total = self._random.poisson(self._per_cell, shape).cumsum(axis=1)
            bad = np.array([self._runs(row, total[row], kind.run) for row in range(len(total))])
        self._total[:, begin + 1 : end + 1] = self._total[:, begin, None] + total
        self._bad[:, begin + 1 : end + 1] = self._bad[:, begin, None] + bad
        self._known = end

    def _runs(self, row: int, total: Ints, mean: float) -> Ints:
        """How many are bad of the next requests, at each of these counts.

        Run lengths are geometric, so what a run had before does not matter: of the past, only the
        last request is kept.
        """
        last = int(total[-1])
        if last == 0:
            return np.zeros_like(total)
        ratio, leaves = self._kind.ratio, 1 / mean
        enters = ratio * leaves / (1 - ratio)
        parity = 0 if self._random.random() < self._next_bad[row] else 1
        expected = last * ratio * leaves
        pairs = int(1.1 * expected + 6 * math.sqrt(expected)) + 8
        lengths = np.zeros(0, np.int64)
        while lengths.sum() < last:
            more = np.empty(2 * pairs, np.int64)
            more[parity::2] = self._random.geometric(leaves, pairs)
            more[1 - parity :: 2] = self._random.geometric(enters, pairs)
            lengths = np.concatenate([lengths, more])
        ends = np.concatenate([[0], lengths.cumsum()])
        lengths[1 - parity :: 2] = 0
        bads = np.concatenate([[0], lengths.cumsum()])
        ends_bad = (int(np.searchsorted(ends, last)) - 1) % 2 == parity
        self._next_bad[row] = 1 - leaves if ends_bad else enters
        found: Ints = np.interp(total, ends, bads).round().astype(np.int64)
        return found
