# SPDX-License-Identifier: Apache-2.0
"""What values activations take on real texts, and which of them to give integers to.

Texts run one by one, so that nothing is padding and batches need not have one shape. Nothing of
their length is kept: extremes of each channel in a first pass, histograms in a second one, and only
where the rule needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from kompakt.jobs.compress.qdq import Range
from kompakt.jobs.models.session import open_session

Rule = Literal["MinMax", "Percentile", "Entropy"]
Feed = Mapping[str, NDArray[np.int64]]
BINS = 4096
LEVELS = 256
_CANDIDATES = 96
"""Thresholds that the entropy rule tries, from a quarter of the largest value to all of it."""


@dataclass(frozen=True)
class Extremes:
    """The smallest and largest value of each channel."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]

    @property
    def peaks(self) -> NDArray[np.float32]:
        """The largest absolute value of each channel."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def divided(self, factors: NDArray[np.float32]) -> Extremes:
        """Those of the tensor with each channel divided by a factor."""
        return Extremes(self.low / factors, self.high / factors)

    @property
    def range(self) -> Range:
        """Of all channels together."""
        return Range(float(self.low.min()), float(self.high.max()))


class Activations:
    """Tensors of a graph over some texts."""

    def __init__(
        self, model: onnx.ModelProto, tensors: Sequence[str], feeds: Sequence[Feed], *, threads: int
    ) -> None:
        self._model = model
        self._tensors = list(tensors)
        self._feeds = feeds
        self._threads = threads

    def extremes(self) -> dict[str, Extremes]:
        """Over all tokens of all texts."""
        found: dict[str, Extremes] = {}
        for values in self._walk():
            for name, rows in values.items():
                low, high = rows.min(axis=0), rows.max(axis=0)
                if name in found:
                    low = np.minimum(low, found[name].low)
                    high = np.maximum(high, found[name].high)
                found[name] = Extremes(low, high)
        return found

    def sizes(self) -> dict[str, NDArray[np.float32]]:
        """The root mean square of each channel, over all tokens of all texts."""
        sums: dict[str, NDArray[np.float64]] = {}
        tokens = 0
        for values in self._walk():
            tokens += len(next(iter(values.values())))
            for name, rows in values.items():
                squares = np.square(rows, dtype=np.float64).sum(axis=0)
                sums[name] = sums.get(name, np.zeros_like(squares)) + squares
        return {name: np.sqrt(some / tokens).astype(np.float32) for name, some in sums.items()}

    def ranges(
        self, rule: Rule, extremes: Mapping[str, Extremes], *, percentile: float
    ) -> dict[str, Range]:
        """The range of each tensor.

        Args:
            rule: MinMax takes everything in. Percentile leaves out a share of the values at both
                ends. Entropy leaves out what makes the distribution of the integers most like
                that of the values (Kullback-Leibler divergence).
            extremes: Of the same texts.
            percentile: Share of the values that stay, of 1.
        """
        whole = {name: extremes[name].range for name in self._tensors}
        if rule == "MinMax":
            return whole
        counts = {name: np.zeros(BINS, dtype=np.int64) for name in self._tensors}
        for values in self._walk():
            for name, rows in values.items():
                bounds = (whole[name].low, whole[name].high)
                counts[name] += np.histogram(rows, bins=BINS, range=bounds)[0]
        choose: Callable[[NDArray[np.int64], Range], Range] = (
            entropy if rule == "Entropy" else lambda c, r: percentiles(c, r, share=percentile)
        )
        return {name: choose(counts[name], whole[name]) for name in self._tensors}

    def _walk(self) -> Iterator[dict[str, NDArray[np.float32]]]:
        """The tensors of one text after the other, [tokens, channels]."""
        model = with_outputs(self._model, self._tensors)
        session = open_session(model.SerializeToString(), threads=self._threads)
        for feed in self._feeds:
            arrays = session.run(self._tensors, dict(feed))
            yield {
                name: array.reshape(-1, array.shape[-1])
                for name, array in zip(self._tensors, arrays, strict=True)
            }


def percentiles(counts: NDArray[np.int64], whole: Range, *, share: float) -> Range:
    """The range that holds this share of the values, the rest cut off in equal parts."""
    edges = np.linspace(whole.low, whole.high, BINS + 1)
    below = np.cumsum(counts)
    cut = (1 - share) / 2 * below[-1]
    low = edges[np.searchsorted(below, cut, side="right")]
    high = edges[np.searchsorted(below, below[-1] - cut, side="left") + 1]
    return Range(float(low), float(high))


def entropy(counts: NDArray[np.int64], whole: Range) -> Range:
    """The clipped range whose 256 levels lose least information about the histogram."""
    edges = np.linspace(whole.low, whole.high, BINS + 1)
    peak = max(abs(whole.low), abs(whole.high))
    best, least = whole, np.inf
    for fraction in np.linspace(1.0, 0.25, _CANDIDATES):
        limit = fraction * peak
        inside = np.flatnonzero((edges[1:] > -limit) & (edges[:-1] < limit))
        first, last = inside[0], inside[-1] + 1
        if last - first < LEVELS:
            break
        divergence = _divergence(counts, first, last)
        if divergence < least:
            least, best = divergence, Range(float(edges[first]), float(edges[last]))
    return best


def _divergence(counts: NDArray[np.int64], first: int, last: int) -> float:
    """Of the values, clipped to some bins, from what 256 levels make of these bins."""
    kept = counts[first:last].astype(np.float64)
    true = kept.copy()
    true[0] += counts[:first].sum()
    true[-1] += counts[last:].sum()
    # A level's values are spread over those of its bins that have any.
    levels = np.arange(len(kept)) * LEVELS // len(kept)
    occupied = kept > 0
    shared = np.bincount(levels, weights=kept, minlength=LEVELS)
    among = np.bincount(levels, weights=occupied, minlength=LEVELS)
    guess = np.where(occupied, shared[levels] / np.maximum(among[levels], 1), 0.0)
    seen = true > 0
    # Where values were clipped into an empty bin there is no guess: a small one stands for it.
    small = 1e-6 * kept.sum() / len(kept)
    p = true[seen] / true.sum()
    q = np.maximum(guess[seen], small) / max(guess.sum(), small)
    return float((p * np.log(p / q)).sum())


def with_outputs(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """The same model, which also gives these tensors."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {entry.name for entry in copy.graph.output}
    copy.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in tensors
        if name not in known
    )
    return copy
