# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from kompakt.api.recipe import Step
from kompakt.api.steps import LowRank, Prune, Quantize
from kompakt.jobs.compress.graph import Graph, GraphData
from kompakt.jobs.compress.low_rank import (
    FactorMatrices,
    Option,
    Place,
    Spectrum,
    allocate,
    observe,
    whole_matrices,
)
from kompakt.jobs.compress.prune import PruneUnits
from kompakt.jobs.compress.quantize import constant_matrices
from kompakt.jobs.compress.steps import METHODS, split, torch_step
from kompakt.jobs.errors import ModelUnsupported, StepInvalid
from kompakt.jobs.models.architectures import MATRICES
from kompakt.jobs.models.checkpoint import inspect
from kompakt.jobs.models.encoder import Factored
from kompakt.jobs.models.export import export, parity
from kompakt.jobs.models.load import load, save

from .conftest import answers

pytestmark = pytest.mark.slow

Benches = Callable[[str], Any]


def traffic(bench: Any, module: nn.Module, indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """What a module reads and gives over the tokens of some texts."""
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for index in indices:  # one by one, so that there is no padding
        (batch,) = bench.data.batches([index], 1)
        handle = module.register_forward_hook(
            lambda _module, inputs, output: found.append((inputs[0][0], output[0]))
        )
        with torch.no_grad():
            bench.encoder(**batch.inputs)
        handle.remove()
    x, y = (torch.cat(parts).double().numpy() for parts in zip(*found, strict=True))
    return x, y


@pytest.mark.parametrize("name", ["query", "up", "down"])
def test_the_error_on_activations_is_the_least_there_is(bench_of: Benches, name: str) -> None:
    """As small as numpy's best approximation of the outputs by that rank, about their mean."""
    bench, rank = bench_of("bert"), 16
    indices = list(range(40))
    place = Place(1, name)
    layer = bench.encoder.encoder_layers()[1]
    x, y = traffic(bench, layer.matrix(name), indices)
    seen = observe(bench.encoder, list(bench.data.batches(indices, 16)), labels=bench.data.labels)
    spectrum = Spectrum.of(whole_matrices(bench.encoder)[place], seen[place])
    factored = layer.factor(name, rank)
    spectrum.fill(factored)
    assert layer.matrix(name) is factored
    assert (factored.in_features, factored.rank, factored.out_features) == (
        x.shape[1],
        rank,
        y.shape[1],
    )
    with torch.no_grad():
        found = factored(torch.from_numpy(x).float()).double().numpy()
    sizes = np.linalg.svd(y - y.mean(axis=0), compute_uv=False)
    best = (sizes[rank:] ** 2).sum() / len(y)
    error = ((found - y) ** 2).sum(axis=1).mean()
    assert error == pytest.approx(best, rel=1e-3)
    assert spectrum.error(rank) == pytest.approx(best, rel=1e-3)
    relative = (best * len(y) / ((y - y.mean(axis=0)) ** 2).sum()) ** 0.5
    assert spectrum.relative_error(rank) == pytest.approx(relative, rel=1e-3)


def test_activations_count_not_weights(bench_of: Benches) -> None:
    """Cutting the weights' own singular values leaves a larger error on what goes through them."""
    bench, rank = bench_of("bert"), 16
    layer = bench.encoder.encoder_layers()[0]
    weight = layer.down.weight.detach().double().numpy()
    indices = list(range(40))
    x, _ = traffic(bench, layer.down, indices)
    left, sizes, right = np.linalg.svd(weight, full_matrices=False)
    cut = (left[:, :rank] * sizes[:rank]) @ right[:rank]
    naive = (((x - x.mean(axis=0)) @ (weight - cut).T) ** 2).sum(axis=1).mean()
    seen = observe(bench.encoder, list(bench.data.batches(indices, 16)), labels=bench.data.labels)
    spectrum = Spectrum.of(layer.down, seen[Place(0, "down")])
    assert spectrum.error(rank) < 0.9 * naive


def test_gradients_are_those_of_autograd(bench_of: Benches) -> None:
    """Summed squares by output, text by text, padded places left out; nothing stays behind."""
    bench = bench_of("electra")
    indices = list(range(6))
    seen = observe(bench.encoder, list(bench.data.batches(indices, 3)), labels=bench.data.labels)
    layer = bench.encoder.encoder_layers()[0]
    expected = 0.0
    for index in indices:
        (batch,) = bench.data.batches([index], 1)
        kept: list[torch.Tensor] = []

        def keep(_module: Any, _inputs: Any, output: torch.Tensor, kept: list[Any] = kept) -> None:
            output.retain_grad()
            kept.append(output)

        handle = layer.up.register_forward_hook(keep)
        logits = bench.encoder(**batch.inputs)
        handle.remove()
        label = torch.tensor([bench.data.labels[index]])
        nn.functional.cross_entropy(logits, label).backward()
        assert kept[0].grad is not None
        expected += float(kept[0].grad.square().sum())
    assert seen[Place(0, "up")].gradient == pytest.approx(expected, rel=1e-4)
    assert all(found.gradient > 0 for found in seen.values())
    assert not any(module._forward_hooks for module in bench.encoder.modules())
    assert all(parameter.requires_grad for parameter in bench.encoder.parameters())


options = st.lists(
    st.lists(
        st.builds(Option, cost=st.integers(1, 30), loss=st.integers(0, 40).map(float)),
        min_size=1,
        max_size=4,
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(options=options, share=st.floats(0, 1))
def test_no_choice_of_the_same_cost_loses_less(options: list[list[Option]], share: float) -> None:
    """Within the budget, and the best of all choices that cost no more than the chosen one."""
    least = sum(min(o.cost for o in some) for some in options)
    most = sum(max(o.cost for o in some) for some in options)
    budget = least + int(share * (most - least))
    chosen = allocate(options, budget)
    assert all(option in some for option, some in zip(chosen, options, strict=True))
    cost = sum(option.cost for option in chosen)
    assert cost <= budget
    best = min(
        sum(option.loss for option in way)
        for way in product(*options)
        if sum(option.cost for option in way) <= cost
    )
    assert sum(option.loss for option in chosen) == pytest.approx(best)


def test_the_budget_is_used_up_to_the_next_rank() -> None:
    """Of matrices that are all alike, as many as possible get another rank."""
    alike = [Option(20, 0.0), Option(4, 9.0, 1), Option(8, 3.0, 2), Option(12, 1.0, 3)]
    ranks = [option.rank for option in allocate([alike] * 4, 39)]
    assert sorted(rank for rank in ranks if rank) == [2, 2, 2, 3]


@pytest.mark.parametrize("keep", [450, 600, 900])
def test_the_budget_is_kept(bench_of: Benches, keep: int) -> None:
    """All matrices together have at most their share of numbers, and the report says how many."""
    bench = bench_of("bert")
    before = sum(
        layer.matrix(name).weight.numel()
        for layer in bench.encoder.encoder_layers()
        for name in MATRICES
    )
    note = FactorMatrices(LowRank(keep_permille=keep, samples=32)).apply(bench.encoder, bench.data)
    after = 0
    factored = 0
    for layer in bench.encoder.encoder_layers():
        for name in MATRICES:
            module = layer.matrix(name)
            after += sum(p.numel() for p in module.parameters() if p.dim() == 2)
            if isinstance(module, Factored):
                factored += 1
                whole = module.in_features * module.out_features
                assert module.rank * (module.in_features + module.out_features) < whole
    details = bench.data.details["lowRank"]
    assert (details["numbersBefore"], details["numbersAfter"]) == (before, after)
    assert 0 < after <= before * keep // 1000
    assert len(details["matrices"]) == factored > 0
    assert note == f"{factored} of 12 matrices in two factors, {after:,} of {before:,} numbers left"


def test_a_factored_model_is_saved_and_loaded(bench_of: Benches, tmp_path: Path) -> None:
    """Its checkpoint is one like any other, for every architecture."""
    for model_type in ("bert", "roberta", "distilbert", "electra"):
        bench = bench_of(model_type)
        bench.encoder.encoder_layers()[0].keep_heads(torch.tensor([0, 2, 3]))
        FactorMatrices(LowRank(keep_permille=500, samples=32)).apply(bench.encoder, bench.data)
        save(bench.encoder, bench.checkpoint, tmp_path / model_type)
        again = inspect(tmp_path / model_type, origin="test")
        assert again.head_counts == (3, 4)
        assert again.ffn_sizes == (128, 128)
        assert again.ranks
        assert again.parameters == bench.encoder.parameter_count
        (batch,) = bench.data.batches(list(range(8)), 8)
        with torch.no_grad():
            assert torch.equal(load(again)(**batch.inputs), bench.encoder(**batch.inputs))


BROKEN: dict[str, tuple[dict[str, tuple[int, ...] | None], str]] = {
    "whole and in factors": ({"query.weight": (64, 64)}, "whole and in two factors"),
    "no second": ({"query.second.weight": None}, "lacks 1 weights, first of them .*second.weight"),
    "no product": ({"query.second.weight": (64, 32)}, "64 x 32, which cannot be multiplied by"),
    "no matrix": ({"query.first.weight": (16,)}, "cannot be multiplied by .*, 16; save"),
    "not so large": ({"query.second.weight": (48, 16)}, "weights ask for 48 x 64; save"),
}


@pytest.mark.parametrize(("changes", "words"), BROKEN.values(), ids=BROKEN)
def test_factors_that_do_not_fit_are_refused(
    bench_of: Benches,
    tmp_path: Path,
    changes: dict[str, tuple[int, ...] | None],
    words: str,
) -> None:
    """Before anything is loaded, and the weight is named."""
    bench = bench_of("bert")
    bench.encoder.encoder_layers()[1].factor("query", 16)
    save(bench.encoder, bench.checkpoint, tmp_path / "factored")
    path = tmp_path / "factored" / "model.safetensors"
    weights = load_file(path)
    for name, shape in changes.items():
        full = f"bert.encoder.layer.1.attention.self.{name}"
        weights.pop(full, None)
        if shape is not None:
            weights[full] = torch.zeros(shape)
    save_file(weights, path)
    with pytest.raises(ModelUnsupported, match=words):
        inspect(tmp_path / "factored", origin="test")


def test_only_matrices_of_layers_have_factors(bench_of: Benches) -> None:
    """Factors of anything else are weights that the encoder does not know."""
    architecture = bench_of("bert").checkpoint.architecture
    names = ["classifier.first.weight", "bert.encoder.layer.0.output.dense.first.weight"]
    assert list(architecture.ours(names).values()) == ["layers.0.down.first.weight"]


def factored_graph(bench: Any, folder: Path) -> tuple[Graph, int]:
    """A model with some of its matrices in factors, exported; and its constant products."""
    FactorMatrices(LowRank(keep_permille=600, samples=32)).apply(bench.encoder, bench.data)
    graph = Graph(folder)
    folder.mkdir()
    export(bench.encoder, graph.path, input_names=bench.data.input_names)
    factored = sum(isinstance(module, Factored) for module in bench.encoder.modules())
    assert 0 < factored < 12
    return graph, 12 + 2 + factored


def test_a_factored_matrix_is_two_products_in_the_graph(bench_of: Benches, tmp_path: Path) -> None:
    """And the graph answers as torch does."""
    bench = bench_of("bert")
    graph, expected = factored_graph(bench, tmp_path / "fp32")
    assert constant_matrices(onnx.load(str(graph.path))) == expected
    encodings = bench.data.encodings[:8]
    names = bench.data.input_names
    assert parity(bench.encoder, graph.path, encodings, input_names=names, pad_id=0, threads=1)


@pytest.mark.parametrize(
    "method",
    ["DynamicInt8", "StaticInt8", pytest.param("OpenVinoInt8", marks=pytest.mark.slow)],
)
def test_both_factors_become_int8(
    bench_of: Benches, graph_data: GraphData, tmp_path: Path, method: str
) -> None:
    """By every method, and the answers stay close."""
    graph, expected = factored_graph(bench_of("bert"), tmp_path / "fp32")
    parameters = Quantize.model_validate({"method": method, "samples": 16})
    step = METHODS[method].make(parameters)
    made, note = step.apply(graph, tmp_path / "int8", graph_data)
    assert f"{expected} matrices and " in note
    exact, quantized = (answers(some, graph_data) for some in (graph, made))
    assert np.corrcoef(exact.ravel(), quantized.ravel())[0, 1] > 0.9


def test_factors_learn(bench_of: Benches) -> None:
    """Distillation brings a factored model nearer to the original, and leaves it factored."""
    bench = bench_of("bert")
    FactorMatrices(LowRank(keep_permille=500, samples=32)).apply(bench.encoder, bench.data)
    texts = bench.data.dataset.texts
    teacher = torch.from_numpy(bench.data.teacher(texts)).softmax(dim=1)

    def divergence() -> float:
        found = []
        for index in range(len(texts)):
            (batch,) = bench.data.batches([index], 1)
            with torch.no_grad():
                found.append(bench.encoder(**batch.inputs)[0].log_softmax(dim=0))
        return float(nn.functional.kl_div(torch.stack(found), teacher, reduction="batchmean"))

    before, ranks = divergence(), ranks_of(bench)
    distillation = torch_step(Step.model_validate({"distill": {"examples": 192}}))
    distillation.apply(bench.encoder, bench.data)
    assert divergence() < 0.8 * before
    assert ranks_of(bench) == ranks


def ranks_of(bench: Any) -> list[int]:
    """In the order of the modules."""
    return [module.rank for module in bench.encoder.modules() if isinstance(module, Factored)]


def test_too_small_a_budget_is_refused(bench_of: Benches) -> None:
    """The message says what is possible."""
    bench = bench_of("bert")
    with pytest.raises(StepInvalid, match=r"keepPermille is 100, but .* less than \d+ permille"):
        FactorMatrices(LowRank(keep_permille=100, samples=32)).apply(bench.encoder, bench.data)


def test_what_is_factored_is_neither_pruned_nor_factored_again(bench_of: Benches) -> None:
    """Even where the factors came with the checkpoint."""
    bench = bench_of("bert")
    for layer in bench.encoder.encoder_layers():
        for name in MATRICES:
            layer.factor(name, 16)
    with pytest.raises(StepInvalid, match="lowRank must come after it"):
        PruneUnits(Prune(ffn_keep_permille=500)).apply(bench.encoder, bench.data)
    with pytest.raises(StepInvalid, match="no matrix that is whole"):
        FactorMatrices(LowRank()).apply(bench.encoder, bench.data)


def test_pruning_comes_first() -> None:
    """Rows and columns of a product are no units any more."""
    steps = [Step(low_rank=LowRank()), Step(prune=Prune())]
    with pytest.raises(StepInvalid, match="lowRank must come after it"):
        split(steps)
    assert split(steps[::-1])[0] == steps[::-1]
