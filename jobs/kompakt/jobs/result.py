# SPDX-License-Identifier: Apache-2.0
"""The termination message: a TaskResult within the kubelet's 4 KiB, giving up the least useful
parts first.
"""

from __future__ import annotations

from kompakt.api.artifact import canonical_json
from kompakt.api.job import RESULT_MAX_BYTES, MeasureResult, TaskResult

MESSAGE_LENGTH = 1024
SHORT_MESSAGE_LENGTH = 256


def encode(result: TaskResult, limit: int = RESULT_MAX_BYTES) -> bytes:
    """JSON of at most `limit` bytes: drops slices, the smallest first, then labels, then most of
    the message.
    """
    while len(encoded := canonical_json(result.to_wire())) > limit:
        measured, imported = result.measured, result.imported
        if measured is not None and measured.measurement.evaluation.slices:
            result = result.evolve(measured=_without_smallest_slice(measured))
        elif imported is not None and imported.labels:
            keep = len(imported.labels) // 2
            result = result.evolve(imported=imported.evolve(labels=imported.labels[:keep]))
        elif len(result.message) > SHORT_MESSAGE_LENGTH:
            result = result.evolve(message=shorten(result.message, SHORT_MESSAGE_LENGTH))
        else:
            break
    return encoded


def shorten(text: str, length: int = MESSAGE_LENGTH) -> str:
    """A text cut to a length, marked where it is cut."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _without_smallest_slice(measured: MeasureResult) -> MeasureResult:
    measurement = measured.measurement
    *slices, smallest = sorted(
        measurement.evaluation.slices, key=lambda s: s.examples, reverse=True
    )
    cut = {*measurement.evaluation.cut_slice_fields, smallest.field}
    evaluation = measurement.evaluation.evolve(slices=slices, cut_slice_fields=sorted(cut))
    return measured.evolve(measurement=measurement.evolve(evaluation=evaluation))
