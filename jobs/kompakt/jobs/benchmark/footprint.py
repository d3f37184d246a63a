# SPDX-License-Identifier: Apache-2.0
"""Peak memory of one artifact: that of a process which opens it, warms it up, answers texts,
and does no more.

A process of its own for each, because memory that a first model touched stays counted when a
second one is opened. What it measures includes the interpreter and the runtime, as in a server.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from kompakt.api.device import Device
from kompakt.jobs import machine
from kompakt.jobs.errors import Failed

TEXTS = 32
"""The longest ones: activations grow with length."""
TIMEOUT_SECONDS = 300


def peak_memory(folder: Path, texts: Sequence[str], *, threads: int, device: Device = "Cpu") -> int:
    """Mebibytes."""
    longest = sorted(texts, key=len)[-TEXTS:]
    request = {
        "folder": str(folder),
        "texts": longest,
        "threads": threads,
        "device": device,
    }
    done = subprocess.run(
        [sys.executable, "-m", "kompakt.jobs.benchmark.footprint"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["killed, perhaps for memory"])[-1]
        raise Failed(f"the artifact cannot be opened in a process of its own: {last}")
    return int(done.stdout)


def _main() -> None:
    from kompakt.jobs.evaluate.classifier import Classifier

    request = json.load(sys.stdin)
    classifier = Classifier(
        Path(request["folder"]), threads=request["threads"], device=request["device"]
    )
    classifier.warm_up()
    for text in request["texts"]:
        classifier.answer(text)
    sys.stdout.write(str(machine.peak_memory_mebibytes()))


if __name__ == "__main__":
    _main()
