# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from kompakt.api.recipe import Step
from kompakt.api.steps import Quantize
from kompakt.jobs.compress import quantize_weights
from kompakt.jobs.compress.graph import Graph, GraphData
from kompakt.jobs.compress.products import Constants, Product, plain, products, tables
from kompakt.jobs.compress.qdq import quantize_rows
from kompakt.jobs.compress.quantize_weights import WeightOnly
from kompakt.jobs.compress.steps import entry_of
from kompakt.jobs.errors import QuantizationIncomplete
from kompakt.jobs.models.architectures import ARCHITECTURES

from .conftest import answers

pytestmark = pytest.mark.slow

Graphs = Callable[[str], Graph]


def step(**settings: Any) -> WeightOnly:
    """With names as in a recipe."""
    return WeightOnly(Quantize.model_validate({"method": "WeightOnly"} | settings))


def unpack(row: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """Codes of some bytes, one after the other in plain Python."""
    mask = 2**bits - 1
    return np.array([int(b) >> s & mask for b in row for s in range(0, 8, bits)])


def dequantized(node: onnx.NodeProto, stored: dict[str, np.ndarray[Any, Any]]) -> Any:
    """What the operator's documentation says that its inputs stand for, [inputs, outputs]."""
    settings = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    bits, size = settings["bits"], settings["block_size"]
    codes, scales = stored[node.input[1]], stored[node.input[2]]
    columns = []
    for output in range(settings["N"]):
        zeros = np.full(len(scales[output]), 2 ** (bits - 1))
        if len(node.input) > 3:
            zeros = unpack(stored[node.input[3]][output], bits)
        parts = [
            (unpack(codes[output, block], bits) - zeros[block]) * scales[output, block]
            for block in range(len(scales[output]))
        ]
        assert all(len(part) == size for part in parts)
        columns.append(np.concatenate(parts)[: settings["K"]])
    return np.stack(columns, axis=1).astype(np.float32)


def four_bit_table(node: onnx.NodeProto, stored: dict[str, np.ndarray[Any, Any]]) -> Any:
    """What the operator's documentation says that its inputs stand for, [rows, width]."""
    settings = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    codes, scales = stored[node.input[0]], stored[node.input[2]]
    rows = [
        (unpack(row, 4) - 8) * np.repeat(some, settings["block_size"])
        for row, some in zip(codes, scales, strict=True)
    ]
    return np.stack(rows).astype(np.float32)


def reference(source: Graph, made: Graph, folder: Path) -> Graph:
    """The original with the packed weights' values in place of its own, all in fp32."""
    packed = onnx.load(str(made.path))
    stored = {t.name: numpy_helper.to_array(t) for t in packed.graph.initializer}
    values = {
        node.name: dequantized(node, stored)
        for node in packed.graph.node
        if node.op_type == "MatMulNBits"
    }
    model = plain(onnx.load(str(source.path)))
    constants = Constants(model.graph)
    new = {p.weight: values[p.node] for p in products(model.graph)}
    small = {n.name: n for n in packed.graph.node if n.op_type == "GatherBlockQuantized"}
    for table in tables(model.graph):
        rows = constants.value(table.weight)
        if table.node in small:
            new[table.weight] = four_bit_table(small[table.node], stored)
        elif len(rows) >= 16:
            integers, scales = quantize_rows(rows)
            new[table.weight] = (integers * scales).astype(np.float32)
    for tensor in model.graph.initializer:
        if tensor.name in new:
            tensor.CopyFrom(numpy_helper.from_array(new[tensor.name], tensor.name))
    folder.mkdir()
    onnx.save(model, str(folder / "model.onnx"))
    return Graph(folder)


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_every_matrix_is_packed(
    model_type: str, graph_of: Graphs, graph_data: GraphData, tmp_path: Path
) -> None:
    """Six matrices a layer, the head's two and ELECTRA's projection; word and position tables, but
    for DeBERTa's.
    """
    source = graph_of(model_type)
    expected = 2 * 6 + 2 + (model_type == "electra")
    made, note = step().apply(source, tmp_path / "int4", graph_data)
    assert (made.runtime, made.precision) == ("OnnxRuntime", "Float32")
    tables = 1 if model_type == "deberta-v2" else 2
    assert note == f"{expected} matrices in 4 bits, {tables} embedding tables int8"
    operators = Counter(node.op_type for node in onnx.load(str(made.path)).graph.node)
    assert operators["MatMulNBits"] == expected
    errors = graph_data.details["weightErrors"]
    assert len(errors) == expected
    assert all(0.02 < error < 0.15 for error in errors.values())
    exact, quantized = (answers(graph, graph_data) for graph in (source, made))
    assert np.corrcoef(exact.ravel(), quantized.ravel())[0, 1] > 0.7


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"zeroPoints": "Enabled", "blockSize": 16},
        {"weightBits": 2, "blockSize": 16},
        {"weightBits": 2, "blockSize": 64, "zeroPoints": "Enabled"},
        {"weightBits": 8, "blockSize": 128},
        {"tableBits": 4},
    ],
    ids=["int4", "zero points", "int2", "int2 zero points", "int8", "tables"],
)
def test_the_runtime_computes_what_the_file_says(
    settings: dict[str, object], graph_of: Graphs, graph_data: GraphData, tmp_path: Path
) -> None:
    """Answers are those of the weights read out of the file bit by bit; rounding what is multiplied
    with them changes them, by little.
    """
    source = graph_of("bert")
    exact, _ = step(**settings, activations="Float32").apply(source, tmp_path / "a", graph_data)
    rounded, _ = step(**settings).apply(source, tmp_path / "b", graph_data)
    expected = answers(reference(source, exact, tmp_path / "reference"), graph_data)
    np.testing.assert_allclose(answers(exact, graph_data), expected, atol=1e-4)
    change = np.abs(answers(rounded, graph_data) - expected)
    assert 0 < change.mean() < 0.1 * expected.std()


