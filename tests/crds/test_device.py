# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from kompakt.api.device import accelerator, given, providers
from kompakt.api.names import CUDA, DEVICE_VARIABLE

GPU, REST = "CUDAExecutionProvider", "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("environ", "device"),
    [({}, "Cpu"), ({DEVICE_VARIABLE: ""}, "Cpu"), ({DEVICE_VARIABLE: CUDA}, "Cuda")],
)
def test_a_pod_is_told_its_device(environ: dict[str, str], device: str) -> None:
    """Nothing is guessed from what the node has."""
    assert given(environ) == device


def test_a_gpu_comes_first_and_does_what_the_file_says() -> None:
    """What it cannot do is the CPU's; 32 bits are 32 bits, and no TF32."""
    assert providers("Cpu") == [(REST, {})]
    assert providers("Cuda") == [(GPU, {"use_tf32": "0"}), (REST, {})]


def test_a_gpu_that_cannot_be_used_is_no_cpu() -> None:
    """ONNX Runtime would go on without it, and without an error."""
    assert accelerator("Cuda", [GPU, REST]) == GPU
    assert accelerator("Cpu", [GPU, REST]) is accelerator("Cpu", [REST]) is None
    with pytest.raises(LookupError, match=rf"extendedResources .* {GPU} here .* use an image with"):
        accelerator("Cuda", [REST])
