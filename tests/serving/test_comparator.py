# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from typing_extensions import override

from kompakt.serving.artifact import load_artifact
from kompakt.serving.asgi import Health, Receive, Scope, Send
from kompakt.serving.classifier import Classifier
from kompakt.serving.comparator import Comparator, ShadowMeter, comparable
from kompakt.serving.comparator_app import ComparisonService, Settings
from kompakt.serving.golden import read_golden
from kompakt.serving.legs import Reply, Verdict
from kompakt.serving.lifecycle import StartupError

pytestmark = pytest.mark.slow

INFER = "/v2/models/sentiment/infer"
STABLE = {"bad": "negative", "awful": "negative", "good": "positive", "great": "positive"}
CANDIDATE = {"bad": "negative", "awful": "neutral", "good": "positive", "odd": "positive"}
TEXTS = ["good", "bad", "awful", "great", "odd", "plain", "so good", "so awful", "bad odd bad"]
NO_PAUSE: dict[str, Any] = {"golden_rps": 10_000.0, "golden_interval_seconds": 1000.0}


@pytest.fixture
async def pair(make_artifact: Any, serve_model: Any, serve_http: Any) -> AsyncGenerator[Any]:
    """Two real servers with different models: ((url, classifier), (url, classifier))."""
    folders = [make_artifact("stable", STABLE), make_artifact("candidate", CANDIDATE)]
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for folder in folders:
            served = await stack.enter_async_context(serve_model(folder))
            url = await stack.enter_async_context(serve_http(served.endpoint))
            found.append((url, Classifier(load_artifact(folder))))
        yield found


@contextlib.asynccontextmanager
async def comparing(
    reference: str, candidate: str, *, queue: int = 256, warmup_pairs: int = 0, **options: Any
) -> AsyncGenerator[tuple[Comparator, Health]]:
    """A comparator between two servers, once it is ready."""
    health, meter = Health(), ShadowMeter(warmup_pairs=warmup_pairs)
    comparator = Comparator(health=health, meter=meter, capacity=queue)
    settings = Settings(reference=reference, candidate=candidate, model_name="sentiment")
    service = ComparisonService(comparator, meter, health, replace(settings, **options))
    await service.start()
    try:
        yield comparator, health
    finally:
        await service.stop()


class Scraper:
    """Reads a comparator's metrics."""

    def __init__(self, comparator: Comparator, parse: Callable[[bytes], dict[str, float]]) -> None:
        self._comparator = comparator
        self._parse = parse

    def __call__(self, name: str, **labels: str) -> float:
        """One series."""
        text = ",".join(f'{key}="{value}"' for key, value in labels.items())
        series = self._parse(self._comparator.registry.render())
        return series[f"kompakt_{name}" + (f"{{{text}}}" if text else "")]


@pytest.mark.slow
async def test_pairs_and_disagreements_are_exact(
    pair: Any, call_app: Any, infer_body: Any, parse_metrics: Any, wait_until: Any
) -> None:
    """Against what the two models say when they are asked directly, text by text."""
    (stable_url, stable), (candidate_url, candidate) = pair
    pairs: Counter[str] = Counter()
    disagreements: Counter[str] = Counter()
    async with comparing(stable_url, candidate_url, warmup_pairs=3) as (comparator, _):
        call, scrape = call_app(comparator), Scraper(comparator, parse_metrics)
        requests = [[text] for text in TEXTS] * 2 + [TEXTS, ["good", "odd"]]
        for texts in requests:
            # The user's choice of outputs must not hide the label.
            more = {"outputs": [{"name": "scores"}]} if texts == TEXTS else {}
            assert (await call("POST", INFER, infer_body(*texts, **more))).status == 202
            for text in texts:
                ours, theirs = (m.answer([text]).labels[0] for m in (stable, candidate))
                pairs[ours] += 1
                disagreements[ours] += ours != theirs
        for _ in range(3):  # refused by both: neither a pair nor a call nor an error
            assert (await call("POST", INFER, b"{")).status == 202
        count = len(requests)
        await wait_until(lambda: scrape("shadow_calls_total", leg="candidate") == count)
        await wait_until(lambda: scrape("queue_depth") == 0)
        await asyncio.sleep(0.1)
        assert scrape("shadow_received_total") == count + 3
        assert scrape("shadow_dropped_total") == 0
        assert sum(disagreements.values()) > 0
        for label in ("negative", "neutral", "positive"):
            assert scrape("shadow_pairs_total", label=label) == pairs[label]
            assert scrape("shadow_disagreements_total", label=label) == disagreements[label]
        for leg in ("reference", "candidate"):
            assert scrape("shadow_calls_total", leg=leg) == count
            assert scrape("shadow_errors_total", leg=leg) == 0
            # The first three calls of each leg were its warm-up.
            assert scrape("shadow_duration_seconds_count", leg=leg) == count - 3


