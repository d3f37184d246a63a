# SPDX-License-Identifier: Apache-2.0
"""A tiny model and its training texts, as a step sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.jobs.conftest import Places, write_checkpoint

from kompakt.api.artifact import ArtifactFile, ArtifactManifest
from kompakt.api.job import CompressTask, ImportResult, ImportTask
from kompakt.jobs.compress.graph import Graph, GraphData
from kompakt.jobs.compress.training import TrainingData
from kompakt.jobs.data.examples import Dataset, Example
from kompakt.jobs.evaluate.classifier import Logits
from kompakt.jobs.importing import import_model
from kompakt.jobs.models.checkpoint import Checkpoint, inspect
from kompakt.jobs.models.encoder import Encoder
from kompakt.jobs.models.export import export
from kompakt.jobs.models.load import load
from kompakt.jobs.models.session import open_model
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
            task=checkpoint.task,
            labels=[int(label) if labelled else None for label in rng.integers(0, 3, texts)],
            tokenizer=tokenizer,
            input_names=names,
            pad_id=0,
            seed=0,
            teacher=answer,
            original=lambda: load(checkpoint),
            original_tokenizer=tokenizer,
        ),
    )


@pytest.fixture
def bench_of(checkpoint_of: Callable[[str], Path]) -> Callable[[str], Bench]:
    """Makes a bench for an architecture."""
    return lambda model_type: make_bench(checkpoint_of(model_type))


@pytest.fixture
def graph_of(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Graph]:
    """Exports an architecture's tiny model."""

    def make(model_type: str) -> Graph:
        checkpoint = inspect(checkpoint_of(model_type), origin="test")
        graph = Graph(tmp_path / f"{model_type}-fp32")
        graph.folder.mkdir(exist_ok=True)
        export(load(checkpoint), graph.path, input_names=checkpoint.architecture.input_names)
        return graph

    return make


@pytest.fixture
def graph_data(checkpoint_of: Callable[[str], Path]) -> GraphData:
    """Texts to calibrate with, of all lengths."""
    rng = np.random.default_rng(1)
    return GraphData(
        tokenizer=checkpoint_of("bert") / "tokenizer.json",
        max_sequence_length=40,
        texts=[" ".join(rng.choice(WORDS, size=rng.integers(1, 30))) for _ in range(64)],
        threads=1,
    )


def answers(graph: Graph, data: GraphData, texts: int = 28) -> Logits:
    """The logits of random ids of many lengths, one text at a time."""
    manifest = ArtifactManifest(
        task="TextClassification",
        labels=["negative", "neutral", "positive"],
        max_sequence_length=data.max_sequence_length,
        runtime=graph.runtime,
        precision=graph.precision,
        source_digest="sha256:" + "0" * 64,
        files=[ArtifactFile(path="model", digest="sha256:" + "0" * 64, size_bytes=1)],
    )
    session = open_model(graph.folder, manifest, threads=1)
    rng = np.random.default_rng(0)
    rows = []
    for length in range(2, 2 + texts):
        ids = rng.integers(4, 23, (1, length))
        batch = {name: np.zeros_like(ids) for name in session.input_names}
        batch |= {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        rows.append(session.run(batch)[0])
    return np.stack(rows)


@pytest.fixture
def model_type() -> str:
    """Of the source, where a test does not say otherwise."""
    return "bert"


@pytest.fixture
def imported(workshop: Any, place: Places, model_type: str) -> ImportResult:
    """The baseline."""
    write_checkpoint(workshop.checkpoint, model_type)
    model = {"uri": f"file://{workshop.checkpoint}", "maxSequenceLength": 40}
    return import_model(ImportTask.model_validate({"model": model}), place())


@pytest.fixture
def task(workshop: Any, imported: ImportResult) -> Callable[..., CompressTask]:
    """Makes a task over the same data."""
    training = workshop.data("training.jsonl", 80)

    def make(*steps: dict[str, Any], **changes: Any) -> CompressTask:
        return CompressTask.model_validate(
            {
                "recipe": "test",
                "checkpointDigest": imported.source_digest,
                "baselineDigest": imported.artifact_digest,
                "steps": list(steps),
                "training": {"uri": training, "labelField": "label"},
            }
            | changes
        )

    return make
