# SPDX-License-Identifier: Apache-2.0
"""Baseline and candidate in turns, in one process, on the same texts.

Machines are noisy: the same file took 9.7 and 3.6 ms within two minutes, and one after the other a
faster model measured slower. So each round times both on its own texts, the order alternates from
round to round, and the speedup is the median of the rounds' ratios. Within a round each answers in
one run, as a server of that model alone would: with its weights in the cache.

One text at a time, tokenization included. Warm-up is not counted. On a share of a CPU each answer
is followed by a pause, as long as the share needs to pay for it: without, the kernel would stop the
process in the middle of every tenth answer, and the figures would be those of the quota. (A server
that is not overloaded has pauses too.)
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kompakt.api.measure import LatencyFigures
from kompakt.jobs.benchmark.intervals import (
    Interval,
    median_interval,
    quantile,
    quantile_upper_bound,
)
from kompakt.jobs.progress import Progress

WARM_UP_TEXTS = 10
"""Of each model; these also tell how many texts fit into the time."""
MIN_TEXTS_PER_ROUND = 4
PAUSE_EXCESS = 1.2
"""The pauses are longer by this than the quota demands; the interpreter itself needs some of it."""

Answer = Callable[[str], object]


@dataclass
class Timings:
    """What the rounds measured, in seconds."""

    baseline: list[float] = field(default_factory=list)
    candidate: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    """Of each round: the baseline's time for its texts / the candidate's time for the same."""

    @property
    def speedup(self) -> Interval:
        """The median ratio with its 95 % interval."""
        return median_interval(self.ratios)


def interleave(  # noqa: PLR0913 -- all that a benchmark depends on, by name
    *,
    baseline: Answer,
    candidate: Answer,
    texts: Sequence[str],
    rounds: int,
    seconds: float,
    seed: int,
    share: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Timings:
    """Times both in turns for about so many seconds; never fewer than the rounds asked for.

    `share` is what the quota allows of the CPUs that the threads would use: below 1 it is paced.
    """
    pause = max(0.0, 1 / share - 1) * PAUSE_EXCESS

    def times(answer: Answer, texts: Sequence[str]) -> list[float]:
        latencies = []
        for text in texts:
            started = clock()
            answer(text)
            latencies.append(clock() - started)
            if pause:
                sleep(latencies[-1] * pause)
        return latencies

    order = list(texts)
    random.Random(seed).shuffle(order)
    warm_up = [order[i % len(order)] for i in range(WARM_UP_TEXTS)]
    each = sum(sum(times(answer, warm_up)) for answer in (baseline, candidate)) * (1 + pause)
    per_round = max(MIN_TEXTS_PER_ROUND, int(seconds / rounds / (each / WARM_UP_TEXTS)))
    timings = Timings()
    progress = Progress("benchmark", rounds, unit="rounds")
    for number in range(rounds):
        start = number * per_round
        batch = [order[(start + i) % len(order)] for i in range(per_round)]
        if number % 2:
            ours = times(candidate, batch)
            theirs = times(baseline, batch)
        else:
            theirs = times(baseline, batch)
            ours = times(candidate, batch)
        timings.baseline += theirs
        timings.candidate += ours
        timings.ratios.append(sum(theirs) / sum(ours))
        progress.advance()
    return timings


def figures(latencies: Sequence[float], *, peak_memory_mebibytes: int) -> LatencyFigures:
    """Percentiles of one model's latencies."""
    ordered = sorted(latencies)
    upper = quantile_upper_bound(ordered, 0.99)
    return LatencyFigures(
        p50_microseconds=_microseconds(quantile(ordered, 0.50)),
        p90_microseconds=_microseconds(quantile(ordered, 0.90)),
        p95_microseconds=_microseconds(quantile(ordered, 0.95)),
        p99_microseconds=_microseconds(quantile(ordered, 0.99)),
        p99_upper_microseconds=None if upper is None else _microseconds(upper),
        mean_microseconds=_microseconds(sum(ordered) / len(ordered)),
        peak_memory_mebibytes=peak_memory_mebibytes,
    )


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)
