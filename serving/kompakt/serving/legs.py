# SPDX-License-Identifier: Apache-2.0
"""The two servers that the comparator calls: the reference (stable digest) and the candidate."""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Literal
from urllib.parse import quote

import aiohttp
import orjson

from kompakt.api import telemetry
from kompakt.serving.agreement import Agreement, Answer, Vector, agreement_of
from kompakt.serving.protocol import DEADLINE_HEADER, EMBEDDING, LABEL, OFFSETS, SCORE, WORDS

REFERENCE: Final = "reference"
CANDIDATE: Final = "candidate"
LEGS: Final = (REFERENCE, CANDIDATE)
_REFUSALS: Final = frozenset({400, 413, 415})
"""Statuses that say: the request is wrong. Anything else but 200 is the server's failure."""
_HEADERS: Final = {
    "content-type": "application/json",
    telemetry.SHADOW_HEADER: "1",
    # Later than any user's: in a canary, users' requests go first.
    DEADLINE_HEADER: "30000",
}
_LOG_EVERY_SECONDS: Final = 10.0

_KINDS: Final[dict[str, Any]] = {LABEL: str, SCORE: int | float}
"""What the items of the outputs are that are compared."""

LegName = Literal["reference", "candidate"]
_log = logging.getLogger(__name__)


class Verdict(enum.Enum):
    """What became of a call."""

    ANSWERED = enum.auto()
    REFUSED = enum.auto()
    FAILED = enum.auto()


@dataclass(frozen=True, slots=True)
class Reply:
    """One leg's part of a pair."""

    verdict: Verdict
    answers: tuple[Answer, ...] = ()
    nanoseconds: int = 0


@dataclass(frozen=True)
class LegModel:
    """What a leg says it serves."""

    digest: str
    agreement: Agreement


class Leg:
    """One server."""

    def __init__(
        self, name: LegName, url: str, model_name: str, session: aiohttp.ClientSession
    ) -> None:
        self.name: Final = name
        self._session = session
        self._model_url = f"{url.rstrip('/')}/v2/models/{quote(model_name, safe='')}"
        self._logged = float("-inf")

    async def call(self, body: bytes) -> Reply:
        """Send an inference request. Never raises for what a server or a network can do."""
        begin = time.monotonic_ns()
        try:
            async with self._session.post(
                f"{self._model_url}/infer", data=body, headers=_HEADERS
            ) as response:
                content = await response.read()
                nanoseconds = time.monotonic_ns() - begin
                if response.status in _REFUSALS:
                    return Reply(Verdict.REFUSED)
                if response.status != 200:  # noqa: PLR2004 -- OK
                    return self._failed(f"answers {response.status}: {content[:200]!r}")
                return Reply(Verdict.ANSWERED, _answers(content), nanoseconds)
        except TimeoutError:
            return self._failed("did not answer in time")
        except (aiohttp.ClientError, OSError) as error:
            return self._failed(f"cannot be called: {error}")
        except (ValueError, KeyError, TypeError):
            return self._failed(
                f"answers 200 without the output {LABEL!r}, {SCORE!r} or {EMBEDDING!r}"
            )

    async def model(self) -> LegModel | None:
        """What it serves; None while it is not ready."""
        try:
            async with self._session.get(f"{self._model_url}/ready") as response:
                if response.status != 200:  # noqa: PLR2004 -- OK
                    return None
            async with self._session.get(self._model_url) as response:
                document: Any = orjson.loads(await response.read())
                parameters = document.get("parameters", {})
                agreement = agreement_of(
                    parameters.get("task", "TextClassification"),
                    document.get("labels", ()),
                    parameters,
                )
                return LegModel(digest=document["versions"][0], agreement=agreement)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError, KeyError, TypeError):
            return None

    def _failed(self, why: str) -> Reply:
        # A leg that is down fails on every request: one line now and then says as much as all.
        now = asyncio.get_running_loop().time()
        if now - self._logged >= _LOG_EVERY_SECONDS:
            self._logged = now
            _log.warning("the %s %s", self.name, why)
        return Reply(Verdict.FAILED)


def _answers(content: bytes) -> tuple[Answer, ...]:
    """Labels, numbers, words or vectors; raises ValueError, KeyError or TypeError when there are
    none.
    """
    tensors = orjson.loads(content)["outputs"]
    outputs = {output["name"]: output["data"] for output in tensors}
    if EMBEDDING in outputs:
        [shape] = [output["shape"] for output in tensors if output["name"] == EMBEDDING]
        return _vectors(outputs[EMBEDDING], *shape)
    if WORDS in outputs:
        return _tags(outputs[LABEL], outputs[OFFSETS], outputs[WORDS])
    for name, kind in _KINDS.items():
        answers = outputs.get(name, ())
        if answers and all(isinstance(answer, kind) for answer in answers):
            return tuple(answers)
    raise ValueError(LABEL)


def _vectors(numbers: list[float], count: int, width: int) -> tuple[Answer, ...]:
    """The vector of each text."""
    if len(numbers) != count * width or not all(isinstance(n, int | float) for n in numbers):
        raise ValueError(EMBEDDING)
    return tuple(
        Vector(tuple(numbers[start : start + width])) for start in range(0, len(numbers), width)
    )


def _tags(labels: list[str], offsets: list[int], words: list[int]) -> tuple[Answer, ...]:
    """The words of each text."""
    tags = iter(list(zip(offsets[::2], offsets[1::2], labels, strict=True)))
    answers = tuple(tuple(islice(tags, count)) for count in words)
    if next(tags, None) is not None or sum(map(len, answers)) != sum(words):
        raise ValueError(WORDS)
    return answers
