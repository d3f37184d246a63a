# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kompakt.api import telemetry
from kompakt.operator.exposition import KEPT, VARIANT, Reader

LABELS = st.text(min_size=0, max_size=12)
COUNTS = st.integers(0, 2**50)


def expected(text: str) -> dict[str, int]:
    """What the parser of prometheus_client finds, in our form."""
    found: dict[str, int] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name not in KEPT:
                continue
            labels = ",".join(
                f'{name}="{escape(value)}"'
                for name, value in sorted(sample.labels.items())
                if name != VARIANT
            )
            key = f"{sample.name}{{{labels}}}" if labels else sample.name
            found[key] = found.get(key, 0) + int(sample.value)
    return found


def escape(value: str) -> str:
    """A label value as the format writes it."""
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


@pytest.mark.slow
@given(st.lists(st.tuples(LABELS, COUNTS), max_size=6, unique_by=lambda pair: pair[0]))
def test_agrees_with_the_reference_parser(values: list[tuple[str, int]]) -> None:
    """Whatever labels hold, each series has the same name and count as by prometheus_client."""
    registry = CollectorRegistry()
    finished = Counter(
        telemetry.PREDICTIONS.removesuffix("_total"), "x", ["label", VARIANT], registry=registry
    )
    passes = Gauge(telemetry.GOLDEN_PASS, "x", registry=registry)
    other = Counter("python_gc_collections", "x", ["generation"], registry=registry)
    for value, count in values:
        finished.labels(value, "sha256:ab").inc(count)
        other.labels(value).inc()
    passes.set(3)
    text = generate_latest(registry).decode()
    reader = Reader()

    for _ in range(2):  # learnt, then remembered
        assert reader.read(text) == expected(text)


def test_histograms_keep_their_buckets() -> None:
    """Buckets and counts are kept with labels in alphabetical order; sums are not counts."""
    registry = CollectorRegistry()
    histogram = Histogram(
        telemetry.SHADOW_DURATION, "x", ["leg"], buckets=(0.001, 0.01), registry=registry
    )
    histogram.labels("candidate").observe(0.005)

    found = Reader().read(generate_latest(registry).decode())

    assert found == {
        'kompakt_shadow_duration_seconds_bucket{le="0.001",leg="candidate"}': 0,
        'kompakt_shadow_duration_seconds_bucket{le="0.01",leg="candidate"}': 1,
        'kompakt_shadow_duration_seconds_bucket{le="+Inf",leg="candidate"}': 1,
        'kompakt_shadow_duration_seconds_count{leg="candidate"}': 1,
    }


def test_series_that_differ_in_the_variant_alone_are_one() -> None:
    """The pod's label says which variant it runs; its series do not repeat it."""
    name = telemetry.REQUESTS_STARTED
    text = f'{name}{{variant="a"}} 2\n{name}{{variant="b"}} 3\n'

    assert Reader().read(text) == {name: 5}


def test_timestamps_are_passed_over() -> None:
    """A line may end with a timestamp, and then the value is the number before it, each time."""
    reader = Reader()

    for value in (7, 8):
        text = f"{telemetry.REQUESTS_STARTED} {value} 1700000000000\n"
        assert reader.read(text) == {telemetry.REQUESTS_STARTED: value}


@pytest.mark.parametrize("text", ["<html>", "a{b=} 1", 'a{b="c} 1', "kompakt_golden_pass"])
def test_what_is_no_exposition_is_an_error(text: str) -> None:
    """A pod that answers with something else gives no sample, rather than an empty one."""
    with pytest.raises(ValueError, match="not a line of Prometheus text"):
        Reader().read(text)
