# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from kompakt.jobs.compress import latency
from kompakt.jobs.compress.latency import LatencyMeter, LatencyTable, grid, measure, typical_lengths
from kompakt.jobs.models.pooling import Pooling
from kompakt.jobs.models.session import open_session
from kompakt.jobs.store import Store

pytestmark = pytest.mark.slow

Benches = Callable[[str], Any]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rounds: what is tested is not the noise of this machine."""
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    monkeypatch.setattr(latency, "LEAST_ROUNDS", 2)


@pytest.mark.parametrize("precision", ["Fp32", "Int8", "OpenVinoInt8"])
def test_every_size_has_a_latency(precision: Any, bench_of: Benches, tmp_path: Path) -> None:
    """From none to all, and never less for more."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    table = measure(
        bench_of("bert").encoder.config,
        heads=[0, 1, 2, 4],
        neurons=[0, 16, 64, 128],
        lengths=[8, 24],
        precision=precision,
        scratch=scratch,
    )
    halves = [*zip(vars(table).values(), [[0, 1, 2, 4], [0, 16, 64, 128]] * 2, strict=True)]
    for points, counts in halves:
        assert list(points) == counts
        times = list(points.values())
        assert times == sorted(times)
        assert times[0] > 0
    assert not list(scratch.iterdir()), "graphs are left behind"


def test_a_last_layer_that_is_read_whole_is_like_the_others(
    bench_of: Benches, tmp_path: Path
) -> None:
    """Of models that answer for each token, or by the mean of all; kept apart in the store."""
    encoder = bench_of("bert").encoder
    meter = LatencyMeter(Store(f"file://{tmp_path}/store"), tmp_path)
    first = meter.table(encoder, [8], "Fp32")
    assert first.last_feed_forward != first.feed_forward
    for config in (
        replace(encoder.config, task="TokenClassification"),
        replace(encoder.config, pooling=Pooling(tokens="Mean")),
    ):
        encoder.config = config
        table = meter.table(encoder, [8], "Fp32")
        assert table.last_attention == table.attention
        assert table.last_feed_forward == table.feed_forward
    encoder.config = replace(encoder.config, pooling=Pooling(tokens="First"))
    assert meter.table(encoder, [8], "Fp32").to_wire() == first.to_wire()


