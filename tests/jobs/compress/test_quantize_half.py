# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from tests.jobs.conftest import Places, write_checkpoint

from kompakt.api.job import CompressTask
from kompakt.api.steps import Quantize
from kompakt.jobs.compress.chain import compress
from kompakt.jobs.compress.graph import Graph, GraphData
from kompakt.jobs.compress.quantize_half import (
    MASK,
    Float16,
    floats_of,
    halved,
    peaks_of,
    prepared,
    wide_nodes,
)
from kompakt.jobs.errors import StepInvalid
from kompakt.jobs.models.architectures import ARCHITECTURES
from kompakt.jobs.models.checkpoint import inspect
from kompakt.jobs.models.export import export
from kompakt.jobs.models.load import load
from kompakt.jobs.models.session import OnnxSession

from .conftest import answers

pytestmark = pytest.mark.slow

Graphs = Callable[[str], Graph]
STEP = Float16(Quantize(method="Float16"))
ROUNDING = 2.0**-11
"""Of a number in 16 bits, relative to it."""


def feed_of(names: Sequence[str], lengths: Sequence[int]) -> dict[str, NDArray[np.int64]]:
    """Random texts, padded."""
    rng = np.random.default_rng(3)
    shape = len(lengths), max(lengths)
    mask = (np.arange(shape[1]) < np.array(lengths)[:, None]).astype(np.int64)
    arrays = {name: np.zeros(shape, dtype=np.int64) for name in names}
    return arrays | {"input_ids": rng.integers(4, 23, shape) * mask, "attention_mask": mask}


