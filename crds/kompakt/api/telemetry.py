# SPDX-License-Identifier: Apache-2.0
"""The Prometheus series between serving pods and the judge: names, labels, buckets.

Counters, never quantiles: any latency objective is then a ratio of two counts. Buckets are fixed
and log-linear,
fine enough that an objective falls on an edge or close below one.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

_MANTISSAS: Final = (10, 12, 14, 16, 18, 20, 25, 30, 35, 40, 45, 50, 60, 70, 80, 90)
LATENCY_EDGES_MICROSECONDS: Final[tuple[int, ...]] = (
    *(m * 10**e for e in range(1, 6) for m in _MANTISSAS),
    10_000_000,
)
"""Upper edges from 100 microseconds to 10 seconds, 16 a decade; the last bucket is +Inf."""

SHADOW_HEADER: Final = "x-kompakt-shadow"
"""Set by the comparator, which measures its requests itself: a server does not count them. Routes
take it off users' requests, or anyone could hide from the judge."""

# A serving pod (each series has the label `variant`, the artifact's digest):
REQUESTS_STARTED: Final = "kompakt_requests_started_total"
"""Inference requests whose headers were read. Started and never finished counts as bad when the
pod dies."""
REQUESTS_FINISHED: Final = "kompakt_requests_finished_total"
"""By `outcome`: `ok`, `invalid` (the caller's fault: not counted by any objective), `error`."""
REQUEST_DURATION: Final = "kompakt_request_duration_seconds"
"""Histogram over the edges above, of `ok` requests, from the first byte's arrival (not its reading:
a starved server reads late) to the last byte written."""
PREDICTIONS: Final = "kompakt_predictions_total"
"""By `label`."""

# The comparator:
SHADOW_RECEIVED: Final = "kompakt_shadow_received_total"
SHADOW_DROPPED: Final = "kompakt_shadow_dropped_total"
"""Mirrored requests that the bounded queue had no room for."""
SHADOW_PAIRS: Final = "kompakt_shadow_pairs_total"
"""By `label` (the reference's): both variants answered, and the answers were compared."""
SHADOW_DISAGREEMENTS: Final = "kompakt_shadow_disagreements_total"
"""By `label` (the reference's)."""
SHADOW_ERRORS: Final = "kompakt_shadow_errors_total"
"""By `leg`: `reference` or `candidate` did not answer with 200 in time."""
SHADOW_CALLS: Final = "kompakt_shadow_calls_total"
"""By `leg`: requests sent to it."""
SHADOW_DURATION: Final = "kompakt_shadow_duration_seconds"
"""Histogram by `leg`."""
GOLDEN_PASS: Final = "kompakt_golden_pass"  # noqa: S105 -- a metric's name, not a password
"""Gauge: number of the last complete pass over the golden set; 0 before the first."""
GOLDEN_PAIRS: Final = "kompakt_golden_pairs"
"""Gauge: labelled examples that both variants answered in that pass."""
GOLDEN_LOST: Final = "kompakt_golden_lost"
"""Gauge: right by the reference, wrong by the candidate, in that pass."""
GOLDEN_GAINED: Final = "kompakt_golden_gained"
"""Gauge: wrong by the reference, right by the candidate, in that pass."""


def edge_for(threshold_microseconds: int) -> int:
    """The largest bucket edge not above a threshold: what is counted as fast is never slower than
    promised.

    Raises ValueError for a threshold below the first edge.
    """
    index = bisect_right(LATENCY_EDGES_MICROSECONDS, threshold_microseconds)
    if index == 0:
        raise ValueError(
            f"a latency threshold of {threshold_microseconds} µs is below the finest bucket,"
            f" {LATENCY_EDGES_MICROSECONDS[0]} µs"
        )
    return LATENCY_EDGES_MICROSECONDS[index - 1]
