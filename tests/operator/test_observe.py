# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kompakt.api import names
from kompakt.controllers.plan import Settings
from kompakt.operator.client import Client
from kompakt.operator.errors import ApiError, Forbidden, InvalidObject, NotFound
from kompakt.operator.gateways import Gateways
from kompakt.operator.informer import Informer
from kompakt.operator.intake import Intake
from kompakt.operator.meter import VariantMeter
from kompakt.operator.observe import Observer
from kompakt.operator.resources import Kind, Manifest, Ref
from kompakt.operator.store import JOB_NAME_LABEL, Store
from kompakt.operator.workqueue import WorkQueue

GATEWAY = {
    "kind": "Gateway",
    "metadata": {"name": "public", "namespace": "gateways"},
    "spec": {"listeners": [{"protocol": "HTTP", "port": 80}]},
    "status": {
        "conditions": [{"type": "Programmed", "status": "True"}],
        "addresses": [{"value": "10.0.0.1"}],
    },
}
POLICY_SPEC: dict[str, Any] = {
    "model": {"uri": "pvc://inputs/model"},
    "data": {"evaluation": {"uri": "pvc://inputs/data.jsonl", "labelField": "label"}},
    "store": {"uri": "s3://bucket/prefix"},
    "recipes": [{"name": "mine"}, {"name": "shipped"}, {"name": "both"}],
    "targets": [{"name": "edge", "hardwareProfileRef": {"name": "small"}}],
    "serving": {"target": "edge", "gatewayRef": {"name": "public", "namespace": "gateways"}},
}


class Answers:
    """A client whose reads are scripted."""

    def __init__(self) -> None:
        self.gateway: Manifest | ApiError = GATEWAY
        self.route: Manifest | None = None
        self.lists: dict[str, list[Manifest] | ApiError] = {}
        self.asked: list[tuple[str, str | None, str]] = []

    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest:
        """The Gateway, or a route that is not watched."""
        if kind.kind == "HTTPRoute":
            if self.route is None:
                raise NotFound(404, "NotFound", "no such route")
            return self.route
        self.asked.append((kind.kind, namespace, name))
        if isinstance(self.gateway, ApiError):
            raise self.gateway
        return self.gateway

    async def list(
        self, kind: Kind, namespace: str | None = None, *, labels: str = ""
    ) -> tuple[list[Manifest], str]:
        """A list by kind."""
        self.asked.append((kind.kind, namespace, labels))
        found = self.lists.get(kind.kind, [])
        if isinstance(found, ApiError):
            raise found
        return found, "1000"


class World:
    """A store and what is built on it."""

    def __init__(self) -> None:
        self.answers = Answers()
        self.store = Store()
        self.changed: list[tuple[str, str]] = []
        client = cast("Client", self.answers)
        self.gateways = Gateways(client, self.store, changed=lambda *key: self.changed.append(key))
        meter = SimpleNamespace(samples=lambda _: (), probe_ok=lambda _: None)
        self.observer = Observer(
            self.store,
            client,
            gateways=self.gateways,
            meter=cast("VariantMeter", meter),
            settings=Settings("jobs", "serving", operator_namespace="system"),
            clock=lambda: 42.0,
        )

    def put(self, kind: str, name: str, namespace: str = "team", **parts: Any) -> Ref:
        """Put an object into the store."""
        metadata = {"name": name, "uid": name, "resourceVersion": "1"}
        metadata |= {"labels": parts.pop("labels", {})}
        if namespace:
            metadata["namespace"] = namespace
        self.store.put({"kind": kind, "metadata": metadata, **parts})
        return Ref(kind, namespace, name)

    def recipe(self, name: str, namespace: str, description: str) -> None:
        """A recipe."""
        spec = {"description": description, "steps": [{"quantize": {}}]}
        self.put("CompressionRecipe", name, namespace, spec=spec)


@pytest.fixture
def world() -> World:
    """An empty one."""
    return World()


