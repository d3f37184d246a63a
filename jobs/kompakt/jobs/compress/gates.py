# SPDX-License-Identifier: Apache-2.0
"""Gates on attention heads and FFN neurons: factors of 1 whose gradients tell what each is worth.

A head's gate multiplies what the head hands to the attention's output matrix, a neuron's gate the
value that the second matrix of the feed-forward network reads. A gate of 0 is the unit's removal.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kompakt.jobs.models.encoder import Encoder


@dataclass(frozen=True)
class Units:
    """A tensor for the heads and one for the neurons of each layer."""

    heads: list[torch.Tensor]
    neurons: list[torch.Tensor]

    @property
    def all(self) -> list[torch.Tensor]:
        """Of every layer the heads', then of every layer the neurons'."""
        return [*self.heads, *self.neurons]


def ones(encoder: Encoder, *shape: int) -> Units:
    """Gates that change nothing, [*shape, units]; of one shape for all texts, or by text."""
    layers = encoder.encoder_layers()

    def made(count: int) -> torch.Tensor:
        return torch.ones(*shape, count, requires_grad=True, device=encoder.device)

    return Units(
        heads=[made(layer.heads) for layer in layers],
        neurons=[made(layer.ffn_size) for layer in layers],
    )


def gradients(loss: torch.Tensor, gates: Units, *others: torch.Tensor) -> list[torch.Tensor]:
    """The loss's gradients by the gates, and by other tensors; zeros by what has no part in it."""
    wanted = [*gates.all, *others]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    # A layer without heads or neurons has empty gates that nothing is multiplied by.
    return [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]


@contextmanager
def gated(encoder: Encoder, gates: Units) -> Iterator[None]:
    """Puts the gates into the model."""

    def multiply(gate: torch.Tensor, width: int) -> Any:
        def before(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Any:
            return (inputs[0] * gate.repeat_interleave(width, dim=-1),)

        return before

    handles = []
    layers = zip(encoder.encoder_layers(), gates.heads, gates.neurons, strict=True)
    for layer, heads, neurons in layers:
        handles.append(layer.attended.register_forward_pre_hook(multiply(heads, layer.width)))
        handles.append(layer.down.register_forward_pre_hook(multiply(neurons, 1)))
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
