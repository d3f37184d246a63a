# SPDX-License-Identifier: Apache-2.0
"""The golden set: labelled texts, replayed through both variants again and again.

Its four gauges change together, at the end of a complete pass, and always describe one pass: how
many examples both variants answered, and how many only one of them got right. A pass in which fewer
than nine tenths were answered by both says more about the servers than about accuracy: it does not
count.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from kompakt.api import telemetry
from kompakt.serving.agreement import Agreement, Answer, Truth
from kompakt.serving.comparator import Legs
from kompakt.serving.legs import Verdict
from kompakt.serving.lifecycle import StartupError
from kompakt.serving.metrics import Family
from kompakt.serving.protocol import INPUT

MAX_EXAMPLES: Final = 100_000
_ANSWERED_AT_LEAST: Final = 0.9
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Example:
    """A text and its true label: a name, or its index among the model's labels, or a number; or one
    of the first two for each word; or none, where the reference says what is right.
    """

    text: str
    label: Truth | None


@dataclass(frozen=True, slots=True)
class PassCounts:
    """One pass over the set."""

    pairs: int
    lost: int
    gained: int


def read_golden(path: Path) -> list[Example]:
    """Read JSON Lines of `{"text": …, "label": …}`, or of `{"text": …}` alone.

    Raises StartupError that names the line.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise StartupError(f"--golden {path} cannot be read ({error.strerror})") from error
    examples = [
        _example(line, f"{path}:{number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not 1 <= len(examples) <= MAX_EXAMPLES:
        raise StartupError(
            f"--golden {path} holds {len(examples)} examples; it must hold 1 to {MAX_EXAMPLES}"
        )
    labelled = [example.label is not None for example in examples]
    if any(labelled) and not all(labelled):
        number = 1 + labelled.index(False)
        raise StartupError(
            f"--golden {path}: example {number} has no label, and others have one; label all or"
            " none"
        )
    return examples


def _example(line: bytes, where: str) -> Example:
    form = 'each line must be {"text": "…", "label": "…"}'
    try:
        document = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise StartupError(f"{where} is not JSON ({error}); {form}") from None
    if not isinstance(document, dict) or not isinstance(document.get("text"), str):
        raise StartupError(f"{where}: text is missing, or no string; {form}")
    label = document.get("label")
    if "label" not in document:
        return Example(document["text"], None)
    if isinstance(label, list) and all(type(part) in {str, int} for part in label):
        return Example(document["text"], tuple(label))
    if isinstance(label, bool) or not isinstance(label, str | int | float):
        raise StartupError(f"{where}: label is neither a string nor a number; {form}")
    return Example(document["text"], label)


class GoldenSet:
    """Replays the examples and keeps the gauges of the last complete pass."""

    def __init__(self, examples: Sequence[Example], *, rps: float, interval_seconds: float) -> None:
        self._examples = examples
        self._spacing = 1 / rps
        self._interval = interval_seconds
        self._passes = 0
        self._pass = Family(telemetry.GOLDEN_PASS, "gauge", "Number of the last complete pass.")
        self._pairs = Family(
            telemetry.GOLDEN_PAIRS, "gauge", "Examples that both variants answered in that pass."
        )
        self._lost = Family(
            telemetry.GOLDEN_LOST, "gauge", "Right by the reference only, in that pass."
        )
        self._gained = Family(
            telemetry.GOLDEN_GAINED, "gauge", "Right by the candidate only, in that pass."
        )

    def families(self) -> tuple[Family, ...]:
        """The gauges, for the registry."""
        return (self._pass, self._pairs, self._lost, self._gained)

    async def replay(self, legs: Legs, agreement: Agreement) -> None:
        """Pass after pass, until cancelled."""
        if agreement.needs_labels and self._examples[0].label is None:
            _log.error(
                "the golden set has no labels, and only they tell which answers of this model are"
                " right: it is not replayed"
            )
            return
        truth = self._truth(agreement)
        while True:
            self._record(await self._one_pass(legs, truth, agreement))
            await asyncio.sleep(self._interval)

    def _truth(self, agreement: Agreement) -> list[Answer | None]:
        """What each example's label means; one that the model lacks is wrong for both legs."""
        if not agreement.needs_labels:
            return [None] * len(self._examples)
        truth = [
            None if example.label is None else agreement.truth(example.label, example.text)
            for example in self._examples
        ]
        pairs = zip(self._examples, truth, strict=True)
        unknown = sorted({str(example.label) for example, right in pairs if right is None})
        if unknown:
            _log.warning(
                "the golden set has labels that the model does not know: %s; it knows %s",
                unknown[:10],
                list(agreement.names),
            )
        return truth

    async def _one_pass(
        self, legs: Legs, truth: Sequence[Answer | None], agreement: Agreement
    ) -> PassCounts:
        loop = asyncio.get_running_loop()
        pairs = lost = gained = 0
        due = loop.time()
        for index, (example, wanted) in enumerate(zip(self._examples, truth, strict=True)):
            await asyncio.sleep(max(0.0, due - loop.time()))
            # Slow legs slow the replay down; it never catches up in a burst.
            due = max(loop.time(), due) + self._spacing
            reference, candidate = await legs.ask(
                _request(example.text, agreement.outputs), candidate_first=bool(index % 2)
            )
            if Verdict.ANSWERED is reference.verdict is candidate.verdict:
                true = wanted if agreement.needs_labels else next(iter(reference.answers), None)
                right, still_right = (
                    true is not None
                    and len(reply.answers) == 1
                    and agreement.right(reply.answers[0], true)
                    for reply in (reference, candidate)
                )
                pairs += 1
                lost += right and not still_right
                gained += still_right and not right
        return PassCounts(pairs, lost, gained)

    def _record(self, counts: PassCounts) -> None:
        if counts.pairs < _ANSWERED_AT_LEAST * len(self._examples):
            _log.warning(
                "a pass over the golden set does not count: both variants answered %d of %d",
                counts.pairs,
                len(self._examples),
            )
            return
        # Without an await in between: a scrape sees the old pass or the new one.
        self._passes += 1
        self._pass.set(self._passes)
        self._pairs.set(counts.pairs)
        self._lost.set(counts.lost)
        self._gained.set(counts.gained)


def _request(text: str, outputs: Sequence[str]) -> bytes:
    return orjson.dumps(
        {
            "inputs": [{"name": INPUT, "shape": [1], "datatype": "BYTES", "data": [text]}],
            "outputs": [{"name": name} for name in outputs],
        }
    )
