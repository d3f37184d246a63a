# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import pytest
from bench.judge import Cell, Row, Setting, broken_promises, row_of, simulate
from bench.judge_ours import Thresholds, kompakt, last_total
from bench.judge_peers import Argo, Flagger, Kayenta, is_high, score, shift
from bench.judge_streams import (
    PROMOTED,
    ROLLED_BACK,
    UNDECIDED,
    Ints,
    Kind,
    Mask,
    Outcome,
    Stream,
    World,
)
from scipy import stats

from kompakt.api.rollout import CounterPoint
from kompakt.api.strategy import Rollout
from kompakt.controllers.judge import Odds, judge_ratio

LIMIT = 0.01
SETTING = Setting(
    bad_permille=10,
    deadline=7200,
    look=5,
    rollouts=100,
    seed=0,
    flagger=Flagger(),
    argo=Argo(),
    kayenta=Kayenta(),
)


class Told:
    """Answers that a test says: so many in each cell, the same in each rollout."""

    def __init__(
        self, total: Sequence[int] | Ints | Mask, bad: Sequence[int] | Ints | Mask
    ) -> None:
        self.total, self.bad = (np.append(0, np.cumsum(counts)) for counts in (total, bad))

    def upto(self, at: Ints) -> tuple[Ints, Ints]:
        """As `Answers` has it."""
        last = len(self.total) - 1
        return self.total[np.minimum(at, last)], self.bad[np.minimum(at, last)]


STEADY = Told(np.full(200_000, 1000), np.zeros(200_000, np.int64))
"""It never fails."""


def world(
    candidate: Told, stable: Told | None = None, *, look: int = 60, deadline: int = 3600
) -> World:
    """One rollout, a cell of which is what one permille of the traffic brings in a look."""
    return World(candidate, stable or STEADY, rollouts=1, look=look, quantum=1, deadline=deadline)


def told(outcome: Outcome) -> tuple[int, int, int]:
    """Of the one rollout: verdict, samples, seconds."""
    return int(outcome.verdict[0]), int(outcome.samples[0]), int(outcome.seconds[0])


# --- streams -------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [None, 3.0, 10.0])
@pytest.mark.parametrize("ratio", [0.0025, 0.05])
def test_streams_have_the_ratio_they_claim(ratio: float, run: float | None) -> None:
    """Totals are Poisson distributed; the mean of the ratio is within four standard errors."""
    stream = Stream(
        Kind(ratio, run), per_cell=50, rollouts=100, cells=400, seed=np.random.SeedSequence(1)
    )
    total, bad = stream.upto(np.full(100, 400))

    assert stats.kstest((total - 20_000) / np.sqrt(20_000), "norm").pvalue > 0.001
    ratios = bad / total
    # Of a Markov chain the variance of the count is larger than the binomial one, by this factor.
    inflation = 1.0 if run is None else 2 * run * (1 - ratio) - 1
    error = np.sqrt(ratio * (1 - ratio) * inflation / 20_000)
    assert abs(ratios.mean() - ratio) < 4 * error / 10
    assert ratios.std() == pytest.approx(error, rel=0.3)


def test_runs_have_the_mean_length_they_claim() -> None:
    """Also where blocks of draws end. So few requests are in a cell that it tells their order."""
    stream = Stream(
        Kind(0.05, 10.0), per_cell=0.02, rollouts=20, cells=90_000, seed=np.random.SeedSequence(2)
    )
    stream.upto(np.full(20, 90_000))
    lengths: list[int] = []
    for total, bad in zip(np.diff(stream._total), np.diff(stream._bad), strict=True):
        sequence = bad[total > 0] > 0
        lengths += [len(list(run)) for is_bad, run in groupby(sequence) if is_bad]

    assert len(lengths) > 100
    assert np.mean(lengths) == pytest.approx(10, rel=0.15)


def test_answers_do_not_depend_on_who_asks_first() -> None:
    """Every judge of a cell reads the same ones."""

    def stream() -> Stream:
        seed = np.random.SeedSequence(3)
        return Stream(Kind(0.02, 3.0), per_cell=2, rollouts=5, cells=5000, seed=seed)

    one, other = stream(), stream()
    far, near = np.full(5, 4500), np.array([0, 1, 100, 2000, 3999])
    first = [one.upto(far), one.upto(near)]
    second = [other.upto(near), other.upto(far)]

    assert np.array_equal(first[0], second[1])
    assert np.array_equal(first[1], second[0])
    assert np.array_equal(first[1][0][:1], [0])


# --- ours ----------------------------------------------------------------------------------------


