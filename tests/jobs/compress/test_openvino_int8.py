# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kompakt.api.steps import Quantize
from kompakt.jobs.compress.graph import Graph, GraphData
from kompakt.jobs.compress.openvino_int8 import rounded
from kompakt.jobs.compress.quantize_openvino import OpenVinoInt8
from kompakt.jobs.models.session import import_openvino, openvino_settings

pytestmark = pytest.mark.slow


def computed(model: Any) -> Counter[tuple[str, str]]:
    """What this CPU computes: products and attention, and in which type."""
    compiled = (
        import_openvino()
        .Core()
        .compile_model(model, "CPU", openvino_settings("Float32", threads=1))
    )
    infos = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ops()]
    kinds = ((i["layerType"].astype(str), i["runtimePrecision"].astype(str)) for i in infos)
    # Signed or unsigned is a matter of ranges.
    return Counter(
        (kind, "int8" if number in {"i8", "u8"} else number)
        for kind, number in kinds
        if kind in {"FullyConnected", "MatMul", "Subgraph"}
    )


def test_it_computes_what_nncf_leaves(
    graph_of: Callable[[str], Graph], graph_data: GraphData, tmp_path: Path
) -> None:
    """The same products in the same types as after a real quantization."""
    openvino = import_openvino()
    graph = graph_of("bert")
    made, _ = OpenVinoInt8(Quantize(method="OpenVinoInt8", samples=32)).apply(
        graph, tmp_path / "nncf", graph_data
    )
    expected = computed(openvino.Core().read_model(made.path))

    assert computed(rounded(graph.path)) == expected
    assert expected["FullyConnected", "int8"] > 1
    assert computed(openvino.Core().read_model(graph.path)) != expected
