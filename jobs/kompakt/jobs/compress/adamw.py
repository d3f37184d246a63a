# SPDX-License-Identifier: Apache-2.0
"""AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), as little of it as distillation needs.

The class in `torch.optim` imports torch's compiler when it is made: four seconds of CPU and 150
MiB, as much as distilling from a few hundred texts. The kernel that it calls needs none of that,
and goes through each parameter once: a fifth of the time of the same formula written in tensor
operations.
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
        self._steps = [p.new_zeros((), dtype=torch.float32) for p in self._parameters]

    def step(self, rate: float) -> None:
        """One step at this learning rate; the gradients are used up."""
        moving = [
            (parameter, parameter.grad, *state)
            for parameter, *state in zip(
                self._parameters, self._means, self._squares, self._steps, strict=True
            )
            if parameter.grad is not None
        ]
        if not moving:
            return
        parameters, gradients, means, squares, steps = map(list, zip(*moving, strict=True))
        with torch.no_grad():
            torch._foreach_add_(steps, 1.0)
            torch._fused_adamw_(
                parameters,
                gradients,
                means,
                squares,
                [],
                steps,
                lr=rate,
                beta1=BETA_1,
                beta2=BETA_2,
                weight_decay=self._weight_decay,
                eps=EPSILON,
                amsgrad=False,
                maximize=False,
            )
        for parameter in parameters:
            parameter.grad = None