def test_the_table_of_thresholds_is_the_judge() -> None:
    """One percent of wrong rollbacks is split over shadow, three steps and watching, and halved for
    the first of the restarts; five percent of wrong promotions are not split.
    """
    odds = Odds(wrong_fail=0.01 / 5 / 2, wrong_pass=0.05)
    table = Thresholds(SETTING.strategy("Certify"))
    random = np.random.default_rng(0)
    total = random.integers(1, 6000, 300)
    bad = np.minimum(random.binomial(total, random.choice([0.002, 0.01, 0.02, 0.05], 300)), total)
    found = [
        judge_ratio(
            CounterPoint(total=int(t), bad=int(b)), claim="requests", limit=LIMIT, odds=odds
        )
        for t, b in zip(total, bad, strict=True)
    ]

    assert table.broken(total, bad).tolist() == [f.broken for f in found]
    assert table.passes(total, bad).tolist() == [f.verdict == "Pass" for f in found]
    assert {f.verdict for f in found} == {"Pass", "Fail", "Undecided"}


@pytest.mark.parametrize("guess", [3, 40, 99, 100, 101, 5000])
def test_the_last_total_is_found_from_any_guess(guess: int) -> None:
    """Guesses save questions only."""
    assert last_total(lambda total: total <= 100, low=3, guess=guess) == 100


def strategy(mode: str, **fields: object) -> Rollout:
    """The default steps, one objective of 99 %."""
    slo = {"name": "a", "type": "Availability", "goodBasisPoints": 9900, "mode": mode}
    return Rollout.model_validate({"slos": [slo], "deadlineSeconds": 3600, **fields})


def run_ours(candidate: Told, chosen: Rollout, stable: Told | None = None) -> tuple[int, int, int]:
    """One request in each permille and second."""
    seen = world(candidate, stable, look=1, deadline=chosen.deadline_seconds)
    return told(kompakt(seen, chosen, Thresholds(chosen)))


def test_guard_promotes_at_the_minimum_of_each_stage() -> None:
    """300 pairs at 1000 a second, then 200 at 50, 500 at 250 and 1000 at 500 a second."""
    seconds = 1 + 4 + 2 + 2
    samples = 1000 + 200 + 500 + 1000

    assert run_ours(Told([1] * 9000, [0] * 9000), strategy("Guard")) == (PROMOTED, samples, seconds)


def test_certify_waits_until_the_judge_passes() -> None:
    """With the pooled evidence of all stages. A tenth of the traffic is there."""
    chosen = strategy("Certify", shadow={"percent": 0})
    sparse = Told([1, *[0] * 9] * 20_000, [0] * 200_000)
    verdict, samples, _ = run_ours(sparse, chosen)
    odds = Odds(0.001, 0.05)
    before, after = (
        judge_ratio(CounterPoint(total=n), claim="", limit=LIMIT, odds=odds).verdict
        for n in (200, samples)
    )

    assert verdict == PROMOTED
    assert (before, after) == ("Undecided", "Pass")
    # Half a budget of errors, at so little traffic, passes only later than the minimum of samples.
    errors = Told([1, *[0] * 9] * 20_000, ([1] + [0] * 1999) * 100)
    assert (
        run_ours(errors, strategy("Guard", shadow={"percent": 0}))[1] < run_ours(errors, chosen)[1]
    )


def test_a_candidate_that_is_as_bad_as_the_stable_variant_is_not_rolled_back() -> None:
    """A limit that both break is the environment's fault; that only one breaks is its own."""
    cells = np.arange(100_000)
    bad = Told(cells % 50 == 0, cells % 250 == 0)
    chosen = strategy("Guard", deadlineSeconds=60)

    assert run_ours(bad, chosen)[0] == ROLLED_BACK
    assert run_ours(bad, chosen, stable=bad)[0] == UNDECIDED


def test_a_held_rollout_goes_on_when_the_limit_is_kept_again() -> None:
    """Both break it at the first look; after 30 s of mostly good answers Shadow begins anew."""
    bad = np.zeros(50_000, np.int64)
    bad[:2000:20] = 1
    both = Told(np.ones(50_000, np.int64), bad)

    verdict, _, seconds = run_ours(both, strategy("Guard"), stable=both)

    assert (verdict, seconds) == (PROMOTED, 1 + 30 + 1 + 4 + 2 + 2)


def test_evidence_of_a_stage_begins_anew() -> None:
    """6 % of the first step's requests fail: enough alone, and too few with the pairs before."""
    clean, failing = 5000, ([1] + [0] * 15) * 600
    candidate = Told([1] * (clean + len(failing)), [0] * clean + failing)
    chosen = strategy("Guard", shadow={"minimumPairs": clean})

    verdict, samples, _ = run_ours(candidate, chosen)

    assert verdict == ROLLED_BACK
    assert clean < samples <= clean + 400
    together = int(candidate.bad[samples])
    assert not Thresholds(chosen).ask((samples, together)).broken


# --- peers ---------------------------------------------------------------------------------------


