# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import pytest
from tests.shell_world import FakeClient

from kompakt.api import names
from kompakt.api.rollout import VariantRolloutStatus
from kompakt.controllers.plan import (
    Action,
    Apply,
    Create,
    Delete,
    Emit,
    Plan,
    SetFinalizer,
    WriteStatus,
)
from kompakt.operator.actions import Actor
from kompakt.operator.client import Client
from kompakt.operator.errors import ApiError
from kompakt.operator.faults import Fault
from kompakt.operator.intake import Intake
from kompakt.operator.observe import parse
from kompakt.operator.reconciler import Reconciler
from kompakt.operator.resources import Manifest, Ref
from kompakt.operator.store import Store
from kompakt.operator.workqueue import WorkQueue

ROLLOUT = Ref("VariantRollout", "team", "r")
SERVICE = {
    "kind": "Service",
    "metadata": {"name": "s", "namespace": "team"},
    "spec": {"ports": [1]},
}


class Bench:
    """An actor and a reconciler around a scripted plan."""

    def __init__(self, fake: FakeClient) -> None:
        self.fake = fake
        self.store = Store()
        self.queue: WorkQueue[Ref] = WorkQueue()
        self.intake = Intake(self.store, self.queue)
        self.plan: Callable[[Ref], Plan] = lambda _: Plan()
        self.seen: list[Any] = []
        actor = Actor(
            store=self.store,
            intake=self.intake,
            client=cast("Client", fake),
            fault=Fault(),
        )

        async def planner(ref: Ref) -> Plan:
            self.seen.append(self.store.parsed(ref, parse))
            return self.plan(ref)

        self.reconciler = Reconciler(
            store=self.store, queue=self.queue, planners={ROLLOUT.kind: planner}, actor=actor
        )
        spec = {"policyRef": {"name": "p"}, "candidateRef": {"name": "v"}}
        self.exists(
            {
                "apiVersion": "kompakt.dev/v1alpha1",
                "kind": ROLLOUT.kind,
                "metadata": {"name": "r", "namespace": "team"},
                "spec": spec,
            }
        )

    def exists(self, obj: Manifest) -> None:
        """Put an object in the cluster and in the store."""
        self.store.put(self.fake.stamp(obj, "setup"))
        self.fake.writes.clear()

    async def act(self, *actions: Action) -> list[str]:
        """Carry a plan out; returns what was written."""
        self.fake.writes.clear()
        self.plan = lambda _: Plan(actions)
        await self.reconciler.reconcile(ROLLOUT)
        return [f"{verb} {name}" for verb, name in self.fake.writes]


@pytest.fixture
def bench(fake: FakeClient) -> Bench:
    """A bench with a rollout `r`."""
    return Bench(fake)


async def test_actions_keep_their_order(bench: Bench) -> None:
    """What must exist before something else is an earlier action."""
    written = await bench.act(
        WriteStatus(VariantRolloutStatus(stage="Pending")),
        Create({**SERVICE, "metadata": {"name": "c", "namespace": "team"}}),
        Apply(SERVICE),
        Delete("v1", "Service", "team", "s"),
    )

    assert written == [
        "apply status VariantRollout/team/r",
        "create Service/team/c",
        "apply Service/team/s",
        "delete Service/team/s",
    ]


async def test_the_next_plan_sees_what_was_written(bench: Bench) -> None:
    """No watch event is needed: the answer to the write is in the store."""
    await bench.act(WriteStatus(VariantRolloutStatus(stage="Shadow")))
    await bench.act()

    assert bench.seen[-1].status.stage == "Shadow"


async def test_an_equal_status_is_not_written(bench: Bench) -> None:
    """An unchanged object stirs nobody."""
    await bench.act(WriteStatus(VariantRolloutStatus(stage="Shadow")))

    assert await bench.act(WriteStatus(VariantRolloutStatus(stage="Shadow"))) == []


async def test_an_applied_object_is_applied_again_only_when_somebody_changed_it(
    bench: Bench,
) -> None:
    """The same manifest costs nothing, unless the object was changed or deleted, or another
    manifest was applied meanwhile.
    """
    assert await bench.act(Apply(SERVICE)) != []
    assert await bench.act(Apply(SERVICE)) == []

    live = bench.fake.objects[Ref("Service", "team", "s")]
    bench.exists({**live, "status": {"loadBalancer": {}}})
    assert await bench.act(Apply(SERVICE)) == []

    bench.exists({**live, "spec": {"ports": [2]}})
    assert await bench.act(Apply(SERVICE)) != []

    await bench.act(Apply({**SERVICE, "spec": {"ports": [3]}}))
    assert await bench.act(Apply(SERVICE)) != []

    bench.intake.gone(Ref("Service", "team", "s"))
    assert await bench.act(Apply(SERVICE)) != []


