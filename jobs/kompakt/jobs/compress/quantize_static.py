# SPDX-License-Identifier: Apache-2.0
"""Static int8 for ONNX Runtime: activations get their ranges from calibration texts, once.

Beside dynamic int8 it saves a pass over each activation, and a text's answer does not depend on
what else is in its batch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from typing_extensions import override

from kompakt.api.steps import Quantize
from kompakt.jobs.compress.graph import Graph, GraphData, operators_run, written
from kompakt.jobs.compress.mixed import Groups, choose
from kompakt.jobs.compress.products import Constants, Product, plain, products
from kompakt.jobs.compress.qdq import (
    Range,
    smooth,
    smoothing_factors,
    write_distances,
    write_products,
    write_tables,
)
from kompakt.jobs.compress.ranges import Activations, Extremes
from kompakt.jobs.compress.steps import GraphStep
from kompakt.jobs.errors import QuantizationIncomplete
from kompakt.jobs.models.session import Logits, OnnxSession

INTEGER_PRODUCTS = {"MatMulIntegerToFloat", "QLinearMatMul", "MatMulInteger", "QGemm"}


class StaticInt8(GraphStep):
    """The step `quantize` with the method StaticInt8."""

    def __init__(self, parameters: Quantize) -> None:
        self._parameters = parameters

    @override
    def apply(self, graph: Graph, target: Path, data: GraphData) -> tuple[Graph, str]:
        ours = self._parameters
        model = plain(onnx.load(str(graph.path)))
        ranges = self._ranges(model, data)
        tables = write_tables(model)
        write_distances(model)
        constants = Constants(model.graph)
        sizes = {
            product.node: constants.value(product.weight).size for product in products(model.graph)
        }
        floating = self._floating(graph, model, ranges, sizes, data) if self._mixes else frozenset()
        chosen = set(sizes) - floating
        made = written(self._quantized(model, ranges, chosen), target)
        require_integers(made.path, len(chosen), threads=data.threads)
        said = f"{len(chosen)} of {len(sizes)} matrices and {tables} embedding tables int8"
        return made, f"{said}, ranges by {ours.calibration}"

    @property
    def _mixes(self) -> bool:
        return self._parameters.mixed == "Enabled"

    def _quantized(
        self, model: onnx.ModelProto, ranges: Mapping[str, Range], chosen: Collection[str]
    ) -> onnx.ModelProto:
        ours = self._parameters
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        write_products(
            copy,
            chosen,
            ranges,
            per_channel=ours.per_channel == "Enabled",
            bits=7 if ours.reduce_range == "Enabled" else 8,
        )
        return copy

    def _floating(
        self,
        graph: Graph,
        model: onnx.ModelProto,
        ranges: Mapping[str, Range],
        sizes: Mapping[str, int],
        data: GraphData,
    ) -> Groups:
        """The products that stay in floating point."""

        def run(floating: Groups, texts: Sequence[str]) -> Logits:
            made = self._quantized(model, ranges, set(sizes) - floating)
            session = OnnxSession(made.SerializeToString(), threads=data.threads)
            return data.answers(session, texts)

        return choose(sizes, run, graph=graph, data=data, parameters=self._parameters)

    def _ranges(self, model: onnx.ModelProto, data: GraphData) -> dict[str, Range]:
        """The range of what each product reads; smooths the model in place on the way."""
        ours = self._parameters
        found = products(model.graph)
        tensors = list(dict.fromkeys(product.activations for product in found))
        names = [entry.name for entry in model.graph.input]
        feeds = data.feeds(names, ours.samples)
        extremes = Activations(model, tensors, feeds, threads=data.threads).extremes()
        if ours.smooth_quant_alpha_permille:
            factors = _factors(
                model, found, extremes, alpha=ours.smooth_quant_alpha_permille / 1000
            )
            renamed = smooth(model, factors)
            extremes = {renamed[name]: extremes[name].divided(factors[name]) for name in extremes}
            tensors = [renamed[name] for name in tensors]
        return Activations(model, tensors, feeds, threads=data.threads).ranges(
            ours.calibration, extremes, percentile=1 - ours.clipped_per_million / 1e6
        )


def require_integers(path: Path, wanted: int, *, threads: int) -> None:
    """Looks at the graph that ONNX Runtime really runs: it computes a product in fp32 without a
    word when a pattern is not one that it knows.
    """
    operators = operators_run(path, threads=threads)
    found = sum(operators[name] for name in INTEGER_PRODUCTS)
    left = operators["DequantizeLinear"]
    if found != wanted or left:
        raise QuantizationIncomplete(
            f"ONNX Runtime runs {found} of {wanted} quantized matrix products in integers, and"
            f" turns {left} tensors back to fp32; report the model, please"
        )


def _factors(
    model: onnx.ModelProto,
    found: list[Product],
    extremes: Mapping[str, Extremes],
    *,
    alpha: float,
) -> dict[str, np.ndarray]:
    """For each tensor, from all matrices that it meets."""
    constants = Constants(model.graph)
    peaks: dict[str, np.ndarray] = {}
    for product in found:
        peak = np.abs(constants.value(product.weight)).max(axis=1)
        known = peaks.get(product.activations, peak)
        peaks[product.activations] = np.maximum(known, peak)
    return {
        name: smoothing_factors(extremes[name].peaks, peak, alpha) for name, peak in peaks.items()
    }
