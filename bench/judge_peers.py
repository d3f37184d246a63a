# SPDX-License-Identifier: Apache-2.0
"""How other controllers decide on the same answers, written anew after reading their sources.

Each takes the weights of Kompakt's canary steps and the metrics that its documentation shows: the
ratio of bad requests in the last minute, with Prometheus' ways: a series that does not exist yet is
an empty result, and a ratio of nothing to nothing is NaN. None of them counts mirrored requests.
Scraping and the gateways are left out: a window has exactly the requests of its time, and a weight
holds at once. Mirroring, webhooks, manual gates and other metrics are off, which is the default.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from bench.judge_streams import PROMOTED, ROLLED_BACK, Decisions, Floats, Ints, Mask, Outcome, World

_ROWS = 200
"""Rollouts whose points are compared in pairs at a time, for the memory's sake."""
_ABOVE = 1e-9
"""Percentage points: just above."""


@dataclass(frozen=True)
class Flagger:
    """fluxcd/flagger 15bd6ad5 (2026-07-21), pkg/controller/scheduler.go, `advanceCanary`.

    A tick first rolls back when enough checks have failed; then it checks the last window, and one
    failed check is one more for good: none after it takes it back. No data is a failed check
    (pkg/metrics/providers/prometheus.go). A good check moves the weight on, and promotes after the
    last one. Weights are whole percents.
    """

    interval: int = 60
    """Seconds from tick to tick, and of the window."""
    threshold: int = 5
    """Failed checks that roll back (the default is 1)."""

    def decide(self, world: World, weights: Sequence[int], *, limit: float) -> Outcome:
        """The first tick gives the first weight."""
        ticks = world.looks(self.interval)
        cells = np.array([world.cells(w) * ticks for w in weights])
        decisions = Decisions(world)
        step, failed, at, total, bad = np.zeros((5, world.rollouts), np.int64)
        for now in range(self.interval, world.deadline + 1, self.interval):
            at += cells[step] * decisions.open
            total_now, bad_now = world.candidate.upto(at)
            over = failed >= self.threshold
            decisions.end(over, ROLLED_BACK, samples=total_now, seconds=now)
            seen = total_now - total
            good = (seen > 0) & (bad_now - bad <= limit * seen)
            done = good & (step == len(weights) - 1)
            decisions.end(done, PROMOTED, samples=total_now, seconds=now)
            failed += ~good
            step += good & decisions.open
            total, bad = total_now, bad_now
            if not decisions.open.any():
                break
        return decisions.outcome()


@dataclass(frozen=True)
class Argo:
    """argoproj/argo-rollouts 9f8d111d (2026-08-17), analysis/analysis.go, `assessMetricStatus`.

    After each setWeight an inline analysis, with `successCondition: result[0] <= limit` and an
    initial delay of one interval, without which the first window would lie before the weight.
    Empty results are Errors, tried again after 10 s, and too many in a row abort; a NaN compares as
    false and is Failed; more Failed ones than the limit abort; `count` measurements that were no
    Errors pass the step.
    """

    interval: int = 60
    """Seconds from one measurement to the next, and of the window."""
    count: int = 10
    failure_limit: int = 0
    """The default."""
    consecutive_error_limit: int = 4
    """The default."""
    retry: int = 10
    """Seconds after an Error: a constant."""

    def decide(self, world: World, weights: Sequence[int], *, limit: float) -> Outcome:
        """An analysis run for each weight."""
        tick = math.gcd(self.interval, self.retry)
        cells = np.array([world.cells(w) for w in weights])
        per_tick, per_window = cells * world.looks(tick), cells * world.looks(self.interval)
        decisions = Decisions(world)
        step, failed, errors, measured, at = np.zeros((5, world.rollouts), np.int64)
        due = np.full(world.rollouts, self.interval)
        for now in range(tick, world.deadline + 1, tick):
            at += per_tick[step] * decisions.open
            asked = decisions.open & (due == now)
            if not asked.any():
                continue
            total, bad = world.candidate.upto(at)
            before, bad_before = world.candidate.upto(np.maximum(at - per_window[step], 0))
            seen, missed = total - before, bad - bad_before
            empty = total == 0
            errors = np.where(asked, (errors + 1) * empty, errors)
            measured += asked & ~empty
            failed += asked & ~empty & ((seen == 0) | (missed > limit * seen))
            due[asked] = now + np.where(empty, self.retry, self.interval)[asked]
            aborts = (failed > self.failure_limit) | (errors > self.consecutive_error_limit)
            decisions.end(asked & aborts, ROLLED_BACK, samples=total, seconds=now)
            passes = asked & decisions.open & (measured >= self.count)
            last = step == len(weights) - 1
            decisions.end(passes & last, PROMOTED, samples=total, seconds=now)
            moves = passes & ~last
            step += moves
            failed[moves] = errors[moves] = measured[moves] = 0
            due[moves] = now + self.interval
            if not decisions.open.any():
                break
        return decisions.outcome()