def minutes(*windows: tuple[int, int]) -> World:
    """Requests and bad ones of each minute, at a weight of 1 permille."""
    return world(Told([total for total, _ in windows], [bad for _, bad in windows]))


def test_flagger_promotes_after_a_good_check_at_each_weight() -> None:
    """And a failed check holds the weight for a tick."""
    good, bad = (100, 1), (100, 2)
    three = [1, 1, 1]

    decide = Flagger().decide
    assert told(decide(minutes(good, good, good), three, limit=LIMIT)) == (PROMOTED, 300, 180)
    assert told(decide(minutes(good, bad, good, bad, good), three, limit=LIMIT)) == (
        PROMOTED,
        500,
        300,
    )


def test_failed_checks_of_flagger_are_never_taken_back() -> None:
    """Three failed ones, not in a row; it rolls back at the tick after the last."""
    good, bad = (100, 0), (100, 2)
    seen = minutes(bad, good, bad, good, bad, good, good)

    outcome = Flagger(threshold=3).decide(seen, [1] * 5, limit=LIMIT)
    assert told(outcome) == (ROLLED_BACK, 600, 360)
    assert told(Flagger(threshold=4).decide(seen, [1] * 4, limit=LIMIT))[0] == PROMOTED


def test_no_data_is_a_failed_check_of_flagger() -> None:
    """A quiet hour rolls back."""
    outcome = Flagger(threshold=5).decide(minutes((0, 0)), [1], limit=LIMIT)

    assert told(outcome) == (ROLLED_BACK, 0, 360)