class Stub:
    """A server that is ready, and answers inference after a while, or wrongly."""

    def __init__(self, *, delay: float = 0.0, status: int = 200, body: bytes | None = None) -> None:
        self.delay = delay
        self.status = status
        self.body = body
        self.times: list[float] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        status, content = 200, b'{"versions": ["sha256:0"], "labels": ["negative"]}'
        if scope["path"] == INFER:
            self.times.append(time.monotonic())
            await asyncio.sleep(self.delay)
            answer = {"outputs": [{"name": "label", "data": ["negative"]}]}
            status, content = self.status, self.body or orjson.dumps(answer)
        length = (b"content-length", b"%d" % len(content))
        await send({"type": "http.response.start", "status": status, "headers": [length]})
        await send({"type": "http.response.body", "body": content})


async def test_the_legs_are_called_one_after_the_other_and_first_in_turns(
    serve_http: Any, call_app: Any, infer_body: Any, parse_metrics: Any, wait_until: Any
) -> None:
    """Neither leg always finds the caches warm, nor competes with the other for a core."""
    legs = [Stub(delay=0.01), Stub(delay=0.01)]
    async with (
        serve_http(legs[0]) as one,
        serve_http(legs[1]) as two,
        comparing(one, two, workers=1) as (comparator, _),
    ):
        scrape = Scraper(comparator, parse_metrics)
        for _ in range(6):
            await call_app(comparator)("POST", INFER, infer_body("bad"))
        await wait_until(lambda: scrape("shadow_pairs_total", label="negative") == 6)
    gaps = [first - second for first, second in zip(*(leg.times for leg in legs), strict=True)]
    assert [gap > 0 for gap in gaps] in ([True, False] * 3, [False, True] * 3)
    assert min(map(abs, gaps)) >= 0.01


async def test_slow_legs_never_delay_the_caller_and_drops_are_counted(
    serve_http: Any, call_app: Any, infer_body: Any, parse_metrics: Any, wait_until: Any
) -> None:
    """The queue is full after the first few; everything is answered at once all the same."""
    slow = Stub(delay=0.1)
    async with (
        serve_http(slow) as url,
        comparing(url, url, queue=3, workers=1) as (comparator, _),
    ):
        call, scrape = call_app(comparator), Scraper(comparator, parse_metrics)
        waits = []
        for _ in range(20):
            begin = time.monotonic()
            assert (await call("POST", INFER, infer_body("bad"))).status == 202
            waits.append(time.monotonic() - begin)
            await asyncio.sleep(0)
        assert sorted(waits)[10] < 0.05  # both legs together take four times as long
        assert scrape("shadow_received_total") == 20
        dropped = scrape("shadow_dropped_total")
        assert 16 <= dropped <= 17  # three wait; one is with the worker, if it was quick enough
        await wait_until(lambda: scrape("shadow_pairs_total", label="negative") == 20 - dropped)


@pytest.mark.parametrize(
    ("candidate", "options"),
    [
        (Stub(status=500), {}),
        (Stub(status=503), {}),
        (Stub(status=404), {}),
        (Stub(status=400), {}),
        (Stub(delay=0.5), {"timeout_ms": 50}),
        (Stub(body=b"not json"), {}),
        (Stub(body=b'{"outputs": [{"name": "scores", "data": [1]}]}'), {}),
        (Stub(body=b'{"outputs": [{"name": "label", "data": ["a", "b"]}]}'), {}),
    ],
    ids=["500", "503", "404", "400", "timeout", "no-json", "no-label", "wrong-count"],
)
async def test_a_leg_that_does_not_answer_is_an_error_of_that_leg(
    serve_http: Any,
    call_app: Any,
    infer_body: Any,
    parse_metrics: Any,
    wait_until: Any,
    candidate: Stub,
    options: dict[str, Any],
) -> None:
    """No pair, no duration, one error: for the candidate alone."""
    async with (
        serve_http(Stub()) as good,
        serve_http(candidate) as bad,
        comparing(good, bad, **options) as (comparator, _),
    ):
        scrape = Scraper(comparator, parse_metrics)
        await call_app(comparator)("POST", INFER, infer_body("bad"))
        await wait_until(lambda: scrape("shadow_errors_total", leg="candidate") == 1)
        assert scrape("shadow_errors_total", leg="reference") == 0
        assert scrape("shadow_pairs_total", label="negative") == 0
        assert scrape("shadow_calls_total", leg="reference") == 1
        assert scrape("shadow_duration_seconds_count", leg="reference") == 1
        assert scrape("shadow_duration_seconds_count", leg="candidate") == 0


