# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from kompakt.api.steps import Quantize
from kompakt.jobs.compress.graph import Graph, GraphData
from kompakt.jobs.compress.quantize import DynamicInt8, constant_matrices, int8_tables
from kompakt.jobs.errors import QuantizationIncomplete
from kompakt.jobs.models.architectures import ARCHITECTURES

from .conftest import answers

pytestmark = pytest.mark.slow

Graphs = Callable[[str], Graph]


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_every_matrix_becomes_int8(
    model_type: str, graph_of: Graphs, graph_data: GraphData, tmp_path: Path
) -> None:
    """Six matrices a layer, the head's two and ELECTRA's projection; and the word embeddings."""
    source = graph_of(model_type)
    expected = 2 * 6 + 2 + (model_type == "electra")
    assert constant_matrices(onnx.load(str(source.path))) == expected
    made, note = DynamicInt8(Quantize()).apply(source, tmp_path / "int8", graph_data)
    assert (made.runtime, made.precision) == ("OnnxRuntime", "Float32")
    model = onnx.load(str(made.path))
    assert Counter(n.op_type for n in model.graph.node)["MatMulInteger"] == expected
    assert constant_matrices(model) == 0
    assert int8_tables(model) >= 1
    assert note.startswith(f"{expected} matrices and ")
    assert made.path.stat().st_size < source.path.stat().st_size / 2


def test_answers_stay_close(graph_of: Graphs, graph_data: GraphData, tmp_path: Path) -> None:
    """Quantized logits follow the original's."""
    source = graph_of("bert")
    step = DynamicInt8(Quantize(reduce_range="Enabled"))
    made, _ = step.apply(source, tmp_path / "int8", graph_data)
    exact, quantized = (answers(graph, graph_data) for graph in (source, made))
    assert np.abs(exact - quantized).mean() < 0.15 * exact.std()
    assert np.corrcoef(exact.ravel(), quantized.ravel())[0, 1] > 0.99


@pytest.mark.parametrize(("reduce_range", "largest"), [("Enabled", 64), ("Disabled", 127)])
def test_a_reduced_range_is_seven_bits(
    graph_of: Graphs, graph_data: GraphData, tmp_path: Path, reduce_range: str, largest: int
) -> None:
    """Without VNNI, products of full 8-bit weights saturate; seven bits do not."""
    parameters = Quantize.model_validate({"reduceRange": reduce_range})
    made, _ = DynamicInt8(parameters).apply(graph_of("bert"), tmp_path / "int8", graph_data)
    graph = onnx.load(str(made.path)).graph
    matrices = {node.input[1] for node in graph.node if node.op_type == "MatMulInteger"}
    values = [
        int(np.abs(numpy_helper.to_array(t).astype(np.int32)).max())
        for t in graph.initializer
        if t.name in matrices
    ]
    assert largest - 1 <= max(values) <= largest


def test_scales_are_per_channel_unless_told_otherwise(
    graph_of: Graphs, graph_data: GraphData, tmp_path: Path
) -> None:
    """One scale for each output channel, or one for the whole matrix."""
    source = graph_of("bert")
    shapes = {}
    for setting in ("Enabled", "Disabled"):
        step = DynamicInt8(Quantize.model_validate({"perChannel": setting}))
        made, _ = step.apply(source, tmp_path / setting, graph_data)
        scales = [
            t.dims[0] if t.dims else 1
            for t in onnx.load(str(made.path)).graph.initializer
            if t.name.endswith("_scale")
        ]
        shapes[setting] = max(scales)
    assert shapes["Enabled"] > 1
    assert shapes["Disabled"] == 1


def test_a_graph_without_known_types_is_quantized(
    graph_of: Graphs, graph_data: GraphData, tmp_path: Path
) -> None:
    """Operators of no known type in the way, as fused graphs have them, do not end the attempt."""
    source = graph_of("bert")
    model = onnx.load(str(source.path))
    # As ONNX Runtime's optimizer leaves them: shape inference stops at such an operator.
    for node in model.graph.node:
        if node.op_type == "LayerNormalization":
            node.domain = "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    onnx.save(model, str(source.path))
    _, note = DynamicInt8(Quantize()).apply(source, tmp_path / "int8", graph_data)
    assert note.startswith("14 matrices")


def test_a_half_quantized_graph_is_no_variant(
    graph_of: Graphs, graph_data: GraphData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matrix that stayed fp32 without a word is counted, and fails the step."""
    from onnxruntime import quantization

    original = quantization.quantize_dynamic

    def forgetful(source: onnx.ModelProto, target: str, **settings: object) -> None:
        names = [n.name for n in source.graph.node if n.op_type == "MatMul"]
        original(source, target, nodes_to_exclude=names[:1], **settings)

    monkeypatch.setattr(quantization, "quantize_dynamic", forgetful)
    with pytest.raises(QuantizationIncomplete, match="13 of 14 matrix products became int8, 1 st"):
        DynamicInt8(Quantize()).apply(graph_of("bert"), tmp_path / "int8", graph_data)


def test_quantizing_twice_gives_the_same_bytes(
    graph_of: Graphs, graph_data: GraphData, tmp_path: Path
) -> None:
    """A Job that runs again must come to the same digest."""
    source = graph_of("distilbert")
    one, two = (
        DynamicInt8(Quantize()).apply(source, tmp_path / name, graph_data)[0].path
        for name in ("one", "two")
    )
    assert one.read_bytes() == two.read_bytes()
