# SPDX-License-Identifier: Apache-2.0
"""Distillation: the smaller model learns to answer as the original does (Hinton et al. 2015), and
on wish to think as it does.

What makes it quick on a CPU: batches hold texts of equal length; matrix products are bf16 where
that is faster, and all batches have nearly as many tokens, so that few kernels are compiled for it;
embedding tables are frozen (half of a small model's weights, whose optimizer state would pass
through memory at each step); dropout is off, since soft targets regularize enough.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import nn
from typing_extensions import override

from kompakt.api.steps import Distill
from kompakt.jobs.compress import lesson as lessons
from kompakt.jobs.compress import precision
from kompakt.jobs.compress.adamw import AdamW
from kompakt.jobs.compress.crossover import crossed
from kompakt.jobs.compress.lesson import Lesson
from kompakt.jobs.compress.precision import Arithmetic
from kompakt.jobs.compress.simulate import simulated
from kompakt.jobs.compress.steps import TorchStep
from kompakt.jobs.compress.training import Batch, TrainingData
from kompakt.jobs.data.examples import draw_again
from kompakt.jobs.errors import StepInvalid, TrainingDiverged
from kompakt.jobs.models.encoder import Encoder
from kompakt.jobs.progress import Progress

LEAST_TEXTS = 32
HELD_OUT_SHARE = 0.04
HELD_OUT_MOST = 128
HELD_OUT_FROM = 4
"""Times as many texts as are held out, where slices have weights."""
CHECKS = 4
"""How often the held-out texts are looked at."""
WARM_UP_SHARE = 0.1
WEIGHT_DECAY = 0.01
UNLEARNED_SHARE = 0.5
"""Of the loss of a model that answers always the same: above it, more than half is unlearned."""
LARGEST_GRADIENT = 1.0


@dataclass
class _Best:
    """The state with the least held-out loss so far."""

    loss: float
    state: dict[str, torch.Tensor]


class Distillation(TorchStep):
    """The step `distill`."""

    def __init__(self, parameters: Distill) -> None:
        self._parameters = parameters

    @override
    def apply(self, encoder: Encoder, data: TrainingData) -> str:
        if self._parameters.quantization_aware == "Disabled":
            return self._train(encoder, data)
        with ExitStack() as stack:
            stack.enter_context(simulated(encoder, data.quantize))

            def keep() -> str:
                stack.close()
                return "" if data.keep is None else data.keep()

            wrapped = replace(data, keep=keep if data.keep else None)
            return f"{self._train(encoder, wrapped)}, for quantized weights"

    def _train(self, encoder: Encoder, data: TrainingData) -> str:
        if len(data) < LEAST_TEXTS:
            raise StepInvalid(
                f"distill needs at least {LEAST_TEXTS} training texts; {data.dataset.uri} has"
                f" {len(data)}"
            )
        parameters = self._parameters
        shown, held_out = chosen_texts(data, parameters.examples)
        data, shown = _crossed(parameters, data, shown)
        batches = shuffled(data, shown, size=parameters.batch_size)
        lesson = lessons.prepare(parameters, encoder, data, shown=shown, held_out=held_out)
        trainable = unfreeze(encoder)

        def step(arithmetic: Arithmetic) -> None:
            self._loss(encoder, lesson, typical(batches), arithmetic).backward()
            for parameter in trainable.values():
                parameter.grad = None

        arithmetic = precision.choose(parameters.precision, step, device=data.device)
        losses = [lesson.held_out_losses(encoder)]
        start = lesson.total(losses[0])
        best = _Best(start, _copy(trainable))
        optimizer = AdamW(trainable.values(), weight_decay=WEIGHT_DECAY)
        progress = Progress("distill", len(shown))
        check_every = max(1, math.ceil(len(batches) / CHECKS))
        for number, batch in enumerate(batches):
            rate = parameters.learning_rate_micros / 1e6 * schedule(number, len(batches))
            loss = self._loss(encoder, lesson, batch, arithmetic)
            value = float(loss.detach())
            if not math.isfinite(value):
                self._give_up(encoder, data, best, f"the loss is {value} after {number} steps")
            # Each text weighs the same, however many share its batch.
            (loss * (len(batch.indices) / parameters.batch_size)).backward()
            nn.utils.clip_grad_norm_(trainable.values(), LARGEST_GRADIENT)
            optimizer.step(rate)
            progress.advance(len(batch.indices), note=f"loss {value:.4f}")
            if (number + 1) % check_every == 0 or number + 1 == len(batches):
                losses.append(lesson.held_out_losses(encoder))
                if (total := lesson.total(losses[-1])) < best.loss:
                    best = _Best(total, _copy(trainable))
        totals = [lesson.total(some) for some in losses]
        uninformed = lesson.uninformed()
        if not totals[-1] <= max(start, UNLEARNED_SHARE * uninformed):
            why = (
                f"the loss on held-out texts went from {start:.4f} to {totals[-1]:.4f}; to know"
                f" nothing of the texts would be {uninformed:.4f}"
            )
            self._give_up(encoder, data, best, why)
        _restore(trainable, best.state)
        data.details["distill"] = {
            "textsShown": len(shown),
            "textsDistinct": len(set(shown)),
            "textsHeldOut": len(held_out),
            "heldOutLosses": [round(total, 5) for total in totals],
            "heldOutLossesByName": {
                name: [round(some[name], 5) for some in losses] for name in losses[0]
            },
            "layersMatched": list(lesson.mapping),
            "precision": arithmetic.name,
            "bfloat16Speedup": arithmetic.speedup,
        }
        if best.loss == start:
            return "distillation did not help (try a lower learningRateMicros) and was undone"
        return f"distilled on {len(shown):,} texts, held-out loss {start:.4f} to {best.loss:.4f}"

    @staticmethod
    def _loss(
        encoder: Encoder, lesson: Lesson, batch: Batch, arithmetic: Arithmetic
    ) -> torch.Tensor:
        with arithmetic():
            sample = lesson.teacher.sample(batch)
            states = lesson.wanted.run(encoder, batch.inputs)
        return lesson.loss(states, sample)

    def _give_up(self, encoder: Encoder, data: TrainingData, best: _Best, why: str) -> None:
        _restore(dict(encoder.named_parameters()), best.state)
        kept = f"; the best model so far is the checkpoint {data.keep()}" if data.keep else ""
        raise TrainingDiverged(
            f"distillation failed: {why}; lower learningRateMicros (now"
            f" {self._parameters.learning_rate_micros}){kept}"
        )


def chosen_texts(data: TrainingData, examples: int) -> tuple[list[int], list[int]]:
    """What is trained on, so many with repeats, and what is held out. Of both, there is more of
    weighted slices.
    """
    order, weights = data.order(), data.weights
    count = min(HELD_OUT_MOST, max(8, int(len(data) * HELD_OUT_SHARE)))
    if weights is None:
        # From the end: the start is what pruning has seen.
        held_out, pool = order[-count:], order[:-count]
        return [pool[i % len(pool)] for i in range(examples)], held_out
    # From a part of the texts, so that of a small slice with a large weight most are trained on.
    part = set(random.Random(data.seed).sample(order, min(HELD_OUT_FROM * count, len(order) // 2)))
    held_out = [index for index in order if index in part][:count]
    pool = sorted(set(order) - set(held_out))
    drawn = draw_again([weights[index] for index in pool], examples, seed=data.seed)
    return [pool[place] for place in drawn], held_out


def _crossed(
    parameters: Distill, data: TrainingData, shown: list[int]
) -> tuple[TrainingData, list[int]]:
    """Where a recipe says so, new texts behind those of the data, to be shown instead of what would
    be shown again.
    """
    if parameters.crossover == "Disabled":
        return data, shown
    pool = list(dict.fromkeys(shown))
    texts, weights = data.dataset.texts, data.weights
    more = crossed(
        [texts[index] for index in pool],
        len(shown) - len(pool),
        seed=data.seed,
        weights=weights and [weights[index] for index in pool],
    )
    if not more:
        return data, shown
    return data.with_more(more), [*pool, *range(len(data), len(data) + len(more))]


def schedule(step: int, steps: int) -> float:
    """Linear warm-up, then linear decay to zero."""
    warm_up = max(1, round(steps * WARM_UP_SHARE))
    if step < warm_up:
        return (step + 1) / warm_up
    return (steps - step) / max(1, steps - warm_up)


def shuffled(data: TrainingData, shown: Sequence[int], *, size: int) -> list[Batch]:
    """Batches of about equal length, with as many tokens each, in random order, one pass over the
    texts after the other.
    """
    rng = random.Random(data.seed)
    batches: list[Batch] = []
    for part in _passes(shown):
        some = list(data.packed(part, size))
        rng.shuffle(some)
        batches += some
    return batches


def typical(batches: Sequence[Batch]) -> Batch:
    """The one of median size."""
    return sorted(batches, key=lambda batch: batch.inputs["input_ids"].numel())[len(batches) // 2]


def _passes(shown: Sequence[int]) -> Iterator[Sequence[int]]:
    distinct = len(set(shown))
    for start in range(0, len(shown), distinct):
        yield shown[start : start + distinct]


def unfreeze(encoder: Encoder) -> dict[str, nn.Parameter]:
    """The parameters that learn: all but the embedding tables."""
    for table in encoder.tables:
        table.requires_grad_(False)
    return {name: p for name, p in encoder.named_parameters() if p.requires_grad}


def _copy(parameters: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def _restore(parameters: dict[str, nn.Parameter], state: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, value in state.items():
            parameters[name].copy_(value)
