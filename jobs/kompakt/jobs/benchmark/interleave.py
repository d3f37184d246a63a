# SPDX-License-Identifier: Apache-2.0
"""Baseline and candidate in turns, in one process, on the same texts.

Machines are noisy: the same file took 9.7 and 3.6 ms within two minutes, and one after the other a
faster model measured slower. So each round times both on its own texts, the order alternates from
round to round, and the speedup is the median of the rounds' ratios. Within a round each answers in
one run, as a server of that model alone would: with its weights in the cache.

One text at a time, tokenization included. Warm-up is not counted.
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


def interleave(
    *,
    baseline: Answer,
    candidate: Answer,
    texts: Sequence[str],
    rounds: int,
    seconds: float,
    seed: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Times both in turns for about so many seconds; never fewer than the rounds asked for."""
    order = list(texts)
    random.Random(seed).shuffle(order)
    warm_up = [order[i % len(order)] for i in range(WARM_UP_TEXTS)]
    each = sum(sum(_time(answer, warm_up, clock)) for answer in (baseline, candidate))
    per_round = max(MIN_TEXTS_PER_ROUND, int(seconds / rounds / (each / WARM_UP_TEXTS)))
    timings = Timings()
    progress = Progress("benchmark", rounds, unit="rounds")
    for number in range(rounds):
        start = number * per_round
        batch = [order[(start + i) % len(order)] for i in range(per_round)]
        if number % 2:
            ours = _time(candidate, batch, clock)
            theirs = _time(baseline, batch, clock)
        else:
            theirs = _time(baseline, batch, clock)
            ours = _time(candidate, batch, clock)
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


def _time(answer: Answer, texts: Sequence[str], clock: Callable[[], float]) -> list[float]:
    latencies = []
    for text in texts:
        started = clock()
        answer(text)
        latencies.append(clock() - started)
    return latencies


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)
