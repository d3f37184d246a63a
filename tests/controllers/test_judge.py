# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from kompakt.api.rollout import CounterPoint
from kompakt.controllers import judge
from kompakt.controllers.judge import Finding, Odds

ODDS = Odds(wrong_fail=2.5e-4, wrong_pass=0.05)
"""A budget of 1 % for wrong rollbacks, over four objectives, five stages, and the first attempt."""
LOOKS = np.unique(np.concatenate([np.arange(1, 100), np.geomspace(100, 8000, 250).astype(int)]))
NEVER = 10**9

Ints = NDArray[np.int64]
points = st.integers(1, 5000).flatmap(
    lambda total: st.builds(CounterPoint, total=st.just(total), bad=st.integers(0, total))
)


def point(bad: int, total: int) -> CounterPoint:
    """So many bad of so many."""
    return CounterPoint(total=total, bad=bad)


def ratio(
    bad: int,
    total: int,
    *,
    limit: float = 0.01,
    odds: Odds = ODDS,
    reference: CounterPoint | None = None,
    margin: float = 0.0,
) -> Finding:
    """The judge's word on requests that failed."""
    return judge.judge_ratio(
        point(bad, total),
        claim="requests failed",
        limit=limit,
        odds=odds,
        reference=reference,
        margin=margin,
    )


def first_true(total: int, is_true: Callable[[int], bool]) -> int:
    """The least number up to `total` for which a monotone predicate holds, else total + 1."""
    low, high = -1, total + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_true(middle) else (middle, high)
    return high


@cache
def fewest_that_fail(total: int, limit: float, alpha: float) -> int:
    """Bad requests from which the judge fails a candidate."""
    return first_true(total, lambda bad: judge.lower_bound(point(bad, total), alpha) > limit)


@cache
def most_that_pass(total: int, limit: float, alpha: float) -> int:
    """Bad requests up to which the judge passes a candidate; -1 when it never does."""

    def too_many(bad: int) -> bool:
        return judge.upper_bound(point(bad, total), alpha, limit=limit) > limit

    return first_true(total, too_many) - 1


def simulate(
    true_ratio: float,
    *,
    runs: int,
    limit: float,
    odds: Odds = ODDS,
    seed: int = 7,
    looks: Ints = LOOKS,
) -> tuple[Ints, Ints]:
    """Requests to the first Fail and to the first Pass of each run, looking again and again."""
    generator = np.random.default_rng(seed)
    steps = np.diff(looks, prepend=0)
    bad = np.cumsum(generator.binomial(steps, true_ratio, size=(runs, len(looks))), axis=1)
    fails = np.array([fewest_that_fail(int(n), limit, odds.wrong_fail) for n in looks])
    passes = np.array([most_that_pass(int(n), limit, odds.wrong_pass) for n in looks])
    return first_look(bad >= fails, looks), first_look(bad <= passes, looks)


def first_look(hit: NDArray[np.bool_], looks: Ints) -> Ints:
    """The look at which each run is first hit, or NEVER."""
    return np.where(hit.any(axis=1), looks[hit.argmax(axis=1)], NEVER)


@pytest.mark.parametrize("prior", [judge._FAIL_PRIOR, judge._pass_prior(0.01)])
@pytest.mark.parametrize(("total", "true_ratio"), [(1, 0.3), (40, 0.01), (700, 0.05)])
def test_evidence_is_a_likelihood_ratio(
    prior: tuple[float, float], total: int, true_ratio: float
) -> None:
    """The evidence against a ratio is the beta-binomial likelihood over the binomial one, as an
    independent library computes them, and its mean under that ratio is 1.
    """
    bad = np.arange(total + 1)
    expected = stats.betabinom.logpmf(bad, total, *prior) - stats.binom.logpmf(
        bad, total, true_ratio
    )

    found = [
        judge._log_mixture(k, total, prior) - judge._log_likelihood(k, total, true_ratio)
        for k in map(int, bad)
    ]

    assert found == pytest.approx(expected, abs=1e-6)
    weights = stats.binom.logpmf(bad, total, true_ratio)
    assert np.exp(np.array(found) + weights).sum() == pytest.approx(1.0, abs=1e-6)


