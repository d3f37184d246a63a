# SPDX-License-Identifier: Apache-2.0
"""Writes integers into an ONNX graph: weights in 8 bits, activations rounded to 8 bits before each
product, by pairs of QuantizeLinear and DequantizeLinear that a runtime turns into integer kernels.

Only products with a constant matrix are quantized, and only what they read. Whatever lies between
them stays fp32: rounding it too, as the tools of ONNX Runtime do, costs accuracy (4 points instead
of 0.4 for MiniLM-L6) and is slower. The scheme is that of Jacob et al. 2018 (arXiv:1712.05877):
x ≈ scale · (q − zero), zero exactly representable.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from kompakt.jobs.compress.products import Constants, Matrix, products, tables

Integers = NDArray[np.int8]
Scales = NDArray[np.float32]
_LEVELS = 255
_TABLE_AXES = 4
SMALLEST_TABLE = 16
"""Rows; smaller tables are not worth an operator."""


@dataclass(frozen=True)
class Range:
    """What values a tensor takes; what lies beyond is clipped."""

    low: float
    high: float

    @property
    def parameters(self) -> tuple[np.float32, np.uint8]:
        """Scale and zero point of unsigned 8-bit integers over this range, zero included."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        smallest = float(np.finfo(np.float32).tiny)
        scale = np.float32(max((high - low) / _LEVELS, smallest))
        zero = np.clip(np.rint(-low / scale), 0, _LEVELS)
        return scale, np.uint8(zero)


def quantize_weight(weight: Matrix, *, per_channel: bool, bits: int = 8) -> tuple[Integers, Scales]:
    """Symmetric integers and their scales for a matrix [inputs, outputs]: one scale for each output
    channel, or one for all.
    """
    largest = 2 ** (bits - 1) - 1
    peak = np.abs(weight).max(axis=0 if per_channel else None)
    scales = np.maximum(peak / largest, np.finfo(np.float32).tiny).astype(np.float32)
    integers = np.clip(np.rint(weight / scales), -largest, largest).astype(np.int8)
    return integers, scales


def quantize_rows(table: Matrix) -> tuple[Integers, Scales]:
    """Symmetric integers [rows, width] for a table, and a scale for each row, [rows, 1]."""
    integers, scales = quantize_weight(table.T, per_channel=True)
    return integers.T, scales[:, None]


def write_products(
    model: onnx.ModelProto,
    chosen: Collection[str],
    ranges: Mapping[str, Range],
    *,
    per_channel: bool,
    bits: int = 8,
) -> None:
    """Quantizes products in place.

    Args:
        model: As `plain` leaves it.
        chosen: Names of the nodes of the products to quantize; the others stay fp32.
        ranges: By the name of the tensor that a chosen product reads.
        per_channel: One scale for each output channel of a weight.
        bits: Of the weights: 8, or 7 where products of full 8 bits would saturate.
    """
    graph, constants = model.graph, Constants(model.graph)
    wanted = {product.node: product for product in products(graph) if product.node in chosen}
    written: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        product = wanted.get(node.name)
        if product is not None:
            tensor = product.activations
            if tensor not in written:
                nodes += _rounded(tensor, ranges[tensor], constants)
                written.add(tensor)
            integers, scales = quantize_weight(
                constants.value(product.weight), per_channel=per_channel, bits=bits
            )
            name = f"{product.node}_weight"
            nodes.append(_dequantized(name, integers, scales, constants))
            node.input[0], node.input[1] = f"{tensor}_rounded", name
        nodes.append(node)
    _replace(graph, nodes)
    constants.drop_unused()


def write_tables(model: onnx.ModelProto) -> int:
    """Stores tables of embeddings in 8 bits, in place, with a scale for each row; returns how
    many.
    """
    graph, constants = model.graph, Constants(model.graph)
    wanted = {
        table.node: table
        for table in tables(graph)
        if len(constants.value(table.weight)) >= SMALLEST_TABLE
    }
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        table = wanted.get(node.name)
        if table is None:
            nodes.append(node)
            continue
        integers, scales = quantize_rows(constants.value(table.weight))
        parts = []
        for suffix, value in (("integers", integers), ("scales", scales)):
            part = onnx.NodeProto()
            part.CopyFrom(node)
            part.name = part.output[0] = f"{node.name}_{suffix}"
            part.input[0] = constants.add(f"{node.name}_{suffix}_table", value)
            parts.append(part)
        cast = f"{node.name}_cast"
        nodes += [
            *parts,
            helper.make_node("Cast", [parts[0].output[0]], [cast], name=cast, to=TensorProto.FLOAT),
            helper.make_node(
                "Mul", [cast, parts[1].output[0]], list(node.output), name=f"{node.name}_scaled"
            ),
        ]
    _replace(graph, nodes)
    constants.drop_unused()
    return len(wanted)


