# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kompakt.jobs.models.architectures import ARCHITECTURES
from kompakt.jobs.models.checkpoint import inspect
from kompakt.jobs.models.encoder import Encoder
from kompakt.jobs.models.load import load

Checkpoints = Callable[[str], Path]
some_heads = st.lists(st.sets(st.integers(0, 3)), min_size=2, max_size=2)
some_neurons = st.lists(st.sets(st.integers(0, 127)), min_size=2, max_size=2)
some_layers = st.sets(st.integers(0, 1), min_size=1)


def masked(
    encoder: Encoder, heads: list[set[int]], neurons: list[set[int]], layers: set[int]
) -> Callable[..., torch.Tensor]:
    """The same model in its former size: what the others say is multiplied by zero."""

    def forward(**inputs: torch.Tensor) -> torch.Tensor:
        x, mask = encoder.embed(**inputs)
        for number, layer in enumerate(encoder.encoder_layers()):
            of_heads, of_neurons = torch.zeros(4), torch.zeros(128)
            of_heads[sorted(heads[number])] = 1.0
            of_neurons[sorted(neurons[number])] = 1.0
            gates = of_heads.repeat_interleave(16)
            y = layer.attention_norm(layer.attended(layer.mix(x, mask) * gates) + x)
            y = layer.norm(layer.down(layer.neurons(y) * of_neurons) + y)
            x = y if number in layers else x
        logits: torch.Tensor = encoder.out(encoder.head_activation(encoder.head(x[:, 0])))
        return logits

    return forward


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
@given(heads=some_heads, neurons=some_neurons, layers=some_layers, seed=st.integers(0, 1000))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_pruned_model_is_the_masked_one(
    model_type: str,
    checkpoint_of: Checkpoints,
    heads: list[set[int]],
    neurons: list[set[int]],
    layers: set[int],
    seed: int,
) -> None:
    """Whatever is taken out, the logits are those of the former model with zeros in its place."""
    checkpoint = inspect(checkpoint_of(model_type), origin="test")
    encoder = load(checkpoint)
    reference = masked(copy.deepcopy(encoder), heads, neurons, layers)
    for number, layer in enumerate(encoder.encoder_layers()):
        layer.keep_heads(torch.tensor(sorted(heads[number]), dtype=torch.long))
        layer.keep_neurons(torch.tensor(sorted(neurons[number]), dtype=torch.long))
    encoder.keep_layers(sorted(layers))
    generator = torch.Generator().manual_seed(seed)
    inputs = {
        "input_ids": torch.randint(4, 30, (3, 9), generator=generator),
        "attention_mask": (torch.arange(9) < torch.tensor([[9], [5], [1]])).long(),
    }
    with torch.no_grad():
        expected, found = reference(**inputs), encoder(**inputs)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
