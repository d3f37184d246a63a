# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kompakt.api.steps import Quantize
from kompakt.jobs.compress.graph import Graph, GraphData
from kompakt.jobs.compress.openvino_tables import large_tables, write_small_tables
from kompakt.jobs.compress.quantize_openvino import OpenVinoInt8, table_types
from kompakt.jobs.models.session import import_openvino, openvino_settings

from .conftest import answers

pytestmark = pytest.mark.slow


def gathering(*tables: np.ndarray) -> object:
    """A model that reads the rows of tables."""
    openvino = import_openvino()
    operators = openvino.opset13
    ids = operators.parameter([-1], np.int64, name="ids")
    rows = [
        operators.gather(operators.constant(t), ids, operators.constant(0), name=f"table{i}")
        for i, t in enumerate(tables)
    ]
    return openvino.Model([operators.result(row) for row in rows], [ids], "gathering")


@pytest.mark.parametrize(("width", "size"), [(64, 32), (48, 32), (64, 16), (6, 32)])
def test_rows_are_the_original_s_to_half_a_step(width: int, size: int, tmp_path: Path) -> None:
    """A step is a seventh of a block's largest number at most; scales have 11 bits."""
    rng = np.random.default_rng(width)
    table = rng.normal(size=(100, width)).astype(np.float32)
    model = gathering(table)
    tables = large_tables(model)
    assert list(tables) == ["table0"]
    assert write_small_tables(model, tables, size=size) == 1
    openvino = import_openvino()
    openvino.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
    compiled = openvino.Core().compile_model(
        tmp_path / "model.xml", "CPU", openvino_settings("Float32", threads=1)
    )
    ids = rng.integers(0, 100, 300)
    found = compiled({"ids": ids})[0]
    each = min(size, 16 if width <= 16 else size)
    padded = np.pad(table, ((0, 0), (0, -width % each)))
    largest = np.abs(padded).reshape(100, -1, each).max(axis=-1).repeat(each, axis=1)[:, :width]
    # The scale may clip a block's largest number, where that makes the squared error less.
    assert (np.abs(found - table[ids]) <= 0.41 * largest[ids]).all()
    error = np.linalg.norm(found - table[ids]) / np.linalg.norm(table[ids])
    assert error < 0.11
    levels = [len(np.unique(row[:each])) for row in found]
    assert max(levels) <= 16
    assert (tmp_path / "model.bin").stat().st_size < 100 * (-(-width // each)) * (each / 2 + 2) + 99


def test_a_small_table_and_one_of_odd_width_stay() -> None:
    """Nothing is gained by the one, and bytes hold two numbers of the other."""
    model = gathering(np.ones((15, 8), np.float32), np.ones((99, 7), np.float32))
    assert large_tables(model) == {}


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
    assert "u8" not in table_types(model)
    exact, found = (answers(graph, graph_data) for graph in (source, half[0]))
    assert np.corrcoef(exact.ravel(), found.ravel())[0, 1] > 0.9
    (rows, width), *_ = sorted((t.shape for t in large_tables_of(source)), reverse=True)
    sizes = [(graph.folder / "model.bin").stat().st_size for graph in (byte[0], half[0])]
    assert sizes[0] - sizes[1] == pytest.approx(rows * width * (1 - 4.5 / 8), abs=8 * rows)


def large_tables_of(graph: Graph) -> list[np.ndarray]:
    """Of the graph as exported."""
    return list(large_tables(import_openvino().Core().read_model(graph.path)).values())
