# SPDX-License-Identifier: Apache-2.0
"""Tables of token embeddings in 4 bits, as OpenVINO stores compressed tables: integers, converted,
shifted and scaled in blocks before rows are gathered. Its CPU plugin makes one operation of these,
which unpacks the rows that a text needs and no others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kompakt.jobs.compress.blocks import packed
from kompakt.jobs.compress.products import Matrix
from kompakt.jobs.compress.qdq import SMALLEST_TABLE
from kompakt.jobs.compress.quantize_weights import table_blocks
from kompakt.jobs.models.session import import_openvino

BITS = 4
_MIDDLE = 2 ** (BITS - 1)


def large_tables(model: Any) -> dict[str, Matrix]:
    """The fp32 tables [rows, width] that are worth it, by the names of the operations that gather
    from them.
    """
    found = {}
    for operation in model.get_ordered_ops():
        if operation.get_type_name() != "Gather":
            continue
        source = operation.input_value(0).get_node()
        if source.get_type_name() != "Constant":
            continue
        shape = list(source.get_output_shape(0))
        # Bytes hold two numbers.
        if len(shape) == 2 and shape[0] >= SMALLEST_TABLE and shape[1] % 2 == 0:  # noqa: PLR2004
            found[operation.get_friendly_name()] = np.array(source.data, np.float32)
    return found


def write_small_tables(model: Any, tables: Mapping[str, Matrix], *, size: int) -> int:
    """Stores tables in 4 bits, in blocks of so many numbers with a scale of 16 bits, in place;
    returns how many.
    """
    written = 0
    for operation in model.get_ordered_ops():
        table = tables.get(operation.get_friendly_name())
        if table is None or operation.get_type_name() != "Gather":
            continue
        operation.input(0).replace_source_output(_small(table, size=size).output(0))
        written += 1
    model.validate_nodes_and_infer_types()
    return written


def _small(table: Matrix, *, size: int) -> Any:
    """A table [rows, width] as a chain of operations on its integers."""
    openvino = import_openvino()
    operators, half = openvino.opset13, openvino.Type.f16
    blocks = table_blocks(table, size=size)
    rows, count, each = blocks.codes.shape
    codes = openvino.Tensor(
        packed(blocks.codes, BITS).reshape(-1), [rows, count, each], openvino.Type.u4
    )
    integers = operators.convert(operators.constant(codes, shared_memory=False), half)
    middle = operators.constant(np.full((1, 1, 1), _MIDDLE, np.float16))
    scales = operators.constant(blocks.scales[..., None].astype(np.float16))
    numbers = operators.multiply(operators.subtract(integers, middle), scales)
    filled = operators.reshape(numbers, np.array([rows, count * each]), special_zero=False)
    if count * each > table.shape[1]:
        filled = operators.slice(filled, [0], [table.shape[1]], [1], [1])
    return operators.convert(filled, openvino.Type.f32)
