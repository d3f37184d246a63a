# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.planning import counts, measured

from kompakt.api.measure import Benchmark, Evaluation, LatencyFigures, PairedCounts
from kompakt.api.policy import Gate, Optimize, Target
from kompakt.api.run import Choice, TargetResult
from kompakt.controllers.select import NO_VARIANT, Candidate, choose

QUALITY = Gate(name="quality", max_drop_basis_points=200)
DOMAINS = Gate(name="domains", slice="domain", max_drop_basis_points=400)
MIB = 2**20


def target(**changes: Any) -> Target:
    """The target, with or without limits."""
    wire = {"name": "edge", "hardwareProfileRef": {"name": "edge-small"}}
    return Target.model_validate(wire | changes)


def source(**figures: Any) -> Candidate:
    """The source itself: 10 ms, 90 MiB."""
    mean = figures.pop("mean", 10_000)
    return Candidate(
        name="the source",
        variant="sentiment-source",
        size_bytes=90 * MIB,
        figures=measured(mean=mean, baseline_mean=mean, **figures),
    )


def trial(number: int, *, size: int = 22, **figures: Any) -> Candidate:
    """A trial with its figures."""
    return Candidate(
        name=f"recipe-{number}",
        trial=number,
        variant=f"sentiment-{number}",
        size_bytes=size * MIB,
        figures=measured(**figures),
    )


def pick(
    *candidates: Candidate,
    gates: tuple[Gate, ...] = (QUALITY,),
    optimize_for: Optimize = "Cost",
    **limits: Any,
) -> Choice:
    """The choice among the source and others."""
    return choose(target(**limits), candidates, gates=gates, optimize_for=optimize_for)


def why(choice: Choice) -> dict[int, str]:
    """Trial → why it was not chosen."""
    return {rejection.trial: rejection.reason for rejection in choice.rejections}


@pytest.mark.parametrize(
    ("optimize_for", "chosen", "reason"),
    [
        ("Cost", 0, "LowestCost"),
        ("Latency", 0, "LowestLatency"),
        ("Energy", 0, "LowestEnergy"),
        ("Size", 1, "SmallestSize"),
        ("Accuracy", 2, "HighestAccuracy"),
    ],
)
def test_the_objective_decides_among_those_that_pass(
    optimize_for: Optimize, chosen: int, reason: str
) -> None:
    """One variant is fastest, one smallest, one most accurate: the objective says which."""
    fast = trial(0, mean=3000, lost=9)
    small = trial(1, mean=5000, size=10, lost=9)
    good = trial(2, mean=6000, gained=30)

    choice = pick(source(), fast, small, good, optimize_for=optimize_for)

    assert (choice.trial, choice.variant, choice.reason) == (
        chosen,
        f"sentiment-{chosen}",
        reason,
    )
    assert choice.pareto_front == [0, 1, 2]
    assert set(why(choice).values()) == {"NotBest"}


def test_figures_are_in_the_choice() -> None:
    """The drop on the confirmation split and its bound are told, beside the sentence for people."""
    choice = pick(source(), trial(0, lost=15, selection_lost=0))

    assert choice.accuracy_drop_basis_points == 50
    assert choice.accuracy_drop_upper_bound_basis_points is not None
    assert 50 < choice.accuracy_drop_upper_bound_basis_points <= 200
    assert "2.50 times as fast" in choice.message


def test_the_confirmation_split_decides() -> None:
    """A variant that looked perfect where it was selected is refused where it is confirmed, and the
    next in the order of the objective is taken.
    """
    lucky = trial(0, mean=3000, lost=90, selection_lost=0)
    honest = trial(1, mean=5000, lost=9)

    choice = pick(source(), lucky, honest)

    assert choice.trial == 1
    assert why(choice) == {0: "GateFailed"}


def test_the_selection_split_drops_the_hopeless() -> None:
    """What loses too much at first sight is not tried on the confirmation split."""
    choice = pick(source(), trial(0, lost=9, selection_lost=50), trial(1, lost=9))

    assert choice.trial == 1
    assert why(choice) == {0: "AccuracyDropSeen"}


def test_more_tries_need_more_evidence() -> None:
    """The same figures pass alone and fail as one of many: the best of twelve may be luck."""
    lonely = trial(0, lost=42, selection_lost=0)
    crowd = [trial(n, mean=5000 + n, lost=42, selection_lost=0) for n in range(1, 12)]

    assert pick(source(), lonely).trial == 0
    assert pick(source(), lonely, *crowd).reason == NO_VARIANT


