# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kompakt.operator.workqueue import Schedule, WorkQueue

KEYS = st.sampled_from("abc")


class QueueHistory(RuleBasedStateMachine):
    """Any history of additions, delays, takes, ends and failures; what is owed to each key."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.queue: Schedule[str] = Schedule(base=1, limit=8, jitter=lambda: 1.0)
        self.owed: dict[str, float] = {}
        """Key → when it must be ready at the latest."""
        self.taken: set[str] = set()

    def owe(self, key: str, due: float) -> None:
        """Note the earliest time at which a key was asked for."""
        self.owed[key] = min(self.owed.get(key, due), due)

    @rule(key=KEYS)
    def add(self, key: str) -> None:
        """Immediately."""
        self.queue.add(key, now=self.now)
        self.owe(key, self.now)

    @rule(key=KEYS, delay=st.integers(0, 20))
    def add_after(self, key: str, delay: int) -> None:
        """Later."""
        self.queue.add_after(key, delay, now=self.now)
        self.owe(key, self.now + delay)

    @rule(seconds=st.integers(1, 10))
    def wait(self, seconds: int) -> None:
        """Time passes."""
        self.now += seconds

    @rule()
    def take(self) -> None:
        """A worker comes; it gets what is owed, and nothing that a worker has."""
        due = {key for key, when in self.owed.items() if when <= self.now} - self.taken
        key = self.queue.take(now=self.now)
        if key is None:
            assert not due
            return
        assert key in due
        del self.owed[key]
        self.taken.add(key)

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), failed=st.booleans())
    def done(self, data: st.DataObject, *, failed: bool) -> None:
        """A worker lets go."""
        key = data.draw(st.sampled_from(sorted(self.taken)))
        if failed:
            self.owe(key, self.now + self.queue.failed(key, now=self.now))
        else:
            self.queue.succeeded(key)
        self.queue.done(key, now=self.now)
        self.taken.discard(key)

    @invariant()
    def wakes_in_time(self) -> None:
        """A worker that sleeps until `next_due` misses nothing."""
        free = [when for key, when in self.owed.items() if key not in self.taken]
        due = self.queue.next_due(now=self.now)
        if free:
            assert due is not None
            assert due <= max(self.now, min(free))

    @invariant()
    def counts(self) -> None:
        """Depth and age are those of what waits."""
        assert self.queue.depth() <= len(set(self.owed) - self.taken)
        assert self.queue.oldest(now=self.now) <= self.now


QueueHistory.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
test_no_history_loses_a_key_or_doubles_a_worker = QueueHistory.TestCase


@given(st.integers(1, 200), st.floats(0, 1))
def test_backoff_grows_to_its_limit_and_no_further(failures: int, jitter: float) -> None:
    """The n-th failure in a row waits base x 2^(n-1), at most the limit, and at least half."""
    queue: Schedule[str] = Schedule(base=0.5, limit=30, jitter=lambda: jitter)
    delay = 0.0
    for _ in range(failures):
        queue.add("k", now=0)
        queue.take(now=0)
        delay = queue.failed("k", now=0)
        queue.done("k", now=0)

    longest = min(30, 0.5 * 2.0 ** (failures - 1))

    assert longest / 2 <= delay <= longest


def test_success_forgets_failures() -> None:
    """After a success the next failure waits as the first one did."""
    queue: Schedule[str] = Schedule(base=1, limit=60, jitter=lambda: 1.0)
    delays = []
    for outcome in ("bad", "bad", "good", "bad"):
        queue.add("k", now=0)
        queue.take(now=0)
        if outcome == "good":
            queue.succeeded("k")
        else:
            delays.append(queue.failed("k", now=0))
        queue.done("k", now=0)

    assert delays == [1, 2, 1]


def test_age_counts_from_when_a_delayed_key_was_due() -> None:
    """A key that fell due while nobody looked has waited since then."""
    queue: Schedule[str] = Schedule()
    queue.add_after("a", 5, now=0)
    queue.add("b", now=8)
    queue.take(now=10)

    assert queue.depth() == 1
    assert queue.oldest(now=12) in {4, 7}
    assert queue.longest_taken(now=12) == 2


async def test_workers_wait_for_work_and_share_it() -> None:
    """Two waiting workers get two keys that are added later, each one."""
    queue: WorkQueue[str] = WorkQueue()
    workers = [asyncio.create_task(queue.take()) for _ in range(2)]
    await asyncio.sleep(0)

    queue.add("a")
    queue.add_after("b", 0.01)

    async with asyncio.timeout(5):
        assert sorted(await asyncio.gather(*workers)) == ["a", "b"]


async def test_a_key_added_during_its_work_comes_again() -> None:
    """No change is lost that came while the worker was at the key."""
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    async with asyncio.timeout(5):
        assert await queue.take() == "a"
        queue.add("a")
        again = asyncio.create_task(queue.take())
        await asyncio.sleep(0.01)
        assert not again.done()
        queue.done("a")
        assert await again == "a"
