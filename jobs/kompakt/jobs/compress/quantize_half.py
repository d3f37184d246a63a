# SPDX-License-Identifier: Apache-2.0
"""16-bit floating point (IEEE 754 binary16) in ONNX Runtime: half the bytes, and on a GPU products
on tensor cores. On CPUs it is no faster than 32 bits: ONNX Runtime has few kernels for it there,
and converts to and fro.

11 bits of mantissa are enough for an encoder's answers, but no number may be beyond 65,504
(Micikevicius et al. 2018, arXiv:1710.03740, section 3). Hence:

- the mask, the lowest number of 32 bits for padding, becomes -10,000, whose exponential is 0 too;
- what is near that limit on some texts is computed in 32 bits, with all that reads it;
- sums over tokens, and all that comes of them, are computed in 32 bits: a sentence's vector;
- LayerNormalization takes its mean and variance in 32 bits anyway (`stash_type` of the operator).

Softmax needs nothing of this: it subtracts the largest score first, and what it gives is at most 1.

Inputs and outputs keep their types. Between two neighbours in 32 bits nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from typing_extensions import override

from kompakt.api.steps import Quantize
from kompakt.jobs.compress.graph import SMOKE_TEXTS, Graph, GraphData, written
from kompakt.jobs.compress.steps import GraphStep
from kompakt.jobs.errors import StepInvalid
from kompakt.jobs.models.session import OnnxSession, open_session
from kompakt.jobs.models.text import pad

LARGEST = 65_504 / 4
"""What is beyond it on some texts may be beyond the format's limit on others."""
MASK = 1e4
SUMS = frozenset({"ReduceSum", "ReduceMean", "ReduceL2", "ReduceSumSquare"})
LOOKED_AT = 16
"""Calibration texts, where there are any."""
TOLERANCE = 0.05
"""Of the largest logit."""
LISTED = 32
Feed = Mapping[str, NDArray[np.int64]]


class Float16(GraphStep):
    """The step `quantize` with the method Float16."""

    def __init__(self, parameters: Quantize) -> None:
        del parameters  # it has none

    @override
    def apply(self, graph: Graph, target: Path, data: GraphData) -> tuple[Graph, str]:
        model = prepared(onnx.load(str(graph.path)))
        names = [entry.name for entry in model.graph.input]
        texts = data.encode([*SMOKE_TEXTS, *data.texts[:LOOKED_AT]])
        padded = texts[: len(SMOKE_TEXTS)]
        feeds = [
            pad(batch, pad_id=0, input_names=names)
            for batch in [*([text] for text in texts), padded]
        ]
        peaks = peaks_of(model, floats_of(model, feeds[0]), feeds, threads=data.threads)
        wide = wide_nodes(model.graph, peaks)
        half = halved(model, floats=peaks, wide=wide)
        made = written(half, target)
        difference = _compare(graph, made, feeds, threads=data.threads)
        data.details["float16"] = {
            "largestDifference": difference,
            "in32Bits": sorted(wide)[:LISTED],
        }
        said = f", {len(wide)} operators in 32" if wide else ""
        return made, f"floating point in 16 bits{said}"


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with a name for each node, its constants as initializers, and the mask within
    what 16 bits can say.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes: list[onnx.NodeProto] = []
    for number, node in enumerate(copy.graph.node):
        value = [entry.t for entry in node.attribute if entry.name == "value"]
        if node.op_type == "Constant" and value:
            value[0].name = node.output[0]
            copy.graph.initializer.append(value[0])
            continue
        node.name = node.name or f"{node.op_type}_{number}"
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    for tensor in copy.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor)
            if values.size == 1 and np.abs(values).max() > LARGEST:
                bounded = np.clip(values, -MASK, MASK)
                tensor.CopyFrom(numpy_helper.from_array(bounded, tensor.name))
    return copy


def floats_of(model: onnx.ModelProto, feed: Feed) -> list[str]:
    """The tensors of floating-point numbers that are computed, in that order."""
    names = [name for node in model.graph.node for name in node.output if name]
    found = zip(names, _run(model, names, [feed])[0], strict=True)
    return [name for name, values in found if values.dtype == np.float32]


