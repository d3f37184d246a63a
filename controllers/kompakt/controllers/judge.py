# SPDX-License-Identifier: Apache-2.0
"""Whether a variant keeps its objectives: Pass, Fail or Undecided, at any time, with known odds.

Every objective is a ratio bad/total. A confidence sequence is a confidence interval that holds at
all times at once, so it may be looked at after every request and acted upon as soon as it lies on
one side of the limit. The one used here is Robbins' beta-binomial mixture (Robbins 1970, Ann. Math.
Stat. 41:1397; Howard, Ramdas, McAuliffe and Sekhon 2021, Ann. Stat. 49:1055): under a true ratio
`p`, the likelihood of what was seen, mixed over ratios by a beta prior, divided by its likelihood
under `p`, is a martingale that starts at 1, so by Ville's inequality it ever reaches 1/alpha with
probability alpha at most. The ratios for which it has not are the confidence sequence.

Invariants:

- no data is Undecided; more of the same ratio never turns a Fail or a Pass back;
- a wrong Fail and a wrong Pass have probabilities of their own. The priors differ too: any prior is
  valid, each is chosen for quick decisions on its side of the limit (bench figures are in the
  tests);
- a Fail needs both: the limit is broken, and the candidate is worse than the stable variant over
  the same time by more than the margin. Either test alone is wrong with probability alpha at most,
  so both together are too, and neither needs a share of the other;
- requests are taken as independent. Bursts are not: slow requests come together, so real odds are
  worse than the nominal ones until counts are tested by time window with their variance inflation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from kompakt.api.rollout import CounterPoint, Verdict

_BISECTIONS = 32
_TRISECTIONS = 60
_FAIL_PRIOR = (0.5, 4.0)
_STAKES = tuple(0.5 * 2 ** (-i / 2) for i in range(16))
_MOST_SAMPLES = 2**40


@dataclass(frozen=True)
class Odds:
    """How often one test may be wrong."""

    wrong_fail: float
    wrong_pass: float


@dataclass(frozen=True)
class Finding:
    """The judge's word on one objective. Ratios are between 0 and 1; of an accuracy drop, between
    -1 and 1.
    """

    verdict: Verdict
    total: int
    bad: int
    low: float
    high: float
    limit: float
    message: str
    broken: bool = False
    """The limit is broken; it is a Fail unless the stable variant may be as bad."""
    environment: bool = False
    """The limit is broken, and the stable variant breaks it as well: not the candidate's fault."""


def share(alpha: float, number: int) -> float:
    """Part of an error probability for the test of this number, counted from 1, in a series without
    end: the parts add up to the whole.
    """
    return alpha / (number * (number + 1))


def lower_bound(point: CounterPoint, alpha: float) -> float:
    """The ratio is above this at all times, with probability 1 - alpha."""
    return _bound(point, alpha, prior=_FAIL_PRIOR, end=0.0) if point.bad else 0.0


def upper_bound(point: CounterPoint, alpha: float, *, limit: float) -> float:
    """The ratio is below this at all times, with probability 1 - alpha. Valid for any limit; the
    sharper, the closer the limit is to what is asked about.
    """
    if point.bad == point.total:
        return 1.0
    return _bound(point, alpha, prior=_pass_prior(limit), end=1.0)


