# SPDX-License-Identifier: Apache-2.0
"""Low rank: matrices become products of two thinner ones that give nearly the same on real inputs.

For inputs x of mean m and covariance C, the best map of rank k to Wx + b, in the mean square, goes
through the first k principal directions U of what W gives: W' = U (U^T W), with the bias
b + (W - W') m. The directions are the eigenvectors of the outputs' covariance W C W^T, or the left
singular vectors of W C^(1/2), and the error is the sum of the eigenvalues that are left out (Eckart
& Young 1936). SVD-LLM (Wang et al. 2024, arXiv:2403.07378, section 3.1) has the same for inputs of
mean zero, by a Cholesky factor of C; this way no factor has to be inverted, so inputs may be
degenerate.

What an error costs differs between matrices: to second order, the squared error times the squared
gradient of the loss by the matrix's output. All ranks are chosen together so that these costs are
least within the budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from typing_extensions import override

from kompakt.api.steps import LowRank
from kompakt.jobs.compress.losses import Labels
from kompakt.jobs.compress.steps import TorchStep
from kompakt.jobs.compress.training import Batch, TrainingData
from kompakt.jobs.compress.watching import watch
from kompakt.jobs.errors import StepInvalid
from kompakt.jobs.models.architectures import MATRICES
from kompakt.jobs.models.encoder import Encoder, Factored

BATCH = 16
MULTIPLE = 16
"""Of ranks: matrix kernels work in blocks of that width."""


class FactorMatrices(TorchStep):
    """The step `lowRank`."""

    def __init__(self, parameters: LowRank) -> None:
        self._parameters = parameters

    @override
    def apply(self, encoder: Encoder, data: TrainingData) -> str:
        chosen = data.order()[: self._parameters.samples]
        whole = whole_matrices(encoder)
        if not whole:
            raise StepInvalid("lowRank finds no matrix that is whole; leave the step out")
        observed = observe(encoder, list(data.batches(chosen, BATCH)), labels=data.labels)
        spectra = {place: Spectrum.of(whole[place], observed.pop(place)) for place in whole}
        options = [spectrum.options() for spectrum in spectra.values()]
        before = sum(some[0].cost for some in options)
        budget = before * self._parameters.keep_permille // 1000
        least = sum(min(option.cost for option in some) for some in options)
        if budget < least:
            raise StepInvalid(
                f"lowRank.keepPermille is {self._parameters.keep_permille}, but this model's"
                f" matrices cannot be less than {-(-least * 1000 // before)} permille of"
                " what they are; raise it"
            )
        ranks: dict[Place, int] = {}
        for (place, spectrum), option in zip(
            spectra.items(), allocate(options, budget), strict=True
        ):
            if option.rank is not None:
                layer = encoder.encoder_layers()[place.layer]
                spectrum.fill(layer.factor(place.name, option.rank))
                ranks[place] = option.rank
        after = sum(spectrum.cost(ranks.get(place)) for place, spectrum in spectra.items())
        data.details["lowRank"] = {
            "samples": len(chosen),
            "numbersBefore": before,
            "numbersAfter": after,
            "matrices": {
                f"{place.layer}.{place.name}": {
                    "rank": rank,
                    "relativeError": round(spectra[place].relative_error(rank), 4),
                }
                for place, rank in ranks.items()
            },
        }
        return (
            f"{len(ranks)} of {len(spectra)} matrices in two factors, {after:,} of {before:,}"
            " numbers left"
        )


@dataclass(frozen=True, order=True)
class Place:
    """Where a matrix is."""

    layer: int
    name: str


def whole_matrices(encoder: Encoder) -> dict[Place, nn.Linear]:
    """All matrices of the layers that are not empty and not in factors already."""
    return {
        Place(number, name): matrix
        for number, layer in enumerate(encoder.encoder_layers())
        for name in MATRICES
        if isinstance(matrix := layer.matrix(name), nn.Linear) and matrix.weight.numel()
    }


@dataclass
class Seen:
    """What went through a matrix, over all tokens."""

    reads: bool
    """Whether the products are those of the inputs: of the outputs, where these are no more."""
    inputs: torch.Tensor
    """[inputs]: their sum."""
    outputs: torch.Tensor
    """[outputs]: their sum."""
    products: torch.Tensor
    """[size, size]: the sum of products of the shorter of the two."""
    count: int = 0
    gradient: float = 0.0
    """Sum of squares of the loss's gradient by the outputs."""

    @classmethod
    def of(cls, matrix: nn.Linear) -> Seen:
        """Nothing yet."""

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=matrix.weight.device)

        inputs, outputs = matrix.in_features, matrix.out_features
        size = min(inputs, outputs)
        return cls(inputs < outputs, zeros(inputs), zeros(outputs), zeros(size, size))

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Some more inputs, [tokens, inputs], and their outputs, [tokens, outputs]."""
        self.count += len(x)
        self.inputs = self.inputs + x.sum(dim=0).double()
        self.outputs = self.outputs + y.sum(dim=0).double()
        shorter = x if self.reads else y
        self.products = self.products + (shorter.T @ shorter).double()

    @property
    def mean(self) -> torch.Tensor:
        """Of the inputs."""
        return self.inputs / self.count

    @property
    def covariance(self) -> torch.Tensor:
        """Of the inputs or the outputs."""
        mean = (self.inputs if self.reads else self.outputs) / self.count
        return self.products / self.count - torch.outer(mean, mean)


def observe(encoder: Encoder, batches: Sequence[Batch], *, labels: Labels) -> dict[Place, Seen]:
    """Inputs and gradients of every whole matrix over the texts' tokens."""
    whole = whole_matrices(encoder)
    seen = {place: Seen.of(matrix) for place, matrix in whole.items()}
    watchers = {matrix: seen[place] for place, matrix in whole.items()}
    watch(encoder, batches, watchers, labels=labels)
    return seen


