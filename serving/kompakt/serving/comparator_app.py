# SPDX-License-Identifier: Apache-2.0
"""`kompakt-comparator`: compare a candidate with the stable variant on mirrored requests.

Ready only when both legs have said that they are: until then a gateway finds no endpoint to mirror
to, and nothing is counted against a variant that has not started.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp

from kompakt.serving import lifecycle, logs
from kompakt.serving.asgi import Health
from kompakt.serving.cli import add_server_arguments, non_negative, positive, rate
from kompakt.serving.comparator import Comparator, Legs, ShadowMeter
from kompakt.serving.golden import GoldenSet, read_golden
from kompakt.serving.legs import CANDIDATE, REFERENCE, Leg, LegModel

_POLL_SECONDS: Final = 0.2
_IDLE_SECONDS: Final = 60.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """Whom to compare, and how hard to press them."""

    reference: str
    candidate: str
    model_name: str
    workers: int = 2
    timeout_ms: int = 5000
    golden: Path | None = None
    golden_rps: float = 20.0
    golden_interval_seconds: float = 30.0


class ComparisonService:
    """Waits for the legs, then runs the workers and the golden set."""

    def __init__(
        self, comparator: Comparator, meter: ShadowMeter, health: Health, settings: Settings
    ) -> None:
        self._comparator = comparator
        self._meter = meter
        self._health = health
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Wait for both legs; raises StartupError for an unusable golden set."""
        settings = self._settings
        golden = self._golden()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=settings.timeout_ms / 1000),
        )
        legs = Legs(
            reference=Leg(REFERENCE, settings.reference, settings.model_name, self._session),
            candidate=Leg(CANDIDATE, settings.candidate, settings.model_name, self._session),
        )
        reference, candidate = await asyncio.gather(
            _until_ready(legs.reference), _until_ready(legs.candidate)
        )
        self._meter.start(reference.agreement)
        self._tasks = [
            asyncio.create_task(self._comparator.work(legs)) for _ in range(settings.workers)
        ]
        if golden is not None:
            self._tasks.append(asyncio.create_task(golden.replay(legs, reference.agreement)))
        self._health.ready()
        _log.info("ready: reference %s, candidate %s", reference.digest, candidate.digest)

    async def stop(self) -> None:
        """Stop working; what is still queued is a sample that nobody misses."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def _golden(self) -> GoldenSet | None:
        settings = self._settings
        if settings.golden is None:
            return None
        golden = GoldenSet(
            read_golden(settings.golden),
            rps=settings.golden_rps,
            interval_seconds=settings.golden_interval_seconds,
        )
        self._comparator.registry.add(*golden.families())
        return golden


async def _until_ready(leg: Leg) -> LegModel:
    while True:
        model = await leg.model()
        if model is not None:
            return model
        await asyncio.sleep(_POLL_SECONDS)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `kompakt-comparator` and of `python -m kompakt.serving compare`."""
    arguments = _parser().parse_args(argv)
    logs.configure()
    health = Health()
    meter = ShadowMeter(warmup_pairs=arguments.warmup_pairs)
    comparator = Comparator(health=health, meter=meter, capacity=arguments.queue)
    settings = Settings(
        reference=arguments.reference,
        candidate=arguments.candidate,
        model_name=arguments.model_name,
        workers=arguments.workers,
        timeout_ms=arguments.timeout_ms,
        golden=arguments.golden,
        golden_rps=arguments.golden_rps,
        golden_interval_seconds=arguments.golden_interval_seconds,
    )
    return lifecycle.run(
        comparator,
        ComparisonService(comparator, meter, health, settings),
        health,
        host=arguments.host,
        port=arguments.port,
        drain_seconds=arguments.drain_seconds,
    )


def _parser() -> argparse.ArgumentParser:
    defaults = Settings(reference="", candidate="", model_name="")
    parser = argparse.ArgumentParser(
        prog="kompakt-comparator", description="Compare two variants on mirrored requests."
    )
    parser.add_argument("--reference", required=True, metavar="URL", help="the stable variant")
    parser.add_argument("--candidate", required=True, metavar="URL", help="the variant to judge")
    parser.add_argument("--model-name", required=True, help="the name in /v2/models/{name}")
    parser.add_argument(
        "--queue", type=positive, default=256, help="mirrored requests that may wait"
    )
    parser.add_argument(
        "--workers", type=positive, default=defaults.workers, help="pairs that run at a time"
    )
    parser.add_argument(
        "--timeout-ms", type=positive, default=defaults.timeout_ms, help="a slower call is an error"
    )
    parser.add_argument(
        "--warmup-pairs", type=int, default=20, help="first calls per leg without a duration"
    )
    parser.add_argument("--golden", type=Path, help='JSON Lines of {"text": …, "label": …}')
    parser.add_argument(
        "--golden-rps", type=rate, default=defaults.golden_rps, help="examples per second at most"
    )
    parser.add_argument(
        "--golden-interval-seconds",
        type=non_negative,
        default=defaults.golden_interval_seconds,
        help="pause between two passes over the golden set",
    )
    add_server_arguments(parser, drain_seconds=0.0)  # a mirrored request is nobody's loss
    return parser


if __name__ == "__main__":
    sys.exit(main())
