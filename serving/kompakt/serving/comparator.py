# SPDX-License-Identifier: Apache-2.0
"""Shadow traffic: take mirrored requests, ask both variants, count where they differ.

The caller gets 202 before anything else happens and never waits for a leg. The queue between is
bounded in requests and in bytes; what it has no room for is dropped, and counted. A request that
both legs refuse is the caller's fault: it is neither a pair nor a call nor an error. The legs are
called one after the other, the first in turns, so that neither always finds the caches warm and the
two never compete for the same cores.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

import orjson

from kompakt.api import telemetry
from kompakt.serving.agreement import Agreement, SameLabel
from kompakt.serving.asgi import (
    DisconnectedError,
    Health,
    HttpError,
    Receive,
    Responder,
    Scope,
    Send,
    read_body,
    require_method,
    shown_path,
)
from kompakt.serving.legs import CANDIDATE, LEGS, REFERENCE, Leg, LegName, Reply, Verdict
from kompakt.serving.metrics import Family, Histogram, Registry, Sampled

MAX_QUEUED_BYTES: Final = 64 * 1024 * 1024
_log = logging.getLogger(__name__)


class ShadowMeter:
    """The comparator's series of `kompakt.api.telemetry`."""

    def __init__(self, *, warmup_pairs: int) -> None:
        self._warmup: dict[str, int] = dict.fromkeys(LEGS, warmup_pairs)
        self._agreement: Agreement = SameLabel()
        self.received: Final = Family(
            telemetry.SHADOW_RECEIVED, "counter", "Mirrored requests that arrived."
        )
        self.dropped: Final = Family(
            telemetry.SHADOW_DROPPED, "counter", "Mirrored requests that the queue had no room for."
        )
        self.pairs: Final = Family(
            telemetry.SHADOW_PAIRS,
            "counter",
            "Texts answered by both variants, by the reference's label.",
            label="label",
        )
        self.disagreements: Final = Family(
            telemetry.SHADOW_DISAGREEMENTS,
            "counter",
            "Texts answered differently, by the reference's label.",
            label="label",
        )
        self.calls: Final = Family(
            telemetry.SHADOW_CALLS,
            "counter",
            "Requests sent, except those that both legs refused.",
            label="leg",
            values=LEGS,
        )
        self.errors: Final = Family(
            telemetry.SHADOW_ERRORS,
            "counter",
            "Requests that a leg did not answer with 200 in time.",
            label="leg",
            values=LEGS,
        )
        self.duration: Final = Histogram(
            telemetry.SHADOW_DURATION,
            "Duration of answered requests after warm-up, as the comparator saw it.",
            label="leg",
            values=LEGS,
        )

    def families(self) -> tuple[Family | Histogram, ...]:
        """Everything, for the registry."""
        return (
            self.received,
            self.dropped,
            self.pairs,
            self.disagreements,
            self.calls,
            self.errors,
            self.duration,
        )

    def start(self, agreement: Agreement) -> None:
        """Compare by this rule; begin the series of each label at 0, so that a rate sees the first
        count.
        """
        self._agreement = agreement
        for label in agreement.names:
            self.pairs.add(label, 0)
            self.disagreements.add(label, 0)

    def judge(self, reference: Reply, candidate: Reply) -> None:
        """Count one request, all of it at once: a scrape never sees half a pair."""
        replies: tuple[tuple[LegName, Reply], ...] = (
            (REFERENCE, reference),
            (CANDIDATE, candidate),
        )
        refusals = sum(reply.verdict is Verdict.REFUSED for _, reply in replies)
        if refusals == len(replies):
            return
        answered = all(reply.verdict is Verdict.ANSWERED for _, reply in replies)
        # Different numbers of answers for the same texts: one leg does not keep to the protocol.
        if answered and len(reference.answers) != len(candidate.answers):
            candidate = Reply(Verdict.FAILED)
            self.judge(reference, candidate)
            return
        for (leg, reply), (_, other) in zip(replies, reversed(replies), strict=True):
            self.calls.add(leg)
            if reply.verdict is Verdict.FAILED or (
                # Refusing what the other answers is an error; refusing what the other chokes on
                # is not.
                reply.verdict is Verdict.REFUSED and other.verdict is Verdict.ANSWERED
            ):
                self.errors.add(leg)
            elif reply.verdict is Verdict.ANSWERED:
                self._observe(leg, reply.nanoseconds)
        if answered:
            rule = self._agreement
            for ours, theirs in zip(reference.answers, candidate.answers, strict=True):
                label = rule.counted(ours)
                self.pairs.add(label)
                self.disagreements.add(label, int(not rule.same(ours, theirs)))

    def _observe(self, leg: str, nanoseconds: int) -> None:
        if self._warmup[leg] > 0:
            self._warmup[leg] -= 1
        else:
            self.duration.observe(nanoseconds, leg)


