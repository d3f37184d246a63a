# SPDX-License-Identifier: Apache-2.0
"""Weights in 8, 4, 2 or 1 bits, packed, activations as they are: for size, where int8 is too much.

ONNX Runtime multiplies with packed matrices of 8, 4 and 2 bits (MatMulNBits). It has no kernel for
1 bit; those are unpacked by operators of the graph when the file is opened, so the file is small
and the model in memory is not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from typing_extensions import override

from kompakt.api.steps import Quantize
from kompakt.jobs.compress.blocks import Blocks, Floats, packed, to_blocks, to_signs
from kompakt.jobs.compress.graph import Graph, GraphData, operators_run, written
from kompakt.jobs.compress.products import Constants, Matrix, plain, products, tables
from kompakt.jobs.compress.qdq import SMALLEST_TABLE, smooth, write_distances, write_tables
from kompakt.jobs.compress.ranges import Activations
from kompakt.jobs.compress.steps import GraphStep
from kompakt.jobs.errors import QuantizationIncomplete

ACCURACY_LEVELS = {"Float32": 1, "Int8": 4}
"""What MatMulNBits may round what it reads to."""
_DOMAIN = "com.microsoft"
_BYTE = 8
_TINY = 1e-30


class WeightOnly(GraphStep):
    """The step `quantize` with the method WeightOnly."""

    def __init__(self, parameters: Quantize) -> None:
        self._parameters = parameters

    @override
    def apply(self, graph: Graph, target: Path, data: GraphData) -> tuple[Graph, str]:
        ours = self._parameters
        model = plain(onnx.load(str(graph.path)))
        if ours.activation_aware_alpha_permille:
            smooth(model, self._factors(model, data))
        errors = self._write(model)
        small = write_small_tables(model, size=ours.block_size) if ours.table_bits < _BYTE else 0
        in_bytes = write_tables(model)
        write_distances(model)
        made = written(model, target)
        if ours.weight_bits > 1:
            _require_packed(made.path, len(errors), threads=data.threads)
        data.details["weightErrors"] = errors
        said = f"{len(errors)} matrices in {ours.weight_bits} bits, "
        said += f"{small} embedding tables in 4 bits, " if small else ""
        return made, f"{said}{in_bytes} embedding tables int8"

    def _factors(self, model: onnx.ModelProto, data: GraphData) -> dict[str, Floats]:
        """By what each tensor is divided, and the rows of its matrices multiplied: large rows are
        rounded by less, beside what they were (arXiv:2306.00978, section 3.2).
        """
        ours = self._parameters
        names = [entry.name for entry in model.graph.input]
        feeds = data.feeds(names, ours.samples)
        tensors = list(dict.fromkeys(p.activations for p in products(model.graph)))
        sizes = Activations(model, tensors, feeds, threads=data.threads).sizes()
        alpha = ours.activation_aware_alpha_permille / 1000
        return {name: _around_one(size, alpha) for name, size in sizes.items()}

    def _write(self, model: onnx.ModelProto) -> dict[str, float]:
        """Packs each product's matrix in place; returns the relative errors."""
        ours, constants = self._parameters, Constants(model.graph)
        wanted = {product.node: product for product in products(model.graph)}
        errors: dict[str, float] = {}
        nodes: list[onnx.NodeProto] = []
        for node in model.graph.node:
            product = wanted.get(node.name)
            if product is None:
                nodes.append(node)
                continue
            weight = constants.value(product.weight)
            if ours.weight_bits == 1:
                blocks = to_signs(weight, size=ours.block_size)
                nodes += _signs(node, blocks, constants)
            else:
                blocks = to_blocks(
                    weight,
                    bits=ours.weight_bits,
                    size=ours.block_size,
                    symmetric=ours.zero_points == "Disabled",
                )
                level = ACCURACY_LEVELS[ours.activations]
                nodes.append(_packed_product(node, blocks, constants, level=level))
            errors[node.name] = round(_relative(blocks.weight - weight, weight), 5)
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del model.graph.node[:]
        model.graph.node.extend(kept)
        constants.drop_unused()
        _import_domain(model)
        return errors


def _around_one(size: Floats, alpha: float) -> Floats:
    """size^alpha, with a geometric mean of 1; 1 for channels that are always zero."""
    factors = np.ones_like(size)
    used = size > 0
    if used.any():
        powers = alpha * np.log(size[used])
        factors[used] = np.exp(powers - powers.mean())
    return factors


