# SPDX-License-Identifier: Apache-2.0
"""Tables of token embeddings in 4 bits for OpenVINO.

Its CPU plugin has an operation for tables that are stored as its compressed ones usually are, but
that takes one number after the other out of its byte. So bytes are gathered, where a row is one
copy, and the few rows that a text needs are unpacked by operators that the plugin has vector code
for. A byte holds a number of the first half of its row and the one at the same place in the second,
so that nothing is to be interleaved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kompakt.jobs.compress.blocks import Blocks, Codes
from kompakt.jobs.compress.products import Matrix
from kompakt.jobs.compress.qdq import SMALLEST_TABLE
from kompakt.jobs.compress.quantize_weights import table_blocks
from kompakt.jobs.models.session import import_openvino

BITS = 4
_LEVELS = 2**BITS
_MIDDLE = _LEVELS // 2


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
        if len(shape) == 2 and shape[0] >= SMALLEST_TABLE:  # noqa: PLR2004 a matrix
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
        blocks = table_blocks(table, size=size)
        rows = _unpacked(blocks, operation.input_value(1))
        operation.output(0).replace(rows.output(0))
        written += 1
    model.validate_nodes_and_infer_types()
    return written


def _unpacked(blocks: Blocks, ids: Any) -> Any:
    """The rows of a table that ids [...] ask for, as operators: [..., width]."""
    openvino = import_openvino()
    operators, single = openvino.opset13, openvino.Type.f32
    as_they_are = [0] * ids.get_partial_shape().rank.get_length()
    _, count, each = blocks.codes.shape
    filled = count * each

    def rows(table: Any) -> Any:
        return operators.gather(operators.constant(table), ids, operators.constant(0))

    def number(value: float) -> Any:
        return operators.constant(np.array(value, np.float32))

    def laid_out(x: Any, *sizes: int) -> Any:
        return operators.reshape(x, np.array([*as_they_are, *sizes]), special_zero=True)

    # All of it is exact: integers below 256, and products of 4 by 11 bits. With both halves along
    # an axis of their own, one pass does it, and none copies them beside each other.
    both = operators.convert(laid_out(rows(_in_halves(blocks.codes)), 1, filled // 2), single)
    shifts = np.array([[1], [1 / _LEVELS]], np.float32)
    shifted = operators.floor(operators.multiply(both, operators.constant(shifts)))
    codes = operators.subtract(operators.floor_mod(shifted, number(_LEVELS)), number(_MIDDLE))
    scales = operators.convert(rows(blocks.scales.astype(np.float16)), single)
    numbers = operators.multiply(laid_out(codes, count, each), laid_out(scales, count, 1))
    unpacked = laid_out(numbers, filled)
    if filled == blocks.inputs:
        return unpacked
    return operators.slice(unpacked, [0], [blocks.inputs], [1], [-1])


def _in_halves(codes: Codes) -> Codes:
    """Rows of codes [rows, blocks, size] as bytes [rows, blocks * size / 2]: a row's first half in
    the low bits, its second in the high ones. Blocks are of even size.
    """
    rows = codes.reshape(len(codes), -1)
    half = rows.shape[1] // 2
    packed: Codes = rows[:, :half] | (rows[:, half:] << np.uint8(BITS))
    return packed
