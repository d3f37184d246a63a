# SPDX-License-Identifier: Apache-2.0
"""How far answers are from others and from what is right, by task.

A Regression is taken for the mean of a Gaussian of unit variance, as its squared loss does. So all
that is said of log-likelihoods holds for both tasks, on the scale of nats.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from kompakt.api.base import Task
from kompakt.jobs.compress.training import Batch

Labels = Sequence[float | None]


def outcome(task: Task, logits: torch.Tensor) -> torch.Tensor:
    """What `divergence` compares: logarithms of probabilities, or the numbers themselves."""
    return logits if task == "Regression" else torch.log_softmax(logits, dim=1)


def divergence(task: Task, found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of what was found from what was expected, summed over texts."""
    if task == "Regression":
        return (found - expected).square().sum() / 2
    return nn.functional.kl_div(found, expected, reduction="sum", log_target=True)


def loss(task: Task, logits: torch.Tensor, batch: Batch, labels: Labels) -> torch.Tensor:
    """Negative log-likelihood of what the model should have answered, mean over the texts: the
    label, or where a text has none its own answer.
    """
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
    """
    if task == "Regression":
        return logits.sum()
    return nn.functional.cross_entropy(logits, answers(logits, batch, labels), reduction="sum")


def answers(logits: torch.Tensor, batch: Batch, labels: Labels) -> torch.Tensor:
    """The index that a classifier should have answered, or its own answer."""
    target = logits.detach().argmax(dim=1)
    for row, index in enumerate(batch.indices):
        if (label := labels[index]) is not None:
            target[row] = int(label)
    return target
