# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kompakt.api.steps import Quantize
from kompakt.jobs.compress.graph import Graph, GraphData
from kompakt.jobs.compress.openvino_tables import large_tables, write_small_tables
from kompakt.jobs.compress.quantize_openvino import OpenVinoInt8, table_types
from kompakt.jobs.compress.quantize_weights import table_blocks
from kompakt.jobs.models.session import import_openvino, openvino_settings

from .conftest import answers

pytestmark = pytest.mark.slow


def gathering(*tables: np.ndarray, axes: int = 1) -> object:
    """A model that reads the rows of tables."""
    openvino = import_openvino()
    operators = openvino.opset13
    ids = operators.parameter([-1] * axes, np.int64, name="ids")
    rows = [
        operators.gather(operators.constant(t), ids, operators.constant(0), name=f"table{i}")
        for i, t in enumerate(tables)
    ]
    return openvino.Model([operators.result(row) for row in rows], [ids], "gathering")


def opened(model: object, path: Path) -> Any:
    """A model as a server opens it, from its file."""
    openvino = import_openvino()
    openvino.save_model(model, path, compress_to_fp16=False)
    return openvino.Core().compile_model(path, "CPU", openvino_settings("Float32", threads=1))


@pytest.mark.parametrize(
    ("width", "size"), [(64, 32), (48, 32), (64, 16), (6, 32), (7, 16), (35, 16)]
)
@pytest.mark.parametrize("shape", [(300,), (3, 50)])
def test_rows_are_what_the_codes_stand_for(
    width: int, size: int, shape: tuple[int, ...], tmp_path: Path
) -> None:
    """To the last bit, with scales of 16 bits, where blocks do and do not fill a row or its halves;
    the file has nothing but codes and scales.
    """
    rng = np.random.default_rng(width)
    table = rng.normal(size=(100, width)).astype(np.float32)
    model = gathering(table, axes=len(shape))
    tables = large_tables(model)
    assert list(tables) == ["table0"]
    assert write_small_tables(model, tables, size=size) == 1
    compiled = opened(model, tmp_path / "model.xml")
    ids = rng.integers(0, 100, shape)
    found = compiled({"ids": ids})[0]
    blocks = table_blocks(table, size=size)
    rounded = replace(blocks, scales=blocks.scales.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(found, rounded.weight.T[ids])
    error = np.linalg.norm(found - table[ids]) / np.linalg.norm(table[ids])
    assert error < 0.11
    numbers, scales = blocks.codes.size // 2, blocks.scales.size * 2
    assert (tmp_path / "model.bin").stat().st_size < numbers + scales + 200


def test_the_runtime_keeps_the_table_small(tmp_path: Path) -> None:
    """Rows are gathered as bytes, and unpacked after that: it does not widen the table when it
    opens the file.
    """
    rows, width = 20_011, 64
    table = np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)
    model = gathering(table, axes=2)
    write_small_tables(model, large_tables(model), size=32)
    compiled = opened(model, tmp_path / "model.xml")
    tables = {}
    for operation in compiled.get_runtime_model().get_ops():
        kind, precision = (
            operation.get_rt_info()[key].astype(str) for key in ("layerType", "outputPrecisions")
        )
        if kind == "Const" and rows in list(operation.get_output_shape(0)):
            tables[tuple(operation.get_output_shape(0))] = precision
    # Scales are widened to 32 bits.
    assert tables == {(rows, width // 2): "u8", (rows, width // 32): "f32"}


def test_a_small_table_stays() -> None:
    """Nothing would be gained."""
    assert large_tables(gathering(np.ones((15, 8), np.float32))) == {}


def test_a_variant_with_small_tables_answers_as_that_with_bytes(
    graph_of: Callable[[str], Graph], graph_data: GraphData, tmp_path: Path
) -> None:
    """All tables of words, and no other; the file is smaller by what that makes."""
    source = graph_of("bert")
    byte, half = (
        OpenVinoInt8(Quantize(method="OpenVinoInt8", samples=16, table_bits=bits)).apply(
            source, tmp_path / str(bits), graph_data
        )
        for bits in (8, 4)
    )
    assert half[1].startswith(byte[1].split(" and ")[0] + ", 1 embedding tables in 4 bits and ")
    model = import_openvino().Core().read_model(half[0].path)
    assert table_types(model).count("u8") == 1  # the bytes that hold two numbers
    exact, found = (answers(graph, graph_data) for graph in (source, half[0]))
    assert np.corrcoef(exact.ravel(), found.ravel())[0, 1] > 0.9
    (rows, width), *_ = sorted((t.shape for t in large_tables_of(source)), reverse=True)
    sizes = [(graph.folder / "model.bin").stat().st_size for graph in (byte[0], half[0])]
    assert sizes[0] - sizes[1] == pytest.approx(rows * width * (1 - 4.5 / 8), abs=8 * rows)


def large_tables_of(graph: Graph) -> list[np.ndarray]:
    """Of the graph as exported."""
    return list(large_tables(import_openvino().Core().read_model(graph.path)).values())
