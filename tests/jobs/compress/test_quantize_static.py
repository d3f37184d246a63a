# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from kompakt.api.steps import Quantize
from kompakt.jobs.compress.graph import Graph, GraphData
from kompakt.jobs.compress.quantize_static import StaticInt8, require_integers
from kompakt.jobs.errors import QuantizationIncomplete, StepInvalid
from kompakt.jobs.models.architectures import ARCHITECTURES
from kompakt.jobs.models.session import open_session

from .conftest import answers

pytestmark = pytest.mark.slow

Graphs = Callable[[str], Graph]
FEW = Quantize(method="StaticInt8", samples=32)


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_every_matrix_becomes_int8_and_runs_so(
    model_type: str, graph_of: Graphs, graph_data: GraphData, tmp_path: Path
) -> None:
    """Six matrices a layer, the head's two and ELECTRA's projection; the tables of words and
    positions, but for DeBERTa's; nothing of it is turned back to fp32 when it runs.
    """
    source = graph_of(model_type)
    expected = 2 * 6 + 2 + (model_type == "electra")
    made, note = StaticInt8(FEW).apply(source, tmp_path / "int8", graph_data)
    assert (made.runtime, made.precision) == ("OnnxRuntime", "Float32")
    tables = 1 if model_type == "deberta-v2" else 2
    assert note == (
        f"{expected} of {expected} matrices and {tables} embedding tables int8, ranges by MinMax"
    )
    open_session(made.path, threads=1, optimized=tmp_path / "runs.onnx")
    runs = Counter(node.op_type for node in onnx.load(str(tmp_path / "runs.onnx")).graph.node)
    assert runs["MatMulIntegerToFloat"] == expected
    assert runs["DequantizeLinear"] == 0
    assert made.path.stat().st_size < source.path.stat().st_size / 2
    exact, quantized = (answers(graph, graph_data) for graph in (source, made))
    assert np.abs(exact - quantized).mean() < 0.2 * exact.std()
    assert np.corrcoef(exact.ravel(), quantized.ravel())[0, 1] > 0.95


@pytest.mark.parametrize(
    "settings",
    [
        {"calibration": "Percentile", "clippedPerMillion": 1000},
        {"calibration": "Entropy"},
        {"smoothQuantAlphaPermille": 500},
        {"perChannel": "Disabled"},
        {"reduceRange": "Enabled"},
    ],
    ids=["percentile", "entropy", "smooth", "per tensor", "seven bits"],
)
def test_every_setting_makes_another_model_that_still_answers(
    settings: dict[str, object], graph_of: Graphs, graph_data: GraphData, tmp_path: Path
) -> None:
    """None of them is without effect, and none breaks the pattern that runs in integers."""
    source = graph_of("bert")
    plain, _ = StaticInt8(FEW).apply(source, tmp_path / "plain", graph_data)
    step = StaticInt8(Quantize.model_validate({"method": "StaticInt8", "samples": 32} | settings))
    made, _ = step.apply(source, tmp_path / "other", graph_data)
    exact, first, second = (answers(graph, graph_data) for graph in (source, plain, made))
    assert np.abs(first - second).max() > 0
    assert np.corrcoef(exact.ravel(), second.ravel())[0, 1] > 0.9


def test_an_answer_does_not_depend_on_its_batch(
    graph_of: Graphs, graph_data: GraphData, tmp_path: Path
) -> None:
    """Unlike with dynamic quantization: ranges are constants, and what is masked counts for
    nothing.
    """
    made, _ = StaticInt8(FEW).apply(graph_of("bert"), tmp_path / "int8", graph_data)
    session = open_session(made.path, threads=1)
    rng = np.random.default_rng(3)
    ids = rng.integers(4, 23, (2, 12))
    mask = np.ones_like(ids)
    mask[1, 5:] = 0
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    (together,) = session.run(["logits"], feed)
    short = {name: values[1:, :5] for name, values in feed.items()}
    (alone,) = session.run(["logits"], short)
    np.testing.assert_allclose(together[1], alone[0], atol=1e-5)


