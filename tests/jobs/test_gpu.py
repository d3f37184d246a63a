# SPDX-License-Identifier: Apache-2.0
"""Jobs that were given a GPU. Where tests run there is none, so the second provider that ONNX
Runtime's build for CPUs has stands in for CUDA's: sessions are opened on it as they would be.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.jobs.test_run import Jobs

from kompakt.api.device import PROVIDERS
from kompakt.api.names import CUDA, DEVICE_VARIABLE, EXIT_INVALID_INPUT
from kompakt.jobs import machine, measure
from kompakt.jobs.errors import DeviceMissing
from kompakt.jobs.evaluate.classifier import Classifier
from kompakt.jobs.evaluate.predictions import prediction_key

pytestmark = pytest.mark.slow

OTHER = "AzureExecutionProvider"


@pytest.fixture
def jobs(workshop: Any) -> Jobs:
    """Jobs over a checkpoint and an empty store."""
    return Jobs(workshop)


@pytest.fixture
def imported(jobs: Jobs) -> str:
    """The baseline's artifact, made without a GPU."""
    imported = jobs.run(jobs.import_task())[1].imported
    assert imported is not None
    return imported.artifact_digest


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another provider in the place of CUDA's."""
    monkeypatch.setitem(PROVIDERS, "Cuda", (OTHER, "CPUExecutionProvider"))


def measure_task(jobs: Jobs, digest: str) -> dict[str, Any]:
    """Compares a variant with itself."""
    body = {
        "target": "gpu",
        "baselineDigest": digest,
        "candidateDigest": digest,
        "evaluation": jobs.import_task()["importModel"]["data"]["evaluation"],
        "benchmarkRounds": 5,
        "benchmarkSeconds": 1,
    }
    return {
        "kind": "Measure",
        "store": jobs.workshop.store,
        "reportName": "run-measure",
        "measure": body,
    }


def test_a_gpu_that_cannot_be_used_ends_a_measurement(
    jobs: Jobs, imported: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ahead, before anything is measured, and for good."""
    monkeypatch.setenv(DEVICE_VARIABLE, CUDA)
    code, result = jobs.run_ahead(measure_task(jobs, imported))
    assert code == EXIT_INVALID_INPUT
    assert result is not None
    assert result.reason == "DeviceMissing"
    assert "cannot use its CUDAExecutionProvider here" in result.message


def test_a_gpu_that_cannot_be_used_ends_an_import(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it is said within seconds of a policy's creation."""
    monkeypatch.setenv(DEVICE_VARIABLE, CUDA)
    code, result = jobs.run(jobs.import_task())
    if torch.cuda.is_available():
        assert code == 0
        return
    assert (code, result.reason) == (EXIT_INVALID_INPUT, "DeviceMissing")
    assert "but torch" in result.message


@pytest.mark.usefixtures("other")
def test_a_measurement_says_what_it_ran_on(
    jobs: Jobs, imported: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both variants' provider, and the GPU as its driver names it."""
    # A process of its own has providers of its own.
    monkeypatch.setattr(measure, "peak_memory", lambda *_, **__: 1)
    monkeypatch.setenv(DEVICE_VARIABLE, CUDA)
    code, result = jobs.run(measure_task(jobs, imported))
    assert code == 0
    assert result.measured is not None
    benchmark = result.measured.measurement.benchmark
    assert benchmark.baseline.execution_provider == OTHER
    assert benchmark.candidate.execution_provider == OTHER
    assert benchmark.hardware.accelerator == "unknown"
    assert jobs.report("run-measure")["hardware"]["accelerator"] == "unknown"
    monkeypatch.delenv(DEVICE_VARIABLE)
    _, again = jobs.run(measure_task(jobs, imported))
    assert again.measured is not None
    assert again.measured.measurement.benchmark.candidate.execution_provider is None
    assert again.measured.measurement.benchmark.hardware.accelerator is None
    # Each device has answers of its own.
    assert len(list((jobs.root / "store" / "predictions").iterdir())) == 2


@pytest.mark.usefixtures("other")
def test_answers_are_the_same_on_another_provider(jobs: Jobs, imported: str) -> None:
    """In 32 bits, one text at a time or many."""
    folder = jobs.root / "fetched"
    jobs.store.get_artifact(imported, folder)
    texts = ["good", "the film was not very good", "", "bad " * 50]
    cpu, device = (Classifier(folder, threads=1, device=device) for device in ("Cpu", "Cuda"))
    assert (cpu.accelerator, device.accelerator) == (None, OTHER)
    np.testing.assert_allclose(device.answer_all(texts), cpu.answer_all(texts), atol=1e-5)


def test_a_device_must_be_there_when_a_model_is_opened(jobs: Jobs, imported: str) -> None:
    """Nobody computes on the CPU what was to be computed on a GPU."""
    folder = jobs.root / "fetched"
    jobs.store.get_artifact(imported, folder)
    with pytest.raises(DeviceMissing, match="CUDAExecutionProvider"):
        Classifier(folder, threads=1, device="Cuda")


def test_gpus_have_answers_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another GPU computes otherwise; OpenVINO is on the CPU in any case."""
    digest = "sha256:" + "0" * 64

    def key(runtime: Any, device: Any) -> str:
        return prediction_key(digest, ["x"], runtime, device)

    keys = [key("OnnxRuntime", "Cpu"), key("OnnxRuntime", "Cuda")]
    monkeypatch.setattr(machine, "gpu_model", lambda: "Example L4")
    keys.append(key("OnnxRuntime", "Cuda"))
    assert len(set(keys)) == 3
    assert key("OpenVino", "Cuda") == key("OpenVino", "Cpu")


def test_the_driver_names_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first that a container is shown; a benchmark names it where the pod was given one."""
    assert machine.gpu_model(tmp_path) == "unknown"
    for address, model in (("0000:b1:00.0", "Example L4"), ("0000:a1:00.0", "Example T4")):
        folder = tmp_path / "proc/driver/nvidia/gpus" / address
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 42\n")
    assert machine.gpu_model(tmp_path) == "Example T4"
    monkeypatch.delenv(DEVICE_VARIABLE, raising=False)
    assert machine.hardware(threads_used=1, root=tmp_path).accelerator is None
    monkeypatch.setenv(DEVICE_VARIABLE, CUDA)
    assert machine.hardware(threads_used=1, root=tmp_path).accelerator == "Example T4"
