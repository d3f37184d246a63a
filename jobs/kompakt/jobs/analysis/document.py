# SPDX-License-Identifier: Apache-2.0
"""The analysis of a baseline: what its parts cost, and what its answers would miss most.

It is stored as `analysis/<digest of the artifact>.json`, beside the artifact and not in it: times
are those of the pod that measured them. It explains. What it finds about heads and neurons is kept
for the prune steps too (`kompakt.jobs.compress.findings`), which look at the same texts first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kompakt.jobs import machine
from kompakt.jobs.analysis.profile import profile
from kompakt.jobs.data.examples import Dataset, draw
from kompakt.jobs.data.targets import Targets
from kompakt.jobs.models.session import runtime_version
from kompakt.jobs.models.text import length_batches, pad
from kompakt.jobs.task import Workplace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenizers import Encoding, Tokenizer

    from kompakt.jobs.compress.training import Batch
    from kompakt.jobs.models.encoder import Encoder

BATCH = 8
SECONDS = 30.0
"""After so many of profiling, and as many of the rest, no further text is looked at."""
ROLES = ("training", "calibration")
"""What sensitivity may be taken from; evaluation data choose nothing but the winner."""


@dataclass(frozen=True)
class Subject:
    """A baseline that was just made."""

    encoder: Encoder
    model: Path
    """Its ONNX file."""
    tokenizer: Tokenizer
    labels: Sequence[str]
    input_names: Sequence[str]
    pad_id: int


def analyze(
    subject: Subject,
    texts: Sequence[str],
    data: Mapping[str, Dataset],
    *,
    examples: int,
    seed: int,
    place: Workplace,
) -> dict[str, Any]:
    """The document.

    Args:
        subject: The model.
        texts: Of all lengths, for the profile.
        data: By role; without training and calibration data there is no sensitivity.
        examples: How many texts sensitivity is taken from at most.
        seed: Draws them.
        place: Where it happens.
    """
    encodings = subject.tokenizer.encode_batch(list(texts))
    feeds = [
        pad([encoding], pad_id=subject.pad_id, input_names=subject.input_names)
        for encoding in encodings
    ]
    parts, seen = profile(
        subject.model, feeds, threads=place.threads, scratch=place.scratch, seconds=SECONDS
    )
    document: dict[str, Any] = {
        "hardware": machine.hardware(threads_used=place.threads).to_wire(),
        "runtime": runtime_version("OnnxRuntime"),
        "profile": {
            "texts": seen,
            "tokens": sorted(len(encoding) for encoding in encodings[:seen]),
            "parts": {name: cost.to_wire() for name, cost in parts.items()},
        },
    }
    role = next((role for role in ROLES if role in data), None)
    if role is not None:
        from kompakt.jobs.analysis.fragility import fragility
        from kompakt.jobs.compress.findings import Findings

        dataset = data[role]
        found = fragility(
            subject.encoder,
            _batches(subject, dataset, examples, seed=seed),
            labels=Targets(subject.encoder.config.task, subject.labels).known(dataset),
            seconds=SECONDS,
            findings=Findings(place.store),
        )
        document["sensitivity"] = {"data": role} | found.to_wire()
    return document


def _batches(subject: Subject, dataset: Dataset, examples: int, *, seed: int) -> Iterator[Batch]:
    import torch

    from kompakt.jobs.compress.training import Batch

    indices = draw(dataset.examples, seed=seed)[:examples]
    encodings: list[Encoding] = subject.tokenizer.encode_batch([dataset.texts[i] for i in indices])
    for members in length_batches(encodings, BATCH):
        arrays = pad(
            [encodings[m] for m in members],
            pad_id=subject.pad_id,
            input_names=subject.input_names,
        )
        yield Batch(
            indices=[indices[m] for m in members],
            inputs={
                name: torch.from_numpy(array).to(subject.encoder.device)
                for name, array in arrays.items()
            },
        )