def judge_ratio(
    candidate: CounterPoint,
    *,
    claim: str,
    limit: float,
    odds: Odds,
    pooled: CounterPoint | None = None,
    reference: CounterPoint | None = None,
    margin: float = 0.0,
) -> Finding:
    """Judge a ratio against its limit, and against the stable variant's where there is one.

    `claim` says what bad means, after a count: "requests failed". `pooled` is what a Pass may look
    at: all that was seen of the candidate, in earlier stages too. `reference` is the stable variant
    over the same time; None where it answers nothing to compare with.
    """
    pooled = pooled or candidate
    low, high = (
        lower_bound(candidate, odds.wrong_fail),
        upper_bound(candidate, odds.wrong_pass, limit=limit),
    )
    seen = f"{candidate.bad} of {candidate.total} {claim}"
    verdict: Verdict = "Undecided"
    environment = False
    if candidate.total == 0:
        message = f"nothing seen yet; the limit is {percent(limit)}"
    elif low > limit:
        sure = f"{seen}: {_sure(odds.wrong_fail)} at least {percent(low)}"
        broken = f"{sure}, above the limit of {percent(limit)}"
        if reference is None or _worse(
            candidate, reference, odds.wrong_fail, limit=limit, margin=margin
        ):
            verdict, message = "Fail", broken
        else:
            environment = lower_bound(reference, odds.wrong_fail) > limit
            theirs = f"({reference.bad} of {reference.total})"
            message = broken + (
                f"; the stable variant misses it too {theirs}, and is not shown to be better"
                if environment
                else f", but not yet shown to be worse than the stable variant {theirs}"
            )
    elif pooled.total and (bound := upper_bound(pooled, odds.wrong_pass, limit=limit)) <= limit:
        verdict, candidate, high = "Pass", pooled, bound
        low = lower_bound(pooled, odds.wrong_fail)
        message = (
            f"{pooled.bad} of {pooled.total} {claim}: {_sure(odds.wrong_pass)} at most"
            f" {percent(high)}, within the limit of {percent(limit)}"
        )
    else:
        between = f"between {percent(low)} and {percent(high)}"
        message = f"{seen}: {between}, not yet on one side of the limit of {percent(limit)}"
    return Finding(
        verdict=verdict,
        total=candidate.total,
        bad=candidate.bad,
        low=low,
        high=high,
        limit=limit,
        message=message,
        broken=candidate.total > 0 and low > limit,
        environment=environment,
    )


def judge_drop(*, pairs: int, lost: int, gained: int, limit: float, odds: Odds) -> Finding:
    """Judge the accuracy drop (lost - gained) / pairs on examples that both variants answered.

    A bet on each example's loss (1), gain (-1) or tie (0), with stakes mixed over a grid, is a
    martingale under any distribution with the assumed mean (Waudby-Smith and Ramdas 2024, J. R.
    Stat. Soc. B 86:1): no normal approximation, and few disagreements make it sharp. The examples
    are one sample: a second pass over them is a second look at it, for which the caller pays with
    `share`.
    """
    low = _drop_bound(pairs=pairs, lost=lost, gained=gained, alpha=odds.wrong_fail)
    high = -_drop_bound(pairs=pairs, lost=gained, gained=lost, alpha=odds.wrong_pass)
    seen = f"of {pairs} labelled examples the candidate loses {lost} and gains {gained}"
    verdict: Verdict = "Undecided"
    if pairs == 0:
        message = f"no pass over the golden set yet; the limit is {percent(limit)}"
    elif low > limit:
        verdict = "Fail"
        message = (
            f"{seen}: {_sure(odds.wrong_fail)} accuracy drops by at least {percent(low)},"
            f" more than the limit of {percent(limit)}"
        )
    elif high <= limit:
        verdict = "Pass"
        message = (
            f"{seen}: {_sure(odds.wrong_pass)} accuracy drops by at most {percent(high)},"
            f" within the limit of {percent(limit)}"
        )
    else:
        message = (
            f"{seen}: accuracy drops by between {percent(low)} and {percent(high)}, not yet on one"
            f" side of the limit of {percent(limit)}"
        )
    return Finding(
        verdict=verdict,
        total=pairs,
        bad=lost,
        low=low,
        high=high,
        limit=limit,
        message=message,
    )


def samples_needed(*, limit: float, alpha: float, ratio: float = 0.0) -> int | None:
    """How many requests a Pass takes when this ratio of them is bad; None when it never comes."""
    if ratio >= limit:
        return None
    prior = _pass_prior(limit)

    def enough(total: int) -> bool:
        bad = ratio * total
        evidence = _log_mixture(bad, total, prior) - _log_likelihood(bad, total, limit)
        return evidence >= -math.log(alpha)

    high = 1
    while not enough(high):
        high *= 2
        if high > _MOST_SAMPLES:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def percent(ratio: float) -> str:
    """A ratio for people: `4.1 %`, `0.052 %`, `100 %`."""
    value = 100 * ratio
    digits = 1 if abs(value) >= 1 or value == 0 else 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(digits, 6)}f}".rstrip("0").rstrip(".") + " %"


