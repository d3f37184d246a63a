# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from kompakt.jobs.compress.products import Constants, plain, products, tables
from kompakt.jobs.compress.qdq import (
    Range,
    quantize_rows,
    quantize_weight,
    smooth,
    smoothing_factors,
    write_distances,
    write_products,
    write_tables,
)
from kompakt.jobs.models.session import open_session

BOUND = st.floats(-1e4, 1e4, width=32)


def tiny(weights: Mapping[str, NDArray[np.float32]], *nodes: onnx.NodeProto) -> onnx.ModelProto:
    """A graph from `x` [batch, tokens, 8] to `y`."""
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "tokens", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def run(model: onnx.ModelProto, **feed: NDArray[np.generic]) -> NDArray[np.float32]:
    """What ONNX Runtime answers."""
    found: NDArray[np.float32] = open_session(model.SerializeToString(), threads=1).run(None, feed)[
        0
    ]
    return found


def matrix(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Normal numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@given(BOUND, BOUND)
def test_zero_is_exact_and_rounding_is_half_a_step(low: float, high: float) -> None:
    """Padding and ReLU make zeros, which must stay zeros; all else within the range moves by at
    most half a step (and what the zero point's own rounding adds).
    """
    low, high = min(low, high), max(low, high)
    scale, zero = Range(low, high).parameters
    values = np.linspace(min(low, 0), max(high, 0), 101).astype(np.float32)
    rounded = (
        np.clip(np.rint(values / scale) + np.float32(zero), 0, 255) - np.float32(zero)
    ) * scale
    assert rounded[values == 0].tolist() == [0.0] * int((values == 0).sum())
    assert np.abs(rounded - values).max() <= 1.001 * scale


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_move_by_half_a_step(bits: int, per_channel: bool) -> None:  # noqa: FBT001
    """Symmetric, the largest value of each channel (or of all) exactly at the end of the range."""
    weight = matrix(8, 5) * np.array([1, 10, 0.1, 0, 3], dtype=np.float32)
    integers, scales = quantize_weight(weight, per_channel=per_channel, bits=bits)
    assert scales.shape == ((5,) if per_channel else ())
    assert np.abs(integers.astype(int)).max() == 2 ** (bits - 1) - 1
    assert (np.abs(integers * scales - weight) <= 0.5001 * scales).all()
    rows, row_scales = quantize_rows(weight)
    assert row_scales.shape == (8, 1)
    assert (np.abs(rows * row_scales - weight) <= 0.5001 * row_scales).all()


def test_products_are_computed_as_numpy_does_from_the_integers() -> None:
    """Rounded input times rounded weight, to fp32's own accuracy, in ONNX Runtime and in ONNX's
    reference; the bias is untouched.
    """
    weight, bias, x = matrix(8, 5), matrix(5, seed=1), matrix(2, 3, 8, seed=2)
    model = tiny(
        {"w": weight, "b": bias},
        helper.make_node("MatMul", ["x", "w"], ["p"], name="product"),
        helper.make_node("Add", ["p", "b"], ["y"]),
    )
    limits = Range(-1.0, 2.0)
    write_products(model, {"product"}, {"x": limits}, per_channel=True)
    scale, zero = limits.parameters
    rounded = (np.clip(np.rint(x / scale) + float(zero), 0, 255) - float(zero)) * scale
    integers, scales = quantize_weight(weight, per_channel=True)
    expected = rounded @ (integers * scales) + bias
    np.testing.assert_allclose(run(model, x=x), expected, atol=1e-5)
    model.opset_import[0].version = 19  # the first that ONNX's reference knows these operators in
    (reference,) = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(np.asarray(reference), expected, atol=1e-5)
    assert {t.data_type for t in model.graph.initializer if t.dims == [8, 5]} == {TensorProto.INT8}


def test_what_is_read_twice_is_rounded_once() -> None:
    """Query, key and value read the same tensor."""
    weights = {name: matrix(8, 8, seed=seed) for seed, name in enumerate("ab")}
    model = tiny(
        weights,
        helper.make_node("MatMul", ["x", "a"], ["p"], name="first"),
        helper.make_node("MatMul", ["x", "b"], ["q"], name="second"),
        helper.make_node("Add", ["p", "q"], ["y"]),
    )
    write_products(model, {"first", "second"}, {"x": Range(-3, 3)}, per_channel=True)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuantizeLinear") == 1
    assert kinds.count("DequantizeLinear") == 3


def test_products_that_are_not_chosen_stay_exact() -> None:
    """Mixed precision: one in integers, one in fp32, from the same tensor."""
    weights = {name: matrix(8, 8, seed=seed) for seed, name in enumerate("ab")}
    model = tiny(
        weights,
        helper.make_node("MatMul", ["x", "a"], ["p"], name="first"),
        helper.make_node("MatMul", ["x", "b"], ["y"], name="second"),
    )
    x = matrix(1, 4, 8, seed=5)
    exact = run(model, x=x)
    write_products(model, {"first"}, {"x": Range(-3, 3)}, per_channel=True)
    np.testing.assert_array_equal(run(model, x=x), exact)


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemm_becomes_a_product_and_a_sum(transposed: int) -> None:
    """The classifier's head, as PyTorch exports it; the original is left as it is."""
    weight, bias, x = matrix(8, 5), matrix(5, seed=1), matrix(3, 8, seed=2)
    model = tiny(
        {"w": weight.T if transposed else weight, "b": bias},
        helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="head", transB=transposed),
    )
    del model.graph.input[0].type.tensor_type.shape.dim[1]
    changed = plain(model)
    (found,) = products(changed.graph)
    assert found.node == "head"
    np.testing.assert_array_equal(Constants(changed.graph).value(found.weight), weight)
    np.testing.assert_allclose(run(changed, x=x), x @ weight + bias, atol=1e-6)
    assert [node.op_type for node in model.graph.node] == ["Gemm"]


