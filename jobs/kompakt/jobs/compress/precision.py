# SPDX-License-Identifier: Apache-2.0
"""Which arithmetic trains faster on this device: fp32, or matrix products in bf16.

CPUs with AMX or AVX512-BF16 multiply bf16 matrices several times as fast; others emulate it, and
small matrices lose by the conversion what they gain. So both are tried. Weights, sums, norms and
the optimizer stay in fp32 either way (Micikevicius et al. 2018, arXiv:1710.03740, section 3.1).

oneDNN compiles a bf16 kernel for each shape and keeps 1024 of them. Over batches of any shape it
compiles without end, which makes bf16 slower than fp32; hence `TrainingData.packed`. (To keep more
takes gigabytes.)

GPUs before Ampere have no bf16 and emulate it, which the trial shows too. (fp16, which they have,
would need a scaled loss.)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from kompakt.api.names import CUDA
from kompakt.api.steps import Precision
from kompakt.jobs.models.device import CPU

LEAST_GAIN = 1.1
"""A smaller one may be noise."""
ROUNDS = 3


@dataclass(frozen=True)
class Arithmetic:
    """What matrix products are computed in."""

    bfloat16: bool
    speedup: float | None = None
    """Of bf16 over fp32, where it was measured."""
    device: torch.device = CPU

    @property
    def name(self) -> str:
        """For the report."""
        return "bfloat16" if self.bfloat16 else "float32"

    def __call__(self) -> AbstractContextManager[object]:
        """In this context."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16)

    def wait(self) -> None:
        """Until what was begun is done: a GPU works on behind the program's back."""
        if self.device.type == CUDA:
            torch.cuda.synchronize(self.device)


def choose(
    wanted: Precision, step: Callable[[Arithmetic], object], *, device: torch.device = CPU
) -> Arithmetic:
    """The arithmetic that a recipe wants; where it leaves the choice, the faster one.

    Args:
        wanted: As in the recipe.
        step: One training step, but for the change of the weights.
        device: Where it is done.
    """
    if wanted != "Automatic":
        return Arithmetic(bfloat16=wanted == "BFloat16", device=device)
    both = [Arithmetic(bfloat16=bfloat16, device=device) for bfloat16 in (False, True)]
    for arithmetic in both:  # the first time, kernels are compiled
        step(arithmetic)
        arithmetic.wait()
    seconds = [[_seconds(step, arithmetic) for arithmetic in both] for _ in range(ROUNDS)]
    float32, bfloat16 = (min(column) for column in zip(*seconds, strict=True))
    speedup = float32 / bfloat16
    return Arithmetic(bfloat16=speedup >= LEAST_GAIN, speedup=round(speedup, 2), device=device)


def _seconds(step: Callable[[Arithmetic], object], arithmetic: Arithmetic) -> float:
    started = time.perf_counter()
    step(arithmetic)
    arithmetic.wait()
    return time.perf_counter() - started
