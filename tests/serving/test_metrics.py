# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from kompakt.api.telemetry import LATENCY_EDGES_MICROSECONDS, edge_for
from kompakt.serving.endpoint import Meter
from kompakt.serving.metrics import Family, Histogram, Registry, Sampled

INFER = "/v2/models/sentiment/infer"


def _le(histogram: Histogram, edge_microseconds: int) -> int:
    """The cumulative count that a scraper reads at an edge."""
    label = f'le="{edge_microseconds / 1e6}"'
    [line] = [line for line in histogram.render("") if label in line]
    return int(line.rsplit(" ", 1)[1])


@given(st.lists(st.integers(0, 20_000_000_000), max_size=50), st.integers(100, 10_000_000))
def test_a_bucket_never_calls_slow_requests_fast(durations: list[int], threshold: int) -> None:
    """For any threshold, what its bucket counts took at most that long: to the nanosecond."""
    histogram = Histogram("h", "")
    for nanoseconds in durations:
        histogram.observe(nanoseconds)
    edge = edge_for(threshold)
    assert edge <= threshold
    assert _le(histogram, edge) == sum(d <= edge * 1000 for d in durations)


@pytest.mark.parametrize("edge", [100, 120, 90_000, 10_000_000])
def test_an_edge_belongs_to_its_bucket_and_a_nanosecond_more_does_not(edge: int) -> None:
    """`le` means: less or equal."""
    histogram = Histogram("h", "")
    histogram.observe(edge * 1000)
    assert _le(histogram, edge) == 1
    histogram.observe(edge * 1000 + 1)
    assert _le(histogram, edge) == 1


def test_the_exposition_is_what_prometheus_parses() -> None:
    """Types, labels with odd characters, buckets, sums and counts come out as they went in."""
    registry = Registry({"variant": 'a"b\\c\nd'})
    counter = Family("things_total", "counter", "Things.", label="label", values=("quiet",))
    counter.add('x"\n', 3)
    histogram = Histogram("time_seconds", "Time.", label="leg", values=("a", "b"))
    histogram.observe(150_000, "a")
    histogram.observe(99_000_000_000, "a")
    registry.add(counter, histogram, Sampled("depth", "Depth.", lambda: 7))
    families = {f.name: f for f in text_string_to_metric_families(registry.render().decode())}
    assert families["things"].type == "counter"
    values = {s.labels["label"]: s.value for s in families["things"].samples}
    assert values == {"quiet": 0, 'x"\n': 3}
    assert {s.labels["variant"] for s in families["things"].samples} == {'a"b\\c\nd'}
    samples = {
        (s.name, s.labels.get("le")): s.value
        for s in families["time_seconds"].samples
        if s.labels["leg"] == "a"
    }
    assert samples["time_seconds_bucket", "0.00014"] == 0
    assert samples["time_seconds_bucket", "0.00016"] == 1
    assert samples["time_seconds_bucket", "10.0"] == 1
    assert samples["time_seconds_bucket", "+Inf"] == samples["time_seconds_count", None] == 2
    assert samples["time_seconds_sum", None] == pytest.approx(99.00015)
    buckets = [key for key in samples if key[0] == "time_seconds_bucket"]
    assert len(buckets) == len(LATENCY_EDGES_MICROSECONDS) + 1
    assert families["depth"].samples[0].value == 7
    assert families["process_resident_memory_bytes"].samples[0].value > 2**20
    assert abs(families["process_start_time_seconds"].samples[0].value - time.time()) < 3600


async def test_every_request_is_counted_once_under_one_outcome(
    make_artifact: Any,
    serve_model: Any,
    infer_body: Callable[..., Any],
    parse_metrics: Callable[[bytes], dict[str, float]],
) -> None:
    """Started, finished by outcome, durations and predictions agree; other routes do not count."""
    async with serve_model(make_artifact()) as served:
        for texts in (("good",), ("bad", "odd"), ("great", "good", "awful")):
            assert (await served.call("POST", INFER, infer_body(*texts))).status == 200
        for body in (b"", b"{", b"\xff"):
            assert (await served.call("POST", INFER, body)).status == 400
        hurried = {"x-kompakt-deadline-ms": "0"}
        assert (await served.call("POST", INFER, infer_body("good"), hurried)).status == 400
        for path in ("/v2/health/ready", "/metrics", "/v2/models/sentiment", "/nowhere"):
            await served.call("GET", path)
        # A comparator's request: counted where it comes from.
        shadow = {"x-kompakt-shadow": "1"}
        assert (await served.call("POST", INFER, infer_body("good"), shadow)).status == 200
        # A caller that hangs up before its body is complete.
        assert (await served.call("POST", INFER, chunks=[])).status == 0

        answer = await served.call("GET", "/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        series = parse_metrics(answer.body)

    variant = f'variant="{served.digest}"'
    assert series[f"kompakt_requests_started_total{{{variant}}}"] == 8
    assert series[f"kompakt_shadow_requests_total{{{variant}}}"] == 1
    outcomes = {
        outcome: series[f'kompakt_requests_finished_total{{{variant},outcome="{outcome}"}}']
        for outcome in ("ok", "invalid", "error")
    }
    assert outcomes == {"ok": 3, "invalid": 5, "error": 0}
    assert series[f"kompakt_request_duration_seconds_count{{{variant}}}"] == 3
    buckets = [
        number
        for name, number in series.items()
        if name.startswith(f"kompakt_request_duration_seconds_bucket{{{variant},")
    ]
    assert buckets == sorted(buckets)
    assert buckets[-1] == 3
    total = series[f"kompakt_request_duration_seconds_sum{{{variant}}}"]
    assert 0 < total < 10
    predictions = {
        label: series[f'kompakt_predictions_total{{{variant},label="{label}"}}']
        for label in ("negative", "neutral", "positive")
    }
    assert predictions == {"negative": 2, "neutral": 1, "positive": 3}
    assert series[f"kompakt_queue_depth{{{variant}}}"] == 0
    assert series[f"kompakt_model_load_seconds{{{variant}}}"] > 0


def test_counting_a_request_costs_less_than_twenty_microseconds() -> None:
    """The counters must not be what a request waits for (typical: about one microsecond)."""
    meter = Meter(variant="v", labels=("a", "b"), depth=lambda: 0, load_seconds=0)
    rounds = 2000
    best = min(_time_meter(meter, rounds) for _ in range(5))
    assert best / rounds < 20e-6


def _time_meter(meter: Any, rounds: int) -> float:
    begin = time.perf_counter()
    for index in range(rounds):
        meter.started()
        meter.finished("ok", 1_000_000 + index, ["a"])
    return time.perf_counter() - begin