def _sure(alpha: float) -> str:
    """`with 99.98 % confidence`: the confidence as often given, nines not rounded away."""
    digits = max(0, -math.floor(math.log10(alpha)) - 2) + 1
    return f"with {100 * (1 - alpha):.{digits}f} % confidence".replace(".0 %", " %")


def _pass_prior(limit: float) -> tuple[float, float]:
    """Half of a request's weight, centred on the limit."""
    return 0.5, 0.5 * (1 - limit) / limit if limit > 0 else 0.5


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _times_log(count: float, ratio: float) -> float:
    if count == 0:
        return 0.0
    return count * math.log(ratio) if ratio > 0 else -math.inf


def _log_likelihood(bad: float, total: float, ratio: float) -> float:
    return _times_log(bad, ratio) + _times_log(total - bad, 1 - ratio)


def _log_mixture(bad: float, total: float, prior: tuple[float, float]) -> float:
    a, b = prior
    return _log_beta(a + bad, b + total - bad) - _log_beta(a, b)


def _bound(point: CounterPoint, alpha: float, *, prior: tuple[float, float], end: float) -> float:
    """The end of the confidence sequence on one side of what was seen, rounded outwards."""
    least = _log_mixture(point.bad, point.total, prior) + math.log(alpha)
    inside, outside = point.bad / point.total, end
    for _ in range(_BISECTIONS):
        middle = (inside + outside) / 2
        if _log_likelihood(point.bad, point.total, middle) <= least:
            outside = middle
        else:
            inside = middle
    return outside


def _worse(
    candidate: CounterPoint, reference: CounterPoint, alpha: float, *, limit: float, margin: float
) -> bool:
    """Whether the candidate's ratio is above the stable variant's by more than the margin.

    The likelihood of both, mixed over ratios, is divided by the largest that it has when the
    candidate is not worse (universal inference: Wasserman, Ramdas and Balakrishnan 2020, PNAS
    117:16880). That is below the martingale which divides by the true likelihood, so the odds are
    those of the confidence sequences; and it needs far fewer requests than two confidence sequences
    that lie apart.
    """
    if reference.total == 0 or candidate.bad / candidate.total <= _ratio(reference) + margin:
        return False
    mixture = _log_mixture(candidate.bad, candidate.total, _FAIL_PRIOR)
    mixture += _log_mixture(reference.bad, reference.total, _pass_prior(limit))

    def log_likelihood(ratio: float) -> float:
        """Of both, when the candidate is just not worse."""
        ours = _log_likelihood(candidate.bad, candidate.total, ratio + margin)
        return ours + _log_likelihood(reference.bad, reference.total, ratio)

    # It is concave, and the likeliest ratio lies between what was seen of either.
    low, high = _ratio(reference), min(_ratio(candidate) - margin, 1 - margin)
    for _ in range(_TRISECTIONS):
        third = (high - low) / 3
        if log_likelihood(low + third) < log_likelihood(high - third):
            low += third
        else:
            high -= third
    return mixture - log_likelihood((low + high) / 2) >= -math.log(alpha)


def _ratio(point: CounterPoint) -> float:
    return point.bad / point.total


@lru_cache(maxsize=64)  # the figures of a pass are looked at each second until the next pass
def _drop_bound(*, pairs: int, lost: int, gained: int, alpha: float) -> float:
    """The mean of losses (1), gains (-1) and ties (0) is above this with probability 1 - alpha."""
    if pairs == 0:
        return -1.0
    ties, goal = pairs - lost - gained, -math.log(alpha)

    def log_wealth(mean: float) -> float:
        logs = [
            _times_log(lost, 1 + stake * (1 - mean))
            + _times_log(ties, 1 - stake * mean)
            + _times_log(gained, 1 - stake * (1 + mean))
            for stake in _STAKES
        ]
        most = max(logs)
        return most + math.log(sum(math.exp(x - most) for x in logs) / len(logs))

    if log_wealth(-1.0) < goal:
        return -1.0
    outside, inside = -1.0, (lost - gained) / pairs
    for _ in range(_BISECTIONS):
        middle = (inside + outside) / 2
        outside, inside = (middle, inside) if log_wealth(middle) >= goal else (outside, middle)
    return outside
