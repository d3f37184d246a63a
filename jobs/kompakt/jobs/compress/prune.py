# SPDX-License-Identifier: Apache-2.0
"""Structured pruning of the feed-forward layers, in one pass without training.

1. Importance: a gate of 1 on each neuron, and the square of the loss's gradient by that gate,
   summed over samples, which is the diagonal of the empirical Fisher information (Kwon et al. 2022,
   arXiv:2204.09656). All layers are ranked together, so that each keeps what it needs.
2. Shrink: rows and columns of the pruned neurons leave the matrices.
3. Refit: the matrix that reads the kept neurons is fitted by least squares to give what all of them
   gave before, over the tokens of the samples. What remains stands in for what was redundant.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from kompakt.api.recipe import Prune
from kompakt.jobs.compress.steps import TorchStep
from kompakt.jobs.compress.training import Batch, TrainingData
from kompakt.jobs.errors import StepInvalid
from kompakt.jobs.models.encoder import Encoder, Layer

BATCH = 16
LEAST_NEURONS = 32
"""Of a layer: below that its matrices cost nothing anyway."""
MULTIPLE = 16
"""Of neurons in a layer: matrix kernels work in blocks of that width."""
RIDGE = 0.1
"""How much the fit is held to the former weights, relative to the mean square of a neuron."""


class PruneFeedForward(TorchStep):
    """The step `prune`."""

    def __init__(self, parameters: Prune) -> None:
        self._parameters = parameters

    @override
    def apply(self, encoder: Encoder, data: TrainingData) -> str:
        chosen = data.order()[: self._parameters.samples]
        before = [layer.ffn_size for layer in encoder.encoder_layers()]
        if min(before) < LEAST_NEURONS:
            raise StepInvalid(
                f"prune needs layers of at least {LEAST_NEURONS} FFN neurons; this model has"
                f" {min(before)}"
            )
        batches = list(data.batches(chosen, BATCH))
        importance = fisher_importance(encoder, batches, labels=data.labels)
        kept = choose(importance, keep_permille=self._parameters.ffn_keep_permille)
        original = copy.deepcopy(encoder)
        shrink(encoder, kept)
        errors = refit(encoder, original, kept, batches)
        sizes = [layer.ffn_size for layer in encoder.encoder_layers()]
        data.details["prune"] = {
            "samples": len(chosen),
            "labelled": sum(data.labels[index] is not None for index in chosen),
            "neuronsBefore": before,
            "neuronsAfter": sizes,
            "relativeRefitErrors": [round(error, 4) for error in errors],
        }
        return f"FFN neurons kept by layer {' '.join(map(str, sizes))} of {max(before)}"


def fisher_importance(
    encoder: Encoder, batches: Sequence[Batch], *, labels: Sequence[int | None]
) -> list[torch.Tensor]:
    """For each layer, the summed squared gradient of the loss by each neuron's gate.

    The loss is by the label, or by the model's own prediction where a text has none.
    """
    layers = encoder.encoder_layers()
    sums = [torch.zeros(layer.ffn_size) for layer in layers]
    with frozen(encoder):
        for batch in batches:
            rows = len(batch.indices)
            # One gate for each sample and neuron gives the gradient sample by sample in one pass.
            gates = [torch.ones(rows, 1, layer.ffn_size, requires_grad=True) for layer in layers]
            with _input_hooks(layers, _multiply_by(gates)):
                logits = encoder(**batch.inputs)
            target = logits.detach().argmax(dim=1)
            for row, index in enumerate(batch.indices):
                if (label := labels[index]) is not None:
                    target[row] = label
            loss = nn.functional.cross_entropy(logits, target, reduction="sum")
            for number, gradient in enumerate(torch.autograd.grad(loss, gates)):
                sums[number] += gradient[:, 0, :].square().sum(dim=0)
    return sums


def choose(importance: Sequence[torch.Tensor], *, keep_permille: int) -> list[torch.Tensor]:
    """Sorted indices of the neurons that stay in each layer: the best of all layers together.

    Each layer's number is rounded to a multiple that kernels like, and never falls below a minimum.
    """
    scores = torch.cat(list(importance))
    keep = max(1, len(scores) * keep_permille // 1000)
    threshold = scores.sort(descending=True).values[keep - 1]
    kept = []
    for layer in importance:
        above = int((layer >= threshold).sum())
        rounded = max(LEAST_NEURONS, round(above / MULTIPLE) * MULTIPLE)
        count = len(layer) if above == len(layer) else min(len(layer), rounded)
        kept.append(layer.sort(descending=True, stable=True).indices[:count].sort().values)
    return kept


def shrink(encoder: Encoder, kept: Sequence[torch.Tensor]) -> None:
    """Takes all other neurons out of the matrices."""
    for layer, keep in zip(encoder.encoder_layers(), kept, strict=True):
        layer.keep_neurons(keep)


def refit(
    encoder: Encoder, original: Encoder, kept: Sequence[torch.Tensor], batches: Sequence[Batch]
) -> list[float]:
    """Fits each `down` to give, from the kept neurons, what it gave from all of them.

    Returns how far each layer's output is from that, relative to its size.
    """
    sums = [_Normal.zeros(layer) for layer in encoder.encoder_layers()]
    with torch.no_grad():
        for batch in batches:
            tokens = batch.inputs["attention_mask"].bool()
            x, mask = original.embed(**batch.inputs)
            for layer, keep, normal in zip(original.encoder_layers(), kept, sums, strict=True):
                x = layer.attend(x, mask)
                neurons = layer.neurons(x)
                target = neurons[tokens] @ layer.down.weight.T
                normal.add(neurons[tokens][:, keep], target)
                x = layer.norm(layer.down(neurons) + x)
        errors = []
        for layer, normal in zip(encoder.encoder_layers(), sums, strict=True):
            weight, error = normal.fit(layer.down.weight)
            layer.down.weight.copy_(weight)
            errors.append(error)
    return errors


@dataclass
class _Normal:
    """The sums that least squares needs, over all tokens."""

    gram: torch.Tensor
    """[neurons, neurons]: products of their values."""
    moment: torch.Tensor
    """[neurons, hidden]: products of their values and the target."""
    energy: float = 0.0
    """Sum of squares of the target."""

    @classmethod
    def zeros(cls, layer: Layer) -> _Normal:
        """For a layer's feed-forward network."""
        size = layer.ffn_size
        return cls(torch.zeros(size, size), torch.zeros(size, layer.down.out_features))

    def add(self, neurons: torch.Tensor, target: torch.Tensor) -> None:
        """Some more tokens."""
        self.gram += neurons.T @ neurons
        self.moment += neurons.T @ target
        self.energy += float(target.square().sum())

    def fit(self, former: torch.Tensor) -> tuple[torch.Tensor, float]:
        """The weights [hidden, neurons] with the least squared error, held to the former ones."""
        gram, moment = self.gram.double(), self.moment.double()
        strength = RIDGE * gram.diagonal().mean()
        system = gram + strength * torch.eye(len(gram), dtype=gram.dtype)
        solution = torch.linalg.solve(system, moment + strength * former.T.double())
        residual = (
            self.energy
            - 2 * float((solution * moment).sum())
            + float((solution * (gram @ solution)).sum())
        )
        return solution.T.float(), (max(residual, 0.0) / max(self.energy, 1e-12)) ** 0.5


def _multiply_by(gates: Sequence[torch.Tensor]) -> Any:
    return lambda number, neurons: neurons * gates[number]


@contextmanager
def _input_hooks(layers: Sequence[Layer], function: Any) -> Iterator[None]:
    """Calls `function(layer number, its neurons)`; what it returns replaces the neurons."""

    def hook(number: int) -> Any:
        def before(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Any:
            changed = function(number, inputs[0])
            return None if changed is None else (changed,)

        return before

    handles = [
        layer.down.register_forward_pre_hook(hook(number)) for number, layer in enumerate(layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No gradients by weights, which would take as long as everything else."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
