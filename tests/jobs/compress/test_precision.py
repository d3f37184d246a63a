# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time
from itertools import count

import pytest
import torch

from kompakt.jobs.compress import precision
from kompakt.jobs.compress.precision import Arithmetic


@pytest.mark.parametrize(
    ("float32", "bfloat16", "chosen", "speedup"),
    [(20.0, 10.0, "bfloat16", 2.0), (10.0, 20.0, "float32", 0.5), (10.5, 10.0, "float32", 1.05)],
)
def test_the_faster_arithmetic_is_chosen(
    monkeypatch: pytest.MonkeyPatch, float32: float, bfloat16: float, chosen: str, speedup: float
) -> None:
    """By the best of several runs after one to warm up, and only if the gain is no noise."""
    clock = [0.0]
    runs = {True: count(), False: count()}

    def step(arithmetic: Arithmetic) -> None:
        run = next(runs[arithmetic.bfloat16])
        seconds = bfloat16 if arithmetic.bfloat16 else float32
        # Compilation in the first, a neighbour in the second.
        clock[0] += seconds + {0: 100.0, 1: 50.0 * arithmetic.bfloat16}.get(run, 0.0)

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    found = precision.choose("Automatic", step)
    assert (found.name, found.speedup) == (chosen, speedup)


def test_a_wish_is_followed_without_trying() -> None:
    """Who sets the precision gets it on any CPU."""

    def step(_arithmetic: Arithmetic) -> None:
        raise AssertionError("tried")

    assert precision.choose("Float32", step).name == "float32"
    assert precision.choose("BFloat16", step).name == "bfloat16"


def test_products_alone_are_bf16() -> None:
    """Inside of the context; weights and sums keep their 32 bits, outside all is as before."""
    linear = torch.nn.Linear(4, 4)
    x = torch.randn(2, 4)
    with Arithmetic(bfloat16=True)():
        assert linear(x).dtype == torch.bfloat16
        assert (linear(x) + x).dtype == torch.float32
    assert linear(x).dtype == linear.weight.dtype == torch.float32
    with Arithmetic(bfloat16=False)():
        assert linear(x).dtype == torch.float32
