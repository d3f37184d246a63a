# SPDX-License-Identifier: Apache-2.0
"""Texts that a model is compressed with: tokenized once, batched by length; and the teacher.

The teacher's answers are those of the baseline artifact itself: what the variant must agree with is
what serves today.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from kompakt.api.base import Task
from kompakt.api.steps import Quantize
from kompakt.jobs.data.examples import Dataset, Example, draw
from kompakt.jobs.evaluate.classifier import Logits
from kompakt.jobs.models.device import CPU
from kompakt.jobs.models.text import length_batches, pad, token_batches

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

    from kompakt.jobs.compress.findings import Findings
    from kompakt.jobs.compress.latency import LatencyTable, Precision
    from kompakt.jobs.models.encoder import Encoder

PACK_UNITS = (240, 48)
"""Numbers with many divisors: the tokens of a packed batch are a multiple of one."""


@dataclass
class TrainingData:
    """The training source of a task, as its steps see it."""

    dataset: Dataset
    labels: Sequence[Any]
    """Of each text, the index among the model's labels, or of a Regression the number, or the
    indices of its words; None where it is unlabelled."""
    tokenizer: Tokenizer
    input_names: Sequence[str]
    pad_id: int
    seed: int
    teacher: Callable[[list[str]], Logits]
    """The baseline's logits for some texts."""
    original: Callable[[], Encoder]
    """Loads the source model, for who must look into it."""
    original_tokenizer: Tokenizer
    """Its tokenizer; `tokenizer` itself, as long as nothing was trimmed."""
    quantize: Quantize | None = None
    """What the recipe makes of the model after all training; for who trains towards it."""
    latency_table: Callable[[Encoder, Sequence[int], Precision], LatencyTable] | None = None
    """What layers like the model's cost on this pod, for texts of such lengths."""
    findings: Findings | None = None
    """What was found out before about models on such texts."""
    keep: Callable[[], str] | None = None
    """Stores the model as it is and returns its digest, for a step that must give up."""
    device: torch.device = CPU
    """Where the model is, and batches are made."""
    task: Task = "TextClassification"
    """What the model answers to a text."""
    tolerance: float = 0.0
    """Of answers that are numbers, as `agreement.Rule` has it."""
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

    @cached_property
    def original_encodings(self) -> list[Encoding]:
        """Every text, tokenized for the original."""
        return self.original_tokenizer.encode_batch(self.dataset.texts)

    def trim(self, tokenizer: Tokenizer, new_ids: Mapping[int, int]) -> None:
        """Takes a tokenizer with fewer tokens from here on; the teacher keeps its own."""
        self.tokenizer = tokenizer
        self.new_ids = new_ids
        self.pad_id = new_ids[self.pad_id]
        self.__dict__.pop("encodings", None)

    def with_more(self, texts: Sequence[str]) -> TrainingData:
        """The same with unlabelled texts behind all others."""
        more = tuple(Example(text) for text in texts)
        dataset = replace(self.dataset, examples=(*self.dataset.examples, *more))
        return replace(self, dataset=dataset, labels=[*self.labels, *([None] * len(more))])

    def order(self) -> list[int]:
        """All indices in a random order that follows from the seed, weighted slices earlier."""
        return draw(self.dataset.examples, seed=self.seed)

    @property
    def weights(self) -> list[float] | None:
        """How often texts are drawn, one beside the other; None where all are drawn alike."""
        weights = [example.weight for example in self.dataset.examples]
        return weights if len(set(weights)) > 1 else None

    def batches(self, indices: Sequence[int], size: int) -> Iterator[Batch]:
        """Batches of about equal length, the shortest first."""
        encodings = [self.encodings[index] for index in indices]
        for members in length_batches(encodings, size):
            chosen = [encodings[m] for m in members]
            yield self._batch([indices[m] for m in members], chosen, pad_id=self.pad_id)

    def packed(self, indices: Sequence[int], size: int) -> Iterator[Batch]:
        """Batches with as many tokens each as `size` texts have on average, the longest first."""
        encodings = [self.encodings[index] for index in indices]
        lengths = [len(encoding) for encoding in encodings]
        wanted = size * sum(lengths) / len(lengths)
        unit = next((unit for unit in PACK_UNITS if unit <= wanted), PACK_UNITS[-1])
        # A tokenizer that truncates: no width is beyond what the model has positions for.
        longest = max((self.tokenizer.truncation or {}).get("max_length", 0), *lengths)
        tokens = unit * max(1, round(wanted / unit))
        for members, width in token_batches(lengths, tokens=tokens, longest=longest):
            chosen = [encodings[m] for m in members]
            numbers = [indices[m] for m in members]
            yield self._batch(numbers, chosen, pad_id=self.pad_id, width=width)

    def original_batch(self, batch: Batch) -> Batch:
        """A batch as the original reads it, in the same shape."""
        encodings = [self.original_encodings[index] for index in batch.indices]
        width = batch.inputs["input_ids"].shape[1]
        # Padding is masked, so it may be any token.
        return self._batch(batch.indices, encodings, pad_id=0, width=width)

    def _batch(
        self,
        indices: Sequence[int],
        encodings: Sequence[Encoding],
        *,
        pad_id: int,
        width: int = 0,
    ) -> Batch:
        arrays = pad(encodings, pad_id=pad_id, input_names=self.input_names, width=width)
        inputs = {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}
        return Batch(indices=list(indices), inputs=inputs)


@dataclass(frozen=True)
class Batch:
    """Some texts as a model's inputs."""

    indices: list[int]
    """Which examples they are."""
    inputs: dict[str, torch.Tensor]

    @property
    def tokens(self) -> torch.Tensor:
        """Which are not padding, [texts, tokens]."""
        return self.inputs["attention_mask"].bool()
