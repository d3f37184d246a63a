# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from kompakt.serving.scheduler import DeadlineExceededError, QueueFullError, Scheduler

INFER = "/v2/models/sentiment/infer"
SECOND = 1_000_000_000


class Gate:
    """Work that waits until it is let go, and remembers its order."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        self.order: list[str] = []

    def __call__(self, item: str) -> str:
        self.entered.release()
        assert self.open.wait(10)
        if item == "fail":
            raise ValueError(item)
        self.order.append(item)
        return item.upper()


async def _occupied(gate: Gate, *, capacity: int = 8) -> Scheduler[str, str]:
    """A scheduler whose only thread is busy."""
    scheduler = Scheduler(gate, threads=1, capacity=capacity)
    scheduler.submit("first", time.monotonic_ns() + 60 * SECOND)
    assert await asyncio.to_thread(gate.entered.acquire, timeout=5)
    return scheduler


async def test_the_earliest_deadline_runs_first_and_equals_in_order() -> None:
    """Late comers with little time pass those that can wait; among equals, first come."""
    gate = Gate()
    scheduler = await _occupied(gate)
    now = time.monotonic_ns()
    futures = [
        scheduler.submit("patient", now + 50 * SECOND),
        scheduler.submit("hurried", now + 20 * SECOND),
        scheduler.submit("same-1", now + 30 * SECOND),
        scheduler.submit("same-2", now + 30 * SECOND),
    ]
    assert scheduler.depth == 4
    gate.open.set()
    assert await asyncio.gather(*futures) == ["PATIENT", "HURRIED", "SAME-1", "SAME-2"]
    assert gate.order == ["first", "hurried", "same-1", "same-2", "patient"]
    scheduler.close()


async def test_a_full_queue_refuses_and_an_expired_request_is_not_run() -> None:
    """Both at once: nobody waits for work that nobody waits for."""
    gate = Gate()
    scheduler = await _occupied(gate, capacity=1)
    late = scheduler.submit("late", time.monotonic_ns())
    with pytest.raises(QueueFullError):
        scheduler.submit("more", time.monotonic_ns() + SECOND)
    gate.open.set()
    with pytest.raises(DeadlineExceededError):
        await late
    assert gate.order == ["first"]
    scheduler.close()


async def test_work_that_raises_reaches_its_caller_and_the_thread_goes_on() -> None:
    """One bad request costs one answer."""
    gate = Gate()
    gate.open.set()
    scheduler = Scheduler(gate, threads=1, capacity=8)
    deadline = time.monotonic_ns() + 10 * SECOND
    with pytest.raises(ValueError, match="fail"):
        await scheduler.submit("fail", deadline)
    assert await scheduler.submit("next", deadline) == "NEXT"
    scheduler.close()


async def test_closing_answers_what_is_queued() -> None:
    """No future is left behind."""
    gate = Gate()
    scheduler = await _occupied(gate)
    future = scheduler.submit("queued", time.monotonic_ns() + 10 * SECOND)
    gate.open.set()
    await asyncio.to_thread(scheduler.close)
    assert await future == "QUEUED"


async def test_a_loaded_server_answers_503_and_504_in_words(
    make_artifact: Any, serve_model: Any, infer_body: Callable[..., Any]
) -> None:
    """Queue full: 503 with Retry-After. Deadline passed in it: 504. Both count as errors."""
    gate = Gate()
    async with serve_model(make_artifact()) as served:
        model = served.endpoint.model
        busy = await _occupied(gate, capacity=1)
        object.__setattr__(model, "scheduler", busy)
        hurried = asyncio.create_task(
            served.call("POST", INFER, infer_body("good"), {"x-kompakt-deadline-ms": "1"})
        )
        await asyncio.sleep(0.02)
        refused = await served.call("POST", INFER, infer_body("good"))
        gate.open.set()
        expired = await hurried
        busy.close()
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert "queue is full" in refused.json()["error"]
        assert expired.status == 504
        assert "1 ms" in expired.json()["error"]
        metrics = (await served.call("GET", "/metrics")).body.decode()
        assert 'outcome="error"} 2\n' in metrics


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "soon", "600001", "9" * 5000, "²"])
async def test_a_deadline_that_is_none_is_refused(
    make_artifact: Any, serve_model: Any, infer_body: Callable[..., Any], value: str
) -> None:
    """400 that names the header and its range."""
    async with serve_model(make_artifact()) as served:
        headers = {"x-kompakt-deadline-ms": value}
        answer = await served.call("POST", INFER, infer_body("good"), headers)
        assert answer.status == 400
        assert "x-kompakt-deadline-ms" in answer.json()["error"]
        headers = {"x-kompakt-deadline-ms": "60000"}
        assert (await served.call("POST", INFER, infer_body("good"), headers)).status == 200
