# SPDX-License-Identifier: Apache-2.0
"""Arguments that both commands have."""

from __future__ import annotations

import argparse
import math

from kompakt.api.names import SERVING_PORT


def add_server_arguments(parser: argparse.ArgumentParser, *, drain_seconds: float) -> None:
    """Where to listen, and how to end."""
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on")  # noqa: S104 -- a pod
    parser.add_argument("--port", type=int, default=SERVING_PORT, help="default: %(default)s")
    parser.add_argument(
        "--drain-seconds",
        type=non_negative,
        default=drain_seconds,
        help="after SIGTERM, how long requests are still accepted (default: %(default)s)",
    )


def positive(text: str) -> int:
    """A whole number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return number


def rate(text: str) -> float:
    """A number above 0."""
    number = float(text)
    if not (number > 0 and math.isfinite(number)):
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return number


def non_negative(text: str) -> float:
    """A number from 0."""
    number = float(text)
    if not (number >= 0 and math.isfinite(number)):
        raise argparse.ArgumentTypeError(f"{text} must not be negative")
    return number