async def test_recipes_of_the_catalogue_are_found_and_hidden_by_one_s_own(world: World) -> None:
    """By name, first in the policy's namespace, then in the operator's; others are absent."""
    ref = world.put("CompressionPolicy", "p", spec=POLICY_SPEC)
    world.recipe("shipped", "system", "catalogue")
    world.recipe("both", "system", "catalogue")
    world.recipe("both", "team", "mine")
    world.recipe("mine", "elsewhere", "not for us")
    world.put("HardwareProfile", "small", "", spec={})

    observed = await world.observer.policy(ref)

    described = {name: recipe.description for name, recipe in observed.recipes.items()}
    assert described == {"shipped": "catalogue", "both": "mine"}
    assert set(observed.profiles) == {"small"}
    assert observed.gateway is not None
    assert observed.gateway.address == "10.0.0.1:80"
    assert (observed.now, observed.route) == (42.0, None)


async def test_a_route_of_somebody_else_is_seen(world: World) -> None:
    """Routes without our label are not watched; one under our name must not be taken for absent."""
    ref = world.put("CompressionPolicy", "p", spec=POLICY_SPEC)
    backend = {"backendRefs": [{"name": "theirs"}]}
    world.answers.route = {
        "kind": "HTTPRoute",
        "metadata": {"name": "p", "namespace": "team"},
        "spec": {"rules": [backend]},
    }

    observed = await world.observer.policy(ref)

    assert observed.route is not None
    assert observed.route.stable_backend == "theirs"
    assert names.STABLE_ANNOTATION not in observed.route.annotations


async def test_a_recipe_that_does_not_parse_is_told_at_the_policy(world: World) -> None:
    """With its name: it is not missing, it is wrong."""
    ref = world.put("CompressionPolicy", "p", spec=POLICY_SPEC)
    world.put("CompressionRecipe", "mine", spec={"steps": []})

    with pytest.raises(InvalidObject, match=r"CompressionRecipe mine: spec\.steps"):
        await world.observer.policy(ref)


async def test_a_result_that_is_only_late_is_waited_for(world: World) -> None:
    """The Job's end may be seen before its pod's: then the pods are read, not taken for silent."""
    policy = {key: value for key, value in POLICY_SPEC.items() if key != "serving"}
    spec = {
        "policyRef": {"name": "p"},
        "inputsDigest": f"sha256:{'a' * 64}",
        "policy": policy,
        "recipes": [{"name": "mine", "spec": {"steps": [{"quantize": {}}]}}],
    }
    ref = world.put("CompressionRun", "r", spec=spec)
    of_run = {names.RUN_LABEL: "r"}
    world.put(
        "Job",
        "j",
        labels=of_run,
        status={"conditions": [{"type": "Complete", "status": "True"}]},
    )
    result = {"kind": "Import", "outcome": "Failed", "reason": "Odd", "message": "late"}
    end = {"exitCode": 1, "message": json.dumps(result), "finishedAt": "2026-01-01T00:00:00Z"}
    late = {
        "kind": "Pod",
        "metadata": {
            "name": "j-x",
            "namespace": "team",
            "uid": "x",
            "resourceVersion": "2",
            "labels": {**of_run, JOB_NAME_LABEL: "j"},
        },
        "status": {"containerStatuses": [{"name": "job", "state": {"terminated": end}}]},
    }
    world.answers.lists["Pod"] = [late]

    observed = await world.observer.run(ref)
    again = await world.observer.run(ref)

    assert observed.jobs["j"].result is not None
    assert observed.jobs["j"].result.message == "late"
    assert again.jobs == observed.jobs
    assert world.answers.asked == [("Pod", "team", f"{JOB_NAME_LABEL}=j")]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NotFound(404, "NotFound", 'gateways "public" not found'), None),
        (
            NotFound(404, "NotFound", "the server could not find the requested resource"),
            "no Gateway API",
        ),
        (Forbidden(403, "Forbidden", "may not get gateways"), "may not get"),
    ],
    ids=["absent", "no such kind", "forbidden"],
)
async def test_a_gateway_that_cannot_be_read(
    world: World, error: ApiError, said: str | None
) -> None:
    """One that is absent is None; what keeps us from knowing is a message."""
    world.answers.gateway = error

    state = await world.gateways.state("gateways", "public")

    if said is None:
        assert state is None
    else:
        assert state is not None
        assert said in state.message
        assert not state.programmed


