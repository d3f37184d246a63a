# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from kompakt.api.steps import Prune
from kompakt.jobs.compress.gates import Units
from kompakt.jobs.compress.latency import LatencyTable
from kompakt.jobs.compress.prune import PruneUnits, shrink
from kompakt.jobs.errors import StepInvalid
from kompakt.jobs.models.architectures import ARCHITECTURES

pytestmark = pytest.mark.slow

Benches = Callable[[str], Any]
ATTENTION, FEED_FORWARD = {0: 1.0, 1: 20.0, 4: 50.0}, {0: 1.0, 16: 10.0, 128: 50.0}
TABLE = LatencyTable(ATTENTION, FEED_FORWARD, ATTENTION, FEED_FORWARD)


def sizes(bench: Any) -> tuple[list[int], list[int]]:
    """Heads and neurons of each layer."""
    layers = bench.encoder.encoder_layers()
    return [layer.heads for layer in layers], [layer.ffn_size for layer in layers]


@pytest.mark.parametrize("importance", ["Fisher", "Movement"])
@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_every_architecture_is_pruned(model_type: str, importance: Any, bench_of: Benches) -> None:
    """Heads and neurons go to the shares asked for, and the model still follows the original."""
    bench = bench_of(model_type)
    batches = list(bench.data.batches(bench.data.order(), 32))
    with torch.no_grad():
        before = torch.cat([bench.encoder(**batch.inputs) for batch in batches])
    note = PruneUnits(
        Prune(importance=importance, ffn_keep_permille=500, head_keep_permille=750, samples=48)
    ).apply(bench.encoder, bench.data)
    heads, neurons = sizes(bench)
    assert sum(heads) == 6
    assert 112 <= sum(neurons) <= 144
    assert note == (
        f"kept heads {heads[0]} {heads[1]} of 4 and FFN neurons {neurons[0]} {neurons[1]} of 128"
    )
    with torch.no_grad():
        after = torch.cat([bench.encoder(**batch.inputs) for batch in batches])
    assert float((after - before).norm() / before.norm()) < 0.9


def test_the_report_says_why(bench_of: Benches) -> None:
    """The importances, the sizes and the fit's errors are there, and fit into JSON."""
    bench = bench_of("roberta")
    PruneUnits(Prune(head_keep_permille=500, ffn_keep_permille=500, samples=32)).apply(
        bench.encoder, bench.data
    )
    details = json.loads(json.dumps(bench.data.details["prune"]))
    heads, neurons = sizes(bench)
    assert (details["samples"], details["labelled"]) == (32, 32)
    assert (details["headsBefore"], details["headsAfter"]) == ([4, 4], heads)
    assert (details["neuronsBefore"], details["neuronsAfter"]) == ([128, 128], neurons)
    for scores, kept in zip(details["headImportance"], heads, strict=True):
        assert len(scores) == 4
        assert kept >= 1
    for quantiles in details["neuronImportance"]:
        assert len(quantiles) == 11
        assert quantiles == sorted(quantiles)
    assert len(details["relativeRefitErrors"]["attention"]) == 2


def test_layers_go_and_the_rest_is_pruned(bench_of: Benches) -> None:
    """A share is of the layers that are left."""
    bench = bench_of("distilbert")
    note = PruneUnits(Prune(drop_layers=1, head_keep_permille=500, samples=32)).apply(
        bench.encoder, bench.data
    )
    assert sizes(bench) == ([2], [128])
    assert note == "dropped 1 of 2 layers, kept heads 2 of 4 and FFN neurons 128 of 128"
    (drop,) = bench.data.details["prune"]["layersDropped"]
    assert drop["layer"] in {0, 1}
    assert drop["divergence"] > 0


@pytest.mark.parametrize("permille", [300, 600, 1000])
@pytest.mark.parametrize("drop", [0, 1])
def test_a_latency_budget_is_kept(permille: int, drop: int, bench_of: Benches) -> None:
    """The estimate is within the share of what the model took before layers went."""
    bench = bench_of("electra")
    asked: list[Any] = []

    def table(_encoder: Any, lengths: list[int], precision: str) -> LatencyTable:
        asked.append((len(lengths), precision))
        return TABLE

    data = replace(bench.data, latency_table=table)
    note = PruneUnits(Prune(latency_keep_permille=permille, drop_layers=drop, samples=32)).apply(
        bench.encoder, data
    )
    estimate = TABLE.estimate(bench.encoder.encoder_layers())
    assert estimate <= 0.2 * permille * (1 + 1e-6)
    if permille == 300 or not drop:
        assert estimate > 0.7 * 0.2 * permille, "the budget is used"
    assert asked == [(32, "Int8")]
    assert note.endswith(f"{estimate / 200:.0%} of the layers' latency")
    details = data.details["prune"]
    assert details["latency"]["microsecondsBefore"] == 200.0
    assert details["latency"]["microsecondsAfter"] == pytest.approx(estimate, rel=1e-3)
    assert len(details["sensitivity"]["attention"]) == 2 - drop


