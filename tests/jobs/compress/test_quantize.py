# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from kompakt.api.recipe import Quantize
from kompakt.jobs.compress import quantize
from kompakt.jobs.compress.quantize import DynamicInt8, constant_matrices, int8_tables
from kompakt.jobs.errors import QuantizationIncomplete
from kompakt.jobs.models.architectures import ARCHITECTURES
from kompakt.jobs.models.checkpoint import inspect
from kompakt.jobs.models.export import export
from kompakt.jobs.models.load import load
from kompakt.jobs.models.session import open_session

Checkpoints = Callable[[str], Path]


@pytest.fixture
def graph_of(checkpoint_of: Checkpoints, tmp_path: Path) -> Callable[[str], Path]:
    """Exports an architecture's tiny model."""

    def make(model_type: str) -> Path:
        checkpoint = inspect(checkpoint_of(model_type), origin="test")
        export(
            load(checkpoint),
            tmp_path / "fp32.onnx",
            input_names=checkpoint.architecture.input_names,
        )
        return tmp_path / "fp32.onnx"

    return make


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_every_matrix_becomes_int8(
    model_type: str, graph_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """Six matrices a layer, the head's two and ELECTRA's projection; and the word embeddings."""
    source = graph_of(model_type)
    expected = 2 * 6 + 2 + (model_type == "electra")
    assert constant_matrices(onnx.load(str(source))) == expected
    note = DynamicInt8(Quantize()).apply(source, tmp_path / "int8.onnx")
    model = onnx.load(str(tmp_path / "int8.onnx"))
    assert Counter(n.op_type for n in model.graph.node)["MatMulInteger"] == expected
    assert constant_matrices(model) == 0
    assert int8_tables(model) >= 1
    assert note.startswith(f"{expected} matrices and ")
    assert (tmp_path / "int8.onnx").stat().st_size < source.stat().st_size / 2


def test_answers_stay_close(graph_of: Callable[[str], Path], tmp_path: Path) -> None:
    """Quantized logits follow the original's."""
    source = graph_of("bert")
    DynamicInt8(Quantize(reduce_range="Enabled")).apply(source, tmp_path / "int8.onnx")
    sessions = [open_session(path, threads=1) for path in (source, tmp_path / "int8.onnx")]
    rng = np.random.default_rng(0)
    answers: list[list[np.ndarray]] = [[], []]
    for length in range(2, 30):
        ids = rng.integers(4, 36, (1, length))
        feed = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }
        for collected, session in zip(answers, sessions, strict=True):
            collected.append(session.run(["logits"], feed)[0][0])
    exact, quantized = (np.stack(rows) for rows in answers)
    assert np.abs(exact - quantized).mean() < 0.15 * exact.std()
    assert np.corrcoef(exact.ravel(), quantized.ravel())[0, 1] > 0.99


@pytest.mark.parametrize(("reduce_range", "largest"), [("Enabled", 64), ("Disabled", 127)])
def test_a_reduced_range_is_seven_bits(
    graph_of: Callable[[str], Path], tmp_path: Path, reduce_range: str, largest: int
) -> None:
    """Without VNNI, products of full 8-bit weights saturate; seven bits do not."""
    parameters = Quantize.model_validate({"reduceRange": reduce_range})
    DynamicInt8(parameters).apply(graph_of("bert"), tmp_path / "int8.onnx")
    graph = onnx.load(str(tmp_path / "int8.onnx")).graph
    matrices = {node.input[1] for node in graph.node if node.op_type == "MatMulInteger"}
    values = [
        int(np.abs(numpy_helper.to_array(t).astype(np.int32)).max())
        for t in graph.initializer
        if t.name in matrices
    ]
    assert largest - 1 <= max(values) <= largest


def test_scales_are_per_channel_unless_told_otherwise(
    graph_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """One scale for each output channel, or one for the whole matrix."""
    source = graph_of("bert")
    shapes = {}
    for setting in ("Enabled", "Disabled"):
        DynamicInt8(Quantize.model_validate({"perChannel": setting})).apply(
            source, tmp_path / setting
        )
        scales = [
            t.dims[0] if t.dims else 1
            for t in onnx.load(str(tmp_path / setting)).graph.initializer
            if t.name.endswith("_scale")
        ]
        shapes[setting] = max(scales)
    assert shapes["Enabled"] > 1
    assert shapes["Disabled"] == 1


def test_a_graph_without_known_types_is_quantized(
    graph_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """Operators of no known type in the way, as fused graphs have them, do not end the attempt."""
    source = graph_of("bert")
    model = onnx.load(str(source))
    # As ONNX Runtime's optimizer leaves them: shape inference stops at such an operator.
    for node in model.graph.node:
        if node.op_type == "LayerNormalization":
            node.domain = "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    onnx.save(model, str(tmp_path / "fused.onnx"))
    note = DynamicInt8(Quantize()).apply(tmp_path / "fused.onnx", tmp_path / "int8.onnx")
    assert note.startswith("14 matrices")


def test_a_half_quantized_graph_is_no_variant(
    graph_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matrix that stayed fp32 without a word is counted, and fails the step."""
    from onnxruntime import quantization

    original = quantization.quantize_dynamic

    def forgetful(source: str, target: str, **settings: object) -> None:
        names = [n.name for n in onnx.load(source).graph.node if n.op_type == "MatMul"]
        original(source, target, nodes_to_exclude=names[:1], **settings)

    monkeypatch.setattr(quantization, "quantize_dynamic", forgetful)
    with pytest.raises(QuantizationIncomplete, match="13 of 14 matrix products became int8, 1 st"):
        DynamicInt8(Quantize()).apply(graph_of("bert"), tmp_path / "int8.onnx")


def test_quantizing_twice_gives_the_same_bytes(
    graph_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """A Job that runs again must come to the same digest."""
    source = graph_of("distilbert")
    for name in ("one", "two"):
        quantize.DynamicInt8(Quantize()).apply(source, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
