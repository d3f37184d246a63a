# SPDX-License-Identifier: Apache-2.0
"""How good the numbers of a Regression are: errors and correlation with the labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kompakt.api.measure import NumberFigures

Numbers = NDArray[np.float64]
MICROS = 1e6
BASIS_POINTS = 10_000


def number_figures(found: Numbers, labels: Numbers) -> NumberFigures:
    """Over all examples, of which there is at least one."""
    errors = found - labels
    return NumberFigures(
        mean_absolute_error_micros=round(float(np.abs(errors).mean()) * MICROS),
        root_mean_squared_error_micros=round(float(np.sqrt(np.square(errors).mean())) * MICROS),
        pearson_basis_points=_basis_points(correlation(found, labels)),
        spearman_basis_points=_basis_points(correlation(ranks(found), ranks(labels))),
    )


def correlation(one: Numbers, other: Numbers) -> float | None:
    """Pearson's; None where either does not vary."""
    a, b = one - one.mean(), other - other.mean()
    scale = float(np.sqrt(np.square(a).sum() * np.square(b).sum()))
    # Rounding alone makes equal numbers vary.
    if not (np.ptp(one) > 0 and np.ptp(other) > 0 and scale > 0):
        return None
    return float(np.clip((a * b).sum() / scale, -1.0, 1.0))


def ranks(numbers: Numbers) -> Numbers:
    """From 1; equal numbers share the mean of their ranks, as Spearman's correlation asks."""
    _, places, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    shared: Numbers = (ends - (counts - 1) / 2)[places]
    return shared


def _basis_points(value: float | None) -> int | None:
    return None if value is None else round(value * BASIS_POINTS)