def test_texts_of_another_length_may_count(bench_of: Benches) -> None:
    """Attention grows with the square of the length: a model for long texts keeps fewer heads, and
    more neurons, than one for texts like those that it is pruned with.
    """
    kept, asked = [], []

    def table(_encoder: Any, lengths: list[int], _precision: str) -> LatencyTable:
        asked.append(lengths)
        attention = {heads: 10 + heads * max(lengths) ** 2 / 100 for heads in range(5)}
        feed_forward = {neurons: 10 + neurons * max(lengths) / 50 for neurons in (0, 16, 128)}
        return LatencyTable(attention, feed_forward, attention, feed_forward)

    for tokens in (None, 512):
        bench = bench_of("electra")
        data = replace(bench.data, latency_table=table)
        step = PruneUnits(Prune(latency_keep_permille=500, latency_tokens=tokens, samples=32))
        step.apply(bench.encoder, data)
        kept.append([sum(counts) for counts in sizes(bench)])
    assert len(asked[0]) == 32
    assert asked[1] == [512]
    assert kept[1][0] < kept[0][0]
    assert kept[1][1] > kept[0][1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop_layers": 2}, r"dropLayers is 2, but the model has 2 layers; leave at least one"),
        (
            {"latency_keep_permille": 20},
            r"latencyKeepPermille is 20, but 2 layers .* would still take 250 permille; raise it",
        ),
        ({"latency_keep_permille": 500}, r"latencyKeepPermille needs a pod to measure on"),
    ],
    ids=["all layers", "least", "no table"],
)
def test_what_cannot_be_done_is_refused(
    changes: dict[str, Any], message: str, bench_of: Benches
) -> None:
    """Each with the parameter and the mend."""
    bench = bench_of("bert")
    costly = LatencyTable(*({0: 10.0, 4: 40.0}, {0: 10.0, 128: 40.0}) * 2)
    if "no table" not in message and "needs a pod" not in message:
        bench = replace(bench, data=replace(bench.data, latency_table=lambda *_: costly))
    with pytest.raises(StepInvalid, match=message):
        PruneUnits(Prune(samples=16, **changes)).apply(bench.encoder, bench.data)


def test_nothing_to_prune_changes_nothing(bench_of: Benches) -> None:
    """A search may come to a step that keeps everything."""
    bench = bench_of("bert")
    before = {name: tensor.clone() for name, tensor in bench.encoder.state_dict().items()}
    assert PruneUnits(Prune()).apply(bench.encoder, bench.data) == "nothing pruned"
    after = bench.encoder.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_pruning_twice_is_pruning_on(bench_of: Benches) -> None:
    """Shares are of what the step finds, also where a layer lost everything before."""
    bench = bench_of("bert")
    none = torch.arange(0)
    shrink(bench.encoder, Units([none, torch.arange(4)], [torch.arange(128), none]))
    step = PruneUnits(Prune(head_keep_permille=500, ffn_keep_permille=500, samples=32))
    step.apply(bench.encoder, bench.data)
    assert sizes(bench) == ([0, 2], [64, 0])
    note = step.apply(bench.encoder, bench.data)
    assert sizes(bench) == ([0, 1], [32, 0])
    assert note == "kept heads 0 1 of 2 and FFN neurons 32 0 of 64"


def test_the_same_seed_keeps_the_same_units(bench_of: Benches) -> None:
    """A Job that runs again prunes alike; another seed looks at other samples."""
    first, again, other = bench_of("bert"), bench_of("bert"), bench_of("bert")
    step = PruneUnits(Prune(ffn_keep_permille=500, samples=16))
    step.apply(first.encoder, first.data)
    step.apply(again.encoder, again.data)
    step.apply(other.encoder, replace(other.data, seed=1))
    weights = [bench.encoder.state_dict()["layers.0.up.weight"] for bench in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
