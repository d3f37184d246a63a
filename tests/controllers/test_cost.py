# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tests.planning import latency_figures, profile

from kompakt.api.measure import LatencyFigures
from kompakt.controllers.cost import cost_micros_per_million, energy_milliwatt_hours_per_million


def test_a_worked_example() -> None:
    """At 0.04 an hour and 9 ms a request, a million requests are 2.5 busy hours, 4.17 paid ones."""
    on = profile(cpuMillis=1000, price={"microsPerHour": 40_000})

    assert cost_micros_per_million(latency_figures(9000), on) == 166_667


def test_a_share_of_a_cpu_is_occupied_for_longer() -> None:
    """9 ms of work are 18 ms of half a CPU; more than one CPU answers one request no faster."""
    half = profile(cpuMillis=500, price={"microsPerHour": 40_000}, wattsMilli=20_000)
    four = profile(cpuMillis=4000, price={"microsPerHour": 40_000})

    assert cost_micros_per_million(latency_figures(9000), half) == 333_333
    assert energy_milliwatt_hours_per_million(latency_figures(9000), half) == 100_000
    assert cost_micros_per_million(latency_figures(9000), four) == 166_667


def test_energy_of_a_worked_example() -> None:
    """At 20 W and 9 ms a request, a million requests are 2.5 hours under load: 50 Wh."""
    on = profile(cpuMillis=1000, wattsMilli=20_000)

    assert energy_milliwatt_hours_per_million(latency_figures(9000), on) == 50_000


def test_what_is_not_known_costs_nothing_known() -> None:
    """Without a price, a power or a measurement there is no figure, rather than a zero."""
    unpriced = profile(price=None)

    assert cost_micros_per_million(latency_figures(9000), unpriced) is None
    assert cost_micros_per_million(LatencyFigures(), profile()) is None
    assert energy_milliwatt_hours_per_million(latency_figures(9000), profile()) is None
    assert energy_milliwatt_hours_per_million(LatencyFigures(), profile(wattsMilli=1)) is None


@given(st.integers(1, 10**7), st.integers(1, 10**7))
def test_the_faster_is_never_dearer(one: int, other: int) -> None:
    """On one target cost and latency rank variants alike."""
    costs = [cost_micros_per_million(latency_figures(mean), profile()) for mean in (one, other)]

    assert costs[0] is not None
    assert costs[1] is not None
    assert (costs[0] - costs[1]) * (one - other) >= 0
