# SPDX-License-Identifier: Apache-2.0
"""What graph steps work on: a model as a runtime opens it, and texts to calibrate with. No torch
here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kompakt.api.artifact import MODEL_FILES, Precision
from kompakt.api.base import Runtime
from kompakt.jobs.errors import StepInvalid
from kompakt.jobs.models.text import open_tokenizer

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

FEWEST_TEXTS = 16
"""Ranges from fewer are those of single texts."""


@dataclass(frozen=True)
class Graph:
    """A model in a folder of its own; its files have the names that `MODEL_FILES` gives."""

    folder: Path
    runtime: Runtime = "OnnxRuntime"
    precision: Precision = "Float32"

    @property
    def path(self) -> Path:
        """The file to open."""
        return self.folder / MODEL_FILES[self.runtime][0]


@dataclass(frozen=True)
class GraphData:
    """What a graph step may use beside the graph."""

    tokenizer: Path
    max_sequence_length: int
    texts: Sequence[str]
    """Of the calibration source; empty where no step asks for any."""
    seed: int
    threads: int
    details: dict[str, Any] = field(default_factory=dict)
    """Goes into the report."""

    def encodings(self, samples: int) -> list[Encoding]:
        """So many of the texts, drawn at random, tokenized; empty ones left out."""
        order = list(range(len(self.texts)))
        random.Random(self.seed).shuffle(order)
        drawn = [self.texts[index] for index in order if self.texts[index].strip()][:samples]
        if len(drawn) < FEWEST_TEXTS:
            raise StepInvalid(
                f"quantize needs at least {FEWEST_TEXTS} texts to calibrate with, data.calibration"
                f" has {len(drawn)}; name more texts there"
            )
        return self._tokenizer.encode_batch(drawn)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return open_tokenizer(self.tokenizer, max_sequence_length=self.max_sequence_length)