def steady(bad_minutes: set[int], *, begin: int = 0) -> World:
    """Ten seconds are a look; 10 requests in each from `begin` on, 1 of them bad in these minutes
    of the candidate's traffic.
    """
    looks = range(begin, 360)
    bad = [int(look // 6 in bad_minutes and look % 6 == 0) for look in looks]
    return world(Told([0] * begin + [10] * len(looks), [0] * begin + bad), look=10)


def test_argo_passes_a_weight_after_its_measurements() -> None:
    """Each run begins with a delay of one interval."""
    outcome = Argo(count=3).decide(steady(set()), [1, 1], limit=LIMIT)

    assert told(outcome) == (PROMOTED, 360, 360)


def test_argo_aborts_beyond_its_failure_limit() -> None:
    """Of one run: the next weight's counts from 0."""
    seen = steady({1, 4})

    assert told(Argo(count=3).decide(seen, [1, 1], limit=LIMIT)) == (ROLLED_BACK, 120, 120)
    lenient = Argo(count=3, failure_limit=1)
    assert told(lenient.decide(seen, [1, 1], limit=LIMIT))[0] == PROMOTED
    assert told(lenient.decide(steady({1, 2}), [1, 1], limit=LIMIT))[0] == ROLLED_BACK


def test_argo_aborts_on_errors_in_a_row() -> None:
    """An empty result is an error, tried again after ten seconds; five in a row are one too many,
    four are not.
    """
    assert told(Argo(count=1).decide(steady(set(), begin=999), [1], limit=LIMIT)) == (
        ROLLED_BACK,
        0,
        100,
    )
    # The first request comes in the tenth look: at 60, 70, 80 and 90 s there was nothing.
    assert told(Argo(count=1).decide(steady(set(), begin=9), [1], limit=LIMIT))[0] == PROMOTED


def test_a_ratio_of_nothing_fails_for_argo() -> None:
    """A series that is there, and says nothing new, gives NaN."""
    seen = world(Told([10], [0]), look=10)

    assert told(Argo(count=2).decide(seen, [1], limit=LIMIT)) == (ROLLED_BACK, 10, 120)


def test_the_score_is_that_of_mann_and_whitney() -> None:
    """With ties, with points that are missing, shifted and not."""
    random = np.random.default_rng(5)
    x = random.poisson(3, (40, 25)) / 4
    y = random.poisson(2, (40, 30)) / 4
    x[:, 20:] = np.where(random.random((40, 5)) < 0.5, np.nan, x[:, 20:])
    for mu in (0.0, 0.3):
        found = score(x, y, np.full(40, mu))
        for row in range(40):
            ours = x[row][~np.isnan(x[row])] - mu
            one = stats.mannwhitneyu(ours, y[row], method="asymptotic", alternative="two-sided")
            assert 2 * stats.norm.sf(abs(found[row])) == pytest.approx(min(one.pvalue, 1), abs=1e-9)


def test_high_is_an_interval_above_a_quarter_of_the_shift() -> None:
    """The interval of R's wilcox.test, from scipy's test turned around, by bisection."""
    random = np.random.default_rng(6)
    x = random.normal(1, 1, (30, 20)) + np.linspace(-0.5, 1.5, 30)[:, None]
    y = random.normal(1, 1, (30, 20))
    found = is_high(x, y, confidence=0.98, tolerance=0.25)
    expected = []
    for a, b in zip(x, y, strict=True):
        low, high = a.min() - b.max(), a.max() - b.min()
        for _ in range(30):
            middle = (low + high) / 2
            one = stats.mannwhitneyu(a - middle, b, method="asymptotic", alternative="greater")
            low, high = (middle, high) if one.pvalue < 0.01 else (low, middle)
        expected.append(low > 0.25 * abs(np.median(np.subtract.outer(a, b))))

    assert found.tolist() == expected
    assert 5 < sum(expected) < 25


def test_the_shift_is_the_median_of_all_differences() -> None:
    """Of the points that there are."""
    x, y = np.array([[1.0, 4.0, np.nan]]), np.array([[0.0, np.nan, 2.0]])

    assert shift(x, y).tolist() == [1.5]


def test_kayenta_ends_with_the_first_weight_that_is_high_or_silent() -> None:
    """Points that are all alike pass; the canary fails in the second judgement."""
    one = Kayenta(points=4, period=60)
    clean = Told([100] * 60, [0] * 60)
    worse = Told([100] * 60, [0, 0, 0, 0, 9, 8, 7, 9] + [0] * 52)
    wobbly = Told([100] * 60, [1, 0, 1, 0] * 15)

    def decide(candidate: Told, stable: Told) -> tuple[int, int, int]:
        return told(one.decide(world(candidate, stable), [1, 1], limit=LIMIT))

    assert decide(clean, clean) == (PROMOTED, 800, 480)
    assert decide(worse, wobbly) == (ROLLED_BACK, 800, 480)
    assert decide(Told([0], [0]), clean) == (ROLLED_BACK, 0, 240)


# --- the report ----------------------------------------------------------------------------------


def outcome(*verdicts: int) -> Outcome:
    """After 10, 20, … samples and seconds."""
    counts = 10 * np.arange(1, len(verdicts) + 1)
    return Outcome(np.array(verdicts), counts, counts)


def test_a_row_tells_what_a_judge_did() -> None:
    """Quantiles are those of the decisions."""
    verdicts = outcome(PROMOTED, ROLLED_BACK, UNDECIDED), outcome(ROLLED_BACK)
    healthy = row_of(Cell(5, 0.5, 1), "kompakt", verdicts)
    bad = row_of(Cell(5, 2.0, 1), "kompakt", verdicts)

    assert (healthy.promoted, healthy.rolledBack, healthy.undecided) == (0.25, 0.5, 0.25)
    assert (healthy.wrong, bad.wrong) == (0.5, 0.25)
    assert (healthy.rollouts, healthy.samplesMedian, healthy.samplesP90) == (4, 10, 18)
    assert row_of(Cell(5, 1, 1), "argo", [outcome(UNDECIDED)]).secondsMedian is None


def test_promises_that_are_broken_are_named() -> None:
    """Of our judge in mode Certify only."""

    def row(judge: str, rate: float, budgets: float, *verdicts: int) -> Row:
        return row_of(Cell(rate, budgets, 3), judge, [outcome(*verdicts)])

    rows = [
        row("kompakt", 5, 0.5, *[PROMOTED] * 94, *[UNDECIDED] * 6),
        row("kompakt", 1, 0.5, *[PROMOTED] * 94, *[UNDECIDED] * 6),
        row("kompakt", 1, 2.0, *[PROMOTED] * 2, *[ROLLED_BACK] * 98),
        row("kompakt", 1, 1.0, *[PROMOTED] * 98, *[ROLLED_BACK] * 2),
        row("kompakt", 1, 5.0, PROMOTED, *[ROLLED_BACK] * 99),
        row("argo", 5, 0.5, *[ROLLED_BACK] * 100),
    ]

    assert broken_promises(rows) == [
        "5 requests/s, 0.5 budgets, runs of 3: only 94.0% promoted before the deadline",
        "1 requests/s, 2 budgets, runs of 3: 2.0% wrong promotions",
        "1 requests/s, 1 budgets, runs of 3: 2.0% wrong rollbacks",
    ]


def test_a_cell_is_simulated_for_every_judge() -> None:
    """Five times the budget at 20 requests a second: all but the weakest see it, in minutes."""
    rows = {row.judge: row for row in simulate(Cell(20, 5.0, 1), SETTING)}

    assert {row.rollouts for row in rows.values()} == {100}
    assert all(rows[judge].rolledBack > 0.95 for judge in ("kompakt", "flagger", "argo", "kayenta"))
    assert (rows["kompakt"].secondsMedian or 0) < (rows["flagger"].secondsMedian or 0)
    assert rows == {row.judge: row for row in simulate(Cell(20, 5.0, 1), SETTING)}
