# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from kompakt.api import names, telemetry
from kompakt.operator import meter
from kompakt.operator.meter import ScrapingMeter
from kompakt.operator.resources import Manifest, Ref
from kompakt.operator.store import Store

ROLLOUT = Ref("VariantRollout", "team", "r")
STARTED = telemetry.REQUESTS_STARTED


class Cluster:
    """A store with a policy and its rollout, and one server that plays all pods and the gateway."""

    def __init__(self, port: int) -> None:
        self.store = Store()
        self.version = 0
        self.port = port
        self.measured: list[Ref] = []
        self.meter = ScrapingMeter(self.store, address=self.address, measured=self.measured.append)
        self.put("CompressionPolicy", "p", spec={"serving": {"hostnames": ["m.example.com"]}})
        self.rollout("Canary", 0)

    async def address(self, _: Manifest) -> str | None:
        """Of the gateway."""
        return f"127.0.0.1:{self.port}"

    def put(self, kind: str, name: str, **parts: Any) -> None:
        """Put an object into the store."""
        self.version += 1
        metadata = {
            "name": name,
            "namespace": "team",
            "uid": f"{kind}-{name}",
            "resourceVersion": str(self.version),
            "labels": parts.pop("labels", {}),
        }
        self.store.put({"kind": kind, "metadata": metadata, **parts})

    def rollout(self, stage: str, step: int) -> None:
        """Bring the rollout to a stage."""
        self.put(
            "VariantRollout",
            "r",
            spec={"policyRef": {"name": "p"}},
            status={"stage": stage, "step": step},
        )

    def pod(self, name: str, role: str = names.ROLE_SERVING, **labels: str) -> None:
        """A ready pod."""
        self.put(
            "Pod",
            name,
            labels={
                names.POLICY_LABEL: "p",
                names.ROLE_LABEL: role,
                names.DIGEST_LABEL: "d1",
                **labels,
            },
            status={
                "podIP": "127.0.0.1",
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        )

    async def round(self) -> dict[str, Any]:
        """Measure once; samples by pod."""
        async with aiohttp.ClientSession() as session:
            await self.meter.round(session)
        return {sample.pod: sample for sample in self.meter.samples(ROLLOUT)}


@pytest.fixture
async def served(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Cluster, dict[str, Any]]]:
    """A cluster, and what its pods answer."""
    answers: dict[str, Any] = {
        "metrics": f'{STARTED}{{variant="x"}} 5\n',
        "ready": 200,
        "hosts": [],
        "asked": 0,
        "release": None,
    }

    async def metrics(_: web.Request) -> web.Response:
        answers["asked"] += 1
        if (release := answers["release"]) is not None:
            await release.wait()
        return web.Response(text=answers["metrics"] or "")

    async def ready(request: web.Request) -> web.Response:
        answers["hosts"].append(request.host)
        return web.Response(status=answers["ready"])

    application = web.Application()
    application.add_routes([web.get("/metrics", metrics), web.get("/v2/models/p/ready", ready)])
    server = TestServer(application)
    await server.start_server()
    assert server.port is not None
    monkeypatch.setattr(names, "SERVING_PORT", server.port)
    yield Cluster(server.port), answers
    await server.close()


Served = tuple[Cluster, dict[str, Any]]


async def test_pods_that_answer_users_and_the_comparator_are_sampled(served: Served) -> None:
    """The reference is the comparator's business; another rollout's comparator is nobody's here."""
    cluster, _ = served
    cluster.pod("user")
    cluster.pod("compare", names.ROLE_COMPARATOR, **{names.ROLLOUT_LABEL: "r"})
    cluster.pod("foreign", names.ROLE_COMPARATOR, **{names.ROLLOUT_LABEL: "other"})
    cluster.pod("reference", names.ROLE_REFERENCE, **{names.ROLLOUT_LABEL: "r"})

    samples = await cluster.round()

    assert set(samples) == {"user", "compare"}
    assert samples["user"].series == {STARTED: 5}
    assert (samples["user"].role, samples["user"].digest) == (names.ROLE_SERVING, "d1")
    assert samples["user"].ready
    assert cluster.measured == [ROLLOUT]