def test_bits_and_blocks_are_what_the_size_is_made_of(
    graph_of: Graphs, graph_data: GraphData, tmp_path: Path
) -> None:
    """A block has its bits, 32 more for a scale, and some for a zero point."""
    source = graph_of("bert")
    model = plain(onnx.load(str(source.path)))
    constants = Constants(model.graph)
    shapes = [constants.value(p.weight).shape for p in products(model.graph)]
    numbers = sum(inputs * outputs for inputs, outputs in shapes)
    sizes = {}
    for bits, size, zeros in (
        (8, 32, 0),
        (4, 32, 0),
        (4, 64, 0),
        (4, 64, 1),
        (2, 32, 0),
        (1, 32, 0),
    ):
        settings: dict[str, Any] = {"weightBits": bits, "blockSize": size}
        settings |= {"zeroPoints": "Enabled"} if zeros else {}
        made, _ = step(**settings).apply(source, tmp_path / f"{bits}-{size}-{zeros}", graph_data)
        sizes[bits, size, zeros] = made.path.stat().st_size
    base = sizes[8, 32, 0]
    for (bits, size, zeros), found in sizes.items():
        per_weight = bits + (32 + zeros * bits) / size
        expected = numbers * (8 + 32 / 32 - per_weight) / 8
        # 1 bit needs a dozen operators for each product.
        slack = 14 * 3500 if bits == 1 else 14 * 200
        assert base - found == pytest.approx(expected, abs=slack)
    assert sizes[4, 32, 0] < base < source.path.stat().st_size / 2


def test_tables_of_four_bits_are_half_the_size(
    graph_of: Graphs, graph_data: GraphData, tmp_path: Path
) -> None:
    """Tables of words take 4 bits a number and 32 for a block; that of positions stays int8."""
    source = graph_of("bert")
    byte, _ = step().apply(source, tmp_path / "8", graph_data)
    half, note = step(tableBits=4).apply(source, tmp_path / "4", graph_data)
    assert note == ("14 matrices in 4 bits, 1 embedding tables in 4 bits, 1 embedding tables int8")
    model = onnx.load(str(source.path))
    constants = Constants(model.graph)
    gathers = {n.name for n in model.graph.node if n.op_type == "Gather"}
    shapes = [constants.value(t.weight).shape for t in tables(model.graph) if t.node in gathers]
    rows, width = max(shapes)
    saved = byte.path.stat().st_size - half.path.stat().st_size
    assert saved == pytest.approx(rows * (width + 4) - rows * width * 5 / 8, abs=700)


