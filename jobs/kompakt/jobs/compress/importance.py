# SPDX-License-Identifier: Apache-2.0
"""What attention heads, FFN neurons and whole layers are worth to a model on some texts.

Fisher: the square of the loss's gradient by a unit's gate, summed over texts, which is the diagonal
of the empirical Fisher information (Kwon et al. 2022, arXiv:2204.09656, section 4.2): to second
order, what the loss of a trained model grows by when the unit goes.

Movement: the gradient itself, summed with the other sign over some steps of training on a copy
(Sanh et al. 2020, arXiv:2005.07683, section 3, by unit instead of by weight): a unit whose weights
training moves away from zero is worth more, one that it moves towards zero less than nothing.

Both are of one scale for heads and neurons of all layers, so that all can be ranked together. For a
whole layer neither holds, far as its removal is from where gradients are taken; its worth is how
far the answers move without it.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from kompakt.jobs.compress.adamw import AdamW
from kompakt.jobs.compress.gates import Units, frozen, gated, gradients, ones
from kompakt.jobs.compress.losses import Labels, divergence, fisher_loss, loss, outcome
from kompakt.jobs.compress.training import Batch
from kompakt.jobs.models.encoder import Encoder

MOVEMENT_STEPS = 64
"""Of training: enough for a direction, few enough to take seconds."""
MOVEMENT_RATE = 5e-5
"""Peak learning rate, as for fine-tuning."""
WEIGHT_DECAY = 0.01
LARGEST_GRADIENT = 1.0


def fisher(encoder: Encoder, batches: Sequence[Batch], *, labels: Labels) -> Units:
    """The summed squared gradient of the loss by each unit's gate, text by text."""
    sums = [torch.zeros_like(gate) for gate in ones(encoder).all]
    with frozen(encoder), torch.enable_grad():
        for batch in batches:
            # One gate for each text and unit gives the gradient text by text in one pass.
            gates = ones(encoder, len(batch.indices), 1)
            with gated(encoder, gates):
                logits = encoder(**batch.inputs)
            total_loss = fisher_loss(encoder.config.task, logits, batch, labels)
            squares = [g.square().sum(dim=(0, 1)) for g in gradients(total_loss, gates)]
            sums = [total + square for total, square in zip(sums, squares, strict=True)]
    return _units(sums)


def movement(encoder: Encoder, batches: Sequence[Batch], *, labels: Labels) -> Units:
    """The summed negative gradient of the loss by each unit's gate, step by step of training.

    For a gate of 1 that is the sum of `-weight * gradient` over the weights behind the gate: the
    score of movement pruning, summed over the unit.
    """
    student = copy.deepcopy(encoder)
    for table in student.tables:
        table.requires_grad_(False)
    parameters = [p for p in student.parameters() if p.requires_grad and p.numel()]
    optimizer = AdamW(parameters, weight_decay=WEIGHT_DECAY)
    sums = [torch.zeros_like(gate) for gate in ones(encoder).all]
    gates = ones(student)
    with gated(student, gates), torch.enable_grad():
        for number, batch in enumerate(_at_random(batches, MOVEMENT_STEPS)):
            wrong = loss(encoder.config.task, student(**batch.inputs), batch, labels)
            found = gradients(wrong, gates, *parameters)
            by_gate, by_weight = found[: len(sums)], found[len(sums) :]
            sums = [total - gradient for total, gradient in zip(sums, by_gate, strict=True)]
            for parameter, gradient in zip(parameters, by_weight, strict=True):
                parameter.grad = gradient
            nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
            optimizer.step(MOVEMENT_RATE * (1 - number / MOVEMENT_STEPS))
    return _units(sums)


@dataclass(frozen=True)
class LayerDrop:
    """One layer that can go."""

    number: int
    """In the model as it was before any went."""
    divergence: float
    """How far the answers move without it and those that went before, in nats a text."""


def layers_to_drop(encoder: Encoder, batches: Sequence[Batch], count: int) -> list[LayerDrop]:
    """The layers that are missed least, one after the other, each judged without the former.

    What counts is the Kullback-Leibler divergence of the answers from those of the whole model.
    """
    kept = list(range(len(encoder.encoder_layers())))
    dropped: list[LayerDrop] = []
    if not count:
        return dropped
    with torch.inference_mode():
        task = encoder.config.task
        whole = [outcome(task, encoder(**batch.inputs), batch.tokens) for batch in batches]
        while len(dropped) < count:
            lost = torch.zeros(len(kept), dtype=torch.float64, device=encoder.device)
            for batch, expected in zip(batches, whole, strict=True):
                for place, logits in enumerate(_without_each(encoder, kept, batch)):
                    lost[place] += divergence(task, outcome(task, logits, batch.tokens), expected)
            place = int(lost.argmin())
            texts = sum(len(batch.indices) for batch in batches)
            dropped.append(LayerDrop(kept.pop(place), float(lost[place]) / texts))
    return dropped


def _without_each(encoder: Encoder, kept: Sequence[int], batch: Batch) -> Iterator[torch.Tensor]:
    """The logits without the first of the kept layers, without the second, and so on."""
    layers = encoder.encoder_layers()
    x, mask = encoder.embed(**batch.inputs)
    for place, number in enumerate(kept):
        rest = x
        for later in kept[place + 1 :]:
            rest = layers[later](rest, mask)
        yield encoder.classify(rest, batch.tokens)
        x = layers[number](x, mask)


def _units(values: list[torch.Tensor]) -> Units:
    half = len(values) // 2
    return Units(heads=values[:half], neurons=values[half:])


def _at_random(batches: Sequence[Batch], steps: int) -> Iterator[Batch]:
    """Batches come sorted by length; training takes them in a random order, always the same."""
    draw = random.Random(0)
    for _ in range(steps):
        yield draw.choice(batches)
