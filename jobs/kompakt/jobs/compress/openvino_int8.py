# SPDX-License-Identifier: Apache-2.0
"""A graph that OpenVINO computes in int8, made in a moment: for its latency, not for its answers.

NNCF takes seconds for each graph to find ranges, and a table of latencies has dozens of graphs.
Kernels take the same time whatever the ranges are, so any will do; what is rounded is what NNCF
rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kompakt.jobs.models.session import import_openvino

STEP = 1 / 32
"""Between two values that are told apart."""
_LAYOUT = {"Reshape", "Transpose", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True)
class _Grid:
    """Integers from the least to the most, in steps of `STEP`."""

    least: int
    most: int


_SIGNED, _UNSIGNED, _WEIGHTS = _Grid(-128, 127), _Grid(-64, 191), _Grid(-127, 127)
"""Of two activations' products, of a constant matrix's activations, and of that matrix."""


def rounded(path: Path) -> Any:
    """OpenVINO's model of an ONNX file with both inputs of its matrix products rounded to 8 bits:
    constant matrices for each output, all else for the whole tensor. Attention's scores are made of
    integers, and what they weigh is not.
    """
    openvino = import_openvino()
    model = openvino.Core().read_model(path)
    done: dict[str, Any] = {}
    for product in model.get_ordered_ops():
        if product.get_type_name() != "MatMul" or _reads_softmax(product):
            continue
        matrix = _is_constant(product.input_value(1))
        for place, grid in enumerate((_UNSIGNED, _WEIGHTS) if matrix else (_SIGNED, _SIGNED)):
            value, reader = _before_layout(product, place)
            key = f"{value.get_node().get_friendly_name()} {value.get_index()}"
            if key not in done:
                shape = _for_each_output(product, value) if _is_constant(value) else []
                done[key] = _rounding(openvino.opset13, value, shape, grid)
            reader.replace_source_output(done[key].output(0))
    model.validate_nodes_and_infer_types()
    return model


def _rounding(operators: Any, value: Any, shape: list[int], grid: _Grid) -> Any:
    low, high = (np.full(shape, STEP * end, np.float32) for end in (grid.least, grid.most))
    return operators.fake_quantize(value, low, high, low, high, grid.most - grid.least + 1)


def _for_each_output(product: Any, matrix: Any) -> list[int]:
    """The shape of one number for each output."""
    rows, columns = matrix.get_shape()
    return [rows, 1] if product.get_attributes()["transpose_b"] else [1, columns]


def _before_layout(product: Any, place: int) -> tuple[Any, Any]:
    """Where values are made that a product reads, and the input that reads them there: before they
    are only laid out anew.
    """
    reader = product.input(place)
    while reader.get_source_output().get_node().get_type_name() in _LAYOUT:
        reader = reader.get_source_output().get_node().input(0)
    return reader.get_source_output(), reader


def _is_constant(value: Any) -> bool:
    return bool(value.get_node().get_type_name() == "Constant")


def _reads_softmax(product: Any) -> bool:
    return bool(product.input_value(0).get_node().get_type_name() == "Softmax")
