# SPDX-License-Identifier: Apache-2.0
"""Structured logs: one JSON object a line, with the object that is being worked on and the
reconcile's id.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from typing_extensions import override

_FIELDS: ContextVar[Mapping[str, Any]] = ContextVar("log_fields", default={})  # noqa: B039 -- never changed in place
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


@contextmanager
def fields(**values: Any) -> Iterator[None]:
    """Everything that is logged inside carries these fields."""
    token = _FIELDS.set({**_FIELDS.get(), **values})
    try:
        yield
    finally:
        _FIELDS.reset(token)


def _record_fields(record: logging.LogRecord) -> dict[str, Any]:
    own = {name: value for name, value in vars(record).items() if name not in _STANDARD}
    # kopf attaches objects and settings for its own formatters; they are no fields of ours.
    kopf = {"k8s_ref", "k8s_skip", "settings"}
    return {**_FIELDS.get(), **{name: value for name, value in own.items() if name not in kopf}}


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, tz=UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JsonFormatter(logging.Formatter):
    """`{"time": …, "level": …, "logger": …, "message": …, fields…}`."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        entry: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_record_fields(record),
        }
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """For a terminal."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback if there is one."""
        extra = " ".join(f"{name}={value}" for name, value in _record_fields(record).items())
        line = f"{_time(record)} {record.levelname:<7} {record.getMessage()}"
        trace = f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        return f"{line}  [{extra}]{trace}" if extra else line + trace


def configure(level: str, style: str) -> None:
    """Send all logs to standard error. kopf speaks only when something is wrong."""
    handler = logging.StreamHandler(sys.stderr)
    # kopf runs in a thread on purpose (see informer.py).
    handler.addFilter(lambda record: not record.getMessage().startswith("OS signals are ignored"))
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    quiet = logging.DEBUG if level == "DEBUG" else logging.WARNING
    for name in ("kopf", "aiohttp", "asyncio", "kubernetes", "urllib3"):
        logging.getLogger(name).setLevel(max(quiet, logging.INFO))
