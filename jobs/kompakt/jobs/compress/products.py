# SPDX-License-Identifier: Apache-2.0
"""The parts of an ONNX graph that quantization is about: products of activations with a constant
matrix, and tables of embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Matrix = NDArray[np.float32]
_MATRIX = 2
"""Axes."""


@dataclass(frozen=True)
class Product:
    """activations @ weight."""

    node: str
    """Name of the MatMul node; unique in the graph."""
    activations: str
    """Name of the tensor [batch, tokens, inputs]."""
    weight: str
    """Name of the initializer [inputs, outputs]."""


@dataclass(frozen=True)
class Table:
    """Rows of a constant matrix that are looked up, by Gather or Slice."""

    node: str
    weight: str


class Constants:
    """A graph's initializers by name."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}

    def is_matrix(self, name: str) -> bool:
        """Whether it is a floating-point constant with two axes."""
        tensor = self._tensors.get(name)
        return (
            tensor is not None
            and tensor.data_type == TensorProto.FLOAT
            and len(tensor.dims) == _MATRIX
        )

    def value(self, name: str) -> Matrix:
        """The numbers of a constant."""
        return np.asarray(numpy_helper.to_array(self._tensors[name]))

    def add(self, name: str, value: NDArray[np.generic]) -> str:
        """Adds a constant; returns its name."""
        tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
        self._graph.initializer.append(tensor)
        self._tensors[name] = self._graph.initializer[-1]
        return name

    def drop_unused(self) -> None:
        """Removes constants that no node reads any more."""
        read = {name for node in self._graph.node for name in node.input}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in read]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)
        self._tensors = {tensor.name: tensor for tensor in self._graph.initializer}


def products(graph: onnx.GraphProto) -> list[Product]:
    """All products with a constant matrix, in the order of computation, in a graph that `plain`
    made.
    """
    constants = Constants(graph)
    return [
        Product(node.name, node.input[0], node.input[1])
        for node in graph.node
        if node.op_type == "MatMul" and constants.is_matrix(node.input[1])
    ]


def tables(graph: onnx.GraphProto) -> list[Table]:
    """All tables of embeddings."""
    constants = Constants(graph)
    return [
        Table(node.name, node.input[0])
        for node in graph.node
        if node.op_type in {"Gather", "Slice"} and constants.is_matrix(node.input[0])
    ]


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with a name for each node, and each Gemm as MatMul and Add over a third axis.

    Such a product runs in integers wherever it stands. A Gemm does so only with a quantized bias,
    and not at all before some activations, with which ONNX Runtime fuses it first; it also takes a
    MatMul over two axes for a Gemm.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = Constants(copy.graph)
    nodes = [new for node in copy.graph.node for new in _without_gemm(node, constants)]
    for number, node in enumerate(nodes):
        node.name = node.name or f"{node.op_type}_{number}"
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    constants.drop_unused()
    return copy


def _without_gemm(node: onnx.NodeProto, constants: Constants) -> list[onnx.NodeProto]:
    settings = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    scaled = settings.get("alpha", 1.0) != 1.0 or settings.get("beta", 1.0) != 1.0
    constant = node.op_type == "Gemm" and constants.is_matrix(node.input[1])
    if not constant or scaled or settings.get("transA", 0):
        return [node]
    name, (activations, weight, *bias), (output,) = node.name, node.input, node.output
    if settings.get("transB", 0):
        weight = constants.add(f"{weight}_transposed", constants.value(weight).T)
    axis = constants.add(f"{name}_axis", np.array([1]))
    found = [
        helper.make_node("Unsqueeze", [activations, axis], [f"{name}_in"], name=f"{name}_in"),
        helper.make_node("MatMul", [f"{name}_in", weight], [f"{name}_out"], name=name),
    ]
    last = f"{name}_out"
    if bias:
        last = f"{name}_sum"
        found.append(helper.make_node("Add", [f"{name}_out", *bias], [last], name=last))
    found.append(helper.make_node("Squeeze", [last, axis], [output], name=f"{name}_squeezed"))
    return found
