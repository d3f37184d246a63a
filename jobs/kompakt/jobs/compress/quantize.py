# SPDX-License-Identifier: Apache-2.0
"""Dynamic int8: weights become int8 in the file, activations at run time, each with its own scale.

Whether it worked is counted, not hoped: ONNX Runtime leaves a matrix in fp32 without a word when
it cannot infer a type, and a graph that is half quantized is slower than none.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import onnx
from typing_extensions import override

from kompakt.api.steps import Quantize
from kompakt.jobs.compress.graph import Graph, GraphData
from kompakt.jobs.compress.qdq import write_distances
from kompakt.jobs.compress.steps import GraphStep
from kompakt.jobs.errors import QuantizationIncomplete


class DynamicInt8(GraphStep):
    """The step `quantize` with the method DynamicInt8."""

    def __init__(self, parameters: Quantize) -> None:
        self._parameters = parameters

    @override
    def apply(self, graph: Graph, target: Path, data: GraphData) -> tuple[Graph, str]:
        target.mkdir(parents=True, exist_ok=True)
        made = Graph(target)
        matrices, tables = to_int8(graph.path, made.path, self._parameters)
        return made, f"{matrices} matrices and {tables} embedding tables int8"


def to_int8(source: Path, target: Path, parameters: Quantize) -> tuple[int, int]:
    """Writes the quantized graph; returns how many matrices and embedding tables it has in int8."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(str(source))
    wanted = constant_matrices(model)
    write_distances(model)
    # It advises to run a shape inference first, which changes nothing for these graphs.
    logging.getLogger().setLevel(logging.ERROR)
    quantize_dynamic(
        model,
        str(target),
        per_channel=parameters.per_channel == "Enabled",
        reduce_range=parameters.reduce_range == "Enabled",
        weight_type=QuantType.QInt8,
        # Without it, a tensor whose type shape inference did not find ends the whole attempt.
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )
    quantized = onnx.load(str(target))
    operators = Counter(node.op_type for node in quantized.graph.node)
    found = operators["MatMulInteger"]
    left = constant_matrices(quantized)
    if found != wanted or left:
        raise QuantizationIncomplete(
            f"{found} of {wanted} matrix products became int8, {left} stayed fp32; report the"
            " model, please"
        )
    return found, int8_tables(quantized)


def constant_matrices(model: onnx.ModelProto) -> int:
    """Products with a constant floating-point matrix: what quantization is for."""
    weights = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2  # noqa: PLR2004
    }
    return sum(
        node.op_type in {"MatMul", "Gemm"} and node.input[1] in weights for node in model.graph.node
    )


def int8_tables(model: onnx.ModelProto) -> int:
    """Embedding tables that are stored in 8 bits."""
    integers = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type in {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    }
    return sum(node.op_type == "Gather" and node.input[0] in integers for node in model.graph.node)
