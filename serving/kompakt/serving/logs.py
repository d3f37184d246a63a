# SPDX-License-Identifier: Apache-2.0
"""Logs as JSON Lines on stderr, the same in both kinds of pod."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import orjson
from typing_extensions import override


class _JsonLines(logging.Formatter):
    @override
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(entry).decode()


def configure() -> None:
    """Send everything from INFO up to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # Its start and stop lines repeat ours; a caller's broken HTTP is the caller's business.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
