# SPDX-License-Identifier: Apache-2.0
"""A tiny model and its training texts, as a step sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from kompakt.jobs.compress.training import TrainingData
from kompakt.jobs.data.examples import Dataset, Example
from kompakt.jobs.evaluate.classifier import Logits
from kompakt.jobs.models.checkpoint import Checkpoint, inspect
from kompakt.jobs.models.encoder import Encoder
from kompakt.jobs.models.load import load
from kompakt.jobs.models.text import open_tokenizer, pad

WORDS = [
    "the",
    "a",
    "film",
    "was",
    "is",
    "good",
    "bad",
    "great",
    "awful",
    "plot",
    "actor",
    "scene",
    "very",
    "not",
    "quite",
    "really",
    "long",
    "short",
    "dull",
]


@dataclass(frozen=True)
class Bench:
    """What a torch step is given."""

    checkpoint: Checkpoint
    encoder: Encoder
    data: TrainingData


def make_bench(folder: Path, *, texts: int = 96, labelled: bool = True) -> Bench:
    """Loads a checkpoint; its own logits are the teacher's."""
    checkpoint = inspect(folder, origin="test")
    encoder, teacher = load(checkpoint), load(checkpoint)
    tokenizer = open_tokenizer(folder / "tokenizer.json", max_sequence_length=40)
    names = checkpoint.architecture.input_names
    rng = np.random.default_rng(0)
    sentences = [" ".join(rng.choice(WORDS, size=rng.integers(1, 15))) for _ in range(texts)]

    def answer(some: list[str]) -> Logits:
        rows = []
        with torch.no_grad():
            for text in some:
                arrays = pad([tokenizer.encode(text)], pad_id=0, input_names=names)
                rows.append(teacher(**{k: torch.from_numpy(v) for k, v in arrays.items()})[0])
        logits: Logits = torch.stack(rows).numpy()
        return logits

    examples = tuple(Example(text=sentence) for sentence in sentences)
    return Bench(
        checkpoint=checkpoint,
        encoder=encoder,
        data=TrainingData(
            dataset=Dataset(uri="file:///x", digest="sha256:" + "0" * 64, examples=examples),
            labels=[int(label) if labelled else None for label in rng.integers(0, 3, texts)],
            tokenizer=tokenizer,
            input_names=names,
            pad_id=0,
            seed=0,
            teacher=answer,
        ),
    )


@pytest.fixture
def bench_of(checkpoint_of: Callable[[str], Path]) -> Callable[[str], Bench]:
    """Makes a bench for an architecture."""
    return lambda model_type: make_bench(checkpoint_of(model_type))
