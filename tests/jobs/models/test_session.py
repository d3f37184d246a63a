# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kompakt.api.artifact import ArtifactFile, ArtifactManifest
from kompakt.api.base import Runtime
from kompakt.jobs.compress.graph import Graph
from kompakt.jobs.compress.quantize_openvino import save
from kompakt.jobs.models.checkpoint import inspect
from kompakt.jobs.models.export import export
from kompakt.jobs.models.load import load
from kompakt.jobs.models.session import (
    Session,
    import_openvino,
    open_model,
    openvino_settings,
    runtime_version,
)


def manifest(runtime: Runtime, *, longest: int = 40) -> ArtifactManifest:
    """Of an artifact whose files nobody looks at."""
    return ArtifactManifest(
        task="TextClassification",
        labels=["no", "yes"],
        max_sequence_length=longest,
        runtime=runtime,
        source_digest="sha256:" + "0" * 64,
        files=[ArtifactFile(path="x", digest="sha256:" + "0" * 64, size_bytes=1)],
    )


@pytest.fixture
def both(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> Callable[[str], list[Session]]:
    """The same model in the two runtimes."""

    def make(model_type: str) -> list[Session]:
        checkpoint = inspect(checkpoint_of(model_type), origin="test")
        path = tmp_path / "model.onnx"
        export(load(checkpoint), path, input_names=checkpoint.architecture.input_names)
        model = import_openvino().Core().read_model(path)
        save(model, tmp_path, Graph(tmp_path, runtime="OpenVino"), halve=False)
        return [
            open_model(tmp_path, manifest(runtime), threads=1)
            for runtime in ("OnnxRuntime", "OpenVino")
        ]

    return make


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "electra"])
def test_runtimes_agree_on_every_length(
    model_type: str, both: Callable[[str], list[Session]]
) -> None:
    """What OpenVINO's batches are filled up with is never looked at, whatever the length; single
    texts and padded batches, up to the longest that the model takes.
    """
    sessions = both(model_type)
    assert sessions[0].input_names == sessions[1].input_names
    rng = np.random.default_rng(0)
    for length in (1, 2, 7, 8, 9, 23, 33, 39, 40):
        ids = rng.integers(4, 30, (3, length))
        mask = (np.arange(length) < np.array([[length], [max(1, length // 2)], [1]])).astype(int)
        batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        first, second = (
            session.run({name: batch[name] for name in session.input_names}) for session in sessions
        )
        np.testing.assert_allclose(first, second, atol=2e-4, rtol=1e-4)


def test_answers_are_the_callers_own(both: Callable[[str], list[Session]]) -> None:
    """A second text does not write over the answer to the first."""
    session = both("distilbert")[1]
    ids = np.array([[4, 5, 6]])
    first = session.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    kept = first.copy()
    session.run({"input_ids": ids + 9, "attention_mask": np.ones_like(ids)})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(("precision", "told"), [("Float32", "f32"), ("BFloat16", "bf16")])
def test_the_precision_is_always_told(precision: str, told: str) -> None:
    """Left alone, OpenVINO computes an fp32 model in bfloat16 where the CPU can: another model."""
    settings = openvino_settings(precision, threads=3)  # type: ignore[arg-type]
    assert settings["INFERENCE_PRECISION_HINT"] == told
    assert settings["INFERENCE_NUM_THREADS"] == 3


def test_an_fp32_model_runs_in_fp32(both: Callable[[str], list[Session]], tmp_path: Path) -> None:
    """The runtime's own word for it, on this CPU whatever it is."""
    both("bert")
    from kompakt.jobs.compress.quantize_openvino import executed

    assert set(executed(Graph(tmp_path, runtime="OpenVino"), threads=1)) == {"f32"}


def test_versions_name_their_runtime() -> None:
    """They belong to the key of predictions."""
    assert runtime_version("OnnxRuntime").startswith("onnxruntime ")
    assert runtime_version("OpenVino").startswith("openvino 20")


@pytest.mark.slow
def test_nothing_reports_home() -> None:
    """Neither runtime nor quantizer imports the package by which they report their use; and a
    Job that needs neither imports neither.
    """
    program = (
        "import sys;"
        "import kompakt.jobs.measure, kompakt.jobs.compress.chain;"
        "print([m for m in ('openvino', 'nncf', 'torch') if m in sys.modules]);"
        "from kompakt.jobs.compress.quantize_openvino import import_nncf;"
        "import_nncf();"
        "print(sys.modules['openvino'] is not None, sys.modules['openvino_telemetry'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["[]", "True None"]
