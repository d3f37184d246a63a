# SPDX-License-Identifier: Apache-2.0
"""`kompakt-server`: serve one artifact over the Open Inference Protocol until SIGTERM.

The port is open from the first moment; verifying, loading and warming up happen behind it, on a
thread, and readiness follows.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kompakt.api.base import Task
from kompakt.api.names import MODEL_MOUNT
from kompakt.serving import lifecycle, logs
from kompakt.serving.artifact import Artifact, ArtifactError, load_artifact
from kompakt.serving.asgi import Health
from kompakt.serving.classifier import Classifier
from kompakt.serving.cli import add_server_arguments, positive
from kompakt.serving.cpu import usable_threads
from kompakt.serving.embedder import Embedder
from kompakt.serving.endpoint import Endpoint, Limits, Meter, ServedModel
from kompakt.serving.model import Answers, TextModel
from kompakt.serving.regressor import Regressor
from kompakt.serving.scheduler import Scheduler
from kompakt.serving.tagger import Tagger

_log = logging.getLogger(__name__)
_MODELS: dict[Task, type[TextModel]] = {
    "TextClassification": Classifier,
    "Regression": Regressor,
    "TokenClassification": Tagger,
    "SentenceEmbedding": Embedder,
}


@dataclass(frozen=True)
class Settings:
    """What to serve, and how much of it at a time."""

    model_dir: Path
    digest: str | None
    threads: int
    queue: int


class ModelService:
    """Loads the artifact and puts it behind the endpoint."""

    def __init__(self, endpoint: Endpoint, settings: Settings) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._scheduler: Scheduler[Sequence[str], Answers] | None = None

    async def start(self) -> None:
        """Verify, load, warm up, and turn ready."""
        begin = time.monotonic()
        try:
            artifact, model = await asyncio.to_thread(_load, self._settings)
        except ArtifactError as error:
            raise lifecycle.StartupError(str(error)) from error
        scheduler = Scheduler(
            model.answer, threads=self._settings.threads, capacity=self._settings.queue
        )
        self._scheduler = scheduler
        seconds = time.monotonic() - begin
        self._endpoint.serve(
            ServedModel(
                digest=artifact.digest,
                facts=model.facts,
                scheduler=scheduler,
                meter=Meter(
                    variant=artifact.digest,
                    labels=model.labels,
                    depth=lambda: scheduler.depth,
                    load_seconds=seconds,
                ),
            )
        )
        # What start-up made stays for the life of the process: the collector need never walk it
        # again.
        gc.collect()
        gc.freeze()
        _log.info(
            "ready: %s after %.2f s, threads: %d", artifact.digest, seconds, self._settings.threads
        )

    async def stop(self) -> None:
        """End the threads; nothing is queued any more."""
        if self._scheduler is not None:
            self._scheduler.close()


def _load(settings: Settings) -> tuple[Artifact, TextModel]:
    artifact = load_artifact(settings.model_dir, settings.digest)
    kind = _MODELS[artifact.manifest.task]
    model = kind(artifact, threads=settings.threads)
    model.warm_up()
    return artifact, model


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `kompakt-server` and of `python -m kompakt.serving serve`."""
    arguments = _parser().parse_args(argv)
    logs.configure()
    health = Health()
    endpoint = Endpoint(
        model_name=arguments.model_name,
        health=health,
        limits=Limits(
            max_batch=arguments.max_batch, default_deadline_ms=arguments.default_deadline_ms
        ),
    )
    settings = Settings(
        model_dir=arguments.model_dir,
        digest=arguments.digest,
        threads=arguments.threads or usable_threads(),
        queue=arguments.queue,
    )
    return lifecycle.run(
        endpoint,
        ModelService(endpoint, settings),
        health,
        host=arguments.host,
        port=arguments.port,
        drain_seconds=arguments.drain_seconds,
    )


def _parser() -> argparse.ArgumentParser:
    limits = Limits()
    parser = argparse.ArgumentParser(prog="kompakt-server", description="Serve one model variant.")
    parser.add_argument(
        "--model-dir", type=Path, default=Path(MODEL_MOUNT), help="the artifact's folder"
    )
    parser.add_argument("--model-name", required=True, help="the name in /v2/models/{name}")
    parser.add_argument("--digest", help="refuse to serve any other artifact than this one")
    parser.add_argument(
        "--threads", type=positive, help="requests that run at a time (default: the CPU limit)"
    )
    parser.add_argument("--queue", type=positive, default=256, help="requests that may wait")
    parser.add_argument(
        "--max-batch", type=positive, default=limits.max_batch, help="texts in a request"
    )
    parser.add_argument(
        "--default-deadline-ms",
        type=positive,
        default=limits.default_deadline_ms,
        help="how long a request may wait that does not say so itself",
    )
    add_server_arguments(parser, drain_seconds=5.0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
