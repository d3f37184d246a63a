# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from tests.jobs.compress.conftest import make_bench
from torch import nn

from kompakt.jobs.analysis.fragility import Fragility, Rounding, fragility
from kompakt.jobs.compress.findings import Findings
from kompakt.jobs.compress.importance import fisher
from kompakt.jobs.compress.low_rank import Place
from kompakt.jobs.models.session import open_session

pytestmark = pytest.mark.slow

Benches = Callable[[str], Any]


@pytest.fixture
def bench(checkpoint_of: Callable[[str], Path]) -> Any:
    """A tiny model and its texts."""
    return make_bench(checkpoint_of("bert"), texts=40)


def look(bench: Any, *, seconds: float = 60.0) -> Fragility:
    """At all texts."""
    batches = bench.data.batches(list(range(len(bench.data))), 8)
    return fragility(
        bench.encoder, batches, labels=bench.data.labels, seconds=seconds, findings=Findings()
    )


def test_the_error_is_that_of_onnx_runtime(tmp_path: Path) -> None:
    """Of its dynamic quantization of the same product; it has its own way to choose scales."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(64, 32)).astype(np.float32)
    x = rng.normal(1.0, 2.0, size=(200, 64)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 32])],
        [numpy_helper.from_array(weight, "w")],
    )
    source, target = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(source))
    quantize_dynamic(str(source), str(target), per_channel=True, weight_type=QuantType.QInt8)
    exact = x @ weight
    (rounded,) = open_session(target, threads=1).run(None, {"x": x})
    expected = np.linalg.norm(rounded - exact) / np.linalg.norm(exact - exact.mean(axis=0))
    linear = nn.Linear(64, 32)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight.T))
        linear.bias.zero_()
        rounding = Rounding(linear)
        for part in torch.from_numpy(x).split(200):
            rounding.add(part, linear(part))
    assert rounding.relative_error == pytest.approx(expected, rel=0.05)
    assert 0.001 < expected < 0.05


def test_what_it_costs_is_seen_in_the_loss(bench: Any) -> None:
    """To second order: the loss of a small random error on a matrix's outputs, by the gradients."""
    found = look(bench)
    place = Place(1, "up")
    rounding = found.matrices[place]
    layer = bench.encoder.encoder_layers()[1]
    squares, tokens, errors = 0.0, 0, 0.0
    weight = rounding._weight
    for index in range(len(bench.data)):
        (batch,) = bench.data.batches([index], 1)
        kept: list[torch.Tensor] = []

        def keep(_module: Any, inputs: Any, output: torch.Tensor, kept: list[Any] = kept) -> None:
            output.retain_grad()
            kept.extend((inputs[0].detach(), output))

        handle = layer.up.register_forward_hook(keep)
        loss = nn.functional.cross_entropy(
            bench.encoder(**batch.inputs), torch.tensor([bench.data.labels[index]])
        )
        handle.remove()
        loss.backward()
        x, y = kept
        assert y.grad is not None
        squares += float(y.grad.square().sum())
        tokens += x.shape[1]
        # Without the rounding of activations, whose ranges are those of batches.
        errors += float((x @ (weight - layer.up.weight.detach()).T).square().sum())
    expected = squares / len(bench.data) * errors / tokens / layer.ffn_size / 2
    assert expected < rounding.loss(found.texts) < 10 * expected


def test_units_have_their_fisher_information(bench: Any) -> None:
    """The mean over the texts, and the model is as it was."""
    (batch,) = bench.data.batches([0], 1)
    with torch.no_grad():
        before = bench.encoder(**batch.inputs)
    found = look(bench)
    batches = list(bench.data.batches(list(range(len(bench.data))), 8))
    expected = fisher(bench.encoder, batches, labels=bench.data.labels)
    for ours, theirs in zip(found.units.all, expected.all, strict=True):
        assert torch.allclose(ours * len(bench.data), theirs, rtol=1e-4)
    with torch.no_grad():
        assert torch.equal(bench.encoder(**batch.inputs), before)
    assert all(parameter.requires_grad for parameter in bench.encoder.parameters())
    assert not any(module._forward_hooks for module in bench.encoder.modules())


def test_the_document_is_small_and_whole(bench: Any) -> None:
    """Every matrix of the layers, every head, and deciles of the neurons."""
    wire = look(bench).to_wire()
    assert (wire["texts"], wire["labelled"]) == (40, 40)
    assert [len(layer) for layer in wire["headFisher"]] == [4, 4]
    assert [len(layer) for layer in wire["neuronFisherDeciles"]] == [11, 11]
    assert len(wire["int8"]) == 12
    assert all(0 < entry["relativeError"] < 0.2 for entry in wire["int8"].values())
    assert all(entry["nats"] > 0 for entry in wire["int8"].values())


def test_time_is_bounded(bench: Any) -> None:
    """At least one batch is looked at."""
    assert look(bench, seconds=-1.0).texts == 8
