# SPDX-License-Identifier: Apache-2.0
"""The work queue: which object is worked on next.

Invariants:

- a key is in the queue once, however often it was added, and with one worker at a time;
- what was added while its worker was at it is worked on once more: no change is lost;
- a delay is the shortest that was asked for since the key was last taken, and an immediate addition
  ends it;
- failures of a key make it wait: exponentially longer, with jitter, up to a limit. Nobody else
  waits for it.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")


class Schedule(Generic[Key]):
    """The queue without waiting: the time is an argument."""

    def __init__(
        self, *, base: float = 0.2, limit: float = 30.0, jitter: Callable[[], float] | None = None
    ) -> None:
        """The first retry comes after `base` seconds, none later than `limit`. `jitter` gives 0 to
        1.
        """
        self._base = base
        self._limit = limit
        self._jitter = jitter or random.random
        self._ready: OrderedDict[Key, float] = OrderedDict()
        self._delayed: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._order = 0
        self._taken: dict[Key, float] = {}
        self._again: set[Key] = set()
        self._failures: dict[Key, int] = {}

    def add(self, key: Key, *, now: float) -> None:
        """Work on the key as soon as a worker is free."""
        self._delayed.pop(key, None)
        if key in self._taken:
            self._again.add(key)
        elif key not in self._ready:
            self._ready[key] = now

    def add_after(self, key: Key, delay: float, *, now: float) -> None:
        """Work on the key after a delay at the latest."""
        due = now + delay
        if key in self._ready or self._delayed.get(key, due + 1) <= due:
            return
        self._delayed[key] = due
        self._order += 1  # keys need no order
        heapq.heappush(self._heap, (due, self._order, key))

    def take(self, *, now: float) -> Key | None:
        """The key that waits longest, or None. The caller owes a `done`."""
        self._promote(now)
        if not self._ready:
            return None
        key, _ = self._ready.popitem(last=False)
        self._delayed.pop(key, None)
        self._taken[key] = now
        return key

    def done(self, key: Key, *, now: float) -> None:
        """The worker has let go of the key."""
        del self._taken[key]
        if key in self._again:
            self._again.discard(key)
            self.add(key, now=now)

    def failed(self, key: Key, *, now: float) -> float:
        """The work on a taken key failed: it comes back later. Returns after how many seconds."""
        count = self._failures[key] = self._failures.get(key, 0) + 1
        # Powers beyond the limit's would only overflow.
        longest = min(self._limit, self._base * 2.0 ** min(count - 1, 60))
        delay = longest * (0.5 + self._jitter() / 2)
        self.add_after(key, delay, now=now)
        return delay

    def succeeded(self, key: Key) -> None:
        """The next failure is a first one again."""
        self._failures.pop(key, None)

    def next_due(self, *, now: float) -> float | None:
        """When `take` will have something at the earliest: now, later, or None for never as things
        are.
        """
        if self._ready:
            return now
        while self._heap and self._delayed.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return max(now, self._heap[0][0]) if self._heap else None

    def depth(self) -> int:
        """Keys that are due and wait for a worker."""
        return len(self._ready)

    def oldest(self, *, now: float) -> float:
        """Seconds that the longest waiting key has waited."""
        return now - min(self._ready.values()) if self._ready else 0.0

    def longest_taken(self, *, now: float) -> float:
        """Seconds that the slowest worker has been at its key."""
        return now - min(self._taken.values()) if self._taken else 0.0

    def _promote(self, now: float) -> None:
        while self._heap and self._heap[0][0] <= now:
            due, _, key = heapq.heappop(self._heap)
            if self._delayed.get(key) != due:
                continue  # superseded
            del self._delayed[key]
            if key in self._taken:
                self._again.add(key)
            elif key not in self._ready:
                # It waits since it was due, not since somebody looked.
                self._ready[key] = due


class WorkQueue(Generic[Key]):
    """The queue for tasks of one event loop."""

    def __init__(self, schedule: Schedule[Key] | None = None) -> None:
        self._schedule = schedule or Schedule()
        self._changed = asyncio.Event()

    def add(self, key: Key) -> None:
        """Work on the key as soon as a worker is free."""
        self._schedule.add(key, now=_now())
        self._changed.set()

    def add_after(self, key: Key, delay: float) -> None:
        """Work on the key after a delay at the latest."""
        self._schedule.add_after(key, delay, now=_now())
        self._changed.set()

    async def take(self) -> Key:
        """Wait for a key. The caller owes a `done`."""
        while True:
            now = _now()
            key = self._schedule.take(now=now)
            if key is not None:
                # Another worker may find more.
                self._changed.set()
                return key
            self._changed.clear()
            due = self._schedule.next_due(now=now)
            try:
                async with asyncio.timeout(None if due is None else max(due - now, 0.0)):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def done(self, key: Key) -> None:
        """The worker has let go of the key."""
        self._schedule.done(key, now=_now())
        self._changed.set()

    def failed(self, key: Key) -> float:
        """The work on a taken key failed: it comes back later. Returns after how many seconds."""
        delay = self._schedule.failed(key, now=_now())
        self._changed.set()
        return delay

    def succeeded(self, key: Key) -> None:
        """The next failure is a first one again."""
        self._schedule.succeeded(key)

    def depth(self) -> int:
        """Keys that are due and wait for a worker."""
        return self._schedule.depth()

    def oldest(self) -> float:
        """Seconds that the longest waiting key has waited."""
        return self._schedule.oldest(now=_now())

    def longest_taken(self) -> float:
        """Seconds that the slowest worker has been at its key."""
        return self._schedule.longest_taken(now=_now())


def _now() -> float:
    return asyncio.get_running_loop().time()
