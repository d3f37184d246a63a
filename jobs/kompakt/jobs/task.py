# SPDX-License-Identifier: Apache-2.0
"""What the three tasks share: where they run, and what they give back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kompakt.api.job import CompressResult, ImportResult, MeasureResult
from kompakt.jobs.progress import say
from kompakt.jobs.store import Store


@dataclass
class Workplace:
    """A task's store, scratch folder, share of the CPUs, and what it tells for the report."""

    store: Store
    scratch: Path
    threads: int
    details: dict[str, Any] = field(default_factory=dict)
    """Goes into the report: whatever may help somebody who asks why."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Goes into the report: how long each stage took."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a part of the work, and says when it is done."""
        started = time.monotonic()
        yield
        elapsed = time.monotonic() - started
        self.seconds[name] = round(elapsed, 3)
        say(f"{name}: {elapsed:.1f} s")


TaskOutput = ImportResult | CompressResult | MeasureResult
