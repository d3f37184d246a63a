# SPDX-License-Identifier: Apache-2.0
"""What a model should answer to each example: the labels of a file, resolved against the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kompakt.api.base import Task
from kompakt.jobs.data.examples import Dataset, Example, Label
from kompakt.jobs.data.words import count_words
from kompakt.jobs.errors import DataInvalid, LabelUnknown

NAMED_LABELS = 20
"""How many of a model's labels an error lists."""


Target = float | tuple[int, ...]
"""A label's index, or a number, or an index for each word; of an embedding NaN, where a text is not
one of a pair that was scored."""


@dataclass(frozen=True)
class Targets:
    """How labels are understood."""

    task: Task
    labels: Sequence[str]

    def resolve(self, dataset: Dataset) -> list[Target]:
        """The target of each example; every example must have one."""
        if self.task == "SentenceEmbedding" and dataset.examples[0].second is None:
            return [math.nan] * len(dataset.examples)
        resolved: list[Target] = []
        for example, target in zip(dataset.examples, self.known(dataset), strict=True):
            if target is None:
                raise DataInvalid(
                    f"the example in line {example.line} of {dataset.uri} has no label; label it,"
                    " or take it out (if none has one: set labelField)"
                )
            resolved.append(target)
        return resolved

    def known(self, dataset: Dataset) -> list[Target | None]:
        """The same for data of which only a part is labelled."""
        if self.task in {"Regression", "SentenceEmbedding"}:
            return [_number(example, self.task, uri=dataset.uri) for example in dataset.examples]
        if self.task == "TokenClassification":
            return [_tags(example, self.labels, uri=dataset.uri) for example in dataset.examples]
        return [*known_labels(dataset, self.labels)]


def known_labels(dataset: Dataset, labels: Sequence[str]) -> list[int | None]:
    """Indices among a model's labels: by name, else by number, else None."""
    by_name = {name: index for index, name in enumerate(labels)}
    return [
        None if e.label is None else _index(e, e.label, labels, by_name, uri=dataset.uri)
        for e in dataset.examples
    ]


def _index(
    example: Example, label: Label, labels: Sequence[str], by_name: dict[str, int], *, uri: str
) -> int:
    written = str(label)
    index = by_name.get(written)
    if index is None and written.isdecimal() and int(written) < len(labels):
        index = int(written)
    if index is None:
        known = ", ".join(labels[:NAMED_LABELS]) + (", …" if len(labels) > NAMED_LABELS else "")
        raise LabelUnknown(
            f"the label {written[:100]!r} in line {example.line} of {uri} is none of the model's"
            f" labels ({known}) nor an index below {len(labels)}; correct the data, or set"
            " labelField"
        )
    return index


def _tags(example: Example, labels: Sequence[str], *, uri: str) -> tuple[int, ...] | None:
    if example.label is None:
        return None
    written = example.label
    tags = written if isinstance(written, tuple) else tuple(str(written).split())
    words = count_words(example.text)
    if len(tags) != words:
        raise DataInvalid(
            f"the example in line {example.line} of {uri} has {len(tags)} labels for {words} words;"
            " give one for each word (what white space divides)"
        )
    by_name = {name: index for index, name in enumerate(labels)}
    return tuple(_index(example, tag, labels, by_name, uri=uri) for tag in tags)


def _number(example: Example, task: Task, *, uri: str) -> float | None:
    if example.label is None:
        return None
    try:
        number = math.nan if isinstance(example.label, tuple) else float(example.label)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataInvalid(
            f"the label {str(example.label)[:100]!r} in line {example.line} of {uri} is no finite"
            f" number, which a {task} needs; correct the data, or set labelField"
        )
    return number
