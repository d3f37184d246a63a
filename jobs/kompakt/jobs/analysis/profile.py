# SPDX-License-Identifier: Apache-2.0
"""Where a graph's time and memory go: ONNX Runtime's own profile, by part of the model. No torch
here.

A part is the embeddings, the attention or the feed-forward network of a layer, or the head. The
names of the graph's nodes tell which: those of layer 3 begin with `/layers.3/`. Fusions lose some
of the names; as one operator runs after the other, such a node belongs where the one before it did.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from kompakt.jobs.models.session import open_session

EMBEDDINGS, HEAD = "embeddings", "head"
WARM_UP_TEXTS = 2
_IN_LAYER = re.compile(r"/layers\.(\d+)/(\w*)")
_FEED_FORWARD = ("up", "down", "norm")
_END = "_kernel_time"
Feed = Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Cost:
    """Of one part."""

    microseconds: float
    """The median of the texts."""
    operators: Mapping[str, float]
    """The same by kind of operator."""
    parameters: int
    weight_bytes: int
    activation_bytes: int
    """Of the largest tensor that it makes of the longest text."""

    def to_wire(self) -> dict[str, Any]:
        """For the document."""
        return {
            "microseconds": round(self.microseconds, 1),
            "operators": {name: round(us, 1) for name, us in sorted(self.operators.items())},
            "parameters": self.parameters,
            "weightBytes": self.weight_bytes,
            "largestActivationBytes": self.activation_bytes,
        }


@dataclass(frozen=True)
class Event:
    """One operator of one run."""

    node: str
    operator: str
    microseconds: float
    output_bytes: int


def profile(
    model: Path,
    feeds: Sequence[Feed],
    *,
    threads: int,
    scratch: Path,
    seconds: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[dict[str, Cost], int]:
    """The cost of each part, in the order of computation, and how many texts it was seen on.

    Args:
        model: An ONNX file.
        feeds: Texts, one after the other; more than one, as the first warm up.
        threads: That a run may use.
        scratch: A folder for ONNX Runtime's file.
        seconds: After so many no further text is begun.
        clock: In seconds.
    """
    session = open_session(model, threads=threads, profile=scratch / "profile")
    started = clock()
    for feed in [*feeds[:WARM_UP_TEXTS], *feeds]:
        session.run(None, dict(feed))
        if clock() - started > seconds:
            break
    path = Path(session.end_profiling())
    runs = _runs(json.loads(path.read_text()))
    path.unlink()
    runs = runs[WARM_UP_TEXTS:] or runs[-1:]
    weights = _weights(onnx.load(str(model)).graph)
    spent: dict[str, list[float]] = defaultdict(list)
    by_operator: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    largest: Counter[str] = Counter()
    for events in runs:
        parts = parts_of([event.node for event in events])
        whole: dict[str, float] = defaultdict(float)
        each: dict[tuple[str, str], float] = defaultdict(float)
        for part, event in zip(parts, events, strict=True):
            whole[part] += event.microseconds
            each[part, event.operator] += event.microseconds
            largest[part] = max(largest[part], event.output_bytes)
        for part, microseconds in whole.items():
            spent[part].append(microseconds)
        for (part, operator), microseconds in each.items():
            by_operator[part][operator].append(microseconds)
    found = {
        part: Cost(
            microseconds=median(values),
            operators={name: median(some) for name, some in by_operator[part].items()},
            parameters=weights[part][0],
            weight_bytes=weights[part][1],
            activation_bytes=largest[part],
        )
        for part, values in sorted(spent.items(), key=lambda entry: _order(entry[0]))
    }
    return found, len(runs)


def parts_of(names: Sequence[str]) -> list[str]:
    """The part of each node, from the names in the order of execution."""
    matches = [_IN_LAYER.match(name) for name in names]
    last = max((place for place, match in enumerate(matches) if match), default=-1)
    parts: list[str] = []
    layer, former = "", EMBEDDINGS
    for place, (name, match) in enumerate(zip(names, matches, strict=True)):
        if match is None and name.startswith("/"):
            # What computes the mask may run between a layer's operators.
            parts.append(HEAD if place > last else EMBEDDINGS)
            former = HEAD if place > last else former
            continue
        if match is not None:
            number, module = match.groups()
            half = "attention" if number != layer else former.rpartition(".")[2]
            half = "feedForward" if module in _FEED_FORWARD else half
            layer, former = number, f"layers.{number}.{half}"
        parts.append(former)
    return parts


def _order(part: str) -> tuple[int, int, str]:
    if part in {EMBEDDINGS, HEAD}:
        return (0 if part == EMBEDDINGS else 2, 0, part)
    _, number, half = part.split(".")
    return (1, int(number), half)


def _runs(trace: Sequence[Mapping[str, Any]]) -> list[list[Event]]:
    """The operators of each call, from the file that ONNX Runtime writes."""
    runs: list[list[Event]] = []
    events: list[Event] = []
    for entry in trace:
        if entry["name"] == "model_run":
            runs.append(events)
            events = []
        elif entry["cat"] == "Node" and entry["name"].endswith(_END):
            details = entry["args"]
            events.append(
                Event(
                    node=entry["name"].removesuffix(_END),
                    operator=details["op_name"],
                    microseconds=float(entry["dur"]),
                    output_bytes=int(details.get("output_size", 0)),
                )
            )
    return runs


def _weights(graph: onnx.GraphProto) -> dict[str, tuple[int, int]]:
    """Numbers and bytes of the constants of each part; a constant is where it is read first."""
    sizes = {
        tensor.name: (math.prod(tensor.dims), len(tensor.raw_data))
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.dims
    }
    found: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    parts = parts_of([node.name for node in graph.node])
    for part, node in zip(parts, graph.node, strict=True):
        for name in node.input:
            if name in sizes:
                numbers, size = sizes.pop(name)
                found[part] = (found[part][0] + numbers, found[part][1] + size)
    return found
