# SPDX-License-Identifier: Apache-2.0
"""Variants for OpenVINO: int8 by NNCF, and bfloat16.

They are stored in OpenVINO's intermediate representation. Beside the same graph as ONNX it opens
in two thirds of the time, needs no second copy of the weights while doing so, and is quantized
twice as fast; size and speed are equal.

NNCF's recipe for transformers: SmoothQuant (Xiao et al. 2022, arXiv:2211.10438), per-channel
symmetric weights, per-tensor activations, then a correction of biases. What ONNX Runtime makes of
the same numbers is slower than fp32, so there is no such variant.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from kompakt.api.artifact import IR_NAME
from kompakt.api.steps import Quantize
from kompakt.jobs.compress.graph import Graph, GraphData
from kompakt.jobs.compress.mixed import Groups, choose
from kompakt.jobs.compress.openvino_tables import BITS, large_tables, write_small_tables
from kompakt.jobs.compress.steps import GraphStep
from kompakt.jobs.errors import PackageMissing, QuantizationIncomplete
from kompakt.jobs.models.session import Logits, OpenVinoSession, import_openvino, openvino_settings

SMALL_TYPES = {"i8", "u8"}


class OpenVinoInt8(GraphStep):
    """The step `quantize` with the method OpenVinoInt8."""

    def __init__(self, parameters: Quantize) -> None:
        self._parameters = parameters

    @override
    def apply(self, graph: Graph, target: Path, data: GraphData) -> tuple[Graph, str]:
        nncf = import_nncf()
        model = import_openvino().Core().read_model(graph.path)
        wanted = len(weight_types(model))
        large = large_tables(model) if self._parameters.table_bits == BITS else {}
        names = [entry.get_any_name() for entry in model.inputs]
        feeds = data.feeds(names, self._parameters.samples)
        with contextlib.redirect_stdout(io.StringIO()):  # progress bars
            quantized = nncf.quantize(
                model,
                nncf.Dataset(feeds),
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(feeds),
                advanced_parameters=self._advanced(nncf),
            )
        types = weight_types(quantized)
        found = sum(name in SMALL_TYPES for name in types)
        if found != wanted:
            raise QuantizationIncomplete(
                f"{found} of {wanted} matrix products became int8, {wanted - found} stayed fp32;"
                " report the model, please"
            )
        said = f"{found} matrices"
        if self._parameters.mixed == "Enabled":
            quantized, count = self._mixed(graph, quantized, data)
            said = f"{found} matrices ({count} of their inputs fp32)"
        small = write_small_tables(quantized, large, size=self._parameters.block_size)
        made = save(quantized, target, Graph(target, runtime="OpenVino"), halve=False)
        data.details["executed"] = executed(made, threads=data.threads)
        # Tables in 4 bits are stored as bytes too.
        tables = sum(name in SMALL_TYPES for name in table_types(quantized)) - small
        said += f", {small} embedding tables in {BITS} bits" if small else ""
        return made, f"{said} and {tables} embedding tables int8 for OpenVINO"

    def _mixed(self, graph: Graph, quantized: Any, data: GraphData) -> tuple[Any, int]:
        """The model with some inputs of products left in floating point, and how many. Their
        weights stay integers: they hardly err, and the size is theirs.
        """

        def run(floating: Groups, texts: Sequence[str]) -> Logits:
            session = OpenVinoSession(
                unrounded(quantized, floating),
                precision="Float32",
                longest=data.max_sequence_length,
                threads=data.threads,
            )
            return data.answers(session, texts)

        costs = input_costs(quantized, longest=data.max_sequence_length)
        floating = choose(costs, run, graph=graph, data=data, parameters=self._parameters)
        return unrounded(quantized, floating), len(floating)

    def _advanced(self, nncf: Any) -> Any:
        ours = self._parameters
        alpha = ours.smooth_quant_alpha_permille / 1000
        return nncf.AdvancedQuantizationParameters(
            smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=alpha or -1),
            overflow_fix=nncf.OverflowFix.ENABLE if ours.reduce_range == "Enabled" else None,
            weights_quantization_params=nncf.quantization.advanced_parameters.QuantizationParameters(
                per_channel=ours.per_channel == "Enabled"
            ),
        )


class BFloat16(GraphStep):
    """The step `quantize` with the method BFloat16: weights stored in 16 bits, products in
    bfloat16.
    """

    def __init__(self, parameters: Quantize) -> None:
        del parameters  # it has none

    @override
    def apply(self, graph: Graph, target: Path, data: GraphData) -> tuple[Graph, str]:
        model = import_openvino().Core().read_model(graph.path)
        made = Graph(target, runtime="OpenVino", precision="BFloat16")
        save(model, target, made, halve=True)
        data.details["executed"] = executed(made, threads=data.threads)
        return made, "bfloat16 for OpenVINO"


def import_nncf() -> Any:
    """NNCF, which is a part of the jobs' image, and optional elsewhere."""
    import_openvino()
    # It too reports to its makers, unless it takes itself for a test of its own.
    os.environ.setdefault("NNCF_CI", "1")
    try:
        import nncf
    except ImportError as error:
        raise PackageMissing(
            f"NNCF is not installed here ({error}); install kompakt[nncf], or use another method of"
            " quantize"
        ) from error
    nncf.set_log_level(logging.ERROR)
    return nncf


