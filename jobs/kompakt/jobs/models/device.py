# SPDX-License-Identifier: Apache-2.0
"""Where torch computes: on the GPU that the pod was given, else on its CPUs.

The operator says in the environment that a profile asks for a GPU. A Job that was given one and
cannot use it must not go on: it would hold the device for hours, and train on two cores.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from kompakt.api.device import given
from kompakt.api.names import CUDA
from kompakt.jobs.errors import DeviceMissing

CPU = torch.device("cpu")


def chosen(environ: Mapping[str, str] = os.environ) -> torch.device:
    """The device for models and batches.

    Raises:
        DeviceMissing: The profile asks for a GPU, and torch sees none.
    """
    if given(environ) == "Cpu":
        return CPU
    if not torch.cuda.is_available():
        build = "a build for CPUs alone" if torch.version.cuda is None else "its driver is missing"
        raise DeviceMissing(
            "extendedResources of the HardwareProfile ask for a GPU, but torch"
            f" {torch.__version__} sees none ({build}); use an image of Kompakt's jobs with torch"
            " for CUDA, or take the GPU out of the profile"
        )
    return torch.device(CUDA)


def describe(device: torch.device) -> str:
    """For the report."""
    return torch.cuda.get_device_name(device) if device.type == CUDA else device.type
