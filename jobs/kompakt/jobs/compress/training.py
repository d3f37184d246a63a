# SPDX-License-Identifier: Apache-2.0
"""Texts that a model is compressed with: tokenized once, batched by length, with the teacher's
answers.

The teacher is the baseline artifact itself, in ONNX Runtime: what the variant must agree with is
what serves today, and it answers faster there than in torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from kompakt.jobs.data.examples import Dataset, draw
from kompakt.jobs.evaluate.classifier import Logits
from kompakt.jobs.models.text import length_batches, pad

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

    from kompakt.jobs.compress.latency import LatencyTable, Precision
    from kompakt.jobs.models.encoder import Encoder


@dataclass
class TrainingData:
    """The training source of a task, as its steps see it."""

    dataset: Dataset
    labels: Sequence[int | None]
    """Of each text, the index among the model's labels; None where it is unlabelled."""
    tokenizer: Tokenizer
    input_names: Sequence[str]
    pad_id: int
    seed: int
    teacher: Callable[[list[str]], Logits]
    """The baseline's logits for some texts."""
    latency_table: Callable[[Encoder, Sequence[int], Precision], LatencyTable] | None = None
    """What layers like the model's cost on this pod, for texts of such lengths."""
    keep: Callable[[], str] | None = None
    """Stores the model as it is and returns its digest, for a step that must give up."""
    details: dict[str, Any] = field(default_factory=dict)
    """Goes into the report."""
    new_ids: Mapping[int, int] | None = None
    """From the original tokenizer's ids to those of a trimmed one."""

    def __len__(self) -> int:
        return len(self.dataset.examples)

    @cached_property
    def encodings(self) -> list[Encoding]:
        """Every text, tokenized."""
        return self.tokenizer.encode_batch(self.dataset.texts)

    def trim(self, tokenizer: Tokenizer, new_ids: Mapping[int, int]) -> None:
        """Takes a tokenizer with fewer tokens from here on; the teacher keeps its own."""
        self.tokenizer = tokenizer
        self.new_ids = new_ids
        self.pad_id = new_ids[self.pad_id]
        self.__dict__.pop("encodings", None)

    def order(self) -> list[int]:
        """All indices in a random order that follows from the seed, weighted slices earlier."""
        return draw(self.dataset.examples, seed=self.seed)

    def batches(self, indices: Sequence[int], size: int) -> Iterator[Batch]:
        """Batches of about equal length, the shortest first."""
        encodings = [self.encodings[index] for index in indices]
        for members in length_batches(encodings, size):
            arrays = pad(
                [encodings[m] for m in members], pad_id=self.pad_id, input_names=self.input_names
            )
            yield Batch(
                indices=[indices[m] for m in members],
                inputs={name: torch.from_numpy(array) for name, array in arrays.items()},
            )


@dataclass(frozen=True)
class Batch:
    """Some texts as a model's inputs."""

    indices: list[int]
    """Which examples they are."""
    inputs: dict[str, torch.Tensor]
