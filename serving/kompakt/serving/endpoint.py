# SPDX-License-Identifier: Apache-2.0
"""The server's ASGI application: one model, one variant, its metrics.

Whatever bytes arrive, the caller gets JSON and the worker lives. Every inference request is counted
as started and as finished once, under one outcome; health, metadata and metrics are not counted,
nor are the comparator's requests, which are no user's and are measured where they come from.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Final, Literal

from kompakt.api import telemetry
from kompakt.serving.asgi import (
    DisconnectedError,
    Headers,
    Health,
    HttpError,
    Receive,
    Responder,
    Scope,
    Send,
    first_byte_ns,
    header,
    read_body,
    require_method,
    shown_path,
)
from kompakt.serving.metrics import Family, Histogram, Registry, Sampled
from kompakt.serving.model import Answers, NoTokensError
from kompakt.serving.protocol import (
    DEADLINE_HEADER,
    NO_BINARY,
    InvalidRequestError,
    ModelFacts,
    parse_request,
    render_metadata,
    render_response,
)
from kompakt.serving.scheduler import DeadlineExceededError, QueueFullError, Scheduler

VARIANT_HEADER: Final = b"x-kompakt-variant"
_DEADLINE: Final = DEADLINE_HEADER.encode()
_SHADOW: Final = telemetry.SHADOW_HEADER.encode()
_BINARY_HEADER: Final = b"inference-header-content-length"
_MAX_DEADLINE_MS: Final = 600_000
_NS_PER_MS: Final = 1_000_000
_SERVER_ERRORS: Final = 500

Outcome = Literal["ok", "invalid", "error"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    max_batch: int = 64
    default_deadline_ms: int = 10_000
    """Allowance of requests that name none; whoever waits longer gets 504, and the queue keeps
    moving.
    """


class Meter:
    """The series of `kompakt.api.telemetry` for one variant."""

    def __init__(
        self,
        *,
        variant: str,
        labels: tuple[str, ...],
        depth: Callable[[], int],
        load_seconds: float,
    ) -> None:
        self._started = Family(
            telemetry.REQUESTS_STARTED, "counter", "Inference requests whose headers were read."
        )
        self._finished = Family(
            telemetry.REQUESTS_FINISHED,
            "counter",
            "Inference requests answered, by outcome; invalid is the caller's fault.",
            label="outcome",
            values=("ok", "invalid", "error"),
        )
        self._duration = Histogram(
            telemetry.REQUEST_DURATION,
            "Time from the first byte read to the last byte written, of ok requests.",
        )
        self._predictions = Family(
            telemetry.PREDICTIONS,
            "counter",
            "Texts by predicted label.",
            label="label",
            values=labels,
        )
        self._shadow = Family(
            "kompakt_shadow_requests_total",
            "counter",
            "Requests of a comparator, which counts them itself: in no other series here.",
        )
        self.registry: Final = Registry({"variant": variant})
        self.registry.add(
            self._started,
            self._finished,
            self._duration,
            self._predictions,
            self._shadow,
            Sampled("kompakt_queue_depth", "Requests that wait for a thread.", depth),
            Sampled(
                "kompakt_model_load_seconds",
                "Time that verifying, loading and warming up took.",
                lambda: load_seconds,
            ),
        )

    def shadow(self) -> None:
        """A comparator's request began; it is neither started nor finished."""
        self._shadow.add()

    def started(self) -> None:
        """The headers of an inference request were read."""
        self._started.add()

    def finished(self, outcome: Outcome, nanoseconds: int, labels: list[str]) -> None:
        """The request was answered; an `ok` one with these labels."""
        self._finished.add(outcome)
        if outcome == "ok":
            self._duration.observe(nanoseconds)
            for label in labels:
                self._predictions.add(label)


@dataclass(frozen=True)
class ServedModel:
    """A loaded variant and what belongs to it."""

    digest: str
    facts: ModelFacts
    scheduler: Scheduler[Sequence[str], Answers]
    meter: Meter