@given(seen=points, alpha=st.floats(1e-6, 0.2), limit=st.floats(0.0005, 0.5))
def test_bounds_enclose_what_was_seen(seen: CounterPoint, alpha: float, limit: float) -> None:
    """The plain ratio lies between the bounds, and these are no sharper than an exact interval for
    a single look.
    """
    low, high = judge.lower_bound(seen, alpha), judge.upper_bound(seen, alpha, limit=limit)

    assert 0 <= low <= seen.bad / seen.total <= high <= 1
    if seen.bad:
        assert low <= stats.beta.ppf(alpha, seen.bad, seen.total - seen.bad + 1) + 1e-9
    if seen.bad < seen.total:
        assert high >= stats.beta.ppf(1 - alpha, seen.bad + 1, seen.total - seen.bad) - 1e-9


@given(seen=points, limit=st.floats(0.0005, 0.5))
def test_one_more_bad_request_is_never_good_news(seen: CounterPoint, limit: float) -> None:
    """With one more bad request among as many, both bounds rise; with one more good one, both
    fall.
    """
    assume(seen.bad < seen.total)
    worse = point(seen.bad + 1, seen.total)
    better = point(seen.bad, seen.total + 1)
    alpha = 1e-3

    assert judge.lower_bound(worse, alpha) >= judge.lower_bound(seen, alpha)
    assert judge.upper_bound(worse, alpha, limit=limit) >= judge.upper_bound(
        seen, alpha, limit=limit
    )
    assert judge.lower_bound(better, alpha) <= judge.lower_bound(seen, alpha) + 1e-12
    assert judge.upper_bound(better, alpha, limit=limit) <= (
        judge.upper_bound(seen, alpha, limit=limit) + 1e-12
    )


@given(seen=points, times=st.integers(2, 50), limit=st.floats(0.001, 0.3))
def test_more_of_the_same_keeps_the_verdict(seen: CounterPoint, times: int, limit: float) -> None:
    """A verdict that a ratio has earned holds when the same ratio goes on."""
    now = ratio(seen.bad, seen.total, limit=limit).verdict
    later = ratio(seen.bad * times, seen.total * times, limit=limit).verdict

    assert now in {"Undecided", later}


@pytest.mark.parametrize("limit", [0.001, 0.01, 0.05])
def test_a_variant_at_its_limit_is_seldom_failed(limit: float) -> None:
    """Looking hundreds of times, a variant that just keeps its objective is failed with no more
    than the promised probability, and one that just misses it is passed with no more than that.
    """
    odds = Odds(wrong_fail=0.02, wrong_pass=0.05)

    failed, passed = simulate(limit, runs=4000, limit=limit, odds=odds)

    # Three standard errors of 4,000 runs.
    assert (failed < NEVER).mean() <= odds.wrong_fail + 3 * math.sqrt(0.02 * 0.98 / 4000)
    assert (passed < NEVER).mean() <= odds.wrong_pass + 3 * math.sqrt(0.05 * 0.95 / 4000)


@pytest.mark.parametrize(
    ("true_ratio", "limit", "requests"),
    [(0.3, 0.05, 60), (0.3, 0.01, 25), (0.05, 0.01, 450), (0.02, 0.01, 5000)],
)
def test_a_broken_variant_fails_soon(true_ratio: float, limit: float, requests: int) -> None:
    """Nine of ten candidates that break an objective are failed within so many requests: at
    60 rps, an over-pruned one in its first second of shadow traffic.
    """
    failed, _ = simulate(true_ratio, runs=1000, limit=limit)

    assert np.quantile(failed, 0.9) <= requests


