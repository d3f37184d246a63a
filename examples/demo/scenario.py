# SPDX-License-Identifier: Apache-2.0
"""The acts: from an empty namespace to a promoted variant, then two regressions and their ends.

Invariant: the demo only does what a user could do (applies objects, sends requests, disturbs a
pod), and waits for what the operator does. Each wait has an end, with a sentence that says what was
missing.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from examples.demo import inputs, sabotage
from examples.demo.client import Client, Endpoint
from examples.demo.cluster import ROOT, Cluster, gateway_address
from examples.demo.errors import DemoError
from examples.demo.history import History
from examples.demo.kube import KOMPAKT, Kube, Object
from examples.demo.live import View
from examples.demo.observe import Seen, SeenVariant, observe
from examples.demo.page import Mark
from examples.demo.records import TrafficLog, variant_tag
from examples.demo.report import Regression, regression
from examples.sentiment.prepare import Example

from kompakt.api.policy import CompressionPolicySpec
from kompakt.api.run import CompressionRunStatus

MANIFESTS: Final = ROOT / "examples" / "sentiment"
CALM_RATE: Final = 10.0
"""Requests a second while models are compressed: on two cores they would slow each other down."""
BUSY_RATE: Final = 20.0
"""Requests a second during rollouts, where the machine is quick enough for the edge to keep its
objectives at that.
"""
_POLL_SECONDS: Final = 0.4
_PATIENCE_SECONDS: Final = 30.0
"""How long the API server may be silent."""
_HOG_SECONDS: Final = 90.0
_WARM_ANSWERS: Final = 20
"""Answers of the canary before it is starved: it must have been seen healthy."""


@dataclass(frozen=True)
class Declared:
    """What the example's policy says."""

    name: str
    namespace: str
    spec: CompressionPolicySpec
    store: Object

    @classmethod
    def read(cls, path: Path) -> Declared:
        """Read the manifest."""
        manifest: dict[str, Any] = yaml.safe_load(path.read_text())
        return cls(
            name=manifest["metadata"]["name"],
            namespace=manifest["metadata"]["namespace"],
            spec=CompressionPolicySpec.model_validate(manifest["spec"]),
            store=manifest["spec"]["store"],
        )

    @property
    def target(self) -> str:
        """The target whose choice is served."""
        assert self.spec.serving is not None  # noqa: S101 -- the example's policy serves
        return self.spec.serving.target

    @property
    def latency_seconds(self) -> float:
        """The latency objective."""
        slos = (s.threshold_microseconds for s in self.spec.rollout.slos if s.type == "Latency")
        return next((t for t in slos if t is not None), 1_000_000) / 1e6


def compressed_all(run: Seen[CompressionRunStatus] | None) -> bool:
    """Whether a run has no trial left to be compressed."""
    if run is None:
        return False
    trials = run.status.trials
    waiting = any(trial.state in {"Proposed", "Compressing"} for trial in trials)
    return bool(trials) and len(trials) == run.status.trials_total and not waiting


