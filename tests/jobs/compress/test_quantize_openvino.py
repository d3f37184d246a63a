# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kompakt.api.steps import Quantize
from kompakt.jobs.compress import quantize_openvino
from kompakt.jobs.compress.graph import Graph, GraphData
from kompakt.jobs.compress.quantize_openvino import (
    BFloat16,
    OpenVinoInt8,
    import_nncf,
    input_costs,
    table_types,
    unrounded,
    weight_types,
)
from kompakt.jobs.errors import PackageMissing, QuantizationIncomplete, StepInvalid
from kompakt.jobs.models.architectures import ARCHITECTURES
from kompakt.jobs.models.session import import_openvino

from .conftest import answers

pytestmark = pytest.mark.slow

Graphs = Callable[[str], Graph]
FEW = Quantize(method="OpenVinoInt8", samples=16)


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_every_matrix_and_table_becomes_int8(
    model_type: str, graph_of: Graphs, graph_data: GraphData, tmp_path: Path
) -> None:
    """Six matrices a layer, the head's two and ELECTRA's projection; the two that each layer of
    DeBERTa makes of positions, a matrix for each head; and the word embeddings.
    """
    source = graph_of(model_type)
    by_head = 2 * 2 if model_type == "deberta-v2" else 0
    expected = 2 * 6 + 2 + (model_type == "electra") + by_head
    made, note = OpenVinoInt8(FEW).apply(source, tmp_path / "int8", graph_data)
    assert (made.runtime, made.precision) == ("OpenVino", "Float32")
    model = import_openvino().Core().read_model(made.path)
    assert weight_types(model) == ["i8"] * expected
    assert table_types(model)[0] in {"i8", "u8"}
    assert note.startswith(f"{expected} matrices and ")
    assert sum(graph_data.details["executed"].values()) == expected - by_head
    exact, quantized = (answers(graph, graph_data) for graph in (source, made))
    assert np.abs(exact - quantized).mean() < 0.25 * exact.std()
    assert np.corrcoef(exact.ravel(), quantized.ravel())[0, 1] > 0.9


def test_weights_are_those_of_the_original_rounded(
    graph_of: Graphs, graph_data: GraphData, tmp_path: Path
) -> None:
    """Without smoothing, scale times integer is the fp32 weight to half a step, per channel."""
    plain = Quantize(method="OpenVinoInt8", samples=16, smooth_quant_alpha_permille=0)
    source = graph_of("bert")
    made, _ = OpenVinoInt8(plain).apply(source, tmp_path / "int8", graph_data)
    core = import_openvino().Core()
    exact, stored = (
        {
            node.get_friendly_name(): node
            for node in core.read_model(graph.path).get_ordered_ops()
            if node.get_type_name() == "MatMul"
        }
        for graph in (source, made)
    )
    name = "/layers.0/query/MatMul"
    original = exact[name].input_value(1).get_node().data
    if exact[name].get_attributes()["transpose_b"]:
        original = original.T
    scaled = stored[name].input_value(1).get_node()
    assert scaled.get_type_name() == "Multiply"
    integers = scaled.input_value(0).get_node().input_value(0).get_node().data
    scales = scaled.input_value(1).get_node().data
    assert (integers.dtype, scales.size) == (np.int8, original.shape[1])
    found = integers * scales
    if stored[name].get_attributes()["transpose_b"]:
        found, scales = found.T, scales.T
    assert (np.abs(found - original) <= 0.501 * scales).all()


def test_smoothing_is_what_its_parameter_says(
    graph_of: Graphs, graph_data: GraphData, tmp_path: Path
) -> None:
    """Each smoothed product has a factor on its input; none without smoothing."""
    counts = {}
    for alpha in (0, 950):
        step = OpenVinoInt8(FEW.evolve(smooth_quant_alpha_permille=alpha))
        made, _ = step.apply(graph_of("bert"), tmp_path / str(alpha), graph_data)
        names = [
            op.get_friendly_name()
            for op in import_openvino().Core().read_model(made.path).get_ops()
        ]
        counts[alpha] = sum("smooth_quant" in name for name in names)
    assert counts[0] == 0
    assert counts[950] > 0


def test_quantizing_twice_gives_the_same_bytes(
    graph_of: Graphs, graph_data: GraphData, tmp_path: Path
) -> None:
    """A Job that runs again must come to the same digest; names made up on the way would not."""
    source = graph_of("distilbert")
    one, two = (
        OpenVinoInt8(FEW).apply(source, tmp_path / name, graph_data)[0].folder
        for name in ("one", "two")
    )
    for file in ("model.xml", "model.bin"):
        assert (one / file).read_bytes() == (two / file).read_bytes()


