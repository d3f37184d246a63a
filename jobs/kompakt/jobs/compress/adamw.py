# SPDX-License-Identifier: Apache-2.0
"""AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), as little of it as distillation needs.

Torch's own imports its compiler when it is made: four seconds of CPU and 150 MiB, as much as
distilling from a few hundred texts.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

BETA_1 = 0.9
BETA_2 = 0.999
EPSILON = 1e-8


class AdamW:
    """Keeps the moments of some parameters, and moves them along their gradients."""

    def __init__(self, parameters: Iterable[nn.Parameter], *, weight_decay: float) -> None:
        self._parameters = list(parameters)
        self._weight_decay = weight_decay
        self._means = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._steps = 0

    def step(self, rate: float) -> None:
        """One step at this learning rate; the gradients are used up."""
        self._steps += 1
        mean_scale = 1 - BETA_1**self._steps
        square_scale = 1 - BETA_2**self._steps
        moments = zip(self._parameters, self._means, self._squares, strict=True)
        with torch.no_grad():
            for parameter, mean, square in moments:
                gradient = parameter.grad
                if gradient is None:
                    continue
                parameter.mul_(1 - rate * self._weight_decay)
                mean.lerp_(gradient, 1 - BETA_1)
                square.mul_(BETA_2).addcmul_(gradient, gradient, value=1 - BETA_2)
                scale = square.sqrt().div_(square_scale**0.5).add_(EPSILON)
                parameter.addcdiv_(mean, scale, value=-rate / mean_scale)
                parameter.grad = None