async def test_the_finalizer_is_put_on_and_taken_off_once(bench: Bench) -> None:
    """Other people's finalizers stay."""
    live = bench.fake.objects[ROLLOUT]
    bench.exists({**live, "metadata": {**live["metadata"], "finalizers": ["theirs"]}})

    assert await bench.act(SetFinalizer(present=True)) == ["patch VariantRollout/team/r"]
    assert await bench.act(SetFinalizer(present=True)) == []
    assert bench.fake.objects[ROLLOUT]["metadata"]["finalizers"] == ["theirs", names.FINALIZER]

    await bench.act(SetFinalizer(present=False))
    assert bench.fake.objects[ROLLOUT]["metadata"]["finalizers"] == ["theirs"]


async def test_a_status_for_an_object_that_is_gone_is_no_error(bench: Bench) -> None:
    """It was deleted while the plan was made."""
    del bench.fake.objects[ROLLOUT]

    assert await bench.act(WriteStatus(VariantRolloutStatus(stage="Shadow"))) == []
    assert bench.store.get(ROLLOUT) is None


async def test_an_event_that_cannot_be_written_holds_nothing_up(bench: Bench) -> None:
    """The actions after it are carried out."""

    async def refuse(manifest: Manifest) -> Manifest | None:
        raise ApiError(500, "InternalError", "no")

    bench.fake.create = refuse  # type: ignore[method-assign]

    assert await bench.act(Emit("Promoted", "x"), Apply(SERVICE)) == ["apply Service/team/s"]


async def test_the_first_failure_ends_the_plan(bench: Bench) -> None:
    """What comes after it waits for a plan that knows of it."""

    async def refuse(*_: Any, **__: Any) -> None:
        raise ApiError(500, "InternalError", "no")

    bench.fake.delete = refuse  # type: ignore[method-assign]

    with pytest.raises(ApiError):
        await bench.act(Delete("v1", "Service", "team", "s"), Apply(SERVICE))
    assert bench.fake.writes == []


async def test_a_failed_key_comes_back_and_others_go_on(bench: Bench) -> None:
    """A defect in one plan is retried with backoff; it does not end the worker."""
    tries, enough = 0, asyncio.Event()

    def plan(_: Ref) -> Plan:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise RuntimeError("a defect")
        enough.set()
        return Plan()

    bench.plan = plan
    worker = asyncio.create_task(bench.reconciler.work())
    bench.queue.add(ROLLOUT)
    async with asyncio.timeout(10):
        await enough.wait()

    assert not worker.done()
    worker.cancel()


async def test_a_policy_and_its_rollouts_take_turns(bench: Bench) -> None:
    """They write the same route: what one has seen of it must be so until it has written."""
    inside: list[str] = []
    worst = 0

    async def planner(ref: Ref) -> Plan:
        nonlocal worst
        inside.append(ref.kind)
        worst = max(worst, len(inside))
        await asyncio.sleep(0.01)
        inside.remove(ref.kind)
        return Plan()

    policy = Ref("CompressionPolicy", "team", "p")
    other = Ref("CompressionPolicy", "team", "other")
    bench.reconciler._planners = dict.fromkeys([ROLLOUT.kind, policy.kind], planner)
    for ref in (policy, other):
        metadata = {"name": ref.name, "namespace": ref.namespace}
        bench.exists({"kind": ref.kind, "metadata": metadata})

    await asyncio.gather(*map(bench.reconciler.reconcile, [ROLLOUT, policy] * 3))
    assert worst == 1

    await asyncio.gather(*map(bench.reconciler.reconcile, [ROLLOUT, other]))
    assert worst == 2


async def test_a_requeue_is_honoured(bench: Bench) -> None:
    """The plan comes again after the seconds that it asked for."""
    times: list[float] = []
    enough = asyncio.Event()

    def plan(_: Ref) -> Plan:
        times.append(asyncio.get_running_loop().time())
        if len(times) == 3:
            enough.set()
        return Plan(requeue_after=0.05)

    bench.plan = plan
    worker = asyncio.create_task(bench.reconciler.work())
    bench.queue.add(ROLLOUT)
    async with asyncio.timeout(10):
        await enough.wait()
    worker.cancel()

    assert all(0.04 < b - a < 1 for a, b in pairwise(times))


async def test_an_object_that_does_not_parse_says_so_itself(bench: Bench) -> None:
    """When the CRD's validation was bypassed: Stalled, with the field, the reason and the mend; the
    rest of the status stays. Once.
    """
    live = bench.fake.objects[ROLLOUT]
    bad = {"policyRef": {"name": "p"}, "candidateRef": {"name": "Not A Name"}}
    bench.exists({**live, "spec": bad, "status": {"stage": "Canary"}})

    written = await bench.act()
    again = await bench.act()

    assert (written, again) == (["apply status VariantRollout/team/r"], [])
    status = bench.fake.objects[ROLLOUT]["status"]
    assert status["stage"] == "Canary"
    conditions = {c["type"]: c for c in status["conditions"]}
    assert conditions["Ready"]["status"] == "False"
    assert conditions["Stalled"]["status"] == "True"
    assert "spec.candidateRef.name" in conditions["Stalled"]["message"]
    assert "mend" in conditions["Stalled"]["message"]
