# SPDX-License-Identifier: Apache-2.0
"""How far answers are from others and from what is right, by task.

A token classifier's distributions are independent, so that a text's log-likelihood is the sum over
its tokens. A Regression is taken for the mean of a Gaussian of unit variance, as its squared loss
does, and a SentenceEmbedding for that of one in as many dimensions: of two vectors of length 1 half
the squared distance is 1 - cosine. So all that is said of log-likelihoods holds for every task, on
the scale of nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from kompakt.api.base import Task
from kompakt.jobs.compress.training import Batch
from kompakt.jobs.models.device import CPU

Labels = Sequence[Any]
VALUES: tuple[Task, ...] = ("Regression", "SentenceEmbedding")
"""Tasks whose answers are numbers, rather than logarithms of odds."""


def outcome(task: Task, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """What `divergence` compares: logarithms of probabilities, or the numbers themselves.

    `tokens` says which are not padding, [batch, tokens]; those that are have zeros, in which no two
    outcomes differ.
    """
    if task in VALUES:
        return logits
    found = torch.log_softmax(logits, dim=-1)
    return found * tokens[..., None] if task == "TokenClassification" else found


def divergence(task: Task, found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of what was found from what was expected, summed over texts."""
    if task in VALUES:
        return (found - expected).square().sum() / 2
    return nn.functional.kl_div(found, expected, reduction="sum", log_target=True)


def loss(task: Task, logits: torch.Tensor, batch: Batch, labels: Labels) -> torch.Tensor:
    """Negative log-likelihood of what the model should have answered, mean over the texts: the
    label, or where a text has none its own answer.
    """
    if task == "TokenClassification":
        return _of_tokens(logits, batch) / len(batch.indices)
    if task == "Regression":
        target = logits.detach().clone()
        for row, index in enumerate(batch.indices):
            if (label := labels[index]) is not None:
                target[row] = label
        return (logits - target).square().mean() / 2
    return nn.functional.cross_entropy(logits, answers(logits, batch, labels))


def fisher_loss(task: Task, logits: torch.Tensor, batch: Batch, labels: Labels) -> torch.Tensor:
    """Summed over texts: its squared gradient, text by text, is the Fisher information.

    Of labels it is the likelihood of the right one. Of a Regression it is the number itself, whose
    squared gradient is the information of a Gaussian's mean exactly (Martens 2020,
    arXiv:1412.1193, section 5); the label would only weigh texts by how wrong the model is on
    them, and a text without a label would weigh nothing.

    Of an embedding it is the vector's product with one of random signs, drawn for each text. In the
    mean over the signs its squared gradient is the sum of those of all numbers of the vector, the
    information of a Gaussian's mean again (Hutchinson 1989, Communications in Statistics
    18:1059-1076).
    """
    if task == "Regression":
        return logits.sum()
    if task == "SentenceEmbedding":
        return (logits * _signs(logits, batch)).sum()
    if task == "TokenClassification":
        return _of_tokens(logits, batch)
    return nn.functional.cross_entropy(logits, answers(logits, batch, labels), reduction="sum")


def _signs(vectors: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Always the same for a text, whatever batch it is in."""
    generator = torch.Generator(CPU)  # on which they are the same everywhere
    rows = [
        torch.randint(0, 2, vectors.shape[1:], generator=generator.manual_seed(index), device=CPU)
        for index in batch.indices
    ]
    return torch.stack(rows).to(vectors) * 2 - 1


def _of_tokens(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Of the model's own answer to each token: labels are of words, and would leave out most."""
    found = logits[batch.tokens]
    return nn.functional.cross_entropy(found, found.detach().argmax(dim=1), reduction="sum")


def answers(logits: torch.Tensor, batch: Batch, labels: Labels) -> torch.Tensor:
    """The index that a classifier should have answered, or its own answer."""
    target = logits.detach().argmax(dim=1)
    for row, index in enumerate(batch.indices):
        if (label := labels[index]) is not None:
            target[row] = int(label)
    return target