def test_every_value_of_a_slice_must_pass() -> None:
    """A gate on a slice looks at each of its values; one bad domain is enough, and is named."""
    good = trial(0, lost=3)
    assert good.figures is not None
    assert good.figures.evaluation is not None
    evaluation = good.figures.evaluation
    film = evaluation.slices[0]
    news = film.evolve(value="news", examples=500, lost=60, gained=0)
    uneven = Candidate(
        name="uneven",
        trial=0,
        size_bytes=MIB,
        figures=good.figures.evolve(evaluation=evaluation.evolve(slices=[film, news])),
    )

    assert pick(source(), good, gates=(DOMAINS,)).trial == 0
    choice = pick(source(), uneven, gates=(DOMAINS,))
    assert choice.reason == NO_VARIANT
    assert "domain=news" in choice.rejections[0].message
    assert "domain=film" not in choice.rejections[0].message


def test_a_slice_that_nobody_measured_does_not_pass() -> None:
    """A gate on a slice without figures is a gate that is not passed."""
    gate = Gate(name="authors", slice="author", max_drop_basis_points=9999)

    assert why(pick(source(), trial(0), gates=(gate,))) == {0: "GateNotMeasured"}


def test_too_few_examples_are_said_to_be_too_few() -> None:
    """When no result could pass, the message says how many examples one would need."""
    tiny = trial(0)
    assert tiny.figures is not None
    assert tiny.figures.evaluation is not None
    small = tiny.figures.evaluation.evolve(confirmation=counts(40))
    candidate = Candidate(
        name="tiny",
        trial=0,
        size_bytes=MIB,
        figures=tiny.figures.evolve(evaluation=small),
    )

    message = pick(source(), candidate).rejections[0].message

    assert "40 examples cannot show less, at least 180 could" in message


@pytest.mark.parametrize(
    ("limits", "reason", "words"),
    [
        ({"latency": {"percentile": "P99", "thresholdMicroseconds": 4000}}, "TooSlow", "4500 µs"),
        ({"latency": {"percentile": "P50", "thresholdMicroseconds": 2999}}, "TooSlow", "3000 µs"),
        ({"maxSizeMebibytes": 21}, "TooLarge", "22.0 MiB, 21 MiB are allowed"),
    ],
)
def test_limits_of_the_target(limits: dict[str, Any], reason: str, words: str) -> None:
    """A variant beyond the target's latency or size is not chosen; the message has the figures."""
    choice = pick(source(), trial(0, mean=3000), **limits)

    assert why(choice) == {0: reason}
    assert words in choice.rejections[0].message


def test_the_p99_limit_looks_at_the_bound() -> None:
    """Where there is an upper bound of the 99th percentile, it is what must keep the limit."""
    lucky = trial(0, mean=3000)
    assert lucky.figures is not None
    assert lucky.figures.benchmark is not None
    figures = lucky.figures.benchmark.candidate.evolve(p99_upper_microseconds=9000)
    unsure = Candidate(
        name="unsure",
        trial=0,
        size_bytes=MIB,
        figures=lucky.figures.evolve(benchmark=lucky.figures.benchmark.evolve(candidate=figures)),
    )
    limit: dict[str, Any] = {"latency": {"percentile": "P99", "thresholdMicroseconds": 5000}}

    assert pick(source(), lucky, **limit).trial == 0
    assert why(pick(source(), unsure, **limit)) == {0: "TooSlow"}


def test_the_source_goes_on_when_nothing_passes() -> None:
    """The fallback is the source, and the message says which bound failed by how much."""
    choice = pick(source(), trial(0, lost=90, selection_lost=0), trial(1, lost=300))

    assert (choice.trial, choice.variant, choice.reason) == (None, "sentiment-source", NO_VARIANT)
    assert "gate quality: the drop may be" in choice.message
    assert "basis points at 95.0% confidence (seen: 300), 200 are allowed" in choice.message
    assert "too many" in choice.message
    assert why(choice) == {0: "GateFailed", 1: "AccuracyDropSeen"}


def test_the_source_wins_where_it_is_better() -> None:
    """A variant that passes every gate and is slower than the source is no improvement."""
    choice = pick(source(), trial(0, mean=12_000))

    assert (choice.trial, choice.variant, choice.reason) == (
        None,
        "sentiment-source",
        "SourceIsBest",
    )
    assert choice.accuracy_drop_basis_points == 0


def test_times_are_compared_with_the_baseline_beside_them() -> None:
    """Benchmarks run at different times: a machine that was slow for a while does not decide."""
    slow_hour = trial(0, mean=6000, baseline_mean=20_000)
    fast_hour = trial(1, mean=4000, baseline_mean=10_000)

    assert pick(source(), slow_hour, fast_hour).trial == 0