@pytest.mark.parametrize(
    ("true_ratio", "limit", "requests"),
    [(0.0, 0.01, 420), (0.001, 0.01, 480), (0.002, 0.01, 750), (0.0, 0.001, 4200)],
)
def test_a_good_variant_is_certified_soon(true_ratio: float, limit: float, requests: int) -> None:
    """Half of the candidates that keep an objective with room to spare are certified within so
    many requests.
    """
    _, passed = simulate(true_ratio, runs=500, limit=limit)

    assert np.median(passed) <= requests


def test_nothing_seen_decides_nothing() -> None:
    """Without data there is neither a Pass nor a Fail."""
    found = ratio(0, 0)

    assert (found.verdict, found.low, found.high) == ("Undecided", 0.0, 1.0)
    assert found.message == "nothing seen yet; the limit is 1 %"


def test_the_sentence_tells_counts_bounds_and_limit() -> None:
    """A verdict can be understood without the code."""
    assert ratio(14, 41, limit=0.041).message == (
        "14 of 41 requests failed: with 99.975 % confidence at least 8.5 %,"
        " above the limit of 4.1 %"
    )
    assert ratio(12, 4100).message == (
        "12 of 4100 requests failed: with 95 % confidence at most 0.65 %, within the limit of 1 %"
    )
    assert ratio(3, 500).message == (
        "3 of 500 requests failed: between 0.0069 % and 2.2 %,"
        " not yet on one side of the limit of 1 %"
    )


def test_the_stable_variant_clears_the_candidate() -> None:
    """What both variants suffer is the environment's doing, not the candidate's."""
    found = ratio(30, 100, reference=point(130, 400))

    assert (found.verdict, found.environment) == ("Undecided", True)
    assert "the stable variant misses it too (130 of 400)" in found.message


def test_a_candidate_that_is_worse_still_fails_in_a_bad_environment() -> None:
    """That the stable variant misses the objective as well does not excuse being much worse."""
    found = ratio(60, 100, reference=point(20, 400))

    assert (found.verdict, found.environment) == ("Fail", False)


def test_a_silent_stable_variant_accuses_nobody() -> None:
    """Where the stable variant ought to answer too, but no figures of it are there, nothing is
    decided.
    """
    found = ratio(30, 100, reference=point(0, 0))

    assert (found.verdict, found.environment) == ("Undecided", False)


def test_the_margin_is_added_to_the_stable_variant() -> None:
    """Being a little worse than the stable variant is forgiven up to the margin."""
    stable = point(2, 2000)

    strict = ratio(60, 1000, reference=stable)
    lenient = ratio(60, 1000, reference=stable, margin=0.05)

    assert (strict.verdict, lenient.verdict) == ("Fail", "Undecided")


@pytest.mark.slow
def test_equally_bad_variants_are_not_told_apart() -> None:
    """When both miss the limit alike, the candidate is failed with no more than the promised
    probability.
    """
    generator = np.random.default_rng(11)
    odds = Odds(wrong_fail=0.02, wrong_pass=0.05)
    looks = np.unique(np.geomspace(20, 4000, 25).astype(int))
    steps = np.diff(looks, prepend=0)
    failed = 0
    runs = 300
    for _ in range(runs):
        ours = np.cumsum(generator.binomial(steps, 0.1))
        theirs = np.cumsum(generator.binomial(steps, 0.1))
        failed += any(
            ratio(int(a), int(n), odds=odds, reference=point(int(b), int(n))).verdict == "Fail"
            for a, b, n in zip(ours, theirs, looks, strict=True)
        )

    assert failed / runs <= odds.wrong_fail + 3 * math.sqrt(0.02 * 0.98 / runs)


def test_a_starved_canary_fails_within_seconds() -> None:
    """At a tenth of 60 rps, with 30 % slow answers where 1 % is allowed and the stable variant
    keeps its objective, nine of ten candidates are failed within eight seconds.
    """
    generator = np.random.default_rng(3)
    seconds = []
    for _ in range(200):
        ours = theirs = 0
        for second in range(1, 31):
            ours += int(generator.binomial(6, 0.3))
            theirs += int(generator.binomial(54, 0.001))
            if ratio(ours, 6 * second, reference=point(theirs, 54 * second)).verdict == "Fail":
                seconds.append(second)
                break
        else:
            seconds.append(NEVER)

    assert np.quantile(seconds, 0.9) <= 8


