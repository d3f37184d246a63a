# SPDX-License-Identifier: Apache-2.0
"""What attention with so many heads and a feed-forward network with so many neurons cost here.

Measured, not counted: half of the parameters is not half of the time, and how much it is differs
from CPU to CPU, from runtime to runtime, from fp32 to int8 and with the length of texts. A few
sizes are exported, quantized if the recipe ends so, and timed on this pod, each text on one thread
as a server answers it; between them lines are drawn (the lookup table of ZipLM, Kurtic et al. 2023,
arXiv:2302.04089, section 3).

The table is kept in the store by hardware, so that it is measured once, and so that a Job that runs
again prunes alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any, ClassVar, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from pydantic.alias_generators import to_camel
from torch import nn
from typing_extensions import override

from kompakt.api.artifact import canonical_json, sha256_digest
from kompakt.api.base import Runtime
from kompakt.api.measure import ANSWER_THREADS
from kompakt.api.steps import Quantize
from kompakt.jobs import machine
from kompakt.jobs.compress.first_token import narrow
from kompakt.jobs.compress.openvino_int8 import rounded
from kompakt.jobs.compress.quantize import to_int8
from kompakt.jobs.models.encoder import Encoder, EncoderConfig, Layer
from kompakt.jobs.models.export import trace
from kompakt.jobs.models.session import (
    import_openvino,
    open_session,
    openvino_settings,
    runtime_version,
)
from kompakt.jobs.progress import say
from kompakt.jobs.store import Store

Precision = Literal["Int8", "Fp32", "OpenVinoInt8"]

VERSION = 3
"""Part of the key: raised when what is measured changes."""
DEPTH = 2
"""Layers in each graph, so that the call of a graph weighs less and weights leave the cache."""
LENGTH_SHARES = (1 / 6, 1 / 2, 5 / 6)
"""Quantiles of the texts' lengths that stand for all."""
LENGTH_MULTIPLE = 8
SECONDS = 10.0
"""For all rounds, if these are not fewer than the least."""
LEAST_ROUNDS = 7
RUNS = 3
"""Of a graph in a round, after one that is not counted."""

_Inputs = dict[str, NDArray[np.float32]]
_Call = Callable[[_Inputs], None]
Points = dict[int, float]
"""Microseconds by heads or neurons, ascending."""
Cost = Callable[[int], float]
"""Microseconds of one half of a layer, by heads or neurons."""


@dataclass(frozen=True)
class LatencyTable:
    """What halves of a layer cost at batch 1: those of most layers, and those of the last, which
    works on the first token alone but for keys and values (`first_token`), if answers are made of
    that token.
    """

    attention: Points
    feed_forward: Points
    last_attention: Points
    last_feed_forward: Points

    def costs(self, layers: int) -> list[Cost]:
        """The cost of each half of so many layers, by its heads or neurons: attention first."""
        return [
            partial(_interpolate, points)
            for usual, last in (
                (self.attention, self.last_attention),
                (self.feed_forward, self.last_feed_forward),
            )
            for points in [usual] * (layers - 1) + [last]
        ]

    def estimate(self, layers: Sequence[Layer]) -> float:
        """All these layers together."""
        counts = [*(layer.heads for layer in layers), *(layer.ffn_size for layer in layers)]
        return sum(cost(n) for cost, n in zip(self.costs(len(layers)), counts, strict=True))

    def to_wire(self) -> dict[str, list[list[float]]]:
        """As JSON."""
        return {
            to_camel(name): [[count, round(t, 3)] for count, t in points.items()]
            for name, points in vars(self).items()
        }

    @classmethod
    def from_wire(cls, value: Any) -> LatencyTable | None:
        """From JSON; None when it is no table."""
        try:
            return cls(
                **{
                    entry.name: {int(count): float(t) for count, t in value[to_camel(entry.name)]}
                    for entry in fields(cls)
                }
            )
        except (TypeError, ValueError, KeyError):
            return None


