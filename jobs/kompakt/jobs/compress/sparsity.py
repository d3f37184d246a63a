# SPDX-License-Identifier: Apache-2.0
"""Gates that learn to close: which heads and neurons go is learned while the model is distilled,
and its weights learn to do without them.

A gate is a number between 0 and 1 drawn anew at each step from the hard concrete distribution,
which has a gradient and yet is exactly 0 or 1 most of the time (Louizos et al. 2018,
arXiv:1712.01312, section 3.1). How many may be open is a constraint, whose Lagrangian CoFi descends
and ascends (Xia et al. 2022, arXiv:2204.00408, section 3.2). That takes thousands of steps until
the multiplier has settled; here it is solved for at every step, so that the constraint always holds
in expectation. From all gates open, the share goes down linearly to the one that is wanted, and
stays there for the last steps.

Gates begin in the order of some importance. From equal ones, a thousand texts could not tell good
units from others: MiniLM-L6 then kept a third of each layer, as chance would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kompakt.api.steps import Distill
from kompakt.jobs.compress import lesson as lessons
from kompakt.jobs.compress import precision
from kompakt.jobs.compress.adamw import AdamW
from kompakt.jobs.compress.distill import (
    LARGEST_GRADIENT,
    LEAST_TEXTS,
    WEIGHT_DECAY,
    chosen_texts,
    schedule,
    shuffled,
    typical,
    unfreeze,
)
from kompakt.jobs.compress.gates import Units, gated
from kompakt.jobs.compress.training import TrainingData
from kompakt.jobs.errors import StepInvalid, TrainingDiverged
from kompakt.jobs.models.device import CPU
from kompakt.jobs.models.encoder import Encoder
from kompakt.jobs.progress import Progress

TEMPERATURE = 2 / 3
LOW, HIGH = -0.1, 1.1
"""The concrete distribution is stretched to these, then cut at 0 and 1."""
SHIFT = TEMPERATURE * math.log(-LOW / HIGH)
"""A gate is open with the probability sigmoid(location - SHIFT)."""
START, SPREAD = 4.0, 2.0
"""Locations of the most important gate and of the least at first are so far on either side: nearly
all are open."""
WAY = 6.0
"""How far a gate can move in all steps together, by what the loss says."""
DESCENT = 0.7
"""Share of the steps in which the share of open gates goes down."""
_HALVINGS = 50


@dataclass(frozen=True)
class Learned:
    """What the gates have become."""

    locations: Units
    """Of each gate: the higher, the more open."""
    values: Units
    """What each unit is multiplied with from now on."""
    report: dict[str, Any]


def learn(
    encoder: Encoder,
    data: TrainingData,
    importance: Units,
    *,
    head_share: float,
    neuron_share: float,
    examples: int,
) -> Learned:
    """Distils the model with gates, its weights in place.

    Args:
        encoder: What learns.
        data: Texts, and what the original answers.
        importance: Of the units; only the order counts.
        head_share: Of all heads, how many gates are open in the end; at 1, heads have none.
        neuron_share: The same of neurons.
        examples: Texts to show.

    Raises:
        TrainingDiverged: The loss is no number any more.
    """
    if len(data) < LEAST_TEXTS:
        raise StepInvalid(
            f"prune.importance L0 learns from at least {LEAST_TEXTS} training texts;"
            f" {data.dataset.uri} has {len(data)}: name more, or take Fisher"
        )
    settings = Distill(examples=examples)
    shown, held_out = chosen_texts(data, examples)
    batches = shuffled(data, shown, size=settings.batch_size)
    lesson = lessons.prepare(settings, encoder, data, shown=shown, held_out=held_out)
    trainable = unfreeze(encoder)
    heads = _Gates(importance.heads, share=head_share)
    neurons = _Gates(importance.neurons, share=neuron_share)
    weights = AdamW(trainable.values(), weight_decay=WEIGHT_DECAY)
    locations = AdamW([heads.location, neurons.location], weight_decay=0.0)
    random = torch.Generator(CPU).manual_seed(data.seed)

    def loss_of(batch: Any, arithmetic: precision.Arithmetic) -> torch.Tensor:
        drawn = Units(heads.draw(random), neurons.draw(random))
        with arithmetic(), gated(encoder, drawn):
            sample = lesson.teacher.sample(batch)
            states = lesson.wanted.run(encoder, batch.inputs)
        return lesson.loss(states, sample)

    def step(arithmetic: precision.Arithmetic) -> None:
        loss_of(typical(batches), arithmetic).backward()
        for parameter in (*trainable.values(), heads.location, neurons.location):
            parameter.grad = None

    arithmetic = precision.choose(settings.precision, step, device=data.device)
    random.manual_seed(data.seed)
    progress = Progress("prune", len(shown))
    losses: list[float] = []
    for number, batch in enumerate(batches):
        done = min(1.0, (number + 1) / (DESCENT * len(batches)))
        loss = loss_of(batch, arithmetic)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise TrainingDiverged(
                f"prune.importance L0 failed: the loss is {losses[-1]} after {number} steps; take"
                " Fisher, or prune less"
            )
        (loss * (len(batch.indices) / settings.batch_size)).backward()
        nn.utils.clip_grad_norm_(trainable.values(), LARGEST_GRADIENT)
        weights.step(settings.learning_rate_micros / 1e6 * schedule(number, len(batches)))
        locations.step(WAY / len(batches))
        for gates in (heads, neurons):
            gates.hold(1 - done * (1 - gates.share))
        progress.advance(len(batch.indices), note=f"loss {losses[-1]:.4f}")
    return Learned(
        locations=Units(heads.locations(), neurons.locations()),
        values=Units(heads.values(), neurons.values()),
        report={
            "textsShown": len(shown),
            "losses": [round(value, 5) for value in _thinned(losses)],
            "openHeads": round(heads.settled_share, 4),
            "openNeurons": round(neurons.settled_share, 4),
        },
    )


def fold(encoder: Encoder, values: Units) -> None:
    """Multiplies the matrices that read heads and neurons by the values of their gates."""
    layers = zip(encoder.encoder_layers(), values.heads, values.neurons, strict=True)
    with torch.no_grad():
        for layer, heads, neurons in layers:
            columns = heads.repeat_interleave(layer.width)
            for matrix, factors in ((layer.attended, columns), (layer.down, neurons)):
                matrix.get_parameter("weight").mul_(factors)


class _Gates:
    """Those of all layers' heads, or neurons, in a row."""

    def __init__(self, importance: Sequence[torch.Tensor], *, share: float) -> None:
        self.share = share
        ranks = torch.cat(list(importance)).argsort(stable=True).argsort().float()
        centred = 2 * ranks / max(1, len(ranks) - 1) - 1
        self.location = nn.Parameter(START + SPREAD * centred)
        self._counts = [len(layer) for layer in importance]

    @property
    def _idle(self) -> bool:
        return self.share >= 1 or not len(self.location)

    def draw(self, random: torch.Generator) -> list[torch.Tensor]:
        """Gates for one step, by layer."""
        if self._idle:
            return self.values()
        # The same numbers, whatever the device.
        drawn = torch.rand(len(self.location), generator=random, device=CPU)
        uniform = drawn.to(self.location).clamp(1e-6, 1 - 1e-6)
        concrete = torch.sigmoid((torch.logit(uniform) + self.location) / TEMPERATURE)
        return list(_stretched(concrete).split(self._counts))

    def hold(self, share: float) -> None:
        """Moves the gates until so many are open in expectation, each as far as that helps: along
        the gradient of the constraint, times its multiplier.
        """
        if self._idle:
            return
        with torch.no_grad():
            probability = torch.sigmoid(self.location - SHIFT)
            along = probability * (1 - probability)

            def moved(multiplier: float) -> torch.Tensor:
                return self.location - multiplier * along

            def too_open(multiplier: float) -> bool:
                return float(torch.sigmoid(moved(multiplier) - SHIFT).mean()) > share

            least, most = -1.0, 1.0
            while too_open(most) and most < 1e6:  # noqa: PLR2004 so far no gate is
                most *= 2
            while not too_open(least) and least > -1e6:  # noqa: PLR2004
                least *= 2
            for _ in range(_HALVINGS):
                middle = (least + most) / 2
                least, most = (middle, most) if too_open(middle) else (least, middle)
            self.location.copy_(moved(most))

    def values(self) -> list[torch.Tensor]:
        """What each is without chance, by layer (arXiv:1712.01312, equation 13)."""
        found = torch.ones_like(self.location)
        if not self._idle:
            found = _stretched(torch.sigmoid(self.location))
        return list(found.detach().split(self._counts))

    def locations(self) -> list[torch.Tensor]:
        """By layer."""
        return list(self.location.detach().split(self._counts))

    @property
    def settled_share(self) -> float:
        """How many are open without chance."""
        values = torch.cat(self.values())
        return float((values > 0).float().mean()) if len(values) else 1.0


def _stretched(concrete: torch.Tensor) -> torch.Tensor:
    return (concrete * (HIGH - LOW) + LOW).clamp(0, 1)


def _thinned(values: Sequence[float], most: int = 20) -> list[float]:
    every = -(-len(values) // most)
    return list(values[::every])