@pytest.mark.parametrize("kind", ["Gather", "Slice"])
def test_tables_keep_a_scale_for_each_row(kind: str) -> None:
    """A row of small numbers beside one of large ones keeps its digits."""
    table = matrix(40, 8) * np.logspace(-3, 3, 40, dtype=np.float32)[:, None]
    rows = np.array([3, 4, 5, 6])
    constants: dict[str, NDArray[np.generic]] = {"t": table}
    if kind == "Gather":
        constants["rows"] = rows
        node = helper.make_node("Gather", ["t", "rows"], ["y"], name="look up")
    else:
        constants |= {"from": np.array([3]), "to": np.array([7]), "axis": np.array([0])}
        node = helper.make_node("Slice", ["t", "from", "to", "axis"], ["y"], name="look up")
    model = tiny(constants, node)  # type: ignore[arg-type]
    del model.graph.input[:]
    assert [found.weight for found in tables(model.graph)] == ["t"]
    assert write_tables(model) == 1
    found = run(model)
    integers, scales = quantize_rows(table)
    np.testing.assert_array_equal(found, (integers * scales)[rows])
    assert (
        np.abs(found - table[rows]) <= np.abs(table[rows]).max(axis=1, keepdims=True) / 250
    ).all()
    assert "t" not in {tensor.name for tensor in model.graph.initializer}


def test_smoothing_changes_nothing_but_who_has_the_outliers() -> None:
    """The product is the same; the factors are those of SmoothQuant's equation 4, for the channels
    and rows of all matrices that read the tensor.
    """
    weights = {name: matrix(8, 8, seed=seed) for seed, name in enumerate("ab")}
    model = tiny(
        weights,
        helper.make_node("MatMul", ["x", "a"], ["p"], name="first"),
        helper.make_node("MatMul", ["x", "b"], ["q"], name="second"),
        helper.make_node("Add", ["p", "q"], ["y"]),
    )
    x = matrix(1, 6, 8, seed=5)
    x[..., 2] *= 100
    exact = run(model, x=x)
    peaks = np.abs(x).max(axis=(0, 1))
    rows = np.maximum(*(np.abs(weight).max(axis=1) for weight in weights.values()))
    factors = smoothing_factors(peaks, rows, 0.5)
    np.testing.assert_allclose(factors, np.sqrt(peaks / rows), rtol=1e-6)
    renamed = smooth(model, {"x": factors})
    np.testing.assert_allclose(run(model, x=x), exact, rtol=1e-4, atol=1e-4)
    assert {product.activations for product in products(model.graph)} == {renamed["x"]}
    np.testing.assert_allclose(
        smoothing_factors(np.array([0.0, 2.0], np.float32), np.array([1.0, 0.0], np.float32), 0.5),
        [1.0, 1.0],
    )


def test_tables_of_distances_are_stored_in_half_and_computed_with_in_whole() -> None:
    """The constant of four axes alone."""
    table = matrix(1, 4, 8, 200)
    constants = {"table": table, "scale": np.array(0.5, np.float32)}
    nodes = [
        helper.make_node("Constant", [], [name], name=name, value=numpy_helper.from_array(value))
        for name, value in constants.items()
    ]
    nodes += [
        helper.make_node("Mul", ["x", "scale"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "table"], ["y"], name="product"),
    ]
    model = tiny({}, *nodes)
    halved = onnx.ModelProto.FromString(model.SerializeToString())
    assert write_distances(halved) == 1
    assert halved.ByteSize() < 0.6 * model.ByteSize()
    x = matrix(4, 5, 8, seed=1)
    exact, found = run(model, x=x), run(halved, x=x)
    assert 0 < np.abs(exact - found).max() < 2e-3 * np.abs(exact).max()
    assert write_distances(halved) == 0


@pytest.mark.parametrize("bits", [16, 32])
def test_no_table_of_distances_is_widened_for_each_text(bits: int, tmp_path: Path) -> None:
    """The graph that runs has no conversion left, whatever the file says."""
    table = helper.make_node(
        "Constant", [], ["table"], value=numpy_helper.from_array(matrix(1, 4, 8, 200))
    )
    model = tiny({}, table, helper.make_node("MatMul", ["x", "table"], ["y"]))
    if bits == 16:
        write_distances(model)
    path = tmp_path / "runs.onnx"
    open_session(model.SerializeToString(), threads=1, optimized=path)
    assert [node.op_type for node in onnx.load(str(path)).graph.node] == ["MatMul"]
