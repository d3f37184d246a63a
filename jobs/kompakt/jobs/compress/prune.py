# SPDX-License-Identifier: Apache-2.0
"""Structured pruning with physical shrink, in one pass.

1. Whole layers go first, those that the answers miss least.
2. Every head and neuron of the others is scored (`importance`). Those stay that are worth most: a
   share of all heads and of all neurons, or what a budget of latency has room for (`selection`,
   `latency`, `sensitivity`).
3. Shrink: rows and columns of the others leave the matrices. The model answers now as if they were
   masked, to rounding.
4. Refit: the matrices that read what is left are fitted to give what was there before (`refit`).

With the importance L0, gates that begin in the order of the scores learn which units stay, and the
weights with them (`sparsity`).

All shares are of the model as the step finds it: two steps that keep half each leave a quarter.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from typing_extensions import override

from kompakt.api.steps import Prune
from kompakt.jobs.compress import sparsity
from kompakt.jobs.compress.findings import Findings
from kompakt.jobs.compress.gates import Units
from kompakt.jobs.compress.importance import layers_to_drop, movement
from kompakt.jobs.compress.latency import LatencyTable
from kompakt.jobs.compress.refit import refit
from kompakt.jobs.compress.selection import (
    LEAST_HEADS,
    LEAST_NEURONS,
    MULTIPLE,
    by_latency,
    by_share,
)
from kompakt.jobs.compress.sensitivity import Curve
from kompakt.jobs.compress.steps import TorchStep
from kompakt.jobs.compress.training import Batch, TrainingData
from kompakt.jobs.errors import StepInvalid
from kompakt.jobs.models.encoder import Encoder

BATCH = 16
CHECKED_TEXTS = 64
"""On which answers are compared, of layers and halves: each comparison is a pass through a part of
the model."""
REFIT_TEXTS = 1024
"""At least, where there are so many: labels are not needed for it."""
REFIT_RATIO = 8
"""For each text that scores are made of: they are averages, and a fit has many unknowns."""
LISTED_LAYERS = 12
"""A deeper model's summary gives sums."""
WHOLE = 1000