def save(model: Any, target: Path, made: Graph, *, halve: bool) -> Graph:
    """Writes a model; equal models become equal bytes."""
    target.mkdir(parents=True, exist_ok=True)
    for number, operation in enumerate(model.get_ordered_ops()):
        kind = operation.get_type_name()
        name = operation.get_friendly_name()
        # Such names count the operations of the process so far.
        if name.rpartition("_")[0] == kind:
            operation.set_friendly_name(f"{kind}_{number}")
    import_openvino().save_model(model, target / IR_NAME, compress_to_fp16=halve)
    return made


def input_costs(model: Any, *, longest: int) -> dict[str, int]:
    """Of each place where activations are rounded the multiply-accumulate operations, for a token,
    of the products that read them.
    """
    costs = {}
    for operation in model.get_ordered_ops():
        if operation.get_type_name() != "FakeQuantize":
            continue
        costs[operation.get_friendly_name()] = sum(
            _operations(product, operation, longest=longest) for product in _readers(operation)
        )
    return {name: cost for name, cost in costs.items() if cost}


def unrounded(model: Any, names: Collection[str]) -> Any:
    """A copy in which activations pass some of these places as they are."""
    copy = model.clone()
    for operation in copy.get_ordered_ops():
        rounds = operation.get_type_name() == "FakeQuantize"
        if rounds and operation.get_friendly_name() in names:
            operation.output(0).replace(operation.input_value(0))
    copy.validate_nodes_and_infer_types()
    return copy


def weight_types(model: Any) -> list[str]:
    """In what the matrix of each product with a constant matrix is stored."""
    return [
        stored.get_element_type().get_type_name()
        for operation in model.get_ordered_ops()
        if operation.get_type_name() == "MatMul"
        and (stored := _constant(operation.input_value(1))) is not None
    ]


def table_types(model: Any) -> list[str]:
    """In what each table of embeddings is stored."""
    return [
        stored.get_element_type().get_type_name()
        for operation in model.get_ordered_ops()
        if operation.get_type_name() == "Gather"
        and (stored := _constant(operation.input_value(0))) is not None
        and len(stored.get_output_shape(0)) == 2  # noqa: PLR2004 a matrix
    ]


def executed(graph: Graph, *, threads: int) -> dict[str, int]:
    """How many matrix products this CPU really computes in which type, for the report."""
    core = import_openvino().Core()
    compiled = core.compile_model(
        graph.path, "CPU", openvino_settings(graph.precision, threads=threads)
    )
    kinds = Counter(
        operation.get_rt_info()["runtimePrecision"].astype(str)
        for operation in compiled.get_runtime_model().get_ops()
        if operation.get_rt_info()["layerType"].astype(str).startswith("FullyConnected")
    )
    return dict(sorted(kinds.items()))


def _readers(operation: Any) -> list[Any]:
    """The products that read a tensor, also where it is only laid out anew before."""
    found = []
    for target in operation.output(0).get_target_inputs():
        node = target.get_node()
        if node.get_type_name() == "MatMul":
            found.append(node)
        elif node.get_type_name() in {"Reshape", "Transpose", "Squeeze", "Unsqueeze"}:
            found += _readers(node)
    return found


def _operations(product: Any, operation: Any, *, longest: int) -> int:
    """For a token; of a product of two activations, with as many tokens as there may be."""
    weight = _constant(product.input_value(1))
    if weight is not None:
        return math.prod(map(int, weight.get_output_shape(0)))
    known: list[int] = [
        d.get_length() for d in operation.get_output_partial_shape(0) if d.is_static
    ]
    return longest * math.prod(known)


def _constant(value: Any) -> Any | None:
    """The constant that a value comes from by way of conversions, scales and shifts alone."""
    node = value.get_node()
    while node.get_type_name() in {
        "Convert",
        "Multiply",
        "Subtract",
        "FakeQuantize",
        "Transpose",
        "Reshape",
    }:
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Constant" else None
