# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn

from kompakt.api.steps import Distill, Quantize
from kompakt.jobs.compress.distill import Distillation
from kompakt.jobs.compress.graph import Graph, GraphData
from kompakt.jobs.compress.quantize_weights import WeightOnly
from kompakt.jobs.compress.simulate import rounding_of_inputs, rounding_of_weights, simulated
from kompakt.jobs.errors import StepInvalid, TrainingDiverged
from kompakt.jobs.models.export import export
from kompakt.jobs.models.session import open_session

Benches = Callable[[str], Any]
LEVELS = {8: 255, 4: 15, 2: 3, 1: 2}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices are slower on more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weight_only(bits: int, **settings: Any) -> Quantize:
    """With inputs as they are, so that nothing but weights is rounded."""
    base = {"method": "WeightOnly", "weightBits": bits, "blockSize": 32, "activations": "Float32"}
    return Quantize.model_validate(base | settings)


def exported(bench: Any, folder: Path) -> Graph:
    """The bench's model as a graph step gets it."""
    folder.mkdir()
    graph = Graph(folder)
    export(bench.encoder, graph.path, input_names=bench.data.input_names)
    return graph


def inputs_of(bench: Any, *, texts: int = 12) -> list[dict[str, torch.Tensor]]:
    """Batches of equal length."""
    return [batch.inputs for batch in bench.data.batches(range(texts), 4)]


def logits(bench: Any) -> np.ndarray[Any, Any]:
    """What the model in torch answers."""
    with torch.no_grad():
        return np.concatenate([bench.encoder(**some).numpy() for some in inputs_of(bench)])


def runtime_logits(bench: Any, graph: Graph) -> np.ndarray[Any, Any]:
    """What ONNX Runtime answers to the same batches."""
    session = open_session(graph.path, threads=1)
    feeds = [{name: t.numpy() for name, t in some.items()} for some in inputs_of(bench)]
    return np.concatenate([session.run(["logits"], feed)[0] for feed in feeds])


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "table_bits"), [(8, 8), (4, 4), (2, 4), (1, 8)])
def test_the_packed_file_answers_as_the_trained_model(
    bits: int, table_bits: int, bench_of: Benches, graph_data: GraphData, tmp_path: Path
) -> None:
    """After training for few bits each block of weights has no more values than bits can say, and
    packing it changes nothing.
    """
    bench = bench_of("bert")
    quantize = weight_only(bits, tableBits=table_bits)
    data = replace(bench.data, quantize=quantize)
    settings = Distill(examples=64, quantization_aware="Enabled", learning_rate_micros=30)
    step = Distillation(settings)
    assert step.apply(bench.encoder, data).endswith(", for quantized weights")
    linears = [m for m in bench.encoder.modules() if isinstance(m, nn.Linear)]
    assert len(linears) == 14
    for linear in linears:
        for block in linear.weight.detach().reshape(-1, 32)[:50]:
            assert len(block.unique()) <= LEVELS[bits]
    graph = exported(bench, tmp_path / "fp32")
    made, _ = WeightOnly(quantize).apply(graph, tmp_path / "packed", graph_data)
    assert max(graph_data.details["weightErrors"].values()) < 1e-5
    np.testing.assert_allclose(runtime_logits(bench, made), logits(bench), atol=1e-4)
    matrices = sum(linear.weight.numel() for linear in linears)
    saved = graph.path.stat().st_size - made.path.stat().st_size
    assert saved > matrices * (32 - bits - 1) / 8 * 0.9


@pytest.mark.slow
def test_training_for_two_bits_is_better_than_rounding_afterwards(
    bench_of: Benches, graph_data: GraphData, tmp_path: Path
) -> None:
    """With as many texts shown, the answers are nearer to the original's by far."""
    quantize = weight_only(2)
    distances = {}
    for aware in ("Enabled", "Disabled"):
        bench = bench_of("bert")
        expected = logits(bench)
        settings = {"examples": 960, "learningRateMicros": 1000, "quantizationAware": aware}
        step = Distillation(Distill.model_validate(settings))
        step.apply(bench.encoder, replace(bench.data, quantize=quantize))
        graph = exported(bench, tmp_path / aware)
        made, _ = WeightOnly(quantize).apply(graph, tmp_path / f"{aware}-packed", graph_data)
        distances[aware] = np.abs(runtime_logits(bench, made) - expected).mean()
    assert distances["Enabled"] < 0.6 * distances["Disabled"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("per_channel", "reduce_range"), [("Enabled", "Disabled"), ("Disabled", "Enabled")]
)
def test_dynamic_int8_is_simulated(
    per_channel: str,
    reduce_range: str,
    bench_of: Benches,
    tmp_path: Path,
) -> None:
    """The model in training answers nearly as ONNX Runtime does after its quantization: all that
    is left is where two ways of adding round differently, and the embedding tables.
    """
    bench = bench_of("bert")
    settings = {"perChannel": per_channel, "reduceRange": reduce_range}
    quantize = Quantize.model_validate(settings)
    exact = logits(bench)
    graph = exported(bench, tmp_path / "fp32")
    # Tables stay as they are: this is about products.
    made = Graph(tmp_path / "int8")
    made.folder.mkdir()
    quantize_dynamic(
        str(graph.path),
        str(made.path),
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=per_channel == "Enabled",
        reduce_range=reduce_range == "Enabled",
        weight_type=QuantType.QInt8,
    )
    found = runtime_logits(bench, made)
    with simulated(bench.encoder, quantize):
        simulation = logits(bench)
    assert np.abs(simulation - found).mean() < 0.15 * np.abs(exact - found).mean()


