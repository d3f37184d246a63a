# SPDX-License-Identifier: Apache-2.0
"""What distillation makes small: a weighted sum of up to four losses.

Each has a scale of its own, on which it is known what a model without any knowledge would have
(`uninformed`): what is above half of that was not learned.

Args, in all of them: `student` and `teacher` are the states of one batch, `alignment` says which
tokens both have.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import nn
from typing_extensions import override

from kompakt.jobs.compress.states import Alignment, States
from kompakt.jobs.models.device import CPU


@dataclass(frozen=True)
class Sample:
    """One batch, as a loss sees it."""

    indices: Sequence[int]
    """Which examples it holds."""
    teacher: States
    alignment: Alignment


class Objective(Protocol):
    """One of the losses."""

    def loss(self, student: States, sample: Sample) -> torch.Tensor:
        """Mean over the batch's texts."""

    def uninformed(self, samples: Sequence[Sample]) -> float:
        """What a model that knows nothing of the texts would have on these."""


class Logits(Objective):
    """Kullback-Leibler divergence of the softened answers, times the temperature's square, which
    keeps the gradients' scale (Hinton et al. 2015, arXiv:1503.02531, section 2).
    """

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature

    @override
    def loss(self, student: States, sample: Sample) -> torch.Tensor:
        return self._divergence(self._soft(student.logits), self._soft(sample.teacher.logits))

    @override
    def uninformed(self, samples: Sequence[Sample]) -> float:
        """The loss of answering every text with the teacher's average."""
        expected = self._soft(torch.cat([sample.teacher.logits for sample in samples]))
        average = expected.exp().mean(dim=0).log().expand_as(expected)
        return float(self._divergence(average, expected))

    def _soft(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(logits / self._temperature, dim=1)

    def _divergence(self, found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
        divergence = nn.functional.kl_div(found, expected, reduction="batchmean", log_target=True)
        return divergence * self._temperature**2


class Hidden(Objective):
    """Squared distance of hidden states, relative to their variance, averaged over layers (Jiao et
    al. 2020, arXiv:1909.10351, section 3.1; no projection, since no step changes the hidden size).
    """

    def __init__(
        self, mapping: Sequence[int], samples: Sequence[Sample], *, first_at_last: bool
    ) -> None:
        """`mapping` gives the teacher's layer for each of the student's; `samples` the variance.
        With `first_at_last` the last layer is asked for the first token's state alone, which is
        all that a classifier reads of it.
        """
        self._mapping = tuple(mapping)
        self._last = len(self._mapping) - 1 if first_at_last else None
        self._variances = [
            _variance(place, samples, first=layer == self._last)
            for layer, place in enumerate(self._mapping)
        ]

    @override
    def loss(self, student: States, sample: Sample) -> torch.Tensor:
        parts = [
            layer_distance(student, sample, layer, place, first=layer == self._last)
            / self._variances[layer]
            for layer, place in enumerate(self._mapping)
        ]
        return torch.stack(parts).mean()

    @override
    def uninformed(self, samples: Sequence[Sample]) -> float:
        """The loss of the average state."""
        return 1.0


def layer_distance(
    student: States, sample: Sample, layer: int, place: int, *, first: bool = False
) -> torch.Tensor:
    """Mean squared distance of a token's state in the student's layer to that in the teacher's."""
    alignment = sample.alignment
    ours = alignment.of_student(student.hidden[layer])
    theirs = alignment.of_teacher(sample.teacher.hidden[place])
    read = _read(alignment, first=first)
    return nn.functional.mse_loss(ours[read], theirs[read])


def _variance(layer: int, samples: Sequence[Sample], *, first: bool) -> float:
    states = torch.cat(
        [
            s.alignment.of_teacher(s.teacher.hidden[layer])[_read(s.alignment, first=first)]
            for s in samples
        ]
    )
    return max(float((states - states.mean(dim=0)).square().mean()), 1e-12)


def _read(alignment: Alignment, *, first: bool) -> torch.Tensor:
    """Which of the tokens that both have count; texts begin with the same one."""
    mask = alignment.mask
    return mask & (torch.arange(mask.shape[1], device=mask.device) == 0) if first else mask


class Relations(Objective):
    """Divergence of how tokens relate in one layer: the softmax of the scaled products of queries,
    of keys and of values among themselves (Wang et al. 2021, arXiv:2012.15828, section 3.2).

    Queries, keys and values are cut into as many relation heads in both models, so that their
    attention heads may differ in number.
    """

    def __init__(self, relation_heads: int) -> None:
        self._heads = relation_heads

    @override
    def loss(self, student: States, sample: Sample) -> torch.Tensor:
        ours = [sample.alignment.of_student(part) for part in student.attention]
        return self._divergence(ours, sample)

    @override
    def uninformed(self, samples: Sequence[Sample]) -> float:
        """The loss of relating each token to all in the same way."""
        total = texts = 0.0
        for sample in samples:
            nothing = [
                torch.zeros_like(sample.alignment.of_teacher(part))
                for part in sample.teacher.attention
            ]
            total += float(self._divergence(nothing, sample)) * len(sample.indices)
            texts += len(sample.indices)
        return total / texts

    def _divergence(self, ours: Sequence[torch.Tensor], sample: Sample) -> torch.Tensor:
        mask = sample.alignment.mask
        theirs = [sample.alignment.of_teacher(part) for part in sample.teacher.attention]
        tokens = mask[:, None, :, None].expand(-1, self._heads, -1, -1)
        total = ours[0].new_zeros(())
        for found, expected in zip(ours, theirs, strict=True):
            divergence = nn.functional.kl_div(
                self._relations(found, mask),
                self._relations(expected, mask),
                reduction="none",
                log_target=True,
            )
            # Padded keys have no probability in either, padded queries are left out.
            total = total + divergence.masked_fill(~tokens, 0.0).sum()
        return total / (len(theirs) * self._heads * int(mask.sum()))

    def _relations(self, part: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        heads = part.unflatten(2, (self._heads, -1)).transpose(1, 2)
        scores: torch.Tensor = (heads * heads.shape[-1] ** -0.5) @ heads.transpose(-1, -2)
        # Not infinity: zero times its difference would not be a number.
        return scores.masked_fill(~mask[:, None, None, :], -1e4).log_softmax(dim=-1)


def relation_heads(student_size: int, teacher_size: int, *, most: int) -> int:
    """Into how many heads both sizes can be cut, at most so many."""
    common = math.gcd(student_size, teacher_size)
    return max(count for count in range(1, most + 1) if common % count == 0)


class Labels(Objective):
    """Cross entropy of the answers and the labels, where texts have one."""

    def __init__(self, labels: Sequence[int | None]) -> None:
        self._labels = labels

    @override
    def loss(self, student: States, sample: Sample) -> torch.Tensor:
        missing = -100  # what torch leaves out
        found = [self._labels[index] for index in sample.indices]
        target = torch.tensor(
            [missing if label is None else label for label in found], device=student.logits.device
        )
        entropy = nn.functional.cross_entropy(student.logits, target, reduction="sum")
        return entropy / len(found)

    @override
    def uninformed(self, samples: Sequence[Sample]) -> float:
        """The loss of giving each label the probability that it has among these."""
        found = [self._labels[index] for sample in samples for index in sample.indices]
        counts = Counter(label for label in found if label is not None)
        total = counts.total()
        return -sum(n * math.log(n / total) for n in counts.values()) / len(found)


class TokenLogits(Objective):
    """`Logits` for each token that both have, mean over these."""

    def __init__(self, temperature: float) -> None:
        self._of_rows = Logits(temperature)

    @override
    def loss(self, student: States, sample: Sample) -> torch.Tensor:
        mask = sample.alignment.mask
        if not mask.any():  # texts without a word
            return student.logits.sum() * 0.0
        ours = States(logits=sample.alignment.of_student(student.logits)[mask])
        return self._of_rows.loss(ours, self._rows(sample))

    @override
    def uninformed(self, samples: Sequence[Sample]) -> float:
        """The loss of answering every token with the teacher's average."""
        return self._of_rows.uninformed([self._rows(sample) for sample in samples])

    def _rows(self, sample: Sample) -> Sample:
        rows = sample.alignment.of_teacher(sample.teacher.logits)[sample.alignment.mask]
        return replace(sample, teacher=States(logits=rows))


class Numbers(Objective):
    """Squared distance from the teacher's numbers or embeddings, relative to their variance. Of
    embeddings of length 1 that is 1 - cosine, times a constant.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        """`samples` give the variance."""
        found = torch.cat([sample.teacher.logits for sample in samples])
        self._variance = max(float(found.var(dim=0, correction=0).mean()), 1e-12)

    @override
    def loss(self, student: States, sample: Sample) -> torch.Tensor:
        return nn.functional.mse_loss(student.logits, sample.teacher.logits) / self._variance

    @override
    def uninformed(self, samples: Sequence[Sample]) -> float:
        """The loss of the average answer."""
        return 1.0


class NumberLabels(Objective):
    """Squared distance from the labels, where texts have one, relative to their variance."""

    def __init__(self, labels: Sequence[float | None]) -> None:
        self._labels = labels
        known = torch.tensor([label for label in labels if label is not None], device=CPU)
        self._variance = max(float(known.var(correction=0)), 1e-12)

    @override
    def loss(self, student: States, sample: Sample) -> torch.Tensor:
        found = [self._labels[index] for index in sample.indices]
        target = torch.tensor(
            [math.nan if label is None else label for label in found], device=student.logits.device
        )
        known = ~target.isnan()
        squares = (student.logits[known, 0] - target[known]).square().sum()
        return squares / (len(found) * self._variance)

    @override
    def uninformed(self, samples: Sequence[Sample]) -> float:
        """The loss of the average label: the share of texts that have one."""
        found = [self._labels[index] for sample in samples for index in sample.indices]
        return sum(label is not None for label in found) / len(found)
