# SPDX-License-Identifier: Apache-2.0
"""The report's pictures, as SVG text. Colours are classes, which the page's style sheet decides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10
from typing import Final

from examples.demo.records import Bucket

WIDTH: Final = 1040
_LEFT: Final = 64
_RIGHT: Final = 24
_CHARACTER: Final = 7.0
"""Width of a letter in a band, about."""
_TIME_STEPS: Final = (5, 10, 15, 30, 60, 120, 300, 600)
_TIME_TICKS: Final = 14
COLOURS: Final = 6
"""Classes v0 … v5 of the style sheet."""


@dataclass(frozen=True)
class Scale:
    """From a value to a coordinate."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, count: int) -> list[float]:
        """Round values within the range, about `count` of them."""
        step = _round_step((self.high - self.low) / max(1, count))
        first = ceil(self.low / step - 1e-9)
        last = floor(self.high / step + 1e-9)
        return [round(i * step, 10) for i in range(first, last + 1)]


@dataclass(frozen=True)
class Dot:
    """A variant in the Pareto plot."""

    name: str
    latency_ms: float
    accuracy: float
    """Share, 0 to 1."""
    size_mib: float
    colour: int
    note: str = ""
    on_front: bool = True


@dataclass(frozen=True)
class Band:
    """An interval on the time line, in seconds since the start."""

    text: str
    start: float
    end: float
    css: str = ""
    title: str = ""


@dataclass(frozen=True)
class Lane:
    """A named row of intervals below the traffic."""

    name: str
    bands: tuple[Band, ...]


def pareto_plot(dots: Sequence[Dot], *, height: int = 380) -> str:
    """Accuracy over latency; the area of a dot is the variant's size. Up and left is better."""
    top, bottom = 28, height - 48
    xs, ys = [d.latency_ms for d in dots], [100 * d.accuracy for d in dots]
    span = max(1.0, max(ys) - min(ys))
    x = Scale(0, 1.12 * max(xs), _LEFT, WIDTH - _RIGHT - 60)
    y = Scale(min(ys) - 0.35 * span, max(ys) + 0.35 * span, bottom, top)
    parts = [_grid(x, y, x_unit="ms, median of one request", y_unit="accuracy, %")]
    front = sorted((d for d in dots if d.on_front), key=lambda d: d.latency_ms)
    if len(front) > 1:
        line = " ".join(f"{x(d.latency_ms)},{y(100 * d.accuracy)}" for d in front)
        parts.append(f'<polyline class="front" points="{line}"/>')
    biggest = max(d.size_mib for d in dots)
    for d in sorted(dots, key=lambda d: -d.size_mib):
        cx, cy = x(d.latency_ms), y(100 * d.accuracy)
        radius = round(8 + 26 * (d.size_mib / biggest) ** 0.5, 1)
        tip = f"{d.name}: {d.latency_ms:.2f} ms, {d.accuracy:.2%}, {d.size_mib:.1f} MiB"
        note = f" · {d.note}" if d.note else ""
        below = cy - radius < top + 40
        label = cy + radius + 17 if below else cy - radius - 22
        parts.append(
            f'<circle class="v{d.colour % COLOURS} dot" cx="{cx}" cy="{cy}" r="{radius}">'
            f"<title>{escape(tip)}</title></circle>"
            + _text("name", cx, label, d.name, anchor="middle")
            + _text("tick", cx, label + 15, f"{d.size_mib:.1f} MiB{note}", anchor="middle")
        )
    return _svg(height, parts, "Accuracy and latency of the variants")