def test_bfloat16_is_half_the_size_and_told_to_the_runtime(
    graph_of: Graphs, graph_data: GraphData, tmp_path: Path
) -> None:
    """Answers stay within bfloat16's rounding (8 bits), on any CPU."""
    source = graph_of("bert")
    made, _ = BFloat16(Quantize(method="BFloat16")).apply(source, tmp_path / "half", graph_data)
    assert (made.runtime, made.precision) == ("OpenVino", "BFloat16")
    weights = (made.folder / "model.bin").stat().st_size
    assert 0.45 < weights / source.path.stat().st_size < 0.6
    exact, half = (answers(graph, graph_data) for graph in (source, made))
    assert np.abs(exact - half).max() < 0.1 * exact.std()
    assert set(graph_data.details["executed"]) <= {"bf16", "f32"}


def test_a_half_quantized_graph_is_no_variant(
    graph_of: Graphs, graph_data: GraphData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matrix that stayed fp32 without a word is counted, and fails the step."""
    nncf = import_nncf()
    original = nncf.quantize

    def forgetful(model: object, data: object, **settings: object) -> object:
        ignored = nncf.IgnoredScope(names=["/layers.0/query/MatMul"])
        return original(model, data, ignored_scope=ignored, **settings)

    monkeypatch.setattr(nncf, "quantize", forgetful)
    with pytest.raises(QuantizationIncomplete, match="13 of 14 matrix products became int8, 1 st"):
        OpenVinoInt8(FEW).apply(graph_of("bert"), tmp_path / "int8", graph_data)


def test_too_few_texts_are_refused(graph_of: Graphs, graph_data: GraphData, tmp_path: Path) -> None:
    """Ranges of a handful of texts are nobody's ranges; empty texts do not count."""
    few = replace(graph_data, texts=["good", "", " "] * 10)
    with pytest.raises(StepInvalid, match=r"at least 16 texts .*data\.calibration has 10"):
        OpenVinoInt8(FEW).apply(graph_of("bert"), tmp_path / "int8", few)


@pytest.mark.parametrize(
    ("package", "load"), [("openvino", import_openvino), ("nncf", quantize_openvino.import_nncf)]
)
def test_a_missing_package_is_one_sentence(
    package: str, load: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installation without the optional packages says what to install."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PackageMissing, match=rf"install kompakt\[{package}\]"):
        load()


def test_inputs_that_hurt_stay_in_floating_point(
    graph_of: Graphs, graph_data: GraphData, tmp_path: Path
) -> None:
    """With mixed precision the agreement is kept on texts that the choice has not seen, and the
    weights stay integers: the file is as small as before.
    """
    texts = [f"{text} {other}" for text in graph_data.texts for other in "abc"]
    data = replace(graph_data, texts=texts)
    source = graph_of("bert")
    plain, _ = OpenVinoInt8(FEW).apply(source, tmp_path / "plain", data)
    mixed = FEW.evolve(mixed="Enabled", min_agreement_basis_points=9700)
    made, _ = OpenVinoInt8(mixed).apply(source, tmp_path / "mixed", data)
    found = data.details["mixed"]
    assert found["agreement"] >= 0.97
    checked = data.check_texts(FEW.samples)
    labels = [data.logits(graph, checked).argmax(axis=1) for graph in (source, made)]
    assert (labels[0] == labels[1]).mean() == pytest.approx(found["agreement"], abs=0.011)
    sizes = [(graph.folder / "model.bin").stat().st_size for graph in (plain, made)]
    assert sizes[1] <= sizes[0]


def test_nothing_rounded_is_nothing_changed_but_weights(
    graph_of: Graphs, graph_data: GraphData, tmp_path: Path
) -> None:
    """With every input in floating point, only the rounding of weights is left."""
    source = graph_of("bert")
    made, _ = OpenVinoInt8(FEW).apply(source, tmp_path / "int8", graph_data)
    model = import_openvino().Core().read_model(made.path)
    costs = input_costs(model, longest=40)
    assert max(costs.values()) in {3 * 64 * 64, 64 * 128}
    bare = unrounded(model, set(costs))
    kinds = [operation.get_type_name() for operation in bare.get_ops()]
    assert "FakeQuantize" not in kinds
    assert weight_types(bare) == ["i8"] * 14
    import_openvino().save_model(bare, tmp_path / "bare" / "model.xml", compress_to_fp16=False)
    exact, rounded, unrounded_ = (
        answers(graph, graph_data)
        for graph in (source, made, Graph(tmp_path / "bare", runtime="OpenVino"))
    )
    assert np.abs(exact - unrounded_).mean() < np.abs(exact - rounded).mean()
