# SPDX-License-Identifier: Apache-2.0
"""No step makes a tensor anywhere but where the model is.

There is no GPU to test on, so the roles are swapped: the model is on the CPU, and whatever is made
without saying where lands on torch's `meta` device, which has no numbers. With the model, it gives
an error or numbers that nobody can read; and the result must be the one without that trick.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.jobs.conftest import write_checkpoint

import kompakt.jobs.analysis
import kompakt.jobs.compress
from kompakt.api.recipe import Step
from kompakt.api.steps import Quantize
from kompakt.jobs.analysis.fragility import fragility
from kompakt.jobs.compress import precision
from kompakt.jobs.compress.agreement import Rule
from kompakt.jobs.compress.findings import Findings
from kompakt.jobs.compress.gates import Units
from kompakt.jobs.compress.held_out import look
from kompakt.jobs.compress.importance import fisher
from kompakt.jobs.compress.sensitivity import sensitivity
from kompakt.jobs.compress.simulate import simulated
from kompakt.jobs.compress.steps import torch_step
from kompakt.jobs.data.examples import Example
from kompakt.jobs.models.architectures import ARCHITECTURES
from kompakt.jobs.models.checkpoint import inspect
from kompakt.jobs.models.encoder import Encoder
from kompakt.jobs.models.load import load, save

from .conftest import WORDS, Bench, make_bench

pytestmark = pytest.mark.slow

CPU, META = torch.device("cpu"), torch.device("meta")
FEW = {"samples": 32}
DISTILL = {"examples": 64, "batchSize": 16, "precision": "Float32"}
INSIDE = DISTILL | {"hiddenWeightPermille": 500, "relationWeightPermille": 500}
HALF = {"ffnKeepPermille": 500}
SLOW = pytest.mark.slow
STEPS = [
    pytest.param([{"prune": FEW | HALF | {"headKeepPermille": 500}}], id="fisher"),
    pytest.param([{"prune": FEW | {"dropLayers": 1}}], id="layers"),
    pytest.param([{"lowRank": FEW | {"keepPermille": 500}}], id="low rank"),
    pytest.param([{"distill": DISTILL | {"labelWeightPermille": 500}}], id="labels"),
    pytest.param([{"trimVocabulary": {}}, {"distill": INSIDE}], id="inside", marks=SLOW),
    pytest.param([{"distill": DISTILL | {"quantizationAware": "Enabled"}}], id="aware", marks=SLOW),
    pytest.param([{"prune": FEW | HALF | {"importance": "Movement"}}], id="movement", marks=SLOW),
    pytest.param(
        [{"prune": HALF | {"importance": "L0", "sparsityExamples": 64}}], id="l0", marks=SLOW
    ),
]


@contextmanager
def nowhere() -> Iterator[None]:
    """What is made here without a device has no numbers."""
    with META:
        assert torch.zeros(1).is_meta
        yield


def weights(encoder: Encoder) -> dict[str, torch.Tensor]:
    """By name, on the CPU all of them."""
    found = {name: tensor.detach() for name, tensor in encoder.state_dict().items()}
    assert {tensor.device for tensor in found.values()} == {CPU}
    return found


def require_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def changed(
    bench: Bench, original: Encoder, steps: Sequence[dict[str, Any]]
) -> dict[str, torch.Tensor]:
    """The weights after some steps."""
    data = replace(bench.data, original=lambda: original, device=CPU, quantize=Quantize())
    for step in steps:
        torch_step(Step.model_validate(step)).apply(bench.encoder, data)
    return weights(bench.encoder)


@pytest.mark.parametrize("steps", STEPS)
def test_steps_stay_on_the_models_device(
    steps: list[dict[str, Any]],
    bench_of: Callable[[str], Bench],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All that trains, measures importance, prunes, fits and factors."""
    # Which arithmetic is faster is another matter, and may differ from run to run.
    monkeypatch.setattr(precision, "LEAST_GAIN", math.inf)
    one, other = bench_of("bert"), bench_of("bert")
    originals = load(one.checkpoint), load(one.checkpoint)
    expected = changed(one, originals[0], steps)
    with nowhere():
        found = changed(other, originals[1], steps)
    require_same(found, expected)