def test_weights_that_meet_large_activations_are_spared(
    graph_of: Graphs, graph_data: GraphData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel of activations fifty times the others, its weights a fiftieth: rounding by blocks
    would lose them, and with them much of the answer.
    """
    source = graph_of("bert")
    model = onnx.load(str(source.path))
    constants = {t.name: t for t in model.graph.initializer}
    scale = np.ones(64, np.float32)
    scale[::8] = 50.0
    for name in ("layers.1.norm.weight", "layers.1.norm.bias"):
        values = (numpy_helper.to_array(constants[name]) * scale).astype(np.float32)
        constants[name].CopyFrom(numpy_helper.from_array(values, name))
    weight = (numpy_helper.to_array(constants["head.weight"]) / scale).astype(np.float32)
    constants["head.weight"].CopyFrom(numpy_helper.from_array(weight, "head.weight"))
    onnx.save(model, str(source.path))
    exact = answers(source, graph_data)

    def only_head(graph: onnx.GraphProto) -> list[Product]:
        return [p for p in products(graph) if p.weight == "head.weight_transposed"]

    # Nothing else is rounded here.
    monkeypatch.setattr(quantize_weights, "products", only_head)
    monkeypatch.setattr(quantize_weights, "write_tables", lambda _: 0)
    distances = {}
    for alpha in (0, 1000):
        settings = {"activationAwareAlphaPermille": alpha, "samples": 32}
        aware = step(**settings, activations="Float32")
        made, _ = aware.apply(source, tmp_path / str(alpha), graph_data)
        distances[alpha] = np.abs(answers(made, graph_data) - exact).mean()
    assert distances[1000] < 0.7 * distances[0]


def test_who_looks_at_activations_needs_texts() -> None:
    """And who does not, does not."""
    for alpha in (0, 500):
        wire = {"method": "WeightOnly", "activationAwareAlphaPermille": alpha}
        found = entry_of(Step.model_validate({"quantize": wire}))
        assert (found.name, found.needs_texts) == ("WeightOnly", alpha > 0)


def test_one_bit_is_unpacked_by_the_graph(
    graph_of: Graphs, graph_data: GraphData, tmp_path: Path
) -> None:
    """Signs times the mean size of each block, computed here by numpy."""
    source = graph_of("bert")
    made, note = step(weightBits=1, blockSize=16).apply(source, tmp_path / "a", graph_data)
    assert note.startswith("14 matrices in 1 bits")
    model = plain(onnx.load(str(source.path)))
    constants = Constants(model.graph)
    new = {}
    for product in products(model.graph):
        weight = constants.value(product.weight)
        parts = weight.reshape(-1, 16, weight.shape[1])
        means = np.abs(parts).mean(axis=1, keepdims=True)
        new[product.weight] = (np.where(parts >= 0, 1, -1) * means).reshape(weight.shape)
    for table in tables(model.graph):
        rows = constants.value(table.weight)
        if len(rows) >= 16:
            integers, scales = quantize_rows(rows)
            new[table.weight] = integers * scales
    for tensor in model.graph.initializer:
        if tensor.name in new:
            value = new[tensor.name].astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    other = Graph(tmp_path / "b")
    other.folder.mkdir()
    onnx.save(model, str(other.path))
    expected = answers(other, graph_data)
    np.testing.assert_allclose(answers(made, graph_data), expected, atol=1e-4)


def test_quantizing_twice_gives_the_same_bytes(
    graph_of: Graphs, graph_data: GraphData, tmp_path: Path
) -> None:
    """A Job that runs again must come to the same digest."""
    source = graph_of("distilbert")
    one, two = (
        step().apply(source, tmp_path / name, graph_data)[0].path for name in ("one", "two")
    )
    assert one.read_bytes() == two.read_bytes()


def test_a_half_packed_graph_is_no_variant(
    graph_of: Graphs, graph_data: GraphData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matrix that stayed fp32 without a word is counted, and fails the step."""

    def forgetful(node: onnx.NodeProto, *_: object, level: int) -> onnx.NodeProto:
        return node if "query" in node.name else original(node, *_, level=level)

    original: Any = quantize_weights._packed_product
    monkeypatch.setattr(quantize_weights, "_packed_product", forgetful)
    with pytest.raises(QuantizationIncomplete, match="runs 12 of 14 matrix products on packed"):
        step().apply(graph_of("bert"), tmp_path / "int4", graph_data)