def test_quantizing_twice_gives_the_same_bytes(
    graph_of: Graphs, graph_data: GraphData, tmp_path: Path
) -> None:
    """A Job that runs again must come to the same digest."""
    source = graph_of("distilbert")
    one, two = (
        StaticInt8(FEW).apply(source, tmp_path / name, graph_data)[0].path
        for name in ("one", "two")
    )
    assert one.read_bytes() == two.read_bytes()


def test_integers_that_run_in_fp32_are_no_variant(
    graph_of: Graphs, graph_data: GraphData, tmp_path: Path
) -> None:
    """ONNX Runtime says nothing when it does not know a pattern: here, a rounded tensor on which
    something else is done before the product.
    """
    made, _ = StaticInt8(FEW).apply(graph_of("bert"), tmp_path / "int8", graph_data)
    model = onnx.load(str(made.path))
    node = next(n for n in model.graph.node if n.name == "/layers.0/up/MatMul")
    position = list(model.graph.node).index(node)
    between = helper.make_node("Identity", [node.input[0]], ["copied"], name="between")
    squared = helper.make_node("Mul", ["copied", "copied"], ["squared"], name="squared")
    node.input[0] = "squared"
    model.graph.node.insert(position, squared)
    model.graph.node.insert(position, between)
    onnx.save(model, str(made.path))
    with pytest.raises(QuantizationIncomplete, match="13 of 14 quantized matrix products"):
        require_integers(made.path, 14, threads=1)


def many_texts(data: GraphData) -> GraphData:
    """Enough to take ranges from and to check on."""
    return replace(data, texts=[f"{text} {other}" for text in data.texts for other in "abc"])


def test_what_hurts_most_stays_in_floating_point(
    graph_of: Graphs, graph_data: GraphData, tmp_path: Path
) -> None:
    """A product whose input has one huge channel is left alone by mixed precision; the others are
    integers, and the promised agreement is kept on texts that the choice has not seen.
    """
    source = graph_of("bert")
    model = onnx.load(str(source.path))
    # The last norm's scale: outliers in what `head` reads, undone by its weights.
    constants = {t.name: t for t in model.graph.initializer}
    scale = np.ones(64, np.float32)
    scale[3] = 20_000.0
    for name in ("layers.1.norm.weight", "layers.1.norm.bias"):
        values = numpy_helper.to_array(constants[name]) * scale
        constants[name].CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))
    weight = next(t for t in model.graph.initializer if t.name == "head.weight")
    values = (numpy_helper.to_array(weight) / scale).astype(np.float32)
    weight.CopyFrom(numpy_helper.from_array(values, "head.weight"))
    onnx.save(model, str(source.path))
    data = many_texts(graph_data)
    settings = {"samples": 32, "mixed": "Enabled", "minAgreementBasisPoints": 8500}
    base = {"method": "StaticInt8", "smoothQuantAlphaPermille": 0}
    made, note = StaticInt8(Quantize.model_validate(base | settings)).apply(
        source, tmp_path / "mixed", data
    )
    found = data.details["mixed"]
    assert "/head/Gemm" in found["floating"]
    assert next(iter(found["divergences"])) == "/head/Gemm"
    assert len(found["floating"]) < 7
    assert found["agreement"] >= 0.85
    kept = 14 - len(found["floating"])
    assert note.startswith(f"{kept} of 14 matrices")
    require_integers(made.path, kept, threads=1)


def test_a_choice_needs_texts_to_be_checked_on(
    graph_of: Graphs, graph_data: GraphData, tmp_path: Path
) -> None:
    """Samples are for ranges; a verdict on them would be a verdict on itself."""
    step = StaticInt8(FEW.evolve(mixed="Enabled"))
    with pytest.raises(StepInvalid, match="at least 100 texts beside its 32 samples"):
        step.apply(graph_of("bert"), tmp_path / "mixed", graph_data)