def test_windows_stay_on_the_models_device(tmp_path: Path) -> None:
    """Those of layers that look around themselves."""
    rng = random.Random(0)
    examples = tuple(Example(" ".join(rng.choices(WORDS, k=24))) for _ in range(130))
    found = []
    for place in (nullcontext, nowhere):
        made = make_bench(write_checkpoint(tmp_path / place.__name__), texts=1)
        dataset = replace(made.data.dataset, examples=examples)
        data = replace(made.data, dataset=dataset, labels=[None] * len(examples), device=CPU)
        step = {"windowTokens": 16, "minAgreementBasisPoints": 5000, "samples": 128}
        with place():
            torch_step(Step.model_validate({"attentionScope": step})).apply(made.encoder, data)
        assert [layer.window for layer in made.encoder.encoder_layers()] == [16, 0]
        found.append(data.details["attentionScope"])
    assert found[0] == found[1]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_rounded_weights_stay_on_the_models_device(
    bits: int, bench_of: Callable[[str], Bench]
) -> None:
    """Blocks and their counts too."""
    quantize = Quantize.model_validate({"method": "WeightOnly", "weightBits": bits})
    one, other = bench_of("bert").encoder, bench_of("bert").encoder
    with simulated(one, quantize):
        pass
    with nowhere(), simulated(other, quantize):
        pass
    require_same(weights(other), weights(one))


def test_measures_stay_on_the_models_device(bench_of: Callable[[str], Bench]) -> None:
    """Sensitivity, the gates of stages, and the analysis of a baseline."""
    bench = bench_of("bert")
    data, encoder = replace(bench.data, device=CPU), bench.encoder
    batches = list(data.batches(range(24), 8))

    def measures() -> list[Any]:
        scores = fisher(encoder, batches[:2], labels=data.labels)
        whole = Units(scores.heads, scores.neurons)
        curves = sensitivity(encoder, whole, fit_on=batches, check_on=batches[:1])
        check = look(encoder, data, data.dataset, data.labels, Rule())
        found = fragility(encoder, batches[:1], labels=data.labels, seconds=60, findings=Findings())
        return [[curve.points for curve in curves], check, found.to_wire()]

    expected = measures()
    with nowhere():
        assert measures() == expected


def test_random_signs_stay_on_the_models_device(tmp_path: Path) -> None:
    """Those of an embedding's Fisher information: the same numbers on any device."""
    folder = write_checkpoint(tmp_path / "model", embeds=True)
    bench = make_bench(folder, texts=32)
    batches = list(bench.data.batches(range(8), 4))
    expected = fisher(bench.encoder, batches, labels=bench.data.labels).all
    with nowhere():
        found = fisher(bench.encoder, batches, labels=bench.data.labels).all
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", [*sorted(ARCHITECTURES), "tokens", "embedding"])
def test_a_model_that_was_moved_answers_where_it_is(kind: str, tmp_path: Path) -> None:
    """Also what is no weight moves along: masks, positions and distances."""
    folder = write_checkpoint(
        tmp_path / "model",
        kind if kind in ARCHITECTURES else "bert",
        each_token=kind == "tokens",
        embeds=kind == "embedding",
    )
    bench = make_bench(folder, texts=32)
    encoder = load(bench.checkpoint)
    assert encoder.device == CPU
    data = replace(bench.data, device=META)
    (batch,) = data.batches(range(4), 4)
    logits = encoder.to(META)(**batch.inputs)
    assert encoder.device == logits.device == batch.tokens.device == META
    assert logits.shape[0] == 4
    relative = encoder.encoder_layers()[0].relative
    assert relative is None or relative.index(3).device == META


def test_checkpoints_are_stored_from_the_cpu(tmp_path: Path) -> None:
    """What was trained elsewhere comes back to be stored: numbers of no device cannot."""
    checkpoint = inspect(write_checkpoint(tmp_path / "model"), origin="test")
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta"):
        save(load(checkpoint).to(META), checkpoint, tmp_path / "stored")


def test_numbers_leave_and_enter_by_name() -> None:
    """To numpy, which has no devices, goes what is brought back first; what comes of it is sent
    on. Exceptions work on the CPU: teachers' answers are sorted there, rounded tables copied over.
    """
    allowed = {
        "lesson.py": "logits = torch.from_numpy(data.teacher(texts))",
        "simulate.py": "table.weight.copy_(torch.from_numpy(rounded))",
        "latency.py": "tuple(torch.from_numpy(array) for array in arrays.values()),",
    }
    rooms = [*kompakt.jobs.compress.__path__, *kompakt.jobs.analysis.__path__]
    files = [path for room in rooms for path in Path(room).glob("*.py")]
    assert len(files) > 30
    for path in files:
        for line in path.read_text().splitlines():
            assert ".numpy()" not in line, (path.name, line)
            sent = re.search(r"from_numpy\(.*\.to\(", line)
            known = line.strip() == allowed.get(path.name)
            assert sent or known or "from_numpy" not in line, (path.name, line)
