# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from scipy import stats

from kompakt.jobs.compress.graph import Graph, GraphData
from kompakt.jobs.compress.products import plain, products
from kompakt.jobs.compress.qdq import Range
from kompakt.jobs.compress.ranges import BINS, Activations, _divergence, entropy, percentiles
from kompakt.jobs.models.session import open_session
from kompakt.jobs.models.text import pad


def histogram(values: np.ndarray) -> tuple[np.ndarray, Range]:
    """As a second pass makes it."""
    whole = Range(float(values.min()), float(values.max()))
    return np.histogram(values, bins=BINS, range=(whole.low, whole.high))[0], whole


def test_extremes_are_those_of_all_tokens(
    graph_of: Callable[[str], Graph], graph_data: GraphData
) -> None:
    """Text by text, the channels' extremes are what numpy finds in all outputs together."""
    model = plain(onnx.load(str(graph_of("bert").path)))
    names = [entry.name for entry in model.graph.input]
    feeds = [pad([e], pad_id=0, input_names=names) for e in graph_data.encodings(20)]
    tensors = sorted({product.activations for product in products(model.graph)})
    activations = Activations(model, tensors, feeds, threads=1)
    found = activations.extremes()
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in tensors)
    session = open_session(model.SerializeToString(), threads=1)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in tensors}
    for feed in feeds:
        for name, value in zip(tensors, session.run(tensors, feed), strict=True):
            rows[name].append(value.reshape(-1, value.shape[-1]))
    for name in tensors:
        every = np.concatenate(rows[name])
        np.testing.assert_allclose(found[name].low, every.min(axis=0), atol=1e-6)
        np.testing.assert_allclose(found[name].high, every.max(axis=0), atol=1e-6)
        np.testing.assert_allclose(found[name].peaks, np.abs(every).max(axis=0), atol=1e-6)
    whole = activations.ranges("MinMax", found, percentile=1.0)
    assert whole == {name: found[name].range for name in tensors}
    clipped = activations.ranges("Percentile", found, percentile=0.9)
    for name in tensors:
        every = np.concatenate(rows[name])
        step = float(every.max() - every.min()) / BINS
        assert clipped[name].low == pytest.approx(np.quantile(every, 0.05), abs=5 * step)
        assert clipped[name].high == pytest.approx(np.quantile(every, 0.95), abs=5 * step)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_percentiles_are_numpys(share: float) -> None:
    """To a bin of the histogram, the same at both ends of a skewed distribution."""
    values = np.random.default_rng(0).gamma(2.0, size=50_000).astype(np.float32) - 1
    counts, whole = histogram(values)
    step = (whole.high - whole.low) / BINS
    found = percentiles(counts, whole, share=share)
    cut = (1 - share) / 2
    assert found.low == pytest.approx(np.quantile(values, cut), abs=2 * step)
    assert found.high == pytest.approx(np.quantile(values, 1 - cut), abs=2 * step)
    everything = percentiles(counts, whole, share=1.0)
    assert (everything.low, everything.high) == pytest.approx((whole.low, whole.high), abs=step)


def test_entropy_cuts_off_lonely_outliers_and_nothing_else() -> None:
    """A normal bulk with one far value loses the value; a uniform one loses nothing."""
    rng = np.random.default_rng(0)
    bulk = rng.normal(size=200_000)
    counts, whole = histogram(np.append(bulk, 12.0))
    cut = entropy(counts, whole)
    assert np.abs(bulk).max() * 0.6 < cut.high < 8
    assert cut.low == whole.low
    counts, whole = histogram(rng.uniform(-1, 3, 200_000))
    assert entropy(counts, whole) == whole


def test_divergence_is_scipys() -> None:
    """Of a clipped histogram from its 256 levels, each spread over its occupied bins."""
    rng = np.random.default_rng(1)
    counts = rng.poisson(3.0, BINS) * rng.integers(0, 2, BINS)
    first, last = 300, 3000
    kept = counts[first:last]
    true = kept.astype(float)
    true[0] += counts[:first].sum()
    true[-1] += counts[last:].sum()
    guess = np.zeros(len(kept))
    owner = [bin_ * 256 // len(kept) for bin_ in range(len(kept))]
    for level in range(256):
        bins = [bin_ for bin_, own in enumerate(owner) if own == level and kept[bin_] > 0]
        for bin_ in bins:
            guess[bin_] = sum(kept[b] for b in bins) / len(bins)
    guess[[0, -1]] = np.maximum(guess[[0, -1]], 1e-6 * kept.sum() / len(kept))
    seen = true > 0
    assert _divergence(counts, first, last) == pytest.approx(
        stats.entropy(true[seen], guess[seen]), rel=1e-3
    )