def timeline(
    buckets: Sequence[Bucket],
    lanes: Sequence[Lane],
    marks: Iterable[Band],
    *,
    colours: dict[str, int],
    threshold_ms: float | None,
) -> str:
    """Answers a second by variant, their latency, and rows of stages and verdicts on the same time
    axis.

    Times in `lanes` and `marks` are seconds since the first bucket.
    """
    begin = buckets[0].start
    end = buckets[-1].start + buckets[-1].seconds - begin
    x = Scale(0, end, _LEFT + 66, WIDTH - _RIGHT)
    rate_top, rate_bottom, slow_top, slow_bottom = 40, 200, 234, 334
    busiest = max(sum(b.by_variant.values()) + b.failed for b in buckets)
    rate = Scale(0, max(1.0, 1.1 * busiest / buckets[0].seconds), rate_bottom, rate_top)
    slowest = max((1000 * b.p99 for b in buckets if b.p99 is not None), default=1.0)
    top_ms = max(slowest, 1.3 * (threshold_ms or 0.0))
    slow = Scale(0, min(top_ms, 6 * (threshold_ms or top_ms)), slow_bottom, slow_top)
    parts = [
        _axis(x, rate, unit="answers a second", count=4),
        _axis(x, slow, unit="latency seen by users, ms: median and 99 %", count=3),
        *(_stack(b, x, rate, begin, colours) for b in buckets),
        *_lines(buckets, x, slow, begin),
    ]
    if threshold_ms is not None:
        at = slow(threshold_ms)
        parts.append(
            f'<line class="limit" x1="{x.start}" x2="{x.end}" y1="{at}" y2="{at}"/>'
            + _text("limit-text", x.start + 4, at - 4, f"objective {threshold_ms:g} ms")
        )
    bottom = slow_bottom + 16
    for lane in lanes:
        parts.append(_lane(lane, x, bottom))
        bottom += 26
    free = [-1.0, -1.0]
    for mark in sorted(marks, key=lambda m: m.start):
        at = x(mark.start)
        half = _CHARACTER * len(mark.text) / 2
        # Two rows of names: close ones must not cover each other.
        row = 0 if at - half > free[0] else 1
        free[row] = at + half + _CHARACTER
        parts.append(
            f'<line class="mark {mark.css}" x1="{at}" x2="{at}" y1="{rate_top - 6}" y2="{bottom}">'
            f"<title>{escape(mark.title or mark.text)}</title></line>"
            + _text(
                f"mark-text {mark.css}", at, rate_top - 26 + 12 * row, mark.text, anchor="middle"
            )
        )
    step = next((s for s in _TIME_STEPS if end / s <= _TIME_TICKS), _TIME_STEPS[-1])
    for tick in range(0, int(end) + 1, step):
        label = f"{tick // 60}:{tick % 60:02d}"
        parts.append(_text("tick", x(tick), bottom + 14, label, anchor="middle"))
    return _svg(bottom + 24, parts, "Traffic, latency and verdicts over time")


def _svg(height: float, parts: Iterable[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def _text(css: str, x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text class="{css}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'


def _grid(x: Scale, y: Scale, *, x_unit: str, y_unit: str) -> str:
    below = y.start + 18
    return "".join(
        [
            _axis(x, y, unit=y_unit, count=5),
            *(_text("tick", x(t), below, f"{t:g}", anchor="middle") for t in x.ticks(8)),
            _text("unit", x.end, below + 18, x_unit, anchor="end"),
        ]
    )


def _axis(x: Scale, y: Scale, *, unit: str, count: int) -> str:
    parts = [_text("unit", x.start, y.end - 8, unit)]
    for tick in y.ticks(count):
        at = y(tick)
        parts.append(
            f'<line class="grid" x1="{x.start}" x2="{x.end}" y1="{at}" y2="{at}"/>'
            + _text("tick", x.start - 8, at + 4, f"{tick:g}", anchor="end")
        )
    return "".join(parts)


def _stack(b: Bucket, x: Scale, rate: Scale, begin: float, colours: dict[str, int]) -> str:
    """One interval's answers, a piece for each variant; failed requests on top."""
    left, right = x(b.start - begin), x(b.start - begin + b.seconds)
    pieces = [
        (f"v{colour % COLOURS}", b.by_variant.get(tag, 0), tag)
        for tag, colour in sorted(colours.items(), key=lambda item: item[1])
    ]
    pieces.append(("failed", b.failed, "failed"))
    parts, level = [], 0.0
    for css, count, name in pieces:
        if count:
            top = rate(level + count / b.seconds)
            parts.append(
                f'<rect class="{css}" x="{left}" y="{top}" width="{right - left - 0.4:.1f}" '
                f'height="{rate(level) - top:.1f}"><title>{escape(name)}: {count}</title></rect>'
            )
            level += count / b.seconds
    return "".join(parts)


def _lines(buckets: Sequence[Bucket], x: Scale, slow: Scale, begin: float) -> list[str]:
    lines = []
    for css, name in (("p99", "p99"), ("p50", "p50")):
        points = " ".join(
            f"{x(b.start - begin + b.seconds / 2)},{slow(min(1000 * value, slow.high))}"
            for b in buckets
            if (value := getattr(b, name)) is not None
        )
        lines.append(f'<polyline class="{css}" points="{points}"/>')
    return lines


def _lane(lane: Lane, x: Scale, top: float) -> str:
    parts = [_text("lane", x.start - 8, top + 14, lane.name, anchor="end")]
    for band in lane.bands:
        left, right = x(band.start), x(band.end)
        width = max(1.5, right - left)
        fits = width > _CHARACTER * len(band.text) + 6
        middle = (left + right) / 2
        text = _text("band-text", middle, top + 14, band.text, anchor="middle") if fits else ""
        parts.append(
            f'<rect class="band {band.css}" x="{left}" y="{top}" width="{width:.1f}" height="20" '
            f'rx="3"><title>{escape(band.title or band.text)}</title></rect>{text}'
        )
    return "".join(parts)


def _round_step(raw: float) -> float:
    """The smallest of 1, 2, 5 × 10ⁿ that is not below `raw`."""
    if raw <= 0:
        return 1.0
    magnitude = 10.0 ** floor(log10(raw))
    return next(m * magnitude for m in (1.0, 2.0, 5.0, 10.0) if m * magnitude >= raw * (1 - 1e-9))
