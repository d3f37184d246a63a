# SPDX-License-Identifier: Apache-2.0
"""Volumes that a front dominates, and how much a guess is expected to add to one.

Less is better in every direction. The space below the reference point is cut by the coordinates of
the front's points into cells, each of which is dominated or not: exact, and fast enough for the
fronts of some dozens of trials in two, three or four directions.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_AT_ONCE = 256
"""Guesses for which all cells are kept in memory."""
_erfc = np.frompyfunc(math.erfc, 1, 1)


def front(points: Array) -> Array:
    """Those of the points, [points, directions], that no other dominates; equal ones once."""
    unique = np.unique(points, axis=0)
    no_worse = (unique[:, None, :] <= unique[None, :, :]).all(axis=2)
    beaten = no_worse.sum(axis=0) > 1  # each is no worse than itself
    found: Array = unique[~beaten]
    return found


def hypervolume(points: Array, reference: Array) -> float:
    """The volume between the points and the reference point."""
    inside = points[(points < reference).all(axis=1)]
    if not len(inside):
        return 0.0
    edges, dominated = _cells(front(inside), reference)
    volume = dominated.astype(np.float64)
    for edge in edges:
        # The first cell of a direction is without end, and never dominated.
        volume = np.tensordot(np.append(0.0, np.diff(edge)), volume, axes=(0, 0))
    return float(volume)


def expected_improvement(
    points: Array, reference: Array, *, mean: Array, deviation: Array
) -> Array:
    """By how much each guess is expected to enlarge the volume of the points.

    In closed form: over the cells that are not dominated, the sum of the products of what a normal
    variable is expected to fill of each edge (Emmerich et al. 2006; Yang et al. 2019,
    arXiv:1904.12672, section 4).

    Args:
        points: [points, directions], those known.
        reference: [directions]; what is worse than it in any direction counts nothing.
        mean: [guesses, directions]; directions are independent.
        deviation: [guesses, directions], above 0.
    """
    inside = points[(points < reference).all(axis=1)]
    edges, dominated = _cells(front(inside), reference)
    free: Array = (~dominated).astype(np.float64)
    parts = range(0, len(mean), _AT_ONCE)
    each = [
        _filled(edges, free, mean[i : i + _AT_ONCE], deviation[i : i + _AT_ONCE]) for i in parts
    ]
    found: Array = np.maximum(np.concatenate([np.zeros(0), *each]), 0.0)
    return found


def _filled(edges: list[Array], free: Array, mean: Array, deviation: Array) -> Array:
    """What each guess is expected to fill of the free cells."""
    filled = []
    for direction, edge in enumerate(edges):
        # [guesses, edges]: expected length from the guess up to each edge.
        z = (edge - mean[:, [direction]]) / deviation[:, [direction]]
        up_to = deviation[:, [direction]] * (z * cumulative(z) + _density(z))
        filled.append(np.diff(up_to, axis=1, prepend=0.0))
    found = np.tensordot(filled[0], free, axes=(1, 0))
    for part in filled[1:]:
        found = np.einsum("ij,ij...->i...", part, found)
    return np.asarray(found, dtype=np.float64)


def _cells(points: Array, reference: Array) -> tuple[list[Array], NDArray[np.bool_]]:
    """Ascending edges by direction, and for each cell that ends at them whether it is dominated.

    The first cell of a direction reaches from −∞ to the first edge.
    """
    edges = [
        np.unique(np.append(points[:, direction], reference[direction]))
        for direction in range(len(reference))
    ]
    dominated = np.zeros([len(edge) for edge in edges], dtype=np.bool_)
    for point in points:
        # A cell is dominated when its lower corner is no better than the point in any direction.
        where = tuple(
            slice(int(np.searchsorted(edge, coordinate)) + 1, None)
            for edge, coordinate in zip(edges, point, strict=True)
        )
        dominated[where] = True
    return edges, dominated


def _density(z: Array) -> Array:
    return np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def cumulative(z: Array) -> Array:
    """Of the normal distribution."""
    return 0.5 * np.asarray(_erfc(-z / math.sqrt(2)), dtype=np.float64)