def write_distances(model: onnx.ModelProto) -> int:
    """Stores what layers make of relative positions, [1, heads, width, rows], in 16 bits, in place;
    returns how many tables. Runtimes widen them once, when they open the file: scores come out as
    before to three digits, which is beyond what 8 bits leave of the rest.
    """
    nodes: list[onnx.NodeProto] = []
    written = 0
    for node in model.graph.node:
        nodes.append(node)
        value = next((entry.t for entry in node.attribute if entry.name == "value"), None)
        if node.op_type != "Constant" or value is None or len(value.dims) != _TABLE_AXES:
            continue
        if value.data_type != TensorProto.FLOAT:
            continue
        halved = numpy_helper.to_array(value).astype(np.float16)
        (name,) = node.output
        node.output[0] = f"{name}_halved"
        value.CopyFrom(numpy_helper.from_array(halved))
        nodes.append(
            helper.make_node("Cast", [node.output[0]], [name], name=name, to=TensorProto.FLOAT)
        )
        written += 1
    _replace(model.graph, nodes)
    return written


def smooth(model: onnx.ModelProto, factors: Mapping[str, NDArray[np.float32]]) -> dict[str, str]:
    """Divides tensors by a factor for each channel, and multiplies the rows of the matrices that
    they meet by it, in place; nothing changes but rounding (SmoothQuant, arXiv:2211.10438, eq. 3).

    Returns the new name of each tensor.
    """
    graph, constants = model.graph, Constants(model.graph)
    readers = {product.node: product for product in products(graph)}
    names = {tensor: f"{tensor}_smooth" for tensor in factors}
    written: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        product = readers.get(node.name)
        if product is not None and product.activations in factors:
            tensor = product.activations
            factor = factors[tensor]
            if tensor not in written:
                inverse = constants.add(f"{tensor}_smoothing", (1 / factor).astype(np.float32))
                nodes.append(
                    helper.make_node("Mul", [tensor, inverse], [names[tensor]], name=names[tensor])
                )
                written.add(tensor)
            scaled = (constants.value(product.weight) * factor[:, None]).astype(np.float32)
            node.input[0] = names[tensor]
            node.input[1] = constants.add(f"{product.node}_smoothed", scaled)
        nodes.append(node)
    _replace(graph, nodes)
    constants.drop_unused()
    return names


def smoothing_factors(
    activation_peaks: NDArray[np.float32], weight_peaks: NDArray[np.float32], alpha: float
) -> NDArray[np.float32]:
    """For each channel peak(activations)^α / peak(weights)^(1−α); 1 where either is zero."""
    both = (activation_peaks > 0) & (weight_peaks > 0)
    factors = np.ones_like(activation_peaks)
    factors[both] = activation_peaks[both] ** alpha / weight_peaks[both] ** (1 - alpha)
    return factors


def _rounded(tensor: str, values: Range, constants: Constants) -> list[onnx.NodeProto]:
    scale, zero = values.parameters
    shared = [
        constants.add(f"{tensor}_scale", np.array(scale)),
        constants.add(f"{tensor}_zero", np.array(zero)),
    ]
    quantized, rounded = f"{tensor}_quantized", f"{tensor}_rounded"
    return [
        helper.make_node("QuantizeLinear", [tensor, *shared], [quantized], name=quantized),
        helper.make_node("DequantizeLinear", [quantized, *shared], [rounded], name=rounded),
    ]


def _dequantized(
    name: str, integers: Integers, scales: Scales, constants: Constants
) -> onnx.NodeProto:
    inputs = [
        constants.add(f"{name}_integers", integers),
        constants.add(f"{name}_scale", scales),
        constants.add(f"{name}_zero", np.zeros_like(scales, dtype=np.int8)),
    ]
    node = helper.make_node("DequantizeLinear", inputs, [name], name=name)
    if scales.ndim:
        node.attribute.append(helper.make_attribute("axis", 1))
    return node


def _replace(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