def peaks_of(
    model: onnx.ModelProto, floats: Sequence[str], feeds: Sequence[Feed], *, threads: int = 1
) -> dict[str, float]:
    """Of each of these tensors the largest absolute value on some texts; and of all constants."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    # In the graph: to keep what they are the largest of takes gigabytes.
    for name in floats:
        sizes, peak = f"{name}_sizes", f"{name}_peak"
        copy.graph.node.append(helper.make_node("Abs", [name], [sizes]))
        copy.graph.node.append(helper.make_node("ReduceMax", [sizes], [peak], keepdims=0))
    runs = _run(copy, [f"{name}_peak" for name in floats], feeds, threads=threads)
    constants = {
        tensor.name: float(np.abs(numpy_helper.to_array(tensor)).max(initial=0))
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    }
    return constants | dict(zip(floats, np.max(runs, axis=0).tolist(), strict=True))


def _run(
    model: onnx.ModelProto, names: Sequence[str], feeds: Sequence[Feed], *, threads: int = 1
) -> list[list[NDArray[np.float32]]]:
    """What these tensors are for each feed."""
    known = {entry.name for entry in model.graph.output}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    # Without a type: ONNX Runtime knows it.
    copy.graph.output.extend(
        helper.make_empty_tensor_value_info(name) for name in names if name not in known
    )
    session = open_session(copy.SerializeToString(), threads=threads)
    return [session.run(list(names), dict(feed)) for feed in feeds]


def wide_nodes(graph: onnx.GraphProto, peaks: Mapping[str, float]) -> set[str]:
    """Names of the nodes that must be computed in 32 bits.

    Args:
        graph: As `prepared` made it.
        peaks: As `peaks_of` gives them.
    """
    wide: set[str] = set()
    of_sums: set[str] = set()
    for node in graph.node:
        summed = node.op_type in SUMS or any(name in of_sums for name in node.input)
        # Also where it is no number.
        large = not all(peaks.get(name, 0.0) <= LARGEST for name in (*node.input, *node.output))
        outputs = [name for name in node.output if name in peaks]
        if summed:
            of_sums.update(outputs)
        if (summed or large) and outputs:
            wide.add(node.name)
    return wide


def halved(
    model: onnx.ModelProto, *, floats: Collection[str], wide: Collection[str]
) -> onnx.ModelProto:
    """The model in 16 bits, but for its inputs and outputs and some nodes.

    Args:
        model: As `prepared` made it.
        floats: All its tensors of floating-point numbers.
        wide: Names of the nodes that stay in 32 bits.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    tensors = _Tensors(graph, floats)
    for node in model.graph.node:
        tensors.add(node, wide=node.name in wide)
    for output in graph.output:
        if output.name in tensors.floats:
            tensors.read(output.name, wide=True)
    del graph.node[:]
    graph.node.extend(tensors.nodes)
    del graph.initializer[:]
    graph.initializer.extend(tensors.constants.values())
    # It told types and shapes of what is no more.
    del graph.value_info[:]
    onnx.checker.check_model(copy)
    return copy


class _Tensors:
    """A graph in the making: each tensor in 16 bits, in 32, or both, as its readers ask for it."""

    def __init__(self, graph: onnx.GraphProto, floats: Collection[str]) -> None:
        outer = [
            entry.name
            for entry in (*graph.input, *graph.output)
            if entry.type.tensor_type.elem_type == TensorProto.FLOAT
        ]
        self.floats = {*floats, *outer}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._outer = frozenset(outer)
        self._given = {tensor.name: tensor for tensor in graph.initializer}
        self._there = {(entry.name, True) for entry in graph.input if entry.name in self._outer}

    def add(self, node: onnx.NodeProto, *, wide: bool) -> None:
        """A node, with casts before it where it needs them."""
        new = onnx.NodeProto()
        new.CopyFrom(node)
        del new.input[:], new.output[:]
        new.input.extend(self.read(name, wide=wide) for name in node.input)
        for name in node.output:
            if name in self.floats:
                self._there.add((name, wide))
                new.output.append(self._called(name, wide=wide))
            else:
                new.output.append(name)
        if not wide:
            _narrow_attributes(new)
        self.nodes.append(new)

    def read(self, name: str, *, wide: bool) -> str:
        """What a tensor is called in 16 or 32 bits; it is there from now on."""
        given = self._given.get(name)
        if given is not None:
            return self._constant(given, wide=wide)
        if name not in self.floats:
            return name
        called = self._called(name, wide=wide)
        if (name, wide) not in self._there:
            self._there.add((name, wide))
            source = self._called(name, wide=not wide)
            to = TensorProto.FLOAT if wide else TensorProto.FLOAT16
            cast = helper.make_node("Cast", [source], [called], name=f"{called}_cast", to=to)
            self.nodes.append(cast)
        return called

    def _constant(self, given: onnx.TensorProto, *, wide: bool) -> str:
        if given.data_type != TensorProto.FLOAT:
            self.constants[given.name] = given
            return given.name
        called = self._called(given.name, wide=wide)
        if called not in self.constants:
            values = numpy_helper.to_array(given)
            stored = values if wide else values.astype(np.float16)
            self.constants[called] = numpy_helper.from_array(stored, called)
        return called

    def _called(self, name: str, *, wide: bool) -> str:
        """Inputs and outputs keep their names in 32 bits, all others in 16."""
        if name in self._outer:
            return name if wide else f"{name}_float16"
        return f"{name}_float32" if wide else name


def _narrow_attributes(node: onnx.NodeProto) -> None:
    for entry in node.attribute:
        if node.op_type == "Cast" and entry.name == "to" and entry.i == TensorProto.FLOAT:
            entry.i = TensorProto.FLOAT16
        elif entry.HasField("t") and entry.t.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(entry.t).astype(np.float16)
            entry.t.CopyFrom(numpy_helper.from_array(values, entry.t.name))


def _compare(source: Graph, made: Graph, feeds: Sequence[Feed], *, threads: int) -> float:
    """The largest difference of a logit; refuses one that is no rounding."""
    before, after = (OnnxSession(graph.path, threads=threads) for graph in (source, made))
    difference = scale = 0.0
    for feed in feeds:
        expected, found = before.run(feed), after.run(feed)
        scale = max(scale, float(np.abs(expected).max()))
        # Unlike max(), it keeps what is not a number.
        difference = float(np.maximum(difference, np.abs(expected - found).max()))
    if not difference <= TOLERANCE * max(1.0, scale):
        raise StepInvalid(
            f"quantize.method is Float16, but in 16 bits logits of this model differ by up to"
            f" {difference:.2g} (the largest is {scale:.2g}); leave quantize out, or take another"
            " method"
        )
    return float(f"{difference:.3g}")