def test_the_pareto_front() -> None:
    """Who is beaten in everything is off the front; who is best in one thing is on it."""
    fast, beaten, small = (
        trial(0, mean=3000),
        trial(1, mean=4000, lost=3),
        trial(2, mean=5000, size=9),
    )

    assert pick(source(), fast, beaten, small).pareto_front == [0, 2]


MISSING: dict[str, TargetResult | None] = {
    "no result": None,
    "pending": TargetResult(target="edge"),
    "failed": measured(mean=1).evolve(state="Failed", reason="JobFailed", message="lost"),
    "no evaluation": measured(mean=1).evolve(evaluation=None),
    "no benchmark": measured(mean=1).evolve(benchmark=None),
}


def broken_evaluations() -> st.SearchStrategy[TargetResult]:
    """Results that look wonderful, and lack one figure."""
    whole = measured(mean=1, baseline_mean=10_000)
    assert whole.evaluation is not None
    assert whole.benchmark is not None
    evaluation, benchmark = whole.evaluation, whole.benchmark

    def without_split(split: str) -> Evaluation:
        return evaluation.evolve(**{split: PairedCounts()})

    def without_side(side: str, field: str) -> Benchmark:
        figures: LatencyFigures = getattr(benchmark, side)
        return benchmark.evolve(**{side: figures.evolve(**{field: 0})})

    splits = st.sampled_from(["selection", "confirmation"]).map(without_split)
    sides = st.tuples(
        st.sampled_from(["baseline", "candidate"]),
        st.sampled_from(["p50_microseconds", "mean_microseconds"]),
    ).map(lambda pair: without_side(*pair))
    return st.one_of(
        splits.map(lambda e: whole.evolve(evaluation=e)),
        sides.map(lambda b: whole.evolve(benchmark=b)),
        st.sampled_from([r for r in MISSING.values() if r is not None]),
    )


@pytest.mark.parametrize("result", MISSING.values(), ids=MISSING.keys())
@pytest.mark.parametrize("optimize_for", ["Cost", "Latency", "Size", "Energy", "Accuracy"])
def test_what_was_not_measured_is_never_chosen(
    result: TargetResult | None, optimize_for: Optimize
) -> None:
    """A missing or failed measurement is no good measurement, whatever is optimized for."""
    absent = Candidate(name="absent", trial=0, variant="sentiment-0", size_bytes=1, figures=result)

    choice = pick(source(), absent, trial(1, lost=3), gates=(), optimize_for=optimize_for)

    assert choice.trial != 0
    assert 0 in why(choice)
    assert 0 not in choice.pareto_front


@given(broken_evaluations(), st.sampled_from(["Cost", "Latency", "Size", "Energy", "Accuracy"]))
def test_a_figure_that_lacks_never_helps(result: TargetResult, optimize_for: Optimize) -> None:
    """Zeros are what a Job leaves out: they are no miracle of speed or of accuracy."""
    absent = Candidate(name="absent", trial=0, variant="sentiment-0", size_bytes=1, figures=result)

    choice = pick(absent, gates=(), optimize_for=optimize_for)

    assert choice.trial is None
    assert choice.reason == NO_VARIANT


figures = st.fixed_dictionaries(
    {
        "mean": st.integers(1000, 20_000),
        "lost": st.integers(0, 120),
        "gained": st.integers(0, 60),
        "size": st.integers(1, 100),
    }
)


@given(st.lists(figures, max_size=8), st.sampled_from(["Cost", "Latency", "Size", "Accuracy"]))
def test_a_choice_keeps_what_it_promises(
    drawn: list[dict[str, int]], optimize_for: Optimize
) -> None:
    """Whatever is measured: a chosen variant passes limits and gates, everyone else has a reason,
    and the order of the candidates does not matter.
    """
    limit: dict[str, Any] = {"maxSizeMebibytes": 50}
    candidates = [source(), *(trial(n, **one) for n, one in enumerate(drawn))]

    choice = pick(*candidates, optimize_for=optimize_for, **limit)

    assert pick(*reversed(candidates), optimize_for=optimize_for, **limit) == choice
    assert set(why(choice)) == set(range(len(drawn))) - {choice.trial}
    if choice.trial is not None:
        assert drawn[choice.trial]["size"] <= 50
        bound = choice.accuracy_drop_upper_bound_basis_points
        assert bound is not None
        assert bound <= QUALITY.max_drop_basis_points
        assert set(choice.pareto_front) <= set(range(len(drawn)))