async def test_gateways_in_use_are_looked_at_and_changes_told(world: World) -> None:
    """Each once a round; a Gateway that nobody names any more is forgotten."""
    ref = world.put("CompressionPolicy", "p", spec=POLICY_SPEC)
    await world.gateways.refresh()
    assert world.changed == []

    world.answers.gateway = NotFound(404, "NotFound", 'gateways "public" not found')
    await world.gateways.refresh()
    await world.gateways.refresh()
    assert world.changed == [("gateways", "public")]

    world.store.remove(ref, "p")
    world.answers.asked.clear()
    await world.gateways.refresh()
    assert world.answers.asked == []


def informer(world: World, *namespaces: str) -> tuple[Informer, WorkQueue[Ref]]:
    """An informer that only lists."""
    queue: WorkQueue[Ref] = WorkQueue()
    return (
        Informer(
            cast("Any", None),
            cast("Client", world.answers),
            intake=Intake(world.store, queue),
            store=world.store,
            queue=queue,
            own_namespace="system",
            namespaces=namespaces,
        ),
        queue,
    )


async def test_lists_cover_the_served_namespaces_and_the_catalogue(world: World) -> None:
    """Only our own Jobs and pods; cluster-scoped kinds once; recipes of the catalogue too."""
    lists, _ = informer(world, "a", "b")

    await lists.list_all()

    asked = world.answers.asked
    assert {ns for kind, ns, _ in asked if kind == "CompressionPolicy"} == {"a", "b"}
    assert {ns for kind, ns, _ in asked if kind == "CompressionRecipe"} == {"a", "b", "system"}
    assert [ns for kind, ns, _ in asked if kind == "HardwareProfile"] == [None]
    ours = f"{names.MANAGED_BY_LABEL}={names.MANAGED_BY}"
    assert {labels for kind, _, labels in asked if kind in {"Pod", "Job", "HTTPRoute"}} == {ours}


async def test_a_cluster_without_the_gateway_api_is_served_until_it_has_one(world: World) -> None:
    """Without routes models are still compressed; when the kind appears, a new start watches it."""
    lists, _ = informer(world)
    missing = NotFound(404, "NotFound", "the server could not find the requested resource")
    world.answers.lists["HTTPRoute"] = missing
    await lists.list_all()
    await lists.list_all()

    world.answers.lists["HTTPRoute"] = []
    with pytest.raises(Exception, match="HTTPRoute now"):
        await lists.list_all()


async def test_without_our_crds_nothing_starts(world: World) -> None:
    """And the error says what to install."""
    lists, _ = informer(world)
    world.answers.lists["CompressionPolicy"] = NotFound(404, "NotFound", "no such resource")

    with pytest.raises(NotFound, match="install the CRDs"):
        await lists.list_all()


async def test_an_api_server_that_is_away_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list that fails is tried again; it does not end the operator."""
    monkeypatch.setattr("kompakt.operator.informer._LIST_AGAIN", 0.001)
    lists, queue = informer(world)
    ref = world.put("CompressionPolicy", "p", spec=POLICY_SPEC)
    world.answers.lists["CompressionPolicy"] = [world.store.get(ref) or {}]
    world.answers.lists["Pod"] = ApiError(0, "ApiServerUnreachable", "no answer")
    resync = asyncio.create_task(lists.resync(0.001))
    await asyncio.sleep(0.05)
    assert not resync.done()
    assert queue.depth() == 0

    world.answers.lists["Pod"] = []
    async with asyncio.timeout(5):
        assert await queue.take() == ref
    resync.cancel()


async def test_a_deletion_that_the_watch_has_missed_is_found(world: World) -> None:
    """By the next complete list; those who depend on the object are woken."""
    world.put("CompressionPolicy", "p", spec=POLICY_SPEC)
    lists, queue = informer(world)

    await lists.list_all()

    assert world.store.get(Ref("CompressionPolicy", "team", "p")) is None
    assert queue.depth() == 1