class PruneUnits(TorchStep):
    """The step `prune`."""

    def __init__(self, parameters: Prune) -> None:
        self._parameters = parameters

    @override
    def apply(self, encoder: Encoder, data: TrainingData) -> str:
        if encoder.is_factored:
            raise StepInvalid("prune takes whole matrices apart, so lowRank must come after it")
        parameters = self._parameters
        before = _Sizes.of(encoder)
        if parameters.drop_layers >= len(before.heads):
            raise StepInvalid(
                f"prune.dropLayers is {parameters.drop_layers}, but the model has"
                f" {len(before.heads)} layers; leave at least one"
            )
        least = min(parameters.ffn_keep_permille, parameters.head_keep_permille)
        if not (least < WHOLE or parameters.drop_layers or parameters.latency_keep_permille):
            return "nothing pruned"
        whole = copy.deepcopy(encoder)
        texts = _Texts.of(data, parameters.samples)
        if parameters.importance == "Movement" and encoder.config.task == "Regression":
            _require_labels(data, texts)
        budget = self._budget(encoder, data, texts)
        drops = layers_to_drop(encoder, texts.checked, parameters.drop_layers)
        numbers = sorted(set(range(len(before.heads))) - {drop.number for drop in drops})
        if drops:
            encoder.keep_layers(numbers)
            # Scores should be those of a model that works.
            refit(encoder, whole, numbers, texts.fitted)
        if parameters.importance == "L0":
            outcome = self._learned(encoder, data, texts)
        else:
            outcome = self._ranked(encoder, data, texts, budget)
        scores = outcome.scores
        errors = refit(encoder, whole, numbers, texts.fitted)
        after = _Sizes.of(encoder)
        data.details["prune"] = {
            "samples": len(texts.chosen),
            "labelled": sum(data.labels[index] is not None for index in texts.chosen),
            "importance": parameters.importance,
            "layersDropped": [
                {"layer": drop.number, "divergence": _rounded(drop.divergence)} for drop in drops
            ],
            "headsBefore": before.heads,
            "headsAfter": after.heads,
            "neuronsBefore": before.neurons,
            "neuronsAfter": after.neurons,
            "headImportance": [[_rounded(float(s)) for s in layer] for layer in scores.heads],
            "neuronImportance": [_quantiles(layer) for layer in scores.neurons],
            "relativeRefitErrors": {
                "attention": [_rounded(error) for error in errors.attention],
                "feedForward": [_rounded(error) for error in errors.feed_forward],
            },
        }
        if outcome.gates is not None:
            data.details["prune"]["gates"] = outcome.gates
        if budget is not None:
            data.details["prune"]["latency"] = budget.report(encoder)
            data.details["prune"]["sensitivity"] = _sensitivity(outcome.curves)
        return _summary(before, after, dropped=len(drops), budget=budget, encoder=encoder)

    def _ranked(
        self, encoder: Encoder, data: TrainingData, texts: _Texts, budget: _Budget | None
    ) -> _Outcome:
        """Scores the units, and takes out what is worth least."""
        known = data.findings or Findings()
        if self._parameters.importance == "Movement":
            scores = movement(encoder, texts.scored, labels=data.labels)
        else:
            scores = known.fisher(encoder, texts.scored, labels=data.labels)
        curves: list[Curve] = []
        if budget is None:
            kept = self._by_share(scores)
        else:
            curves = known.sensitivity(encoder, scores, fit_on=texts.scored, check_on=texts.checked)
            kept = self._within(budget, scores, curves)
        shrink(encoder, kept)
        return _Outcome(scores, curves=curves)

    def _learned(self, encoder: Encoder, data: TrainingData, texts: _Texts) -> _Outcome:
        """Trains with gates, and leaves their values in the weights."""
        parameters = self._parameters
        learned = sparsity.learn(
            encoder,
            data,
            (data.findings or Findings()).fisher(encoder, texts.scored, labels=data.labels),
            head_share=parameters.head_keep_permille / WHOLE,
            neuron_share=parameters.ffn_keep_permille / WHOLE,
            examples=parameters.sparsity_examples,
        )
        sparsity.fold(encoder, learned.values)
        shrink(encoder, self._by_share(learned.locations))
        return _Outcome(learned.locations, gates=learned.report)

    def _budget(self, encoder: Encoder, data: TrainingData, texts: _Texts) -> _Budget | None:
        permille = self._parameters.latency_keep_permille
        if permille is None:
            return None
        if self._parameters.importance == "L0":
            raise StepInvalid(
                "prune.importance L0 learns for shares of heads and neurons: set headKeepPermille"
                " and ffnKeepPermille instead of latencyKeepPermille, or take Fisher"
            )
        if data.latency_table is None:
            raise StepInvalid(
                "prune.latencyKeepPermille needs a pod to measure on; set ffnKeepPermille and"
                " headKeepPermille instead"
            )
        lengths = [len(data.encodings[index]) for index in texts.chosen]
        if self._parameters.latency_tokens is not None:
            lengths = [self._parameters.latency_tokens]
        table = data.latency_table(encoder, lengths, self._parameters.latency_precision)
        before = table.estimate(encoder.encoder_layers())
        return _Budget(table, before=before, allowed=before * permille / WHOLE)

    def _by_share(self, scores: Units) -> Units:
        return Units(
            heads=by_share(
                scores.heads,
                keep_permille=self._parameters.head_keep_permille,
                multiple=1,
                least=LEAST_HEADS,
            ),
            neurons=by_share(
                scores.neurons,
                keep_permille=self._parameters.ffn_keep_permille,
                multiple=MULTIPLE,
                least=LEAST_NEURONS,
            ),
        )

    def _within(self, budget: _Budget, scores: Units, curves: Sequence[Curve]) -> Units:
        kept = by_latency(
            scores,
            [curve.at for curve in curves],
            budget.table.costs(len(scores.heads)),
            budget=budget.allowed,
        )
        if kept is None:
            table, layers = budget.table, len(scores.heads)
            least = sum(cost(0) for cost in table.costs(layers)) / budget.before
            raise StepInvalid(
                f"prune.latencyKeepPermille is {self._parameters.latency_keep_permille}, but"
                f" {layers} layers without any heads and neurons would still take"
                f" {round(least * WHOLE)} permille; raise it, or set dropLayers"
            )
        return kept