def chain_of(*nodes: onnx.NodeProto, **constants: float | list[float]) -> onnx.ModelProto:
    """A graph from `input_ids` [batch, tokens] to `logits`; its first node reads `x`, the ids as
    numbers.
    """
    graph = helper.make_graph(
        [helper.make_node("Cast", ["input_ids"], ["x"], to=TensorProto.FLOAT), *nodes],
        "test",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", "columns"])],
        [numpy_helper.from_array(np.array(v, np.float32), k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Of the constants by name."""
    return {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def by_reference(model: onnx.ModelProto, feed: dict[str, Any]) -> NDArray[Any]:
    """The logits as ONNX's own reference computes them: rounded after each operator."""
    found: Any = ReferenceEvaluator(model).run(["logits"], feed)
    return np.asarray(found[0])


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_answers_are_those_of_32_bits_to_rounding(
    model_type: str, graph_of: Graphs, graph_data: GraphData, tmp_path: Path
) -> None:
    """Of every architecture: half the bytes, the same inputs and outputs, the same labels, and
    logits to a hundredth.
    """
    source = graph_of(model_type)
    made, note = STEP.apply(source, tmp_path / "half", graph_data)
    before, after = (onnx.load(str(graph.path)).graph for graph in (source, made))
    assert (made.runtime, note) == ("OnnxRuntime", "floating point in 16 bits")
    assert [(e.name, e.type.tensor_type.elem_type) for e in (*after.input, *after.output)] == [
        (e.name, e.type.tensor_type.elem_type) for e in (*before.input, *before.output)
    ]
    assert TensorProto.FLOAT not in {tensor.data_type for tensor in after.initializer}
    assert made.path.stat().st_size < 0.56 * source.path.stat().st_size
    exact, half = (answers(graph, graph_data) for graph in (source, made))
    assert 0 < np.abs(exact - half).max() < 0.01 * np.abs(exact).max()
    assert (exact.argmax(axis=1) == half.argmax(axis=1)).all()
    assert graph_data.details["float16"]["in32Bits"] == []


@pytest.mark.parametrize("model_type", ["bert", "electra"])
def test_answers_hold_where_all_arithmetic_is_in_16_bits(
    model_type: str, graph_of: Graphs, graph_data: GraphData, tmp_path: Path
) -> None:
    """ONNX Runtime computes much of it in 32 bits on a CPU. ONNX's reference rounds after each
    operator, as a GPU does: padded or not, answers are finite and near.
    """
    source = graph_of(model_type)
    made, _ = STEP.apply(source, tmp_path / "half", graph_data)
    session = OnnxSession(source.path, threads=1)
    feed = feed_of(session.input_names, [9, 3, 1])
    found = by_reference(onnx.load(str(made.path)), feed)
    exact = session.run(feed)
    assert found.dtype == np.float32
    assert np.abs(exact - found).max() < 0.03 * np.abs(exact).max()


def test_the_mask_stays_a_number(graph_of: Graphs, graph_data: GraphData, tmp_path: Path) -> None:
    """The lowest number of 32 bits would be minus infinity, and times zero not a number."""
    made, _ = STEP.apply(graph_of("bert"), tmp_path / "half", graph_data)
    values = [numpy_helper.to_array(t) for t in onnx.load(str(made.path)).graph.initializer]
    floats = [v for v in values if v.dtype == np.float16]
    assert all(np.isfinite(value).all() for value in floats)
    assert min(float(value.min()) for value in floats) == -MASK


def test_what_is_too_large_stays_in_32_bits() -> None:
    """With all that reads it, and nothing else; between two such nodes nothing is rounded."""
    model = prepared(
        chain_of(
            helper.make_node("Mul", ["x", "up"], ["large"], name="grow"),
            helper.make_node("Neg", ["large"], ["turned"], name="turn"),
            helper.make_node("Mul", ["turned", "down"], ["small"], name="shrink"),
            helper.make_node("Add", ["small", "one"], ["logits"], name="shift"),
            up=[1e4, 1e4],
            down=[1e-4, 1e-4],
            one=[1.0, 1.0],
        )
    )
    feed = {"input_ids": np.array([[7, 11]])}
    peaks = peaks_of(model, floats_of(model, feed), [feed])
    assert peaks["large"] == pytest.approx(11e4)
    wide = wide_nodes(model.graph, peaks)
    assert wide == {"grow", "turn", "shrink"}
    safe, naive = (halved(model, floats=peaks, wide=some) for some in (wide, set[str]()))
    assert types_of(safe) == {"up_float32": 1, "down_float32": 1, "one": TensorProto.FLOAT16}
    np.testing.assert_allclose(by_reference(safe, feed), [[-6, -10]], rtol=1e-3)
    with np.errstate(over="ignore"):
        assert np.isinf(by_reference(naive, feed)).all()
    casts = [node.output[0] for node in safe.graph.node if node.op_type == "Cast"]
    assert len(casts) == len(set(casts)) == 4  # the ids, x up, small down, and logits up


def test_sums_over_tokens_are_in_32_bits() -> None:
    """In 16 bits 2049 ones are 2048, and a sum of tokens may be infinite."""
    model = prepared(
        chain_of(
            helper.make_node("Mul", ["x", "one"], ["scaled"], name="scale"),
            helper.make_node("ReduceSum", ["scaled", "axis"], ["sum"], name="sum"),
            helper.make_node("Sqrt", ["sum"], ["logits"], name="root"),
            one=1.0,
        )
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axis"))
    feed = {"input_ids": np.ones((1, 2049), dtype=np.int64)}
    peaks = peaks_of(model, floats_of(model, feed), [feed])
    wide = wide_nodes(model.graph, peaks)
    assert wide == {"sum", "root"}
    found = by_reference(halved(model, floats=peaks, wide=wide), feed)
    assert found.item() == pytest.approx(2049**0.5, rel=1e-6)


def test_a_vector_is_pooled_in_32_bits(graph_data: GraphData, tmp_path: Path) -> None:
    """Its length is 1 to the rounding of 32 bits, its direction to that of 16."""
    checkpoint = inspect(write_checkpoint(tmp_path / "model", embeds=True), origin="test")
    source = Graph(tmp_path / "fp32")
    source.folder.mkdir()
    export(load(checkpoint), source.path, input_names=checkpoint.architecture.input_names)
    made, note = STEP.apply(source, tmp_path / "half", graph_data)
    assert "operators in 32" in note
    exact, half = (
        OnnxSession(graph.path, threads=1).run(
            feed_of(checkpoint.architecture.input_names, [20, 4])
        )
        for graph in (source, made)
    )
    np.testing.assert_allclose(np.linalg.norm(half, axis=1), 1.0, atol=1e-6)
    assert ((exact * half).sum(axis=1) > 1 - 1e-4).all()


def test_a_model_that_needs_more_bits_is_refused(graph_data: GraphData, tmp_path: Path) -> None:
    """A difference of two large numbers is lost; one sentence says so, and what to do."""
    model = chain_of(
        helper.make_node("Mul", ["x", "tiny"], ["scaled"]),
        helper.make_node("Add", ["scaled", "large"], ["far"]),
        helper.make_node("Sub", ["far", "near"], ["logits"]),
        tiny=[0.01],
        large=[8001.0],
        near=[8000.0],
    )
    source = Graph(tmp_path / "fp32")
    source.folder.mkdir()
    onnx.save(model, str(source.path))
    with pytest.raises(StepInvalid, match=r"method is Float16, but in 16 bits .* another method"):
        STEP.apply(source, tmp_path / "half", graph_data)


def test_constants_are_rounded_to_nearest(
    graph_of: Graphs, graph_data: GraphData, tmp_path: Path
) -> None:
    """As numpy rounds them, whatever name they have."""
    source = graph_of("bert")
    made, _ = STEP.apply(source, tmp_path / "half", graph_data)
    before, after = (
        {t.name: numpy_helper.to_array(t) for t in onnx.load(str(g.path)).graph.initializer}
        for g in (source, made)
    )
    matrices = [
        name for name, value in before.items() if value.dtype == np.float32 and value.size > 1
    ]
    assert len(matrices) > 20
    for name in matrices:
        error = np.abs(before[name] - after[name].astype(np.float32))
        # Below 2^-14 spacing no longer shrinks.
        assert (error <= np.maximum(ROUNDING * np.abs(before[name]), 2.0**-25)).all()


def test_a_recipe_ends_in_16_bits(
    task: Callable[..., CompressTask], place: Places, tmp_path: Path
) -> None:
    """Trained steps before it, temperature after it."""
    steps: list[dict[str, Any]] = [
        {"prune": {"ffnKeepPermille": 500, "samples": 16}},
        {"quantize": {"method": "Float16"}},
    ]
    made = compress(task(*steps), place())
    assert made.summary.endswith("floating point in 16 bits")
    manifest = place().store.get_artifact(made.artifact_digest, tmp_path / "made")
    assert (manifest.runtime, manifest.precision) == ("OnnxRuntime", "Float32")
    stored = onnx.load(str(tmp_path / "made" / "model.onnx"))
    assert TensorProto.FLOAT not in types_of(stored).values()
