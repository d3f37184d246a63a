# SPDX-License-Identifier: Apache-2.0
"""What a million inferences cost, from measured latency and the profile's price and power.

Assumption: a replica answers one request at a time, each in the measured mean (on a share of a CPU,
in so much of its share: 4 ms of work are 10 ms of 0.4 CPUs), and is busy 60 % of the hour. That is
about as high as a queue with bursts may be loaded before its 99th percentile leaves the latency
objective; a replica that waits for traffic costs its whole hour nevertheless.
The figure compares variants on one target rightly whatever the utilisation is; as a forecast of a
bill it is as good as this assumption.
"""

from __future__ import annotations

from kompakt.api.measure import LatencyFigures
from kompakt.api.profile import HardwareProfileSpec

UTILISATION_PERMILLE = 600
_SECONDS_PER_HOUR = 3600
_MILLE = 1000


def cost_micros_per_million(figures: LatencyFigures, profile: HardwareProfileSpec) -> int | None:
    """Cost of a million inferences in millionths of the profile's currency unit.

    None when the profile has no price, or nothing was measured.

    Example:
        At 0.04 USD an hour and 9 ms a request a million requests keep a replica busy for 2.5 h,
        paid for 4.17 h: 0.1667 USD, or 166,667 millionths.
    """
    if profile.price is None or figures.mean_microseconds == 0:
        return None
    # A million requests of m microseconds are m seconds of work.
    busy = _busy_microseconds(figures, profile) * profile.price.micros_per_hour * _MILLE
    return round(busy / (_SECONDS_PER_HOUR * UTILISATION_PERMILLE))


def energy_milliwatt_hours_per_million(
    figures: LatencyFigures, profile: HardwareProfileSpec
) -> int | None:
    """Energy of a million inferences, estimated from the profile's power under load.

    Idle time draws power too, but whose that is depends on the node; it is left out. None when the
    profile has no power, or nothing was measured.
    """
    if profile.watts_milli is None or figures.mean_microseconds == 0:
        return None
    return round(_busy_microseconds(figures, profile) * profile.watts_milli / _SECONDS_PER_HOUR)


def _busy_microseconds(figures: LatencyFigures, profile: HardwareProfileSpec) -> float:
    """How long a replica of this size is occupied by one request."""
    return figures.mean_microseconds * _MILLE / min(_MILLE, profile.cpu_millis)
