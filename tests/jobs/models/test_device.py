# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from kompakt.api.names import DEVICE_VARIABLE, EXIT_INVALID_INPUT
from kompakt.jobs.errors import DeviceMissing
from kompakt.jobs.models import device


@pytest.mark.parametrize("environ", [{}, {DEVICE_VARIABLE: ""}, {DEVICE_VARIABLE: "cpu"}])
def test_without_a_gpu_in_the_profile_torch_computes_on_cpus(environ: dict[str, str]) -> None:
    """Also on a node that has one: it is another pod's."""
    assert device.chosen(environ) == torch.device("cpu")
    assert device.describe(device.chosen(environ)) == "cpu"


def test_a_gpu_that_was_given_is_used_or_missed() -> None:
    """Where torch sees none, the Job ends at once, and for good: nothing gets better by trying."""
    environ = {DEVICE_VARIABLE: "cuda"}
    if torch.cuda.is_available():
        assert device.chosen(environ).type == "cuda"
        return
    with pytest.raises(DeviceMissing, match=r"extendedResources .* sees none .* or take") as caught:
        device.chosen(environ)
    assert caught.value.exit_code == EXIT_INVALID_INPUT
    assert str(caught.value).count(". ") == 0
