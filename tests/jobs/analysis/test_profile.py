# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from kompakt.jobs.analysis.profile import EMBEDDINGS, HEAD, Feed, parts_of, profile
from kompakt.jobs.artifact import count_parameters
from kompakt.jobs.models.architectures import ARCHITECTURES
from kompakt.jobs.models.checkpoint import inspect
from kompakt.jobs.models.export import export
from kompakt.jobs.models.load import load

Models = Callable[[str], Path]
IN_LAYERS = [f"layers.{n}.{half}" for n in range(2) for half in ("attention", "feedForward")]
TOKENS = (5, 30, 12)


@pytest.fixture
def model_of(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> Models:
    """Exports an architecture's tiny model."""

    def make(model_type: str) -> Path:
        checkpoint = inspect(checkpoint_of(model_type), origin="test")
        path = tmp_path / f"{model_type}.onnx"
        export(load(checkpoint), path, input_names=checkpoint.architecture.input_names)
        return path

    return make


def feeds(model_type: str, *lengths: int) -> list[Feed]:
    """A text of each length."""
    names = ARCHITECTURES[model_type].input_names
    return [
        {name: np.full((1, n), int(name != "token_type_ids"), dtype=np.int64) for name in names}
        for n in lengths
    ]


@pytest.mark.parametrize("model_type", ["bert", "electra"])
def test_every_part_is_found_with_its_numbers(
    model_type: str, model_of: Models, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """Time in each; parameters as the torch model has them; the scores of the longest text are the
    largest tensor of attention, its neurons that of the feed-forward network.
    """
    model = model_of(model_type)
    found, texts = profile(model, feeds(model_type, *TOKENS), threads=1, scratch=tmp_path)
    assert (list(found), texts) == ([EMBEDDINGS, *IN_LAYERS, HEAD], 3)
    encoder = load(inspect(checkpoint_of(model_type), origin="test"))
    layer = encoder.encoder_layers()[0]
    halves = {
        "attention": (layer.query, layer.key, layer.value, layer.attended, layer.attention_norm),
        "feedForward": (layer.up, layer.down, layer.norm),
    }
    for name in IN_LAYERS:
        cost = found[name]
        half = name.rpartition(".")[2]
        numbers = sum(p.numel() for module in halves[half] for p in module.parameters())
        assert cost.parameters == numbers
        assert cost.weight_bytes == 4 * numbers
        assert cost.microseconds > 0
        values = layer.heads * max(TOKENS) if half == "attention" else layer.ffn_size
        assert cost.activation_bytes == 4 * values * max(TOKENS)
        assert set(cost.operators) >= {"MatMul", "LayerNormalization"}
    assert sum(cost.parameters for cost in found.values()) == count_parameters(model)
    assert not list(tmp_path.glob("profile*"))


def test_operators_of_one_run_sum_to_their_part(model_of: Models, tmp_path: Path) -> None:
    """All time of a part is some operator's."""
    found, _ = profile(model_of("bert"), feeds("bert", 9), threads=1, scratch=tmp_path)
    for cost in found.values():
        assert sum(cost.operators.values()) == pytest.approx(cost.microseconds)


def test_time_is_bounded(model_of: Models, tmp_path: Path) -> None:
    """No text is begun when the seconds are used up, and the document says how many there were."""
    ticks = count()
    _, texts = profile(
        model_of("bert"),
        feeds("bert", *range(5, 25)),
        threads=1,
        scratch=tmp_path,
        seconds=6.5,
        clock=lambda: float(next(ticks)),
    )
    # The first look at the clock is before the first text; two of seven warmed up.
    assert texts == 5


NAMED = {
    "/word/Gather": "embeddings",
    "/Add": "embeddings",
    "/embedding_norm/LayerNormalization": "embeddings",
    "/layers.0/query/MatMul": "layers.0.attention",
    "/Unsqueeze": "embeddings",
    "/layers.0/Softmax": "layers.0.attention",
    "/layers.0/attended/first/MatMul": "layers.0.attention",
    "/layers.0/attention_norm/LayerNormalization": "layers.0.attention",
    "/layers.0/up/MatMul": "layers.0.feedForward",
    "BiasGelu": "layers.0.feedForward",
    "/layers.0/down/MatMul": "layers.0.feedForward",
    "/layers.0/Add_1": "layers.0.feedForward",
    "/layers.1/query/MatMul": "layers.1.attention",
    "/layers.1/norm/LayerNormalization": "layers.1.feedForward",
    "/Gather": "head",
    "/out/Gemm": "head",
    "fused": "head",
}


def test_parts_follow_from_names_and_order() -> None:
    """What has lost its name to a fusion is where the one before it is."""
    assert parts_of(list(NAMED)) == list(NAMED.values())
