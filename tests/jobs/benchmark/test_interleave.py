# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import pytest

from kompakt.jobs.benchmark.interleave import Timings, figures, interleave

TEXTS = [f"text {i}" for i in range(200)]


class Machine:
    """Two models on a clock of its own, which may run slow for a while."""

    def __init__(self, *, baseline: float, candidate: float) -> None:
        self.now = 0.0
        self.idle = 0.0
        self.costs = {"baseline": baseline, "candidate": candidate}
        self.calls: list[tuple[str, str]] = []
        self.slowness: Callable[[float], float] = lambda _now: 1.0

    def clock(self) -> float:
        """Seconds."""
        return self.now

    def model(self, name: str) -> Callable[[str], None]:
        """Something that takes its time to answer."""

        def answer(text: str) -> None:
            self.calls.append((name, text))
            self.now += self.costs[name] * self.slowness(self.now) * (1 + len(text) / 1000)

        return answer

    def sleep(self, seconds: float) -> None:
        """Time in which nothing is computed."""
        self.now += seconds
        self.idle += seconds

    def run(
        self, *, rounds: int = 15, seconds: float = 10.0, seed: int = 0, share: float = 1.0
    ) -> Timings:
        """An interleaved benchmark."""
        return interleave(
            baseline=self.model("baseline"),
            candidate=self.model("candidate"),
            texts=TEXTS,
            rounds=rounds,
            seconds=seconds,
            seed=seed,
            share=share,
            clock=self.clock,
            sleep=self.sleep,
        )


def test_the_speedup_is_the_ratio() -> None:
    """On a quiet machine the ratio is exact, and its interval is narrow."""
    machine = Machine(baseline=0.009, candidate=0.003)
    timings = machine.run()
    assert timings.speedup.median == pytest.approx(3.0)
    assert timings.speedup.high - timings.speedup.low < 1e-6
    assert len(timings.ratios) == 15
    assert len(timings.baseline) == len(timings.candidate)
    assert machine.now == pytest.approx(10.0, rel=0.1)


@pytest.mark.parametrize("share", [0.1, 0.4, 0.9])
def test_a_share_of_a_cpu_is_never_overdrawn(share: float) -> None:
    """Over the whole benchmark no more is computed than the quota allows, and it takes as long as
    it was to take; latencies and speedup are those of the work, not of the pauses.
    """
    machine = Machine(baseline=0.009, candidate=0.003)
    timings = machine.run(share=share)
    assert (machine.now - machine.idle) / machine.now < share
    assert machine.now == pytest.approx(10.0, rel=0.1)
    assert timings.speedup.median == pytest.approx(3.0)
    assert max(timings.baseline) < 0.01


@pytest.mark.parametrize("share", [1.0, 1.5])
def test_whole_cpus_need_no_pauses(share: float) -> None:
    """Who has all the CPUs that his threads use is not paced."""
    machine = Machine(baseline=0.009, candidate=0.003)
    machine.run(share=share)
    assert machine.idle == 0


def test_noise_hits_both_alike() -> None:
    """Neighbours that make everything three times as slow now and then do not move the ratio."""
    machine = Machine(baseline=0.008, candidate=0.004)
    machine.slowness = lambda now: 3.0 if int(now * 10) % 7 < 2 else 1.0
    speedup = machine.run().speedup
    assert speedup.low <= 2.0 <= speedup.high
    assert speedup.median == pytest.approx(2.0, rel=0.15)


def test_a_drift_favours_nobody() -> None:
    """A machine that slows down steadily would flatter whoever always went first."""
    machine = Machine(baseline=0.005, candidate=0.005)
    machine.slowness = lambda now: 1.0 + now / 5
    assert machine.run(rounds=14).speedup.median == pytest.approx(1.0, abs=0.02)


def test_both_answer_the_same_texts_and_the_order_alternates() -> None:
    """In each round the same texts for both; the first one changes from round to round."""
    machine = Machine(baseline=0.005, candidate=0.005)
    machine.run(rounds=6, seconds=1.0)
    counted = machine.calls[20:]
    per_round = len(counted) // 12
    blocks = [counted[i : i + per_round] for i in range(0, len(counted), per_round)]
    firsts = [block[0][0] for block in blocks[::2]]
    assert firsts == ["baseline", "candidate"] * 3
    for one, other in zip(blocks[::2], blocks[1::2], strict=True):
        assert [text for _, text in one] == [text for _, text in other]
        assert one[0][0] != other[0][0]


def test_warm_up_is_not_counted() -> None:
    """The first answers, which allocate memory, are in no figure."""
    machine = Machine(baseline=0.005, candidate=0.002)
    timings = machine.run(rounds=5, seconds=1.0)
    assert len(machine.calls) == 20 + len(timings.baseline) + len(timings.candidate)


def test_a_slow_model_still_gets_all_rounds() -> None:
    """Time is a wish, rounds are not: even a model of a second per text gets four texts a round."""
    timings = Machine(baseline=1.0, candidate=0.5).run(rounds=5, seconds=1)
    assert len(timings.ratios) == 5
    assert len(timings.baseline) == 20


def test_figures_are_of_the_single_answers() -> None:
    """Percentiles in microseconds; a bound of p99 only where there are enough values."""
    found = figures([i / 1000 for i in range(1, 101)], peak_memory_mebibytes=120)
    assert (found.p50_microseconds, found.p90_microseconds) == (50_000, 90_000)
    assert (found.p95_microseconds, found.p99_microseconds) == (95_000, 99_000)
    assert found.p99_upper_microseconds is None
    assert found.mean_microseconds == 50_500
    assert found.peak_memory_mebibytes == 120
    many = figures([0.001] * 600 + [0.005], peak_memory_mebibytes=1)
    assert many.p99_upper_microseconds == 5000
