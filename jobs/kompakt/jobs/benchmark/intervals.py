# SPDX-License-Identifier: Apache-2.0
"""Distribution-free intervals by order statistics: latencies follow no law that one could assume.

The number of values below a quantile is binomial, so some order statistic is above it with any
confidence one asks for, if there are enough values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A median with the interval around it."""

    median: float
    low: float
    high: float


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The median and its narrowest symmetric interval of order statistics.

    Five values or fewer cannot give 95 %: the interval is then the whole range (93.75 % for five).
    """
    ordered = sorted(values)
    count = len(ordered)
    middle = count // 2
    median = ordered[middle] if count % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    depth = 0
    # [x_(d+1), x_(n-d)] misses the median with probability 2 P(Binomial(n, 1/2) <= d).
    while 2 * binomial_cdf(depth + 1, count, 0.5) <= 1 - confidence:
        depth += 1
    return Interval(median=median, low=ordered[depth], high=ordered[count - 1 - depth])


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def quantile_upper_bound(
    ordered: Sequence[float], share: float, confidence: float = 0.99
) -> float | None:
    """An upper confidence bound of a quantile; absent when there are too few values for one.

    The r-th smallest value is above the quantile when fewer than r values are below it. For p99 at
    99 % that takes 459 values, and then the largest is the bound.
    """
    count = len(ordered)
    # The number of values above the quantile is Binomial(n, 1 - share); count from the top, where
    # the few terms are.
    above = 0
    if binomial_cdf(0, count, 1 - share) > 1 - confidence:
        return None
    while binomial_cdf(above + 1, count, 1 - share) <= 1 - confidence:
        above += 1
    return ordered[count - 1 - above]


def binomial_cdf(successes: int, trials: int, probability: float) -> float:
    """P(Binomial(trials, probability) <= successes), summed in logarithms."""
    if successes >= trials:
        return 1.0
    log_p, log_q = math.log(probability), math.log1p(-probability)
    total = 0.0
    for k in range(successes + 1):
        log_choose = math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        total += math.exp(log_choose + k * log_p + (trials - k) * log_q)
    return min(1.0, total)