@dataclass(frozen=True)
class Option:
    """A way to store a matrix."""

    cost: int
    """Numbers."""
    loss: float
    """What it costs in the loss, to second order."""
    rank: int | None = None
    """None for the whole matrix."""


@dataclass(frozen=True)
class Spectrum:
    """How a matrix's outputs spread."""

    whole: nn.Linear
    directions: torch.Tensor
    """[outputs, directions], the one with most spread first."""
    spreads: torch.Tensor
    """[directions]: the outputs' variance along each."""
    mean: torch.Tensor
    """[inputs]"""
    sensitivity: float
    """Mean square of the loss's gradient by an output, summed over the tokens."""

    @classmethod
    def of(cls, whole: nn.Linear, seen: Seen) -> Spectrum:
        """From what went through the matrix."""
        values, vectors = torch.linalg.eigh(seen.covariance)
        values = values.clamp_min(0.0)
        if seen.reads:
            weight = whole.weight.detach().double()
            root = vectors * values.sqrt()
            directions, sizes, _ = torch.linalg.svd(weight @ root, full_matrices=False)
            spreads = sizes.square()
        else:
            directions, spreads = vectors.flip(1), values.flip(0)
        return cls(
            whole=whole,
            # All matrices wait with theirs until the ranks are chosen.
            directions=directions.float(),
            spreads=spreads,
            mean=seen.mean,
            sensitivity=seen.gradient / whole.out_features,
        )

    def cost(self, rank: int | None) -> int:
        """Numbers of the matrix or of its factors."""
        inputs, outputs = self.whole.in_features, self.whole.out_features
        return inputs * outputs if rank is None else rank * (inputs + outputs)

    def error(self, rank: int) -> float:
        """Mean squared error of an output vector."""
        return float(self.spreads[rank:].sum())

    def relative_error(self, rank: int) -> float:
        """The error's size by the outputs' spread."""
        return math.sqrt(self.error(rank) / max(float(self.spreads.sum()), 1e-30))

    def options(self) -> list[Option]:
        """The whole matrix, and all ranks with less numbers."""
        options = [Option(self.cost(None), 0.0)]
        for rank in range(MULTIPLE, len(self.spreads), MULTIPLE):
            if self.cost(rank) < options[0].cost:
                loss = self.sensitivity * self.error(rank)
                options.append(Option(self.cost(rank), loss, rank))
        return options

    def fill(self, factored: Factored) -> None:
        """Puts the best factors of their rank in place."""
        weight, bias = self.whole.weight.detach().double(), self.whole.bias.detach().double()
        second = self.directions[:, : factored.rank].double()
        first = second.T @ weight
        with torch.no_grad():
            factored.first.weight.copy_(first)
            factored.second.weight.copy_(second)
            factored.second.bias.copy_(bias + (weight - second @ first) @ self.mean)


def allocate(options: Sequence[Sequence[Option]], budget: int) -> list[Option]:
    """One option of each list, within the budget of numbers, with the least loss in all.

    Beginning with the cheapest of each, numbers go where one of them saves most loss, as long as
    they last. So no choice of the same cost loses less; a little of the budget may be left.
    """
    ways = [_worthwhile(some) for some in options]
    upgrades = sorted(
        (
            (_saved(former, option), number, place)
            for number, way in enumerate(ways)
            for place, (former, option) in enumerate(pairwise(way), start=1)
        ),
        key=lambda upgrade: (-upgrade[0], *upgrade[1:]),
    )
    chosen = [way[0] for way in ways]
    left = budget - sum(option.cost for option in chosen)
    for _, number, place in upgrades:
        option = ways[number][place]
        left -= option.cost - chosen[number].cost
        if left < 0:
            break
        chosen[number] = option
    return chosen


def _worthwhile(options: Sequence[Option]) -> list[Option]:
    """From the cheapest on, those between which each number more saves less loss than the one
    before: the lower convex hull.
    """
    found: list[Option] = []
    for option in sorted(options, key=lambda option: (option.cost, option.loss)):
        if found and option.loss >= found[-1].loss:
            continue
        while len(found) > 1 and _saved(found[-1], option) >= _saved(found[-2], found[-1]):
            found.pop()
        found.append(option)
    return found


def _saved(former: Option, option: Option) -> float:
    """Loss by number."""
    return (former.loss - option.loss) / (option.cost - former.cost)
