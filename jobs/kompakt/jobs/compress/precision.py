# SPDX-License-Identifier: Apache-2.0
"""Which arithmetic trains faster on this CPU: fp32, or matrix products in bf16.

CPUs with AMX or AVX512-BF16 multiply bf16 matrices several times as fast; others emulate it, and
small matrices lose by the conversion what they gain. So both are tried. Weights, sums, norms and
the optimizer stay in fp32 either way (Micikevicius et al. 2018, arXiv:1710.03740, section 3.1).

oneDNN compiles a bf16 kernel for each shape and keeps 1024 of them. Over batches of any shape it
compiles without end, which makes bf16 slower than fp32; hence `TrainingData.packed`. (To keep more
takes gigabytes.)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from kompakt.api.steps import Precision

LEAST_GAIN = 1.1
"""A smaller one may be noise."""
ROUNDS = 3


@dataclass(frozen=True)
class Arithmetic:
    """What matrix products are computed in."""

    bfloat16: bool
    speedup: float | None = None
    """Of bf16 over fp32, where it was measured."""

    @property
    def name(self) -> str:
        """For the report."""
        return "bfloat16" if self.bfloat16 else "float32"

    def __call__(self) -> AbstractContextManager[object]:
        """In this context."""
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bfloat16)


FLOAT32 = Arithmetic(bfloat16=False)


def choose(wanted: Precision, step: Callable[[Arithmetic], object]) -> Arithmetic:
    """The arithmetic that a recipe wants; where it leaves the choice, the faster one.

    Args:
        wanted: As in the recipe.
        step: One training step, but for the change of the weights.
    """
    if wanted != "Automatic":
        return Arithmetic(bfloat16=wanted == "BFloat16")
    both = FLOAT32, Arithmetic(bfloat16=True)
    for arithmetic in both:  # the first time, kernels are compiled
        step(arithmetic)
    seconds = [[_seconds(step, arithmetic) for arithmetic in both] for _ in range(ROUNDS)]
    float32, bfloat16 = (min(column) for column in zip(*seconds, strict=True))
    speedup = float32 / bfloat16
    return Arithmetic(bfloat16=speedup >= LEAST_GAIN, speedup=round(speedup, 2))


def _seconds(step: Callable[[Arithmetic], object], arithmetic: Arithmetic) -> float:
    started = time.perf_counter()
    step(arithmetic)
    return time.perf_counter() - started
