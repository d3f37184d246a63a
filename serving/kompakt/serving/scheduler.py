# SPDX-License-Identifier: Apache-2.0
"""Between the event loop and the threads that infer: a bounded queue, earliest deadline first.

Requests that name no deadline get the same allowance, so among them the order is first come, first
served. Invariants: at most `capacity` requests wait; a request whose deadline has passed is never
started; every future that `submit` returned is resolved, also when the work raises.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_log = logging.getLogger(__name__)


class QueueFullError(Exception):
    """As many requests wait as the queue holds."""


class DeadlineExceededError(Exception):
    """The deadline passed before the request's turn came."""


class Scheduler(Generic[T, R]):
    """Runs `work(item)` on as many threads as there are cores."""

    def __init__(self, work: Callable[[T], R], *, threads: int, capacity: int) -> None:
        self._work = work
        self._capacity = capacity
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count()
        # Ordered by deadline, then by number, which is unique: the rest of the tuple is never
        # compared.
        self._heap: list[tuple[int, int, T, asyncio.Future[R]]] = []
        self._lock = threading.Lock()
        # One token for each job. A SimpleQueue waits in C; a Condition would cost ten times as much
        # per request.
        self._tokens: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._drain, name=f"infer-{index}", daemon=True)
            for index in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def depth(self) -> int:
        """Requests that wait for a thread."""
        return len(self._heap)

    def submit(self, item: T, deadline_ns: int) -> asyncio.Future[R]:
        """Queue an item; `deadline_ns` is on the clock of `time.monotonic_ns`.

        Raises QueueFullError. The future raises DeadlineExceededError, or whatever the work raised.
        """
        future: asyncio.Future[R] = self._loop.create_future()
        with self._lock:
            if len(self._heap) >= self._capacity:
                raise QueueFullError
            heapq.heappush(self._heap, (deadline_ns, next(self._numbers), item, future))
        self._tokens.put(True)
        return future

    def close(self) -> None:
        """Finish what is queued, then end the threads."""
        for _ in self._threads:
            self._tokens.put(False)
        for thread in self._threads:
            thread.join()

    def _drain(self) -> None:
        while self._tokens.get():
            with self._lock:
                deadline_ns, _, item, future = heapq.heappop(self._heap)
            result: R | None = None
            error: Exception | None = None
            if time.monotonic_ns() >= deadline_ns:
                error = DeadlineExceededError()
            else:
                try:
                    result = self._work(item)
                except Exception as failure:  # noqa: BLE001 -- it belongs to the caller, not to this thread
                    error = failure
            try:
                self._loop.call_soon_threadsafe(_resolve, future, result, error)
            except RuntimeError:  # the loop was closed under us: the process is being killed
                _log.warning("an answer came after the end of the event loop")


def _resolve(future: asyncio.Future[R], result: R | None, error: Exception | None) -> None:
    if future.done():  # the caller was cancelled
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)  # type: ignore[arg-type]  # R itself may be None
