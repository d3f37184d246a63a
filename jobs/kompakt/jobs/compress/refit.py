# SPDX-License-Identifier: Apache-2.0
"""Least squares after pruning: what remains stands in for what was redundant.

Layer by layer, first the attention's output matrix, then the feed-forward network's: each is fitted
to give, from the heads or neurons that are left, what the whole model has at this place, over the
tokens of some texts. The pruned model's own states are what is fitted from, so that each fit also
mends what those before it left over (as in ZipLM, Kurtic et al. 2023, arXiv:2302.04089, section 3,
and Kwon et al. 2022, arXiv:2204.09656, section 4.3, whose masks are tuned by the same least
squares).

Each token counts as the norm will see it, divided by its own deviation. Without that, a few tokens
with states a hundred times as large as the others', which trained encoders have, decide the fit: on
MiniLM, a quarter of the first layer's neurons then answered worse than none. Tokens that nobody
reads do not count: of a classifier's last layer all but the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from kompakt.jobs.compress.training import Batch
from kompakt.jobs.models.encoder import Encoder, Layer

RIDGE = 0.1
"""How much the fit is held to the former weights, relative to the mean square of an input."""
MOST_TOKENS = 65_536
"""Their states in both models are held in memory."""


@dataclass(frozen=True)
class RefitErrors:
    """How far each layer's sums are from the whole model's, relative to what was to be fitted."""

    attention: list[float]
    feed_forward: list[float]


def refit(
    encoder: Encoder, whole: Encoder, numbers: Sequence[int], batches: Sequence[Batch]
) -> RefitErrors:
    """Fits the matrices that read heads and neurons.

    Args:
        encoder: The pruned model, changed in place.
        whole: The model as it was.
        numbers: For each layer of the pruned model, which one of the whole model it was.
        batches: Texts to fit on; the first `MOST_TOKENS` tokens count.
    """
    former = whole.encoder_layers()
    errors = RefitErrors([], [])
    with torch.no_grad():
        states = [_State.of(state) for state in states_of(encoder, batches)]
        done = 0
        for place, number in enumerate(numbers):
            layer = encoder.encoder_layers()[place]
            for skipped in former[done:number]:
                for state in states:
                    state.expected = skipped(state.expected, state.mask)
            for state in states:
                state.read = encoder.read_of(place, state.tokens)
            errors.attention.append(_fit(attention(layer), attention(former[number]), states))
            errors.feed_forward.append(
                _fit(feed_forward(layer), feed_forward(former[number]), states)
            )
            done = number + 1
    return errors


@dataclass(frozen=True)
class Half:
    """One of the two halves of a layer."""

    inputs: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """The values of heads or neurons, from the layer's state and the mask."""
    matrix: nn.Linear
    """Reads them."""
    norm: nn.LayerNorm


def attention(layer: Layer) -> Half:
    """The first half of a layer."""
    return Half(layer.mix, layer.attended, layer.attention_norm)


def feed_forward(layer: Layer) -> Half:
    """The second half of a layer."""
    return Half(lambda x, _mask: layer.neurons(x), layer.down, layer.norm)


@dataclass
class State:
    """A batch on its way through a model."""

    tokens: torch.Tensor
    """Which are not padding."""
    mask: torch.Tensor
    x: torch.Tensor


def states_of(encoder: Encoder, batches: Sequence[Batch]) -> Iterator[State]:
    """What the first layer reads, for the first `MOST_TOKENS` tokens."""
    left = MOST_TOKENS
    for batch in batches:
        x, mask = encoder.embed(**batch.inputs)
        tokens = batch.inputs["attention_mask"].bool()
        yield State(tokens, mask, x)
        left -= int(tokens.sum())
        if left <= 0:
            return


@dataclass
class LeastSquares:
    """The sums that a fit of a matrix with a bias needs, over all tokens."""

    gram: torch.Tensor
    """[inputs, inputs]: products of inputs."""
    moment: torch.Tensor
    """[inputs, hidden]: products of inputs and target."""
    input_sum: torch.Tensor
    target_sum: torch.Tensor
    energy: float = 0.0
    """Sum of squares of the target."""
    weight: float = 0.0

    @classmethod
    def of(cls, matrix: nn.Linear) -> Self:
        """No tokens yet."""
        inputs, outputs = matrix.in_features, matrix.out_features

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=matrix.bias.device)

        return cls(zeros(inputs, inputs), zeros(inputs, outputs), zeros(inputs), zeros(outputs))

    def add(self, inputs: torch.Tensor, target: torch.Tensor, sums: torch.Tensor) -> None:
        """Some more tokens, [tokens, …]; `sums` is what the norm is given for them."""
        weight = (sums.var(dim=1, keepdim=True, correction=0) + 1e-12).rsqrt()
        weighted, aim = inputs * weight, target * weight
        self.gram += weighted.T @ weighted
        self.moment += weighted.T @ aim
        self.input_sum += (weighted * weight).sum(dim=0)
        self.target_sum += (aim * weight).sum(dim=0)
        self.energy += float(aim.square().sum())
        self.weight += float(weight.square().sum())

    def of_inputs(self, rows: torch.Tensor) -> LeastSquares:
        """As if there were only these inputs."""
        return LeastSquares(
            self.gram[rows][:, rows],
            self.moment[rows],
            self.input_sum[rows],
            self.target_sum,
            self.energy,
            self.weight,
        )

    def solve(self, former: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Weight, bias and relative error of the fit; the weight is held to the former one."""
        means, target_means = self.input_sum / self.weight, self.target_sum / self.weight
        gram = self.gram - self.weight * torch.outer(means, means)
        moment = self.moment - self.weight * torch.outer(means, target_means)
        solution = moment
        if len(means):
            strength = RIDGE * gram.diagonal().mean() + 1e-9
            system = gram + strength * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
            solution = torch.linalg.solve(system, moment + strength * former.T.double())
        residual = (
            self.energy
            - self.weight * float(target_means.square().sum())
            - 2 * float((solution * moment).sum())
            + float((solution * (gram @ solution)).sum())
        )
        error = (max(residual, 0.0) / max(self.energy, 1e-12)) ** 0.5
        return solution.T.float(), (target_means - means @ solution).float(), error


@dataclass
class _State:
    """A batch on its way through both models."""

    tokens: torch.Tensor
    mask: torch.Tensor
    found: torch.Tensor
    expected: torch.Tensor
    read: torch.Tensor
    """Which tokens of the layer at hand count."""

    @classmethod
    def of(cls, state: State) -> _State:
        return cls(state.tokens, state.mask, state.x, state.x, state.tokens)


def _fit(half: Half, former: Half, states: Sequence[_State]) -> float:
    """Fits the half's matrix and takes all states through both halves; returns the error."""
    sums = LeastSquares.of(half.matrix)
    for state in states:
        # Without the norm: what it is given is what must be right.
        state.expected = former.matrix(former.inputs(state.expected, state.mask)) + state.expected
        values, expected = half.inputs(state.found, state.mask), state.expected[state.read]
        sums.add(values[state.read], expected - state.found[state.read], expected)
    weight, bias, error = sums.solve(half.matrix.weight)
    half.matrix.weight.copy_(weight)
    half.matrix.bias.copy_(bias)
    for state in states:
        values = half.inputs(state.found, state.mask)
        state.found = half.norm(half.matrix(values) + state.found)
        state.expected = former.norm(state.expected)
    return error
