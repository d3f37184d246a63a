# SPDX-License-Identifier: Apache-2.0
"""What graph steps work on: a model as a runtime opens it, and texts to calibrate with. No torch
here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from kompakt.api.artifact import MODEL_FILES, Precision
from kompakt.api.base import Runtime
from kompakt.jobs.compress.agreement import Rule
from kompakt.jobs.errors import StepInvalid
from kompakt.jobs.models.session import Logits, Session, open_files, open_session
from kompakt.jobs.models.text import Ids, open_tokenizer, pad

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

FEWEST_TEXTS = 16
"""Ranges from fewer are those of single texts."""
RANKING_TEXTS = 48
FEWEST_CHECKS, MOST_CHECKS = 100, 512
SMOKE_TEXTS = (
    "a short text",
    "",
    "another one that is quite a bit longer than the first, isn't it? " * 20,
)
"""Of all lengths, where none are at hand."""


@dataclass(frozen=True)
class Graph:
    """A model in a folder of its own; its files have the names that `MODEL_FILES` gives."""

    folder: Path
    runtime: Runtime = "OnnxRuntime"
    precision: Precision = "Float32"
    temperature_micros: int | None = None
    """What the scores are made milder by, when it is not 1."""

    @property
    def path(self) -> Path:
        """The file to open."""
        return self.folder / MODEL_FILES[self.runtime][0]


def written(model: onnx.ModelProto, target: Path) -> Graph:
    """The graph of a model for ONNX Runtime, in a new folder."""
    made = Graph(target)
    target.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(made.path))
    return made


def operators_run(path: Path, *, threads: int) -> Counter[str]:
    """The operators of the graph that ONNX Runtime really runs."""
    with TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        open_session(path, threads=threads, optimized=optimized)
        return Counter(node.op_type for node in onnx.load(str(optimized)).graph.node)


@dataclass(frozen=True)
class Labelled:
    """A text and its label's index."""

    text: str
    label: int


@dataclass(frozen=True)
class GraphData:
    """What a graph step may use beside the graph."""

    tokenizer: Path
    max_sequence_length: int
    texts: Sequence[str]
    """Of the calibration source, in the order in which they are drawn; empty where no step asks for
    any."""
    threads: int
    labelled: Sequence[Labelled] = ()
    """Texts that nothing was trained on; empty where no step asks for any."""
    rule: Rule = field(default_factory=Rule)
    """Which answers are the same."""
    details: dict[str, Any] = field(default_factory=dict)
    """Goes into the report."""

    def encodings(self, samples: int) -> list[Encoding]:
        """The first so many of the texts, tokenized; empty ones left out."""
        drawn = self._written[:samples]
        if len(drawn) < FEWEST_TEXTS:
            raise StepInvalid(
                f"quantize needs at least {FEWEST_TEXTS} texts to calibrate with, data.calibration"
                f" has {len(drawn)}; name more texts there"
            )
        return self._tokenizer.encode_batch(drawn)

    def feeds(self, input_names: Sequence[str], samples: int) -> list[dict[str, Ids]]:
        """The same as a model's inputs, one by one and unpadded: what stands at masked positions is
        nothing to take ranges from.
        """
        return [
            pad([encoding], pad_id=0, input_names=input_names)
            for encoding in self.encodings(samples)
        ]

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Any texts, tokenized."""
        return self._tokenizer.encode_batch(list(texts))

    def logits(self, graph: Graph, texts: Sequence[str]) -> Logits:
        """What a model answers, [texts, labels], one text at a time as a server asks it."""
        session = open_files(
            graph.path,
            graph.runtime,
            graph.precision,
            longest=self.max_sequence_length,
            threads=self.threads,
        )
        return self.answers(session, texts)

    def ranking_texts(self, samples: int) -> list[str]:
        """Of those that ranges are taken from, enough to tell sensitive products from others."""
        return self._written[: min(samples, RANKING_TEXTS)]

    def check_texts(self, samples: int) -> list[str]:
        """Texts after those, for a verdict on what was chosen."""
        found = self._written[samples : samples + MOST_CHECKS]
        if len(found) < FEWEST_CHECKS:
            raise StepInvalid(
                f"quantize with mixed precision needs at least {FEWEST_CHECKS} texts beside its"
                f" {samples} samples to check its choice on, data.calibration has {len(found)}:"
                " name more texts there, or lower samples"
            )
        return found

    def answers(self, session: Session, texts: Sequence[str]) -> Logits:
        """What an opened model answers, [texts, labels], one text at a time."""
        rows = [
            session.run(pad([encoding], pad_id=0, input_names=session.input_names))
            for encoding in self._tokenizer.encode_batch(list(texts))
        ]
        return np.concatenate(rows)

    @cached_property
    def _written(self) -> list[str]:
        """The texts that are not empty."""
        return [text for text in self.texts if text.strip()]

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return open_tokenizer(self.tokenizer, max_sequence_length=self.max_sequence_length)
