# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint's head answers, and whether that is what the policy says. No torch here.

A task is resolved once, from config.json, by the rule that transformers has for its losses: one
output is a number, several are labels; a model without a head gives an embedding. It goes with the
artifact from there on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kompakt.api.base import Task
from kompakt.api.source import ModelSource
from kompakt.jobs.errors import ModelUnsupported, TaskInvalid
from kompakt.jobs.models.architectures import Architecture

_PROBLEM_TYPES: dict[Any, Task] = {
    "single_label_classification": "TextClassification",
    "regression": "Regression",
}
_HEADS: dict[Task, str] = {
    "TextClassification": "several outputs",
    "Regression": "one output",
    "TokenClassification": "outputs for each token",
    "SentenceEmbedding": "no head",
}
EMBEDDING_LABEL = "embedding"
"""What the one answer of a SentenceEmbedding is called."""


def task_of(
    architecture: Architecture, config: dict[str, Any], labels: Sequence[str], *, origin: str
) -> Task:
    """The task of a model with so many outputs."""
    if architecture.embeds:
        return "SentenceEmbedding"
    if architecture.each_token:
        if len(labels) < 2:  # noqa: PLR2004 a choice needs two
            raise ModelUnsupported(
                f"{origin} is a {architecture.class_name} with one output; it needs two labels or"
                " more, or one output for the whole text"
            )
        return "TokenClassification"
    by_outputs: Task = "Regression" if len(labels) == 1 else "TextClassification"
    named = config.get("problem_type")
    if named is not None and named not in _PROBLEM_TYPES:
        raise ModelUnsupported(
            f"{origin} has the problem type {named}; supported are {' and '.join(_PROBLEM_TYPES)}"
        )
    if _PROBLEM_TYPES.get(named, by_outputs) != by_outputs:
        raise ModelUnsupported(
            f"{origin} has the problem type {named} and {len(labels)} outputs; a regression has"
            " one, a classification two or more: correct problem_type or id2label in config.json"
        )
    return by_outputs


def check_task(source: ModelSource, found: Task) -> None:
    """Refuses a model that does another task than its policy says."""
    if source.task != found:
        raise ModelUnsupported(
            f"model.task is {source.task}, but {source.uri} has {_HEADS[found]}, which is {found};"
            f" set model.task to {found}"
            + (", or fine-tune it first" if found == "SentenceEmbedding" else "")
        )
    if (source.min_cosine_basis_points is not None) != (found == "SentenceEmbedding"):
        raise TaskInvalid(
            "model.minCosineBasisPoints is missing; say at which cosine with the original's an"
            " embedding is still right, for example 9500"
            if found == "SentenceEmbedding"
            else "model.minCosineBasisPoints is for a SentenceEmbedding, and model.task is"
            f" {found}; leave it out"
        )
    if (source.tolerance_micros is not None) != (found == "Regression"):
        raise TaskInvalid(
            "model.toleranceMicros is missing; say within how many millionths a number is right"
            if found == "Regression"
            else f"model.toleranceMicros is for a Regression, and model.task is {found}; leave it"
            " out"
        )
