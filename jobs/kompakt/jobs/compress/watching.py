# SPDX-License-Identifier: Apache-2.0
"""Sees what goes through matrices while a model answers, and the loss's gradients by what they
give.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from kompakt.jobs.compress.gates import frozen
from kompakt.jobs.compress.losses import Labels, fisher_loss
from kompakt.jobs.compress.training import Batch
from kompakt.jobs.models.encoder import Encoder


class Watcher(Protocol):
    """Of one matrix."""

    gradient: float
    """Sum of squares of the loss's gradient by the outputs, over all tokens."""

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Some more inputs, [tokens, inputs], and their outputs, [tokens, outputs]."""


def watch(
    encoder: Encoder,
    batches: Sequence[Batch],
    watchers: Mapping[nn.Linear, Watcher],
    *,
    labels: Labels,
) -> None:
    """Shows the texts' tokens to the watcher of each matrix."""
    with frozen(encoder), torch.enable_grad():
        for batch in batches:
            tokens = batch.tokens
            with ExitStack() as stack:
                for matrix, watcher in watchers.items():
                    stack.enter_context(_watched(matrix, watcher, tokens))
                logits = encoder(**batch.inputs)
            fisher_loss(encoder.config.task, logits, batch, labels).backward()


@contextmanager
def _watched(module: nn.Module, watcher: Watcher, tokens: torch.Tensor) -> Iterator[None]:
    def see(_module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> Any:
        if inputs[0].shape[:-1] != tokens.shape:
            return output  # no tokens: relative positions go through some of the matrices too
        watcher.add(inputs[0].detach()[tokens], output.detach()[tokens])
        # With all weights frozen, the first matrices' outputs are where gradients begin.
        output = output if output.requires_grad else output.detach().requires_grad_()
        output.register_hook(keep)
        return output

    def keep(gradient: torch.Tensor) -> None:
        watcher.gradient += float(gradient[tokens].square().sum())

    handle = module.register_forward_hook(see)
    try:
        yield
    finally:
        handle.remove()
