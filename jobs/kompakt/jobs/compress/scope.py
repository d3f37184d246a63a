# SPDX-License-Identifier: Apache-2.0
"""Attention scope: layers that answers lose little by get a local window.

Each layer is limited alone, and how far the answers to some long texts move is its sensitivity.
Layers are then limited together, the least sensitive first, as many as leave the answers to other
long texts what they were.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import override

from kompakt.api.steps import AttentionScope
from kompakt.jobs.compress.agreement import Rule
from kompakt.jobs.compress.losses import divergence, outcome
from kompakt.jobs.compress.steps import TorchStep
from kompakt.jobs.compress.training import Batch, TrainingData
from kompakt.jobs.errors import StepInvalid
from kompakt.jobs.models.encoder import Encoder
from kompakt.jobs.progress import Progress, say

BATCH = 8
FEWEST_TEXTS = 128
"""Longer than the window."""
RANKING_PART = 4
"""One text of so many is for the sensitivity, the others are for the verdict."""
_ALL = 10_000
"""Basis points."""


class LimitAttention(TorchStep):
    """The step `attentionScope`."""

    def __init__(self, parameters: AttentionScope) -> None:
        self._parameters = parameters

    @override
    def apply(self, encoder: Encoder, data: TrainingData) -> str:
        window = self._parameters.window_tokens
        candidates = limitable(encoder)
        if not candidates:
            raise StepInvalid(
                "attentionScope finds no layer to limit: one that only the first token is read of"
                " needs no window, and the others have one, or no heads; leave the step out"
            )
        found = self._long_texts(data)
        chosen = found[: self._parameters.samples]
        ranked = list(data.batches(chosen[::RANKING_PART], BATCH))
        rest = [index for place, index in enumerate(chosen) if place % RANKING_PART]
        checked = list(data.batches(rest, BATCH))
        damage = sensitivity(encoder, candidates, ranked, window=window)
        order = sorted(candidates, key=lambda number: (damage[number], number))
        limited, agreement = self._most(encoder, order, checked, data)
        layers = encoder.encoder_layers()
        for number in limited:
            layers[number].window = window
        data.details["attentionScope"] = {
            "texts": {
                "all": len(data),
                "longer": len(found),
                "ranked": len(chosen) - len(rest),
                "checked": len(rest),
            },
            "divergence": {number: float(f"{damage[number]:.4g}") for number in order},
            "agreement": round(agreement, 4),
            "windows": [layer.window for layer in layers],
        }
        return (
            f"{len(limited)} of {len(layers)} layers look at {window} tokens,"
            f" {len(found) / len(data):.0%} of the texts have more"
        )

    def _long_texts(self, data: TrainingData) -> list[int]:
        """All that are longer than the window, in the order in which they are drawn."""
        window = self._parameters.window_tokens
        longest = (data.tokenizer.truncation or {}).get("max_length")
        if longest is not None and longest <= window:
            raise StepInvalid(
                f"attentionScope.windowTokens is {window}, but model.maxSequenceLength is"
                f" {longest}, so no text is longer than the window; lower it, or leave the step out"
            )
        found = [index for index in data.order() if len(data.encodings[index]) > window]
        if len(found) < FEWEST_TEXTS:
            raise StepInvalid(
                f"attentionScope needs at least {FEWEST_TEXTS} texts of more than {window} tokens,"
                f" and {data.dataset.uri} has {len(found)} of {len(data)}: name more long texts,"
                " lower windowTokens, or leave the step out"
            )
        return found

    def _most(
        self, encoder: Encoder, order: Sequence[int], batches: Sequence[Batch], data: TrainingData
    ) -> tuple[list[int], float]:
        """As many of the first layers as the agreement allows, and what it is then: by bisection,
        since every look is a pass over all of the texts.
        """
        window, least = self._parameters.window_tokens, self._parameters.min_agreement_basis_points
        rule = Rule(data.task, data.tolerance)
        exact = _answers(encoder, batches)
        enough, most, agreement = 0, len(order), 1.0
        while enough < most:
            count = (enough + most + 1) // 2
            with limited_to(encoder, order[:count], window):
                same = rule.same(exact, _answers(encoder, batches))
            share = float(same.mean())
            say(f"agreement with {count} of {len(order)} layers limited: {share:.2%}")
            if same.sum() * _ALL >= least * len(same):
                enough, agreement = count, share
            else:
                most = count - 1
        return list(order[:enough]), agreement


def limitable(encoder: Encoder) -> list[int]:
    """The layers that a window makes a difference to. The last attention is none of them where only
    the first token is read: that token looks at all.
    """
    layers = encoder.encoder_layers()
    able = [number for number, layer in enumerate(layers) if layer.heads]
    if encoder.config.reads_first_token:
        able = able[:-1]
    return [number for number in able if not layers[number].window]


def sensitivity(
    encoder: Encoder, candidates: Collection[int], batches: Sequence[Batch], *, window: int
) -> dict[int, float]:
    """Of each layer, by how many nats a text's answer moves when it alone has the window."""
    layers, task = encoder.encoder_layers(), encoder.config.task
    damage = dict.fromkeys(sorted(candidates), 0.0)
    progress = Progress("sensitivity", len(batches), unit="batches")
    with torch.inference_mode():
        for batch in batches:
            x, mask = encoder.embed(**batch.inputs)
            before = []
            for layer in layers:
                before.append(x)
                x = layer(x, mask)
            tokens = batch.inputs["attention_mask"]
            expected = outcome(task, encoder.classify(x, tokens), tokens)
            for number in damage:
                with limited_to(encoder, [number], window):
                    x = before[number]
                    for layer in layers[number:]:
                        x = layer(x, mask)
                found = outcome(task, encoder.classify(x, tokens), tokens)
                damage[number] += float(divergence(task, found, expected))
            progress.advance()
    texts = sum(len(batch.indices) for batch in batches)
    return {number: total / texts for number, total in damage.items()}


@contextmanager
def limited_to(encoder: Encoder, numbers: Collection[int], window: int) -> Iterator[None]:
    """Gives some layers a window, and takes it away again."""
    layers = [encoder.encoder_layers()[number] for number in numbers]
    former = [layer.window for layer in layers]
    try:
        for layer in layers:
            layer.window = window
        yield
    finally:
        for layer, width in zip(layers, former, strict=True):
            layer.window = width


def _answers(encoder: Encoder, batches: Sequence[Batch]) -> NDArray[Any]:
    """[texts, outputs]; of a token classifier [tokens, outputs], since each is an answer."""
    rows = []
    with torch.inference_mode():
        for batch in batches:
            found = encoder(**batch.inputs)
            rows.append(found[batch.tokens] if encoder.config.each_token else found)
    answers: NDArray[np.float32] = torch.cat(rows).numpy(force=True)
    return answers
