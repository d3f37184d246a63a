# SPDX-License-Identifier: Apache-2.0
"""How far a model's answers move when one half of one layer keeps so many of its units.

Measured half by half: all other halves are whole, the half keeps its best units, its matrix is
refitted as it would be after pruning, and the answers of some texts are compared with those of the
whole model. Scores of single units do not tell this: refitting gives back most of what redundant
neurons did, and a last layer without heads answers nothing however little each of them is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kompakt.jobs.compress.gates import Units
from kompakt.jobs.compress.losses import divergence, outcome
from kompakt.jobs.compress.refit import (
    Half,
    LeastSquares,
    State,
    attention,
    feed_forward,
    states_of,
)
from kompakt.jobs.compress.selection import best
from kompakt.jobs.compress.training import Batch
from kompakt.jobs.models.encoder import Encoder
from kompakt.jobs.progress import Progress

SHARES = (1 / 48, 1 / 8, 1 / 4, 1 / 2, 3 / 4)
"""Of a half's units, beside none and all: the damage grows fast where few are left."""
NOTHING = 1e-7
"""Nats; what is less is rounding."""


@dataclass(frozen=True)
class Curve:
    """Damage in nats a text by the number of units that are left, ascending."""

    points: dict[int, float]

    def at(self, count: int) -> float:
        """Between the points, the damage falls by the same factor with each unit."""
        if count in self.points:
            return self.points[count]
        some = sorted(c for c in self.points if c > 0)
        logs = np.log([max(NOTHING, self.points[c]) for c in some])
        return float(np.exp(np.interp(count, some, logs)))


def sensitivity(
    encoder: Encoder, scores: Units, *, fit_on: Sequence[Batch], check_on: Sequence[Batch]
) -> list[Curve]:
    """A curve for each half, in the order of `Units.all`.

    Args:
        encoder: The whole model; it stays as it is.
        scores: The best units of a half are those that stay.
        fit_on: Texts for the refit.
        check_on: Texts whose answers are compared, better others.
    """
    layers = encoder.encoder_layers()
    firsts: list[Curve] = []
    seconds: list[Curve] = []
    progress = Progress("sensitivity", 2 * len(layers), unit="halves")
    with torch.inference_mode():
        task = encoder.config.task
        expected = [outcome(task, encoder(**b.inputs), b.tokens) for b in check_on]
        fitted, checked = list(states_of(encoder, fit_on)), list(states_of(encoder, check_on))
        for number, layer in enumerate(layers):
            for half, own, curves, rest in (
                (attention(layer), scores.heads[number], firsts, layer.feed),
                (feed_forward(layer), scores.neurons[number], seconds, _as_it_is),
            ):
                place = _Place(encoder, half, number, rest)
                curves.append(_curve(place, own, fitted, checked, expected))
                for state in (*fitted, *checked):
                    state.x = half.norm(half.matrix(half.inputs(state.x, state.mask)) + state.x)
                progress.advance()
    return firsts + seconds


@dataclass(frozen=True)
class _Place:
    """Where in the model a half is."""

    encoder: Encoder
    half: Half
    number: int
    """Of the layer."""
    rest: Callable[[torch.Tensor], torch.Tensor]
    """What of the layer follows on the half."""

    def answers(self, x: torch.Tensor, state: State) -> torch.Tensor:
        """The model's outcome, from what the half gives."""
        x = self.rest(x)
        for later in self.encoder.encoder_layers()[self.number + 1 :]:
            x = later(x, state.mask)
        return outcome(
            self.encoder.config.task, self.encoder.classify(x, state.tokens), state.tokens
        )


def _curve(
    place: _Place,
    scores: torch.Tensor,
    fitted: Sequence[State],
    checked: Sequence[State],
    expected: Sequence[torch.Tensor],
) -> Curve:
    half, units = place.half, len(scores)
    sums = LeastSquares.of(half.matrix)
    for state in fitted:
        read = place.encoder.read_of(place.number, state.tokens)
        values = half.inputs(state.x, state.mask)[read]
        change = half.matrix(values)
        sums.add(values, change, change + state.x[read])
    inputs = [half.inputs(state.x, state.mask) for state in checked]
    points = {units: 0.0}
    counts = {0, *(max(1, round(units * share)) for share in SHARES)}
    for count in sorted(counts - {units} if units else (), reverse=True):
        rows = _rows(best(scores, count), width=half.matrix.in_features // units)
        weight, bias, _ = sums.of_inputs(rows).solve(half.matrix.weight[:, rows])
        total = 0.0
        for state, values, aim in zip(checked, inputs, expected, strict=False):
            x = half.norm(values[..., rows] @ weight.T + bias + state.x)
            found = place.answers(x, state)
            total += float(divergence(place.encoder.config.task, found, aim))
        # More units that do more damage are noise.
        points[count] = max(total / sum(len(aim) for aim in expected), *points.values())
    return Curve(dict(sorted(points.items())))


def _rows(units: torch.Tensor, *, width: int) -> torch.Tensor:
    """Where the values of some heads (or neurons, of width 1) stand side by side."""
    return (units[:, None] * width + torch.arange(width, device=units.device)).flatten()


def _as_it_is(x: torch.Tensor) -> torch.Tensor:
    return x