def write_small_tables(model: onnx.ModelProto, *, size: int) -> int:
    """Stores tables of embeddings in 4 bits, in place; returns how many. A table of which a slice
    is read, that of positions, stays as it is.
    """
    constants = Constants(model.graph)
    wanted = {table.node: table.weight for table in tables(model.graph)}
    written = 0
    for node in model.graph.node:
        if node.op_type != "Gather" or node.name not in wanted:
            continue
        table = constants.value(wanted[node.name])
        # Bytes hold two numbers.
        if len(table) < SMALLEST_TABLE or table.shape[1] % 2:
            continue
        blocks = table_blocks(table, size=size)
        codes = blocks.codes.reshape(len(table), -1)[:, : blocks.inputs]
        small = helper.make_node(
            "GatherBlockQuantized",
            [
                constants.add(f"{node.name}_packed", packed(codes, blocks.bits)),
                node.input[1],
                constants.add(f"{node.name}_scales", blocks.scales),
            ],
            list(node.output),
            name=node.name,
            domain=_DOMAIN,
            bits=blocks.bits,
            block_size=blocks.codes.shape[-1],
            gather_axis=0,
            quantize_axis=1,
        )
        node.CopyFrom(small)
        written += 1
    constants.drop_unused()
    return written


def table_blocks(table: Matrix, *, size: int) -> Blocks:
    """A table of embeddings [rows, width] in 4 bits, in blocks along its width."""
    return to_blocks(table.T, bits=4, size=size, symmetric=True)


def _import_domain(model: onnx.ModelProto) -> None:
    if all(entry.domain != _DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))


def _relative(gap: Matrix, weight: Matrix) -> float:
    """The size of one beside that of the other."""
    return float(np.linalg.norm(gap)) / max(float(np.linalg.norm(weight)), _TINY)


def _packed_product(
    node: onnx.NodeProto, blocks: Blocks, constants: Constants, *, level: int
) -> onnx.NodeProto:
    outputs, _, size = blocks.codes.shape
    inputs = [
        node.input[0],
        constants.add(f"{node.name}_packed", packed(blocks.codes, blocks.bits)),
        constants.add(f"{node.name}_scales", blocks.scales),
    ]
    if blocks.zeros is not None:
        inputs.append(constants.add(f"{node.name}_zeros", packed(blocks.zeros, blocks.bits)))
    return helper.make_node(
        "MatMulNBits",
        inputs,
        list(node.output),
        name=node.name,
        domain=_DOMAIN,
        K=blocks.inputs,
        N=outputs,
        bits=blocks.bits,
        block_size=size,
        accuracy_level=level,
    )


def _signs(node: onnx.NodeProto, blocks: Blocks, constants: Constants) -> list[onnx.NodeProto]:
    """Unpacks 1 bit, -1 or 1 times a scale, by arithmetic that every opset has."""
    name = node.name
    outputs, count, size = blocks.codes.shape
    values: dict[str, NDArray[np.generic]] = {
        "packed": packed(blocks.codes, 1)[..., None],
        "powers": (2 ** np.arange(_BYTE)).astype(np.int32),
        "two": np.array(2, np.int32),
        "one": np.array(1, np.float32),
        "twice": np.array(2, np.float32),
        "shape": np.array([outputs, count, size]),
        "scales": blocks.scales[..., None],
        "rows": np.array([outputs, count * size]),
        "begin": np.array([0]),
        "end": np.array([blocks.inputs]),
        "axis": np.array([1]),
    }
    stored = {key: constants.add(f"{name}_{key}", value) for key, value in values.items()}
    chain: list[tuple[str, list[str], dict[str, Any]]] = [
        ("Cast", ["packed"], {"to": TensorProto.INT32}),
        ("Div", ["", "powers"], {}),
        ("Mod", ["", "two"], {}),
        ("Cast", [""], {"to": TensorProto.FLOAT}),
        ("Mul", ["", "twice"], {}),
        ("Sub", ["", "one"], {}),
        ("Reshape", ["", "shape"], {}),
        ("Mul", ["", "scales"], {}),
        ("Reshape", ["", "rows"], {}),
        ("Slice", ["", "begin", "end", "axis"], {}),
        ("Transpose", [""], {"perm": [1, 0]}),
    ]
    found: list[onnx.NodeProto] = []
    last = ""
    for number, (kind, inputs, settings) in enumerate(chain):
        output = f"{name}_unpacked_{number}"
        names = [stored[key] if key else last for key in inputs]
        found.append(helper.make_node(kind, names, [output], name=output, **settings))
        last = output
    product = onnx.NodeProto()
    product.CopyFrom(node)
    product.input[1] = last
    return [*found, product]


def _require_packed(path: Path, wanted: int, *, threads: int) -> None:
    """Looks at the graph that ONNX Runtime really runs."""
    found = operators_run(path, threads=threads)["MatMulNBits"]
    if found != wanted:
        raise QuantizationIncomplete(
            f"ONNX Runtime runs {found} of {wanted} matrix products on packed weights; report the"
            " model, please"
        )