@dataclass(frozen=True)
class LatencyMeter:
    """Makes tables on this pod, or finds them in the store."""

    store: Store
    scratch: Path

    def table(self, encoder: Encoder, lengths: Sequence[int], precision: Precision) -> LatencyTable:
        """The table for layers as wide as this model's; `lengths` are those of the texts whose
        latency counts.
        """
        some = typical_lengths(lengths)
        layers = encoder.encoder_layers()
        heads = grid(max(layer.heads for layer in layers), multiple=1)
        neurons = grid(max(layer.ffn_size for layer in layers), multiple=16)
        key = self._key(encoder.config, heads, neurons, lengths=some, precision=precision)
        cached = LatencyTable.from_wire(self.store.get_json(key))
        if cached is not None:
            say("the latency table was in the store")
            return cached
        table = measure(
            encoder.config,
            heads=heads,
            neurons=neurons,
            lengths=some,
            precision=precision,
            scratch=self.scratch,
        )
        self.store.put_json(key, table.to_wire())
        return table

    def _key(
        self,
        config: EncoderConfig,
        heads: Sequence[int],
        neurons: Sequence[int],
        *,
        lengths: Sequence[int],
        precision: Precision,
    ) -> str:
        what = {
            "version": VERSION,
            "hidden": config.hidden,
            "headWidth": config.head_width,
            "activation": config.activation,
            "heads": list(heads),
            "neurons": list(neurons),
            "lengths": list(lengths),
            "precision": precision,
        }
        if not config.reads_first_token:
            what["lastLayer"] = "whole"
        digest = sha256_digest(canonical_json(what)).split(":")[1]
        return f"latency/{hardware_key(precision)}-{digest}"


def hardware_key(precision: Precision) -> str:
    """What tables are kept by, and what pruning by latency follows from."""
    return machine.feature_key((runtime_version(_runtime(precision)),))


