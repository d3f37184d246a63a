# SPDX-License-Identifier: Apache-2.0
"""What a model should answer to each example: the labels of a file, resolved against the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kompakt.api.base import Task
from kompakt.jobs.data.examples import Dataset, Example
from kompakt.jobs.errors import DataInvalid, LabelUnknown

NAMED_LABELS = 20
"""How many of a model's labels an error lists."""


@dataclass(frozen=True)
class Targets:
    """How labels are understood."""

    task: Task
    labels: Sequence[str]

    def resolve(self, dataset: Dataset) -> list[float]:
        """The target of each example; every example must have one."""
        resolved = []
        for example, target in zip(dataset.examples, self.known(dataset), strict=True):
            if target is None:
                raise DataInvalid(
                    f"the example in line {example.line} of {dataset.uri} has no label; label it,"
                    " or take it out (if none has one: set labelField)"
                )
            resolved.append(target)
        return resolved

    def known(self, dataset: Dataset) -> list[float | None]:
        """The same for data of which only a part is labelled."""
        if self.task == "Regression":
            return [_number(example, uri=dataset.uri) for example in dataset.examples]
        return [*known_labels(dataset, self.labels)]


def known_labels(dataset: Dataset, labels: Sequence[str]) -> list[int | None]:
    """Indices among a model's labels: by name, else by number, else None."""
    by_name = {name: index for index, name in enumerate(labels)}
    resolved: list[int | None] = []
    for example in dataset.examples:
        if example.label is None:
            resolved.append(None)
            continue
        written = str(example.label)
        index = by_name.get(written)
        if index is None and written.isdecimal() and int(written) < len(labels):
            index = int(written)
        if index is None:
            known = ", ".join(labels[:NAMED_LABELS]) + (", …" if len(labels) > NAMED_LABELS else "")
            raise LabelUnknown(
                f"the label {written[:100]!r} in line {example.line} of {dataset.uri} is none"
                " of the model's"
                f" labels ({known}) nor an index below {len(labels)}; correct the data, or set"
                " labelField"
            )
        resolved.append(index)
    return resolved


def _number(example: Example, *, uri: str) -> float | None:
    if example.label is None:
        return None
    try:
        number = float(example.label)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataInvalid(
            f"the label {str(example.label)[:100]!r} in line {example.line} of {uri} is no finite"
            " number, which a Regression needs; correct the data, or set labelField"
        )
    return number
