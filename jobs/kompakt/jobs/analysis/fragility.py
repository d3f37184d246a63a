# SPDX-License-Identifier: Apache-2.0
"""What a model's answers would miss most: by head and neuron, and by matrix when it is rounded.

Heads and neurons: the Fisher information of a gate on each (`kompakt.jobs.compress.importance`).

Matrices: what 8-bit weights, one scale for each output channel, and 8-bit activations change about
a product, by itself and in the loss. To second order the loss grows by half of the squared error
times the squared gradient by the output, the diagonal of its Fisher information (LeCun et al. 1990,
Optimal Brain Damage, section 2).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from kompakt.jobs.compress.findings import Findings
from kompakt.jobs.compress.gates import Units
from kompakt.jobs.compress.importance import fisher
from kompakt.jobs.compress.losses import Labels
from kompakt.jobs.compress.low_rank import Place, whole_matrices
from kompakt.jobs.compress.qdq import Range, quantize_weight
from kompakt.jobs.compress.training import Batch
from kompakt.jobs.compress.watching import Watcher, watch
from kompakt.jobs.models.encoder import Encoder

_LARGEST = 255


class Rounding(Watcher):
    """What 8 bits change about a matrix's outputs."""

    def __init__(self, matrix: nn.Linear) -> None:
        weight = matrix.weight.detach().T.contiguous().numpy(force=True)
        integers, scales = quantize_weight(weight, per_channel=True)
        self._weight = torch.from_numpy(integers * scales).T.to(matrix.weight.device)
        self._bias = matrix.bias.detach()
        self.gradient = 0.0
        self._tokens = 0
        self._error = 0.0
        self._total = matrix.bias.new_zeros(matrix.out_features, dtype=torch.float64)
        self._squares = 0.0

    @override
    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Rounds the inputs over their range, as dynamic quantization does."""
        scale, zero = (float(n) for n in Range(float(x.min()), float(x.max())).parameters)
        rounded = ((x / scale).round() + zero).clamp(0, _LARGEST).sub(zero).mul(scale)
        found = nn.functional.linear(rounded, self._weight, self._bias)
        self._tokens += len(x)
        self._error += float((found - y).square().sum())
        self._total += y.sum(dim=0)
        self._squares += float(y.square().sum())

    @property
    def relative_error(self) -> float:
        """The error's size by the outputs' spread."""
        spread = self._squares - float(self._total.square().sum()) / self._tokens
        return math.sqrt(self._error / max(spread, 1e-30))

    def loss(self, texts: int) -> float:
        """What it costs, in nats a text."""
        outputs = len(self._total)
        return self.gradient / texts * self._error / self._tokens / outputs / 2


@dataclass(frozen=True)
class Fragility:
    """Of a model, on some texts."""

    texts: int
    labelled: int
    units: Units
    """Fisher information of heads and neurons, the mean of the texts."""
    matrices: dict[Place, Rounding]

    def to_wire(self) -> dict[str, Any]:
        """For the document: of neurons the deciles, for there may be very many."""
        return {
            "texts": self.texts,
            "labelled": self.labelled,
            "headFisher": [[_rounded(float(s)) for s in layer] for layer in self.units.heads],
            "neuronFisherDeciles": [_deciles(layer) for layer in self.units.neurons],
            "int8": {
                f"layers.{place.layer}.{place.name}": {
                    "relativeError": _rounded(rounding.relative_error),
                    "nats": _rounded(rounding.loss(self.texts)),
                }
                for place, rounding in self.matrices.items()
            },
        }


def fragility(
    encoder: Encoder,
    batches: Iterable[Batch],
    *,
    labels: Labels,
    seconds: float,
    findings: Findings,
    clock: Callable[[], float] = time.monotonic,
) -> Fragility:
    """Looks at batches, at least one, until they or the seconds are used up. What it finds about
    heads and neurons is kept for a prune step that looks at the same texts.
    """
    matrices = whole_matrices(encoder)
    roundings = {place: Rounding(matrix) for place, matrix in matrices.items()}
    watchers: dict[nn.Linear, Watcher] = {
        matrix: roundings[place] for place, matrix in matrices.items()
    }
    started = clock()
    seen: list[Batch] = []
    sums: list[torch.Tensor] = []
    for batch in batches:
        found = fisher(encoder, [batch], labels=labels).all
        sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
        watch(encoder, [batch], watchers, labels=labels)
        seen.append(batch)
        if clock() - started > seconds:
            break
    half = len(sums) // 2
    findings.keep_fisher(
        encoder, seen, Units(heads=sums[:half], neurons=sums[half:]), labels=labels
    )
    texts = [index for batch in seen for index in batch.indices]
    means = [total / len(texts) for total in sums]
    return Fragility(
        texts=len(texts),
        labelled=sum(labels[index] is not None for index in texts),
        units=Units(heads=means[:half], neurons=means[half:]),
        matrices=roundings,
    )


def _deciles(scores: torch.Tensor) -> list[float]:
    if not len(scores):
        return []
    places = torch.linspace(0, 1, 11, device=scores.device)
    return [_rounded(float(q)) for q in scores.quantile(places)]


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
