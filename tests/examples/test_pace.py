# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from examples.demo.pace import LEAST, SECONDS, Pace
from hypothesis import given
from hypothesis import strategies as st


def windows(pace: Pace, *medians: float, start: float = 0.0) -> float:
    """Let answers of these durations arrive, each for one window; returns the time after that."""
    now = start
    for duration in medians:
        for part in range(5):
            pace.answered(now + part * SECONDS / 4, duration)
        now += SECONDS + 0.01
    return now


def test_users_come_as_often_as_asked() -> None:
    """Nothing changes while answers are about as quick as at best."""
    pace = Pace(25.0)
    windows(pace, 0.03, 0.05, 0.02, 0.06)

    assert pace.rate == 25.0


def test_a_queue_makes_them_come_less_often_until_it_is_gone() -> None:
    """Half as often at once, then one more a second with each good window."""
    pace = Pace(25.0)
    now = windows(pace, 0.03, 0.5)
    assert pace.rate == 12.5

    now = windows(pace, 0.03, start=now)
    assert pace.rate == 13.5
    windows(pace, *[0.03] * 12, start=now)
    assert pace.rate == 25.0


def test_what_is_asked_may_change() -> None:
    """The limit found stays when less is wanted, and when more is."""
    pace = Pace(20.0)
    windows(pace, 0.03, 0.5)
    pace.wanted = 4.0
    assert pace.rate == 4.0
    pace.wanted = 40.0
    assert pace.rate == 10.0


def test_a_few_slow_answers_are_no_queue() -> None:
    """A starved canary with a third of the traffic does not slow the users down."""
    pace = Pace(25.0)
    for number in range(300):
        pace.answered(number / 25, 9.0 if number % 3 == 0 else 0.03)

    assert pace.rate == 25.0


@given(st.lists(st.floats(min_value=0.001, max_value=20.0), max_size=40))
def test_the_rate_is_bounded(durations: list[float]) -> None:
    """Whatever happens, users come, and not more often than asked."""
    pace = Pace(25.0)
    windows(pace, *durations)

    assert LEAST <= pace.rate <= 25.0


@pytest.mark.parametrize("capacity", [8.0, 15.0, 22.0, 30.0])
def test_a_queue_does_not_last(capacity: float) -> None:
    """With a server that bears less than is asked, most answers are quick all the same."""
    pace, queue, now, quick = Pace(25.0), 0.0, 0.0, 0
    windows(pace, 1 / capacity)
    sent = 0
    while now < 300.0:
        queue = max(0.0, queue - capacity / pace.rate) + 1
        now += 1 / pace.rate
        latency = queue / capacity
        pace.answered(100.0 + now, latency)
        sent += 1
        quick += latency < 0.5
    assert quick / sent > 0.7
    assert pace.rate < capacity + 4