def test_what_passes_in_several_stages_is_pooled() -> None:
    """A Pass may rest on everything that was seen of the candidate, a Fail only on this stage."""
    now = point(0, 100)

    alone = judge.judge_ratio(now, claim="requests failed", limit=0.01, odds=ODDS)
    together = judge.judge_ratio(
        now, claim="requests failed", limit=0.01, odds=ODDS, pooled=point(1, 2000)
    )
    broken = judge.judge_ratio(
        point(30, 100), claim="requests failed", limit=0.01, odds=ODDS, pooled=point(30, 100_000)
    )

    assert (alone.verdict, together.verdict, broken.verdict) == ("Undecided", "Pass", "Fail")
    assert (together.bad, together.total) == (1, 2000)


@pytest.mark.parametrize(
    ("pairs", "lost", "gained", "verdict"),
    [
        (0, 0, 0, "Undecided"),
        (300, 5, 5, "Undecided"),
        (1200, 15, 20, "Pass"),
        (600, 90, 15, "Fail"),
        (5000, 200, 195, "Pass"),
    ],
)
def test_accuracy_is_judged_by_pairs(pairs: int, lost: int, gained: int, verdict: str) -> None:
    """Only examples on which the variants differ speak, and few of them suffice."""
    found = judge.judge_drop(pairs=pairs, lost=lost, gained=gained, limit=0.015, odds=ODDS)

    assert found.verdict == verdict
    assert (found.total, found.bad) == (pairs, lost)


def test_the_bound_of_a_drop_holds() -> None:
    """The drop's lower bound is above the true drop with no more than the promised probability."""
    generator = np.random.default_rng(5)
    draws = generator.multinomial(800, [0.05, 0.03, 0.92], size=1000)

    above = [
        judge._drop_bound(pairs=800, lost=int(lost), gained=int(gained), alpha=0.05) > 0.02
        for lost, gained, _ in draws
    ]

    assert np.mean(above) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)


@given(lost=st.integers(0, 200), gained=st.integers(0, 200), ties=st.integers(0, 2000))
def test_the_bounds_of_a_drop_enclose_it(lost: int, gained: int, ties: int) -> None:
    """The plain drop lies between its bounds."""
    pairs = lost + gained + ties
    found = judge.judge_drop(pairs=pairs, lost=lost, gained=gained, limit=0.02, odds=ODDS)

    assert found.low <= ((lost - gained) / pairs if pairs else 0) <= found.high


@pytest.mark.parametrize("limit", [0.001, 0.01, 0.1])
@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5])
def test_the_samples_that_a_pass_needs_suffice(limit: float, fraction: float) -> None:
    """The number that is told in advance is the number at which the judge passes."""
    seen = limit * fraction
    needed = judge.samples_needed(limit=limit, alpha=0.05, ratio=seen)
    assert needed is not None

    enough = most_that_pass(needed, limit, 0.05)
    too_few = most_that_pass(needed - 1, limit, 0.05)

    assert too_few - 1 < seen * needed < enough + 1
    if fraction == 0:
        assert (enough, too_few) == (0, -1)


def test_a_ratio_at_the_limit_never_passes() -> None:
    """There is no number of samples after which a variant at its limit is expected to pass."""
    assert judge.samples_needed(limit=0.01, alpha=0.05, ratio=0.01) is None


def test_the_parts_of_an_error_probability_add_up() -> None:
    """However often a test is begun anew, the whole error probability is not exceeded."""
    assert sum(judge.share(0.01, k) for k in range(1, 10_000)) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.041, "4.1 %"), (0.00052, "0.052 %"), (1.0, "100 %"), (0.0, "0 %"), (-0.034, "-3.4 %")],
)
def test_ratios_are_told_in_percent(value: float, text: str) -> None:
    """Small ratios keep two digits, large ones one."""
    assert judge.percent(value) == text