def test_what_is_measured_is_what_a_model_has(
    bench_of: Benches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs hold the operators of so many heads or neurons, in int8 where asked for."""
    seen: list[tuple[Counter[str], int]] = []
    original = open_session

    def spy(path: Path, *, threads: int) -> Any:
        model = onnx.load(str(path))
        largest = max((max(t.dims) for t in model.graph.initializer if len(t.dims) > 1), default=0)
        seen.append((Counter(node.op_type for node in model.graph.node), largest))
        return original(path, threads=threads)

    monkeypatch.setattr(latency, "open_session", spy)
    config = bench_of("bert").encoder.config
    for precision in ("Fp32", "Int8"):
        measure(
            config,
            heads=[0, 3],
            neurons=[0, 96],
            lengths=[8],
            precision=precision,
            scratch=tmp_path,
        )
    depth = latency.DEPTH
    empty, attention, _, feed_forward = (operators for operators, _ in seen[:4])
    # Norms that are alike share their numbers by an Identity, which the runtime folds away.
    assert empty - Counter({"Identity": 9}) == {"Add": depth, "LayerNormalization": depth}
    assert attention["Softmax"] == depth
    assert feed_forward["MatMul"] == 2 * depth
    assert (seen[1][1], seen[3][1]) == (64, 96)
    assert seen[9][0]["MatMulInteger"] == 4 * depth
    assert seen[11][0]["MatMulInteger"] == 2 * depth


def test_the_last_layer_is_cheaper(bench_of: Benches, tmp_path: Path) -> None:
    """It is measured as it will be computed: the more tokens, the less of it is for one alone."""
    config = replace(bench_of("bert").encoder.config, hidden=256, head_width=64)
    table = measure(
        config,
        heads=[0, 4],
        neurons=[0, 1024],
        lengths=[128],
        precision="Fp32",
        scratch=tmp_path,
    )
    assert table.last_feed_forward[1024] < table.feed_forward[1024] / 2
    assert table.last_attention[4] < table.attention[4]


def test_between_measurements_lines_are_drawn(bench_of: Benches) -> None:
    """An estimate of a model is the sum over its layers."""
    table = LatencyTable(
        attention={0: 5.0, 4: 45.0},
        feed_forward={0: 2.0, 16: 10.0, 128: 122.0},
        last_attention={0: 1.0, 4: 21.0},
        last_feed_forward={0: 1.0, 16: 2.0, 128: 3.0},
    )
    attention, last_attention, feed_forward, last_feed_forward = table.costs(2)
    assert attention(1) == pytest.approx(15.0)
    assert last_attention(1) == pytest.approx(6.0)
    assert feed_forward(8) == pytest.approx(6.0)
    assert feed_forward(32) == pytest.approx(26.0)
    assert last_feed_forward(8) == pytest.approx(1.5)
    encoder = bench_of("bert").encoder
    assert table.estimate(encoder.encoder_layers()) == pytest.approx(45.0 + 122.0 + 21.0 + 3.0)


def test_a_table_is_measured_once(
    bench_of: Benches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept in the store by hardware, sizes, lengths and precision."""
    store = Store(f"file://{tmp_path / 'store'}")
    encoder = bench_of("bert").encoder
    lengths = [5, 9, 17, 30]
    counted: list[int] = []
    original = measure

    def counting(*arguments: Any, **named: Any) -> LatencyTable:
        counted.append(1)
        return original(*arguments, **named)

    monkeypatch.setattr(latency, "measure", counting)
    meter = LatencyMeter(store, tmp_path)
    first = meter.table(encoder, lengths, "Fp32")
    again = LatencyMeter(store, tmp_path).table(encoder, list(reversed(lengths)), "Fp32")
    assert len(counted) == 1
    assert again.to_wire() == first.to_wire()
    meter.table(encoder, lengths, "Int8")
    meter.table(encoder, [40] * 4, "Fp32")
    encoder.encoder_layers()[0].keep_heads(torch.tensor([0]))
    meter.table(encoder, lengths, "Fp32")
    assert len(counted) == 3, "the largest layer decides what is measured"
    for path in (tmp_path / "store/latency").iterdir():
        path.write_text('{"attention": 3}')
    meter.table(encoder, lengths, "Fp32")
    assert len(counted) == 4, "what cannot be read is measured again"


@pytest.mark.parametrize(
    ("most", "multiple", "expected"),
    [
        (12, 1, [0, 1, 3, 6, 9, 12]),
        (1536, 16, [0, 16, 384, 768, 1152, 1536]),
        (1, 1, [0, 1]),
        (2, 1, [0, 1, 2]),
        (40, 16, [0, 16, 32, 40]),
        (8, 16, [0, 8]),
        (0, 16, [0]),
    ],
)
def test_the_grid_reaches_from_none_to_all(most: int, multiple: int, expected: list[int]) -> None:
    """Few sizes, of which kernels see multiples."""
    assert grid(most, multiple=multiple) == expected


def test_a_length_is_timed_once(
    bench_of: Benches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it counts as often as it is there: the mean is over all that were asked for."""
    timed: list[int] = []

    def seconds(_call: Any, inputs: dict[str, Any]) -> float:
        timed.append(inputs["x"].shape[1])
        return timed[-1] / 1e6

    monkeypatch.setattr(latency, "_time", seconds)
    table = measure(
        replace(bench_of("bert").encoder.config, task="TokenClassification"),
        heads=[0],
        neurons=[0],
        lengths=[8, 8, 32],
        precision="Fp32",
        scratch=tmp_path,
    )
    assert Counter(timed) == dict.fromkeys([8, 32], 2 * latency.LEAST_ROUNDS)
    assert table.attention[0] == pytest.approx((8 + 8 + 32) / 3 / latency.DEPTH)


def test_a_few_lengths_stand_for_all() -> None:
    """Quantiles, rounded up, so that like data finds the same table."""
    assert typical_lengths(range(1, 61)) == [16, 32, 56]
    assert typical_lengths([7]) == [8, 8, 8]