def test_inputs_are_rounded_as_the_runtime_does() -> None:
    """Of packed weights, each block of what they are multiplied with; else all values together."""
    x = torch.tensor([[-1.0, 0.5, 0.25, 3.0] * 8 + [100.0, -50.0] * 16])
    together = rounding_of_inputs(Quantize())
    assert together is not None
    step = (100.0 + 50.0) / 255
    assert torch.allclose(together(x)[0, :3], torch.tensor([-2 * step, step, 0.0]))
    blocks = rounding_of_inputs(weight_only(4, activations="Int8"))
    assert blocks is not None
    assert (blocks(x) - x).abs()[0, :32].max() <= 3.0 / 127 / 2 + 1e-6
    assert (blocks(x) - x).abs()[0, 32:].max() <= 100.0 / 127 / 2 + 1e-6
    assert rounding_of_inputs(weight_only(4)) is None
    assert rounding_of_inputs(weight_only(1, activations="Int8")) is None


def test_few_values_are_those_of_the_papers() -> None:
    """Ternary: 0 below 0.7 of the mean size, else the mean of what is above. Binary: the mean."""
    row = torch.tensor([[0.1, -0.2, 0.9, -1.1, 0.05, 0.65, -0.7, 0.3] * 2 + [0.0] * 3])
    block = row[:, :16]
    large = block.abs() > 0.7 * block.abs().mean()
    scale = block.abs()[large].mean()
    found = rounding_of_weights(weight_only(2, blockSize=16))(row)
    assert torch.allclose(found[:, :16], block.sign() * large * scale)
    assert not found[:, 16:].any()
    signs = rounding_of_weights(weight_only(1, blockSize=16))(row)
    assert torch.allclose(signs[:, :16], block.sign() * block.abs().mean())


def test_gradients_go_straight_through(bench_of: Benches) -> None:
    """A weight's gradient is that of the rounded weight in its place."""
    bench = bench_of("bert")
    inputs = inputs_of(bench)[0]
    quantize = weight_only(2)
    with simulated(bench.encoder, quantize):
        bench.encoder(**inputs).square().sum().backward()
        learning = dict(bench.encoder.named_parameters())
        name = "layers.0.up.parametrizations.weight.original"
        gradient = learning[name].grad
        assert gradient is not None
        gradient = gradient.clone()
        assert len(learning[name].detach()[0, :32].unique()) == 32
    bench.encoder.zero_grad()
    bench.encoder(**inputs).square().sum().backward()
    expected = bench.encoder.layers[0].up.weight.grad
    assert len(bench.encoder.layers[0].up.weight.detach()[0, :32].unique()) == 3
    assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_failed_training_leaves_a_model_that_can_be_stored(bench_of: Benches) -> None:
    """What is kept has the names of a checkpoint, and no hooks."""
    bench = bench_of("bert")
    names = set(bench.encoder.state_dict())
    seen = []

    def keep() -> str:
        seen.append(set(bench.encoder.state_dict()))
        return "sha256:kept"

    data = replace(bench.data, keep=keep, quantize=weight_only(8))
    settings = {"examples": 64, "learningRateMicros": 100_000, "quantizationAware": "Enabled"}
    with pytest.raises(TrainingDiverged, match="sha256:kept"):
        Distillation(Distill.model_validate(settings)).apply(bench.encoder, data)
    assert seen == [names]
    assert not any(m._forward_pre_hooks for m in bench.encoder.modules())


@pytest.mark.parametrize(
    ("quantize", "words"),
    [
        (None, "there is none: add it as the next step"),
        (Quantize(method="OpenVinoInt8"), "cannot simulate the method OpenVinoInt8; quantize by"),
    ],
)
def test_what_cannot_be_simulated_is_refused(
    quantize: Quantize | None, words: str, bench_of: Benches
) -> None:
    """Before any training, and the model is left alone."""
    bench = bench_of("bert")
    step = Distillation(Distill(examples=64, quantization_aware="Enabled"))
    with pytest.raises(StepInvalid, match=words):
        step.apply(bench.encoder, replace(bench.data, quantize=quantize))
    assert all("parametrizations" not in name for name in bench.encoder.state_dict())