@dataclass
class Demo:
    """One performance."""

    cluster: Cluster
    kube: Kube
    example: Example
    declared: Declared
    view: View
    history: History
    log: TrafficLog
    marks: list[Mark] = field(default_factory=list)
    client: Client | None = None

    async def watch(self) -> None:
        """Look at the operator's objects until cancelled."""
        seen = time.monotonic()
        while True:
            try:
                found = await observe(self.kube, self.declared.namespace, self.declared.name)
            except DemoError:
                if time.monotonic() - seen > _PATIENCE_SECONDS:
                    raise
            else:
                seen = time.monotonic()
                self.view.tell(self.history.add(found))
            await asyncio.sleep(_POLL_SECONDS)

    async def empty_namespace(self) -> None:
        """Take away what an earlier demo left: rollouts first, so that their traffic goes back."""
        namespace, kubectl = self.declared.namespace, self.cluster.kubectl
        if await self.kube.get(f"/api/v1/namespaces/{namespace}") is None:
            return
        self.view.say(f"removing the namespace {namespace} of an earlier demo")
        if await self.kube.items(f"{KOMPAKT}/namespaces/{namespace}/variantrollouts"):
            await kubectl(
                *("delete", "variantrollouts", "--all", "--namespace", namespace),
                "--timeout=60s",
                timeout=70,
            )
        await kubectl("delete", "namespace", namespace, "--wait=false", timeout=30)
        # Nobody's requests are left to be drained.
        await kubectl(
            *("delete", "pods", "--all", "--namespace", namespace),
            *("--grace-period=1", "--timeout=60s"),
            timeout=70,
        )
        await kubectl(
            "wait", "--for=delete", f"namespace/{namespace}", "--timeout=120s", timeout=130
        )

    async def load_inputs(self) -> None:
        """Make namespace and storage, and copy model and data into them."""
        for name in ("00-namespace.yaml", "10-storage.yaml"):
            await self.cluster.kubectl("apply", "--filename", str(MANIFESTS / name))
        data = [self.example.data(n) for n in ("evaluation", "training", "golden")]
        size = await inputs.load(
            self.kube,
            self.cluster.kubectl,
            namespace=self.declared.namespace,
            claim="inputs",
            image=self.cluster.jobs,
            files=[self.example.checkpoint, *data],
        )
        self.view.say(f"copied model and data into the cluster, {size / (1 << 20):.0f} MiB")

    async def declare(self) -> None:
        """Apply everything, policy included."""
        said = await self.cluster.kubectl("apply", "--filename", str(MANIFESTS))
        for line in said.splitlines():
            self.view.say(line)

    async def serve(self) -> Client:
        """Wait until the unchanged model answers through the gateway; the users come then."""
        serving = self.declared.spec.serving
        assert serving is not None  # noqa: S101 -- the example's policy serves
        gateway = serving.gateway_ref
        endpoint = Endpoint(
            address=await gateway_address(
                self.kube,
                namespace=gateway.namespace or self.declared.namespace,
                name=gateway.name,
            ),
            host=serving.hostnames[0],
            model=serving.model_name or self.declared.name,
        )
        lines = self.example.data("traffic").read_text().splitlines()
        texts = [json.loads(line)["text"] for line in lines]
        client = Client(endpoint, texts, self.log, rate=CALM_RATE)
        deadline = time.monotonic() + 240
        while not await client.answers():
            self._give_up_early()
            if time.monotonic() > deadline:
                raise self.broken("the unchanged model did not answer within 240 s")
            await asyncio.sleep(0.25)
        self.view.say(f"the unchanged model answers at {endpoint.url}; the users come", "good")
        self.client = client
        return client

    async def compress(self) -> None:
        """Wait until the run has chosen a variant."""

        def chosen() -> bool:
            run = self.history.snapshot.run()
            return run is not None and any(c.variant for c in run.status.choices)

        await self._until(chosen, seconds=600, what="no variant was chosen")

    async def promote(self) -> str:
        """Wait until the chosen variant answers all users; returns the name of its rollout."""
        if self.client is not None:
            self.client.pace.wanted = BUSY_RATE
        await self._until(
            lambda: self.history.snapshot.rollout() is not None,
            seconds=60,
            what="the operator made no rollout",
        )
        rollout = self.history.snapshot.rollout()
        assert rollout is not None  # noqa: S101 -- waited for
        await self._stage(rollout.name, "Watching", seconds=300)
        self.marks.append(Mark(time.time(), "promoted", css="good"))
        return rollout.name

    async def succeed(self, rollout: str) -> str:
        """Wait until a promoted variant has been watched long enough; returns its digest."""
        await self._stage(rollout, "Succeeded", seconds=150)
        promoted = self.history.snapshot.rollout(rollout)
        digest = promoted.status.candidate_digest if promoted else None
        if digest is None:
            raise self.broken(f"rollout {rollout} does not say what it promoted")
        return digest

    async def make_over_pruned(self) -> str:
        """Make and register the over-pruned variant; returns the name of its ModelVariant.

        Beside the measurement of the last good one: the nodes that compress are idle then.
        """
        await self._until(
            lambda: compressed_all(self.history.snapshot.run()),
            seconds=600,
            what="the run did not compress all that it is to try",
        )
        run = self.history.snapshot.run()
        if run is None or run.status.baseline is None:
            raise self.broken("there is no run to make another variant like")
        task, made = await sabotage.over_prune(
            self.kube, namespace=self.declared.namespace, run=run.name
        )
        manifest = sabotage.registration(
            self.declared.name,
            task=task,
            made=made,
            store=self.declared.store,
            labels=list(run.status.baseline.labels),
        )
        await self._apply(manifest)
        self.view.say(f"registered {manifest['metadata']['name']} by hand: {made.summary}")
        return str(manifest["metadata"]["name"])

    async def accuracy_regression(self, variant: str) -> Regression:
        """Roll out the over-pruned variant; it must not get past Shadow."""
        name = f"{self.declared.name}-{sabotage.OVER_PRUNED}"
        started = await self._roll_out(name, variant)
        await self._stage(name, "RolledBack", seconds=150)
        first = self.history.mirror_started(after=started)
        if first is None:
            raise self.broken(f"rollout {name} was rolled back before it had any copy of a request")
        self.marks.append(Mark(first, "over-pruned", "copies begin", "bad"))
        return await self._account("Accuracy", name, started=started, first_bad=first)

    async def latency_regression(self, stable: str) -> Regression:
        """Roll out a good variant and starve its pod during the canary; it must go back."""
        variant = self._other_good_variant(stable)
        digest = variant.spec.digest
        name = f"{self.declared.name}-starved"
        started = await self._roll_out(name, variant.name)
        tag = variant_tag(digest)

        def warm() -> bool:
            answers = self.log.answered_by(tag, start=started, end=time.time())
            return self.history.stage_reached(name, "Canary/0") is not None and (
                answers >= _WARM_ANSWERS
            )

        await self._until(warm, seconds=150, what=f"rollout {name} served no users", rollout=name)
        pod = await sabotage.serving_pod(
            self.kube,
            namespace=self.declared.namespace,
            policy=self.declared.name,
            digest=digest,
        )
        hogged = await sabotage.starve(self.kube, pod, seconds=_HOG_SECONDS)
        self.view.say(f"a CPU hog runs inside pod {pod['metadata']['name']}", "bad")
        self.marks.append(Mark(hogged, "starved", "the hog starts", "bad"))
        await self._stage(name, "RolledBack", seconds=150)
        threshold = self.declared.latency_seconds
        slow = self.log.first_slow(tag, after=hogged, seconds=threshold)
        if slow is None:
            raise self.broken(f"rollout {name} was rolled back, but no user saw a slow answer")
        return await self._account("Latency", name, started=started, first_bad=slow.sent)

    def broken(self, what: str) -> DemoError:
        """An error with what the objects say and where to look."""
        lines = [what]
        snapshot = self.history.snapshot
        for kind, seen in (
            ("cpol", snapshot.policy),
            ("crun", snapshot.run()),
            ("vro", snapshot.rollout()),
        ):
            if seen is not None:
                lines += [
                    f"  {kind}/{seen.name} {c.type}={c.status} ({c.reason}) {c.message}".rstrip()
                    for c in seen.status.conditions
                ]
        kubectl = " ".join(self.cluster.kubectl.command)
        lines += [
            "to see more:",
            f"  {kubectl} get cpol,crun,mvar,vro,jobs,pods -n {self.declared.namespace}",
            f"  {kubectl} logs -n kompakt-system deployment/kompakt",
        ]
        return DemoError("\n".join(lines))

    async def _roll_out(self, name: str, variant: str) -> float:
        started = time.time()
        await self._apply(sabotage.rollout(name, policy=self.declared.name, candidate=variant))
        self.view.say(f"rolling out {variant} by hand, as {name}")
        return started

    async def _apply(self, manifest: Object) -> None:
        text = json.dumps(manifest).encode()
        await self.cluster.kubectl(
            *("apply", "--namespace", self.declared.namespace, "--filename", "-"), stdin=text
        )

    async def _account(
        self, kind: Any, name: str, *, started: float, first_bad: float
    ) -> Regression:
        await self._until(
            lambda: self.history.traffic_returned(after=started) is not None,
            seconds=30,
            what=f"the route still has the candidate of rollout {name}",
        )
        # Answers of requests that were under way when the route went back.
        await asyncio.sleep(1.0)
        found = regression(
            kind,
            rollout=name,
            started=started,
            first_bad=first_bad,
            history=self.history,
            log=self.log,
        )
        self.marks.append(Mark(first_bad + found.seconds_to_rollback, "back"))
        self.view.say(
            f"{kind} regression: caught in {found.stage}, back after "
            f"{found.seconds_to_rollback:.1f} s, {found.user_requests_to_candidate} user requests "
            "answered by it",
            "good",
        )
        return found

    def _other_good_variant(self, stable: str) -> SeenVariant:
        """A variant of the run that passed every gate and is not in production."""
        run = self.history.snapshot.run()
        trials = {t.digest for t in run.status.trials if t.state == "Complete"} if run else set()
        gates = {gate.name for gate in self.declared.spec.gates}
        for variant in self.history.snapshot.variants:
            if variant.spec.digest not in trials or variant.spec.digest == stable:
                continue
            if gates <= set(variant.status.gates_passed):
                return variant
        # With one good recipe only, the unchanged model is the other good variant.
        for variant in self.history.snapshot.variants:
            if variant.spec.lineage.recipe == "Source":
                return variant
        raise self.broken("there is no second good variant to roll out")

    async def _stage(self, rollout: str, stage: str, *, seconds: float) -> None:
        await self._until(
            lambda: self.history.stage_reached(rollout, stage) is not None,
            seconds=seconds,
            what=f"rollout {rollout} did not reach {stage}",
            rollout=rollout,
            wanted=stage,
        )

    async def _until(
        self,
        done: Callable[[], bool],
        *,
        seconds: float,
        what: str,
        rollout: str | None = None,
        wanted: str | None = None,
    ) -> None:
        """Wait for something; an end of the rollout that is not the wanted one ends the wait. A
        held rollout has not ended: it goes on when what holds it is over.
        """
        deadline = time.monotonic() + seconds
        while not done():
            self._give_up_early(rollout, wanted)
            if time.monotonic() > deadline:
                raise self.broken(f"{what} within {seconds:.0f} s")
            await asyncio.sleep(0.1)

    def _give_up_early(self, rollout: str | None = None, wanted: str | None = None) -> None:
        """Raise when what is waited for cannot come any more."""
        run = self.history.snapshot.run()
        for condition in run.status.conditions if run else ():
            if condition.type == "Succeeded" and condition.status == "False":
                raise self.broken(f"run {run.name if run else ''} failed: {condition.message}")
        seen = self.history.snapshot.rollout(rollout) if rollout else None
        stage = seen.status.stage if seen else None
        if stage in {"Succeeded", "RolledBack"} and stage != wanted:
            raise self.broken(f"rollout {rollout} ended as {stage}, not as {wanted or 'expected'}")
