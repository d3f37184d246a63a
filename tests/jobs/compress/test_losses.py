# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax
from torch import nn

from kompakt.api.base import Task
from kompakt.jobs.compress.losses import divergence, fisher_loss, loss, outcome
from kompakt.jobs.compress.training import Batch

seeds = st.integers(0, 2**16)
ALL = torch.ones(5, 1, dtype=torch.bool)


def batch(texts: int) -> Batch:
    """Examples 0, 1, 2 and so on."""
    return Batch(indices=list(range(texts)), inputs={})


def logits(seed: int, *, outputs: int) -> torch.Tensor:
    """Of five texts."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, outputs, generator=generator).requires_grad_()


def between(theirs: torch.Tensor, ours: torch.Tensor) -> float:
    """Kullback-Leibler, by scipy; the sum over rows."""
    shares = [softmax(some.detach().double().numpy(), axis=-1) for some in (theirs, ours)]
    return float(rel_entr(*shares).sum())


@given(seeds)
def test_divergence_is_that_of_the_distributions(seed: int) -> None:
    """Of labels the categorical one, of numbers the Gaussian one of unit variance."""
    ours, theirs = logits(seed, outputs=3), logits(seed + 1, outputs=3)
    expected = between(theirs, ours)
    task: Task = "TextClassification"
    found = divergence(task, outcome(task, ours, ALL), outcome(task, theirs, ALL))
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    ours, theirs = logits(seed, outputs=1), logits(seed + 1, outputs=1)
    expected = float((theirs - ours).detach().square().sum()) / 2
    found = divergence(
        "Regression", outcome("Regression", ours, ALL), outcome("Regression", theirs, ALL)
    )
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@given(seeds)
def test_embeddings_diverge_by_their_cosine(seed: int) -> None:
    """Of length 1, by 1 - cosine; of others as a Gaussian in as many dimensions."""
    task: Task = "SentenceEmbedding"
    ours, theirs = logits(seed, outputs=4), logits(seed + 1, outputs=4)
    found = divergence(task, outcome(task, ours, ALL), outcome(task, theirs, ALL))
    expected = float((theirs - ours).detach().square().sum()) / 2
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    a, b = nn.functional.normalize(ours), nn.functional.normalize(theirs)
    cosines = nn.functional.cosine_similarity(a, b)
    torch.testing.assert_close(divergence(task, a, b), (1 - cosines).sum())


def test_fisher_of_an_embedding_is_that_of_all_its_numbers() -> None:
    """In the mean over texts' random signs, the sum of squared gradients of each number, as for a
    Gaussian's mean; and a text's signs do not depend on its batch.
    """
    matrix = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    inputs = torch.ones(20_000, 6, requires_grad=True)
    many = Batch(indices=list(range(20_000)), inputs={})
    value = fisher_loss("SentenceEmbedding", inputs @ matrix, many, [None] * 20_000)
    (gradient,) = torch.autograd.grad(value, inputs)
    torch.testing.assert_close(
        gradient.square().mean(dim=0), matrix.square().sum(dim=1), rtol=0.03, atol=0.0
    )
    some = Batch(indices=[7, 2], inputs={})
    (alone,) = torch.autograd.grad(
        fisher_loss("SentenceEmbedding", inputs[:2] @ matrix, some, [None] * 20_000), inputs
    )
    torch.testing.assert_close(alone[:2], gradient[[7, 2]])


@given(seeds)
def test_the_loss_of_a_regression_is_the_squared_error(seed: int) -> None:
    """Half of it, averaged; a text without a label has its own answer, hence no gradient."""
    found = logits(seed, outputs=1)
    labels = [0.5, None, -1.0, 2.0, None]
    target = torch.tensor([[0.5], [0.0], [-1.0], [2.0], [0.0]])
    known = torch.tensor([[True], [False], [True], [True], [False]])
    expected = nn.functional.mse_loss(found[known], target[known]) * 3 / 5 / 2
    value = loss("Regression", found, batch(5), labels)
    torch.testing.assert_close(value, expected)
    (gradient,) = torch.autograd.grad(value, found)
    assert not gradient[~known].any()


@given(seeds)
def test_fisher_of_a_regression_is_what_labels_around_the_number_give(seed: int) -> None:
    """The mean squared gradient of the likelihood over labels of unit variance around it."""
    found = logits(seed, outputs=1)
    squares = torch.zeros_like(found)
    for deviation in (1.0, -1.0):
        labels = (found.detach() + deviation).flatten().tolist()
        summed = loss("Regression", found, batch(5), labels) * 5
        squares += torch.autograd.grad(summed, found)[0].square() / 2
    (gradient,) = torch.autograd.grad(fisher_loss("Regression", found, batch(5), [None] * 5), found)
    torch.testing.assert_close(gradient.square(), squares)


@given(seeds)
def test_of_tokens_all_but_padding_counts(seed: int) -> None:
    """Divergence and loss are the sums over real tokens, whatever stands beside them."""
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = (torch.randn(2, 4, 3, generator=generator) for _ in range(2))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    some = Batch(indices=[0, 1], inputs={"attention_mask": mask})
    real = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    expected = sum(between(theirs[place], ours[place]) for place in real)
    task: Task = "TokenClassification"
    found = divergence(task, outcome(task, ours, some.tokens), outcome(task, theirs, some.tokens))
    assert float(found) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    likelihoods = [-float(ours[place].log_softmax(0).max()) for place in real]
    assert float(fisher_loss(task, ours, some, [None, None])) == pytest.approx(sum(likelihoods))
    assert float(loss(task, ours, some, [None, None])) == pytest.approx(sum(likelihoods) / 2)
