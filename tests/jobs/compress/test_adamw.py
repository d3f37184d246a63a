# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import nn

from kompakt.jobs.compress.adamw import BETA_1, BETA_2, EPSILON, AdamW


def reference_step(
    parameter: torch.Tensor,
    gradients: list[torch.Tensor],
    *,
    rates: list[float],
    weight_decay: float,
) -> torch.Tensor:
    """Algorithm 2 of the paper, in double precision, from all gradients so far."""
    value = parameter.double()
    mean = square = torch.zeros_like(value)
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        g = gradient.double()
        mean = BETA_1 * mean + (1 - BETA_1) * g
        square = BETA_2 * square + (1 - BETA_2) * g**2
        direction = (mean / (1 - BETA_1**step)) / ((square / (1 - BETA_2**step)).sqrt() + EPSILON)
        value = value - rate * (direction + weight_decay * value)
    return value


@pytest.mark.slow
def test_steps_are_those_of_the_paper() -> None:
    """Ten steps at changing rates give what the paper's algorithm gives."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(7, 5, generator=generator)
    gradients = [torch.randn(7, 5, generator=generator) for _ in range(10)]
    rates = [0.001 * (step + 1) for step in range(10)]
    parameter = nn.Parameter(start.clone())
    optimizer = AdamW([parameter], weight_decay=0.1)
    for gradient, rate in zip(gradients, rates, strict=True):
        parameter.grad = gradient.clone()
        optimizer.step(rate)
    expected = reference_step(start, gradients, rates=rates, weight_decay=0.1)
    torch.testing.assert_close(parameter.detach().double(), expected, atol=1e-5, rtol=1e-5)


def test_gradients_are_used_up() -> None:
    """After a step there is no gradient left to be added to; without one nothing moves."""
    parameter = nn.Parameter(torch.ones(3))
    optimizer = AdamW([parameter], weight_decay=0.1)
    parameter.grad = torch.ones(3)
    optimizer.step(0.1)
    assert not [p for p in (parameter,) if p.grad is not None]
    before = parameter.detach().clone()
    optimizer.step(0.1)
    assert torch.equal(parameter.detach(), before)
