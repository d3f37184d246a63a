# SPDX-License-Identifier: Apache-2.0
"""What a pod computes on beside its CPUs, and which of ONNX Runtime's execution providers that
takes: the same in Jobs, which measure, and in servers.

It is said in the environment, never guessed: a node's GPUs may be other pods'. And who was given a
GPU and cannot use it fails, for a variant that quietly ran on two cores would be judged by that.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from kompakt.api.names import CUDA, DEVICE_VARIABLE

Device = Literal["Cpu", "Cuda"]

PROVIDERS: Final[dict[Device, tuple[str, ...]]] = {
    "Cpu": ("CPUExecutionProvider",),
    # What has no kernel on the GPU runs on the CPU.
    "Cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
}
"""By device, the preferred one first."""
_OPTIONS: Final[dict[str, dict[str, str]]] = {
    # Left alone, it multiplies 32-bit matrices in TF32, with 10 bits of mantissa: another model.
    "CUDAExecutionProvider": {"use_tf32": "0"},
}


def given(environ: Mapping[str, str] = os.environ) -> Device:
    """The device that the operator gave to this pod."""
    return "Cuda" if environ.get(DEVICE_VARIABLE) == CUDA else "Cpu"


def providers(device: Device) -> list[tuple[str, dict[str, str]]]:
    """As ONNX Runtime wants them told."""
    return [(name, _OPTIONS.get(name, {})) for name in PROVIDERS[device]]


def accelerator(device: Device, used: Sequence[str]) -> str | None:
    """The provider of a device among those that a session uses; None where it is the CPU's.

    Args:
        device: What was asked for.
        used: Of the session, the preferred one first.

    Raises:
        LookupError: The session cannot use the device; the message is one sentence, with the mend.
    """
    wanted = PROVIDERS[device][0]
    if device == "Cpu":
        return None
    if wanted not in used:
        raise LookupError(
            "extendedResources of the HardwareProfile ask for a GPU, but ONNX Runtime cannot use"
            f" its {wanted} here (it has {', '.join(used)}); use an image with onnxruntime-gpu and"
            " its CUDA libraries, or take the GPU out of the profile"
        )
    return wanted