class Endpoint:
    """`model` is None until it is loaded: until then, inference answers 503."""

    def __init__(self, *, model_name: str, health: Health, limits: Limits | None = None) -> None:
        self.model_name: Final = model_name
        self.health: Final = health
        self._limits = limits or Limits()
        self._headers: Headers = []
        self._empty = Registry()
        self.model: ServedModel | None = None

    def serve(self, model: ServedModel) -> None:
        """Answer with this model from now on."""
        self._headers = [(VARIANT_HEADER, model.digest.removeprefix("sha256:")[:12].encode())]
        self.model = model
        self.health.ready()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        respond = Responder(send, self._headers, self.health)
        try:
            await self._route(scope, receive, respond)
        except HttpError as error:
            await respond.error(error)
        except DisconnectedError:
            pass
        except Exception:  # noqa: BLE001 -- a defect costs one request, never the worker
            _log.exception("a request failed")
            await respond.error(
                HttpError(500, "the server failed on this request; its log says why")
            )

    async def _route(self, scope: Scope, receive: Receive, respond: Responder) -> None:
        match scope["path"].split("/")[1:]:
            case ["v2", "models", name, *rest]:
                await self._model_route(name, rest, scope, receive, respond)
            case ["metrics"]:
                require_method(scope, "GET", "HEAD")
                await respond.metrics(self.model.meter.registry if self.model else self._empty)
            case ["v2", "health", "live"]:
                require_method(scope, "GET", "HEAD")
                await respond.live()
            case ["v2", "health", "ready"]:
                require_method(scope, "GET", "HEAD")
                await respond.readiness()
            case ["v2"]:
                require_method(scope, "GET", "HEAD")
                await respond.json(
                    200, {"name": "kompakt", "version": _own_version(), "extensions": []}
                )
            case _:
                raise HttpError(
                    404,
                    f"{shown_path(scope)} does not exist here; "
                    f"the model is at /v2/models/{self.model_name}",
                )

    async def _model_route(
        self, name: str, rest: list[str], scope: Scope, receive: Receive, respond: Responder
    ) -> None:
        if name != self.model_name:
            raise HttpError(
                404,
                f"model {name[:64]!r} is not served here; the only model is {self.model_name!r}",
            )
        model = self.model
        match rest:
            case ["versions", digest, *tail]:
                if model is not None and digest != model.digest:
                    raise HttpError(
                        404, f"version {digest[:80]!r} is not served here; this is {model.digest}"
                    )
                rest = tail
        match rest:
            case ["infer"]:
                require_method(scope, "POST")
                await self._infer(_loaded(model), scope, receive, respond)
            case ["ready"]:
                require_method(scope, "GET", "HEAD")
                # Also while draining: it still answers whom an old route sends here.
                _loaded(model)
                await respond.json(200, {"name": self.model_name, "ready": True})
            case []:
                require_method(scope, "GET", "HEAD")
                loaded = _loaded(model)
                metadata = render_metadata(
                    loaded.facts, model_name=self.model_name, digest=loaded.digest
                )
                await respond.raw(200, metadata)
            case _:
                raise HttpError(
                    404, f"{shown_path(scope)} does not exist; POST …/infer runs the model"
                )

    async def _infer(
        self, model: ServedModel, scope: Scope, receive: Receive, respond: Responder
    ) -> None:
        arrival = first_byte_ns(scope)
        counted = header(scope, _SHADOW) is None
        if counted:
            model.meter.started()
        else:
            model.meter.shadow()
        outcome: Outcome = "error"
        labels: list[str] = []
        try:
            body = await read_body(scope, receive)
            _refuse_binary(scope)
            request = parse_request(
                body, max_batch=self._limits.max_batch, outputs=model.facts.output_names
            )
            deadline_ms = _deadline_ms(scope) or self._limits.default_deadline_ms
            try:
                answers = await model.scheduler.submit(
                    request.texts, arrival + deadline_ms * _NS_PER_MS
                )
            except QueueFullError:
                raise _unavailable("the queue is full; try again, or add replicas") from None
            except DeadlineExceededError:
                raise HttpError(
                    504, f"the request waited longer than its {deadline_ms} ms, and was not run"
                ) from None
            except NoTokensError as error:
                raise InvalidRequestError(
                    f"inputs[0].data[{error.index}] holds nothing that the tokenizer knows; "
                    "send text"
                ) from None
            await respond.raw(
                200,
                render_response(
                    request, answers.tensors(), model_name=self.model_name, digest=model.digest
                ),
            )
            outcome, labels = "ok", answers.labels
        except InvalidRequestError as error:
            outcome = "invalid"
            raise HttpError(400, str(error)) from None
        except DisconnectedError:
            outcome = "invalid"
            raise
        except HttpError as error:
            outcome = "error" if error.status >= _SERVER_ERRORS else "invalid"
            raise
        finally:
            if counted:
                model.meter.finished(outcome, time.monotonic_ns() - arrival, labels)


def _loaded(model: ServedModel | None) -> ServedModel:
    if model is None:
        raise _unavailable("the model is still loading; ask /v2/health/ready, and try again")
    return model


def _unavailable(message: str) -> HttpError:
    return HttpError(503, message, (b"retry-after", b"1"))


def _refuse_binary(scope: Scope) -> None:
    if header(scope, _BINARY_HEADER) is not None:
        raise InvalidRequestError(f"header {_BINARY_HEADER.decode()}: {NO_BINARY}")


def _deadline_ms(scope: Scope) -> int | None:
    text = header(scope, _DEADLINE)
    if text is None:
        return None
    plausible = text.isdigit() and len(text) <= len(str(_MAX_DEADLINE_MS))
    milliseconds = int(text) if plausible else 0
    if not 1 <= milliseconds <= _MAX_DEADLINE_MS:
        raise InvalidRequestError(
            f"header {DEADLINE_HEADER} must be whole milliseconds from 1 to "
            f"{_MAX_DEADLINE_MS}, counted from the request's arrival"
        )
    return milliseconds


def _own_version() -> str:
    try:
        return version("kompakt")
    except PackageNotFoundError:  # a source tree on PYTHONPATH
        return "0"