def typical_lengths(lengths: Sequence[int]) -> list[int]:
    """A few lengths that stand for all, rounded up, so that like data shares a table."""
    ordered = sorted(lengths)
    some = (ordered[int(share * len(ordered))] for share in LENGTH_SHARES)
    return [-(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE for length in some]


def grid(most: int, *, multiple: int) -> list[int]:
    """The sizes that are measured: none, the smallest, and quarters of the largest."""
    quarters = (max(1, round(most * k / 4 / multiple)) * multiple for k in (1, 2, 3))
    return sorted({0, min(multiple, most), *(q for q in quarters if q < most), most})


def measure(
    config: EncoderConfig,
    *,
    heads: Sequence[int],
    neurons: Sequence[int],
    lengths: Sequence[int],
    precision: Precision,
    scratch: Path,
) -> LatencyTable:
    """Times both halves in all these sizes; a text's latency is the mean over the lengths, each of
    which is timed once, however often it is there.
    """
    started = time.monotonic()
    kinds: list[tuple[type[_Attention | _FeedForward], Sequence[int]]] = [
        (_Attention, heads),
        (_FeedForward, neurons),
    ]
    if config.reads_first_token:
        kinds += [(_LastAttention, heads), (_LastFeedForward, neurons)]
    graphs = [(half, count) for half, counts in kinds for count in counts]
    calls = []
    for number, (half, count) in enumerate(graphs):
        path = scratch / f"latency-{number}.onnx"
        _write(half(config, count), path, config=config)
        calls.append(_opened(path, precision))
        path.unlink()
    distinct = sorted(set(lengths))
    rounds = list(_rounds(calls, [_inputs(config, length) for length in distinct]))
    times = []
    for number, (half, _) in enumerate(graphs):
        # A median for each length, then their mean: long texts are slow, not noisy.
        each = {
            length: median(r[place][number] for r in rounds)
            for place, length in enumerate(distinct)
        }
        times.append(1e6 * mean(each[length] for length in lengths) / half.DEPTH)
    say(f"measured {len(graphs)} sizes in {time.monotonic() - started:.1f} s")
    left = iter(times)
    halves = [_ascending(counts, [next(left) for _ in counts]) for _, counts in kinds]
    # Where all tokens are read to the end, the last layer is like the others.
    attention, feed_forward, last_attention, last_feed_forward = (halves * 2)[:4]
    return LatencyTable(attention, feed_forward, last_attention, last_feed_forward)


def _rounds(calls: Sequence[_Call], inputs: Sequence[_Inputs]) -> Iterator[list[list[float]]]:
    """Seconds by length and graph, all graphs in turn, until the time is up."""
    started = time.monotonic()
    number = 0
    while number < LEAST_ROUNDS or time.monotonic() - started < SECONDS:
        yield [[_time(call, one) for call in calls] for one in inputs]
        number += 1


def _time(call: _Call, inputs: _Inputs) -> float:
    call(inputs)
    started = time.perf_counter()
    for _ in range(RUNS):
        call(inputs)
    return (time.perf_counter() - started) / RUNS


class _Attention(nn.Module):
    """First halves of layers, one after the other."""

    DEPTH: ClassVar[int] = DEPTH

    def __init__(self, config: EncoderConfig, heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Layer(config, heads=heads, ffn_size=0) for _ in range(self.DEPTH)
        )

    @override
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer.attend(x, mask)  # type: ignore[operator]
        return x


class _FeedForward(nn.Module):
    """Second halves of layers, one after the other."""

    DEPTH: ClassVar[int] = DEPTH

    def __init__(self, config: EncoderConfig, neurons: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Layer(config, heads=0, ffn_size=neurons) for _ in range(self.DEPTH)
        )

    @override
    def forward(self, x: torch.Tensor, _mask: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer.feed(x)  # type: ignore[operator]
        return x


class _LastAttention(_Attention):
    """The first half of a layer of which only the first token is read."""

    DEPTH = 1

    @override
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return super().forward(x, mask)[:, 0]


class _LastFeedForward(_FeedForward):
    """The second."""

    DEPTH = 1

    @override
    def forward(self, x: torch.Tensor, _mask: torch.Tensor) -> torch.Tensor:
        return super().forward(x, _mask)[:, 0]


def _write(half: nn.Module, path: Path, *, config: EncoderConfig) -> None:
    arrays = _inputs(config, 8)
    trace(
        half.eval(),
        tuple(torch.from_numpy(array) for array in arrays.values()),
        path,
        input_names=list(arrays),
        output_names=["y"],
        dynamic_axes={"x": {1: "tokens"}, "mask": {3: "tokens"}},
    )
    model = onnx.load(str(path))
    narrow(model)
    onnx.save(model, str(path))


def _runtime(precision: Precision) -> Runtime:
    return "OpenVino" if precision == "OpenVinoInt8" else "OnnxRuntime"


def _opened(path: Path, precision: Precision) -> _Call:
    """A graph, quantized and ready to be timed; its file is not needed any more."""
    if _runtime(precision) == "OpenVino":
        return _opened_by_openvino(path)
    if precision == "Int8":
        plain = path.with_suffix(".fp32")
        path.rename(plain)
        to_int8(plain, path, Quantize())
        plain.unlink()
    session = open_session(path, threads=ANSWER_THREADS)
    names = {entry.name for entry in session.get_inputs()}

    def call(inputs: _Inputs) -> None:
        session.run(None, {name: array for name, array in inputs.items() if name in names})

    return call


def _opened_by_openvino(path: Path) -> _Call:
    settings = openvino_settings("Float32", threads=ANSWER_THREADS)
    compiled = import_openvino().Core().compile_model(rounded(path), "CPU", settings)
    names = {entry.get_any_name() for entry in compiled.inputs}
    request = compiled.create_infer_request()

    def call(inputs: _Inputs) -> None:
        taken = {name: array for name, array in inputs.items() if name in names}
        request.infer(taken, share_inputs=True, share_outputs=True)

    return call


def _inputs(config: EncoderConfig, length: int) -> _Inputs:
    draw = np.random.default_rng(0)
    return {
        "x": draw.standard_normal((1, length, config.hidden), dtype=np.float32),
        "mask": np.zeros((1, 1, 1, length), dtype=np.float32),
    }


def _ascending(counts: Sequence[int], times: Sequence[float]) -> dict[int, float]:
    """What measures faster though it is larger is noise."""
    return dict(zip(counts, np.maximum.accumulate(np.array(times)).tolist(), strict=True))


def _interpolate(points: dict[int, float], count: int) -> float:
    return float(np.interp(count, list(points), list(points.values())))