async def test_a_leg_that_vanishes_is_an_error_and_the_comparator_lives(
    serve_http: Any, call_app: Any, infer_body: Any, parse_metrics: Any, wait_until: Any
) -> None:
    """Connection refused is an answer like any other."""
    async with contextlib.AsyncExitStack() as stack:
        good = await stack.enter_async_context(serve_http(Stub()))
        async with serve_http(Stub()) as gone:
            context = comparing(good, gone)
            comparator, _ = await stack.enter_async_context(context)
        call, scrape = call_app(comparator), Scraper(comparator, parse_metrics)
        await call("POST", INFER, infer_body("bad"))
        await wait_until(lambda: scrape("shadow_errors_total", leg="candidate") == 1)
        assert scrape("shadow_errors_total", leg="reference") == 0


def test_refusing_what_the_other_chokes_on_is_no_error() -> None:
    """A bad request that crashes the candidate counts against the candidate only."""
    meter = ShadowMeter(warmup_pairs=0)
    meter.judge(Reply(Verdict.REFUSED), Reply(Verdict.FAILED))
    assert meter.errors.get("candidate") == 1
    assert meter.errors.get("reference") == 0


async def test_it_is_ready_only_when_both_legs_are(serve_http: Any, wait_until: Any) -> None:
    """Until then nothing is mirrored to it, hence nothing counted against a starting pod."""
    health, meter = Health(), ShadowMeter(warmup_pairs=0)
    comparator = Comparator(health=health, meter=meter, capacity=8)

    class Starting(Stub):
        up = False

        @override
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if not self.up:
                await send({"type": "http.response.start", "status": 503, "headers": []})
                await send({"type": "http.response.body", "body": b""})
                return
            await super().__call__(scope, receive, send)

    candidate = Starting()
    async with serve_http(Stub()) as good, serve_http(candidate) as late:
        settings = Settings(reference=good, candidate=late, model_name="sentiment")
        service = ComparisonService(comparator, meter, health, settings)
        starting = asyncio.create_task(service.start())
        await asyncio.sleep(0.3)
        assert not health.is_ready
        candidate.up = True
        await wait_until(lambda: health.is_ready)
        await starting
        await service.stop()


def test_only_the_choice_of_outputs_is_taken_from_a_request() -> None:
    """Everything else, also what is no JSON, goes to the legs as it came."""
    assert comparable(b'{"a":1,"outputs":[{"name":"x"}]}') == b'{"a":1}'
    for body in (b'{"inputs": 1}', b'"outputs', b'["outputs"]', b'{"a": "\\"outputs\\""}', b"\xff"):
        assert comparable(body) == body


def _write_golden(path: Path, examples: list[tuple[str, Any]]) -> Path:
    lines = [orjson.dumps({"text": text, "label": label}) for text, label in examples]
    path.write_bytes(b"\n".join(lines) + b"\n\n")
    return path