async def test_a_sample_that_cannot_be_renewed_keeps_its_time(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod that hangs gives no new counters, and the judge sees how old the last are."""
    cluster, answers = served
    cluster.pod("user")
    before = await cluster.round()
    answers["metrics"] = "<html>not ours</html>"

    after = await cluster.round()

    assert after["user"] == before["user"]


async def test_nobody_waits_for_a_slow_pod(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A starved pod answers after its round: it is not asked twice, the others are measured as
    ever, and its answer counts when it comes.
    """
    monkeypatch.setattr(meter, "_PATIENCE", 0.05)
    cluster, answers = served
    cluster.pod("slow")
    answers["release"] = asyncio.Event()
    async with aiohttp.ClientSession() as session:
        await cluster.meter.round(session)
        assert (cluster.meter.samples(ROLLOUT), answers["asked"]) == ((), 1)
        slow, answers["release"] = answers["release"], None
        cluster.pod("quick")
        await cluster.meter.round(session)
        assert [sample.pod for sample in cluster.meter.samples(ROLLOUT)] == ["quick"]
        assert answers["asked"] == 2
        rounds = len(cluster.measured)

        slow.set()
        monkeypatch.setattr(meter, "_PATIENCE", 5)
        await cluster.meter.round(session)

    assert len(cluster.measured) == rounds + 2, "once by its answer, once by the round"
    assert {sample.pod for sample in cluster.meter.samples(ROLLOUT)} == {"quick", "slow"}


async def test_a_pod_that_is_gone_says_nothing_more(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last counters were counted when it went: by a late answer it would seem to live, and what
    it never finished would count again.
    """
    monkeypatch.setattr(meter, "_PATIENCE", 0.05)
    cluster, answers = served
    cluster.pod("user")
    async with aiohttp.ClientSession() as session:
        await cluster.meter.round(session)
        answers["release"] = asyncio.Event()
        await cluster.meter.round(session)
        cluster.store.remove(Ref("Pod", "team", "user"), "Pod-user")
        late = [*cluster.meter._watched[ROLLOUT].asked.values()]
        assert len(late) == 1
        await cluster.meter.round(session)
        before = cluster.meter.samples(ROLLOUT)
        assert [sample.gone for sample in before] == [True]

        answers["release"].set()
        await asyncio.wait(late)

    assert cluster.meter.samples(ROLLOUT) == before


async def test_last_counters_of_a_dead_pod_stay_for_the_stage(served: Served) -> None:
    """Until the rollout enters another stage: then the evidence begins anew."""
    cluster, _ = served
    cluster.pod("user")
    await cluster.round()
    cluster.store.remove(Ref("Pod", "team", "user"), "Pod-user")

    gone = await cluster.round()
    assert (gone["user"].gone, gone["user"].ready) == (True, False)
    assert gone["user"].series == {STARTED: 5}

    cluster.rollout("Canary", 1)
    assert await cluster.round() == {}


async def test_the_way_through_the_gateway_is_tried(served: Served) -> None:
    """By the policy's host name; unknown before the first try, False when the answer is bad."""
    cluster, answers = served
    assert cluster.meter.probe_ok(ROLLOUT) is None

    await cluster.round()
    assert cluster.meter.probe_ok(ROLLOUT) is True
    assert answers["hosts"] == ["m.example.com"]

    answers["ready"] = 503
    await cluster.round()
    assert cluster.meter.probe_ok(ROLLOUT) is False


async def test_an_ended_rollout_is_not_measured(served: Served) -> None:
    """Nothing is scraped once there is nothing to decide."""
    cluster, _ = served
    cluster.pod("user")
    await cluster.round()
    cluster.rollout("Succeeded", 0)

    assert await cluster.round() == {}
    assert cluster.meter.probe_ok(ROLLOUT) is None