def _require_labels(data: TrainingData, texts: _Texts) -> None:
    if all(data.labels[index] is None for index in texts.chosen):
        raise StepInvalid(
            "prune.importance is Movement, which trains a Regression towards labels, and"
            f" {data.dataset.uri} has none; set labelField, or take Fisher, which needs none"
        )


def shrink(encoder: Encoder, kept: Units) -> None:
    """Takes all other heads and neurons out of the matrices."""
    layers = zip(encoder.encoder_layers(), kept.heads, kept.neurons, strict=True)
    for layer, heads, neurons in layers:
        layer.keep_heads(heads)
        layer.keep_neurons(neurons)


@dataclass
class _Outcome:
    """What was found on the way, for the report."""

    scores: Units
    curves: list[Curve] = field(default_factory=list)
    gates: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Texts:
    """What the parts of the step look at."""

    chosen: list[int]
    scored: list[Batch]
    fitted: list[Batch]
    checked: list[Batch]
    """Others than those that are scored, where there are enough."""

    @classmethod
    def of(cls, data: TrainingData, samples: int) -> _Texts:
        order = data.order()
        chosen = order[:samples]
        others = order[samples : samples + CHECKED_TEXTS]
        checked = others if len(others) == CHECKED_TEXTS else chosen[:CHECKED_TEXTS]
        return cls(
            chosen=chosen,
            scored=list(data.batches(chosen, BATCH)),
            fitted=list(data.batches(order[: max(REFIT_RATIO * samples, REFIT_TEXTS)], BATCH)),
            checked=list(data.batches(checked, BATCH)),
        )


@dataclass(frozen=True)
class _Budget:
    """How much latency the layers may take, in microseconds."""

    table: LatencyTable
    before: float
    allowed: float

    def share(self, encoder: Encoder) -> float:
        """What is left of the estimate."""
        return self.table.estimate(encoder.encoder_layers()) / self.before

    def report(self, encoder: Encoder) -> dict[str, Any]:
        """For the report."""
        return {
            "table": self.table.to_wire(),
            "microsecondsBefore": _rounded(self.before),
            "microsecondsAllowed": _rounded(self.allowed),
            "microsecondsAfter": _rounded(self.table.estimate(encoder.encoder_layers())),
        }


@dataclass(frozen=True)
class _Sizes:
    """Of each layer."""

    heads: list[int]
    neurons: list[int]

    @classmethod
    def of(cls, encoder: Encoder) -> _Sizes:
        layers = encoder.encoder_layers()
        return cls([layer.heads for layer in layers], [layer.ffn_size for layer in layers])


def _summary(
    before: _Sizes, after: _Sizes, *, dropped: int, budget: _Budget | None, encoder: Encoder
) -> str:
    kept = []
    for name, former, left in (
        ("heads", before.heads, after.heads),
        ("FFN neurons", before.neurons, after.neurons),
    ):
        if sum(left) == sum(former):
            continue
        if len(left) <= LISTED_LAYERS:
            kept.append(f"{name} {' '.join(map(str, left))} of {max(former)}")
        else:
            kept.append(f"{sum(left):,} of {sum(former):,} {name}")
    parts = [f"dropped {dropped} of {len(before.heads)} layers"] if dropped else []
    parts += [f"kept {' and '.join(kept)}"] if kept else []
    parts += [f"{budget.share(encoder):.0%} of the layers' latency"] if budget else []
    return ", ".join(parts)


def _sensitivity(curves: Sequence[Curve]) -> dict[str, list[list[list[float]]]]:
    """By layer, pairs of units kept and nats lost."""
    half = len(curves) // 2
    wire = [[[count, _rounded(nats)] for count, nats in c.points.items()] for c in curves]
    return {"attention": wire[:half], "feedForward": wire[half:]}


def _quantiles(scores: torch.Tensor) -> list[float]:
    """The least, the deciles and the largest: all of them would be too many for a report."""
    if not len(scores):
        return []
    places = torch.linspace(0, 1, 11, device=scores.device)
    return [_rounded(float(q)) for q in scores.quantile(places)]


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