@dataclass(frozen=True)
class Legs:
    """Both servers."""

    reference: Leg
    candidate: Leg

    async def ask(self, body: bytes, *, candidate_first: bool) -> tuple[Reply, Reply]:
        """The same request to both, one after the other: (reference's reply, candidate's)."""
        if candidate_first:
            candidate = await self.candidate.call(body)
            return await self.reference.call(body), candidate
        reference = await self.reference.call(body)
        return reference, await self.candidate.call(body)


class Comparator:
    """ASGI application and the workers behind it."""

    def __init__(self, *, health: Health, meter: ShadowMeter, capacity: int) -> None:
        self._health = health
        self._meter = meter
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(capacity)
        self._queued_bytes = 0
        self._turn = False
        self.registry: Final = Registry()
        self.registry.add(
            *meter.families(),
            Sampled(
                "kompakt_queue_depth",
                "Mirrored requests that wait for a worker.",
                self._queue.qsize,
            ),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        respond = Responder(send, [], self._health)
        try:
            await self._route(scope, receive, respond)
        except HttpError as error:
            await respond.error(error)
        except DisconnectedError:
            pass

    async def _route(self, scope: Scope, receive: Receive, respond: Responder) -> None:
        path: str = scope["path"]
        if path.endswith("/infer"):
            require_method(scope, "POST")
            self._take(await read_body(scope, receive))
            await respond.json(202, {"accepted": True})
        elif path == "/metrics":
            require_method(scope, "GET", "HEAD")
            await respond.metrics(self.registry)
        elif path == "/v2/health/live":
            require_method(scope, "GET", "HEAD")
            await respond.live()
        elif path == "/v2/health/ready":
            require_method(scope, "GET", "HEAD")
            await respond.readiness()
        else:
            raise HttpError(
                404, f"{shown_path(scope)} does not exist; mirror POST …/infer to the comparator"
            )

    def _take(self, body: bytes) -> None:
        self._meter.received.add()
        if self._queue.full() or self._queued_bytes + len(body) > MAX_QUEUED_BYTES:
            self._meter.dropped.add()
            return
        self._queued_bytes += len(body)
        self._queue.put_nowait(body)

    async def work(self, legs: Legs) -> None:
        """One worker; runs until it is cancelled."""
        while True:
            body = await self._queue.get()
            self._queued_bytes -= len(body)
            self._turn = not self._turn
            try:
                replies = await legs.ask(comparable(body), candidate_first=self._turn)
            except Exception:  # noqa: BLE001 -- a defect costs one pair, never the worker
                _log.exception("a mirrored request could not be compared")
                continue
            self._meter.judge(*replies)


def comparable(body: bytes) -> bytes:
    """The request without its choice of outputs: to compare, the answer itself is needed."""
    if b'"outputs"' not in body:
        return body
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body
    if not isinstance(document, dict) or document.pop("outputs", None) is None:
        return body
    return orjson.dumps(document)