@dataclass(frozen=True)
class Kayenta:
    """spinnaker/kayenta a69573be (2025-04-08), NetflixACAJudge-v1.0:
    kayenta-judge/…/MannWhitneyClassifier.scala and kayenta-mannwhitney/…/MannWhitney.scala.

    One judgement for each weight, of as many points of time as its documentation asks for at least,
    beside a fresh baseline that gets as much traffic as the canary. A point is the percentage of
    bad requests; points without requests are removed. The one metric (direction Increase, default
    effect size) is High, and the score 0, when the confidence interval of the shift lies above a
    quarter of the shift itself; High and no data end the rollout, and it is promoted after the last
    weight. The roots that the original searches with a tolerance of 1e-4 are exact here. It knows
    no limit: a candidate within the budget is High where it is worse than the stable variant.
    """

    points: int = 50
    period: int = 45
    """Seconds from point to point."""
    confidence: float = 0.98
    tolerance: float = 0.25

    def decide(self, world: World, weights: Sequence[int], *, limit: float) -> Outcome:  # noqa: ARG002 -- it has none
        """A judgement for each weight."""
        looks = world.looks(self.period)
        decisions = Decisions(world)
        at = np.zeros(world.rollouts, np.int64)
        for number, weight in enumerate(weights):
            now = (number + 1) * self.points * self.period
            if now > world.deadline:
                break
            marks = [at + world.cells(weight) * looks * n for n in range(self.points + 1)]
            experiment, total = _percentages(world.candidate.upto(m) for m in marks)
            control, _ = _percentages(world.stable.upto(m) for m in marks)
            bad = is_high(experiment, control, confidence=self.confidence, tolerance=self.tolerance)
            silent = np.isnan(experiment).all(axis=1) | np.isnan(control).all(axis=1)
            decisions.end(bad | silent, ROLLED_BACK, samples=total, seconds=now)
            if number == len(weights) - 1:
                decisions.end(decisions.open, PROMOTED, samples=total, seconds=now)
            at = np.where(decisions.open, marks[-1], at)
        return decisions.outcome()


def is_high(experiment: Floats, control: Floats, *, confidence: float, tolerance: float) -> Mask:
    """Whether the experiment's points are above the control's, by rows of [rollouts, points]; NaN
    is no point.
    """
    found = np.zeros(len(experiment), np.bool_)
    for begin in range(0, len(experiment), _ROWS):
        rows = slice(begin, begin + _ROWS)
        found[rows] = _is_high(experiment[rows], control[rows], confidence, tolerance)
    return found


def _is_high(experiment: Floats, control: Floats, confidence: float, tolerance: float) -> Mask:
    both = np.concatenate([experiment, control], axis=1)
    there = ~np.isnan(experiment).all(axis=1) & ~np.isnan(control).all(axis=1)
    lowest = np.where(np.isnan(both), np.inf, both).min(axis=1)
    highest = np.where(np.isnan(both), -np.inf, both).max(axis=1)
    differ = there & (lowest < highest)
    found = np.zeros(len(experiment), np.bool_)
    if not differ.any():
        return found
    x, y = experiment[differ], control[differ]
    quantile = NormalDist().inv_cdf((1 + confidence) / 2)
    critical = tolerance * np.abs(shift(x, y))
    # The interval's lower end is where the score falls to the quantile, or the least shift there is
    # if it is never above.
    least = np.nanmin(x, axis=1) - np.nanmax(y, axis=1)
    never = score(x, y, least) <= quantile
    above = np.where(never, least > critical, score(x, y, critical + _ABOVE) > quantile)
    found[differ] = above & (np.nanmean(x, axis=1) >= np.nanmean(y, axis=1))
    return found


def score(x: Floats, y: Floats, mu: Floats) -> Floats:
    """Mann and Whitney's statistic of x - mu and y, standardized with ties and continuity; of each
    row. Above 0: x is larger.
    """
    x = x - mu[:, None]
    m, n = (~np.isnan(x)).sum(axis=1), (~np.isnan(y)).sum(axis=1)
    above = (x[:, :, None] > y[:, None, :]).sum(axis=(1, 2))
    same = (x[:, :, None] == y[:, None, :]).sum(axis=(1, 2))
    excess = above + same / 2 - m * n / 2
    both = np.concatenate([x, y], axis=1)
    alike = (both[:, :, None] == both[:, None, :]).sum(axis=2)
    # Over each value that t points share, t³ - t is the sum of t² - 1 over these points.
    ties = np.where(alike > 0, alike.astype(np.float64) ** 2 - 1, 0).sum(axis=1)
    every = m + n
    variance = m * n / 12 * (every + 1 - ties / (every * (every - 1)))
    with np.errstate(divide="ignore", invalid="ignore"):  # all points alike: no score
        standardized = (excess - np.sign(excess) / 2) / np.sqrt(np.maximum(variance, 0))
    return np.where(variance > 0, standardized, 0.0)


def shift(x: Floats, y: Floats) -> Floats:
    """Hodges and Lehmann's: the median of all differences, of each row."""
    differences = (x[:, :, None] - y[:, None, :]).reshape(len(x), -1)
    differences.sort(axis=1)  # NaN comes last
    number = (~np.isnan(differences)).sum(axis=1)
    rows = np.arange(len(x))
    middle: Floats = (differences[rows, (number - 1) // 2] + differences[rows, number // 2]) / 2
    return middle


def _percentages(marks: Iterable[tuple[Ints, Ints]]) -> tuple[Floats, Ints]:
    """Of bad requests between the marks, [rollouts, points], NaN without any; and the total."""
    totals, bads = (np.array(counts).T for counts in zip(*marks, strict=True))
    seen, bad = np.diff(totals, axis=1), np.diff(bads, axis=1)
    ratios = np.full(seen.shape, np.nan)
    np.divide(100 * bad, seen, out=ratios, where=seen > 0)
    return ratios, totals[:, -1]