async def test_a_golden_pass_counts_what_each_model_gets_right(
    pair: Any, tmp_path: Path, parse_metrics: Any, wait_until: Any
) -> None:
    """Pairs, lost and gained equal a direct computation; before the first pass all are 0."""
    (stable_url, stable), (candidate_url, candidate) = pair
    # An index is a label too; "unsure" is known to neither model; "  " has no tokens.
    examples: list[tuple[str, str | int]] = [(text, "positive") for text in TEXTS]
    examples += [("awful", "negative"), ("odd", 2), ("plain", "unsure"), ("so great", "positive")]
    golden = _write_golden(tmp_path / "golden.jsonl", [*examples, ("  ", "neutral")])
    names = ["negative", "neutral", "positive"]
    lost = gained = 0
    for text, label in examples:
        name = names[label] if isinstance(label, int) else label
        ours, theirs = (m.answer([text]).labels[0] == name for m in (stable, candidate))
        lost += ours and not theirs
        gained += theirs and not ours
    assert lost > 0 < gained
    async with comparing(stable_url, candidate_url, golden=golden, **NO_PAUSE) as (comparator, _):
        scrape = Scraper(comparator, parse_metrics)
        assert scrape("golden_pass") == scrape("golden_pairs") == 0
        await wait_until(lambda: scrape("golden_pass") == 1)
        assert scrape("golden_pairs") == len(examples)
        assert scrape("golden_lost") == lost
        assert scrape("golden_gained") == gained
        # The golden set is no traffic.
        assert scrape("shadow_received_total") == 0
        assert scrape("shadow_calls_total", leg="candidate") == 0


@pytest.mark.slow
async def test_a_pass_that_too_few_answered_does_not_count(
    serve_http: Any, tmp_path: Path, parse_metrics: Any, wait_until: Any
) -> None:
    """The gauges stay what they were; the next passes go on."""
    broken = Stub(status=500)
    golden = _write_golden(tmp_path / "golden.jsonl", [("a", "negative")] * 10)
    options = NO_PAUSE | {"golden_interval_seconds": 0.0}
    async with (
        serve_http(Stub()) as good,
        serve_http(broken) as bad,
        comparing(good, bad, golden=golden, **options) as (comparator, _),
    ):
        scrape = Scraper(comparator, parse_metrics)
        await wait_until(lambda: len(broken.times) >= 25)
        assert scrape("golden_pass") == 0
        broken.status = 200
        await wait_until(lambda: scrape("golden_pass") >= 1)
        assert scrape("golden_pairs") >= 9


async def test_the_golden_set_is_replayed_no_faster_than_asked(
    serve_http: Any, tmp_path: Path, parse_metrics: Any, wait_until: Any
) -> None:
    """Its load on the pods is bounded."""
    golden = _write_golden(tmp_path / "golden.jsonl", [("a", "negative")] * 10)
    stub = Stub()
    options: dict[str, Any] = {"golden_rps": 20.0, "golden_interval_seconds": 1000.0}
    async with (
        serve_http(stub) as url,
        comparing(url, url, golden=golden, **options) as (comparator, _),
    ):
        scrape = Scraper(comparator, parse_metrics)
        await wait_until(lambda: scrape("golden_pass") == 1)
        assert len(stub.times) == 20
        assert stub.times[-1] - stub.times[0] >= 9 / 20


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds 0 examples"),
        (b'{"text": "a", "label": "b"}\n{', ":2 is not JSON"),
        (b'{"label": "b"}', ":1: text is missing"),
        (b'{"text": "a", "label": "b"}\n{"text": "a"}', "example 2 has no label, and others"),
        (b'{"text": "a", "label": null}', ":1: label is neither"),
        (b'{"text": "a", "label": true}', ":1: label is neither"),
    ],
)
def test_a_golden_set_that_cannot_be_read_names_the_line(
    tmp_path: Path, content: bytes, said: str
) -> None:
    """The comparator stops with that sentence."""
    path = tmp_path / "golden.jsonl"
    path.write_bytes(content)
    with pytest.raises(StartupError, match=said):
        read_golden(path)


async def test_the_command_compares_two_processes_and_ends_cleanly(
    pair: Any, start_process: Any, infer_body: Any
) -> None:
    """The real command line, over HTTP: ready, 202, metrics, SIGTERM, exit 0."""
    (stable_url, _), (candidate_url, _) = pair
    legs = ("--reference", stable_url, "--candidate", candidate_url)
    process = await start_process("compare", *legs, "--model-name", "sentiment")
    async with aiohttp.ClientSession(process.url) as session:
        end = time.monotonic() + 20
        while (await session.get("/v2/health/ready")).status != 200:
            assert time.monotonic() < end
            await asyncio.sleep(0.05)
        async with session.post(INFER, json=infer_body("odd")) as response:
            assert response.status == 202
        wanted = b'kompakt_shadow_disagreements_total{label="neutral"} 1\n'
        while wanted not in await (await session.get("/metrics")).read():
            assert time.monotonic() < end
            await asyncio.sleep(0.05)
    process.handle.terminate()
    assert await process.ended() == 0
