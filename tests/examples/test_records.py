# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from examples.demo.records import Response, TrafficLog, quantile, variant_tag
from hypothesis import given
from hypothesis import strategies as st

TAG, OTHER = "a" * 12, "b" * 12


def log(*responses: Response) -> TrafficLog:
    """The records of some responses."""
    return TrafficLog(list(responses))


def test_the_tag_is_what_the_server_says() -> None:
    """A digest and the response header x-kompakt-variant meet in the same twelve digits."""
    assert variant_tag(f"sha256:{'0123456789abcdef' * 4}") == "0123456789ab"


def test_whatever_is_not_answered_is_failed() -> None:
    """An error status and a broken connection are failed requests, told apart by their cause."""
    seen = log(
        Response(0, 0.01, 200, TAG),
        Response(1, 0.01, 503, "", "status 503: no healthy upstream"),
        Response(2, 0.01, 0, "", "ServerDisconnectedError: "),
    )

    assert (seen.total, seen.failed) == (3, 2)
    assert len(seen.failures()) == 2


def test_users_of_a_variant_are_counted_by_what_answered() -> None:
    """Only what this variant answered within the interval counts."""
    seen = log(*(Response(float(t), 0.01, 200, TAG if t % 2 else OTHER) for t in range(10)))

    assert seen.answered_by(TAG, start=3, end=7) == 3
    assert seen.answered_by("c" * 12, start=0, end=10) == 0


def test_the_first_slow_request_is_the_one_sent_first() -> None:
    """A slow answer arrives after later, faster ones; the order of sending decides."""
    seen = log(
        Response(1.0, 0.1, 200, TAG),
        Response(3.0, 0.06, 200, TAG),
        Response(2.0, 5.0, 200, TAG),
        Response(0.5, 9.0, 200, OTHER),
    )

    first = seen.first_slow(TAG, after=1.5, seconds=0.05)

    assert first is not None
    assert first.sent == 2.0
    assert seen.first_slow(TAG, after=3.5, seconds=0.05) is None


def test_a_window_looks_back_from_now() -> None:
    """The live figures are those of the last seconds only."""
    seen = log(*(Response(float(t), 0.01 * t, 200, TAG) for t in range(10)))

    window = seen.window(now=10.0, seconds=3.0)

    assert window.requests == 3
    assert window.p50 == pytest.approx(0.08)
    assert window.shares == {TAG: 1.0}
    assert seen.window(now=100.0, seconds=3.0).p50 is None


def test_buckets_hold_every_answer_of_their_time() -> None:
    """A time line loses nothing between its first and its last interval."""
    seen = log(*(Response(t / 10, 0.0, 200 if t % 5 else 500, TAG) for t in range(100)))

    buckets = seen.buckets(start=0.0, end=10.0, seconds=0.5)

    assert sum(b.by_variant.get(TAG, 0) for b in buckets) == 80
    assert sum(b.failed for b in buckets) == 20
    assert len(buckets) == 20


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0.01, 1))
def test_a_quantile_covers_its_share(values: list[float], q: float) -> None:
    """At least the share q of the values is at most the quantile, which is one of them."""
    found = quantile(sorted(values), q)

    assert found in values
    assert sum(v <= found for v in values) >= q * len(values) - 1e-9
