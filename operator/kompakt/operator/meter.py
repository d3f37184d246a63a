# SPDX-License-Identifier: Apache-2.0
"""Measurements of the variants of a rollout, by one port: `VariantMeter`.

The default adapter scrapes the pods directly, once a second: a rollback takes seconds, and no
Prometheus is needed. For each rollout that has not ended it reads `/metrics` of the pods that
answer users (of the stable and the candidate digest alike) and of the comparator, and sends one
request through the gateway to see whether the way is open.

Invariants:

- nobody waits for a slow pod: a round ends without it, and its answer counts when it comes. Pods
  that are starved of CPU are slow to tell how slow they are;
- a sample keeps the time at which it was taken: one that could not be renewed grows old, and the
  judge sees that;
- the last counters of a pod that is gone stay, marked `gone`, until the rollout enters another
  stage: what was started there and never finished still counts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Protocol

import aiohttp

from kompakt.api import names
from kompakt.controllers.plan import PodSample
from kompakt.operator import owners, states, telemetry
from kompakt.operator.exposition import Reader
from kompakt.operator.resources import POLICY, ROLLOUT, Manifest, Ref, ref_of
from kompakt.operator.store import Store

log = logging.getLogger(__name__)
_SCRAPED_ROLES: Final = frozenset({names.ROLE_SERVING, names.ROLE_COMPARATOR})
_PATIENCE: Final = 0.8
"""Seconds that a round waits for answers."""
_TIMEOUT: Final = aiohttp.ClientTimeout(total=5.0)
"""Of a pod that is asked for its measurements; until then it is not asked again."""
_PROBE_TIMEOUT: Final = aiohttp.ClientTimeout(total=_PATIENCE)
_AT_ONCE: Final = 64
_OK: Final = 200


class VariantMeter(Protocol):
    """Where the plan of a rollout gets its measurements."""

    def samples(self, rollout: Ref) -> tuple[PodSample, ...]:
        """The newest sample of each pod of the rollout's variants and of its comparator."""

    def probe_ok(self, rollout: Ref) -> bool | None:
        """Whether the last request through the gateway was answered; None before the first."""


@dataclass
class _Watched:
    """One rollout that has not ended."""

    stage: tuple[object, ...] = ()
    samples: dict[str, PodSample] = field(default_factory=dict)
    """By uid of the pod."""
    asked: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    """Pods that have not answered yet."""
    probe_ok: bool | None = None


class ScrapingMeter:
    """Scrapes pods directly."""

    def __init__(
        self,
        store: Store,
        *,
        address: Callable[[Manifest], Awaitable[str | None]],
        measured: Callable[[Ref], None],
        seconds: float = 1.0,
    ) -> None:
        """`address` gives `host:port` of a policy's gateway; `measured` is called with each rollout
        that has new samples; a round begins every `seconds`.
        """
        self._store = store
        self._address = address
        self._measured = measured
        self._seconds = seconds
        self._watched: dict[Ref, _Watched] = {}
        self._reader = Reader()
        self._slots = asyncio.Semaphore(_AT_ONCE)

    def samples(self, rollout: Ref) -> tuple[PodSample, ...]:
        watched = self._watched.get(rollout)
        return tuple(watched.samples.values()) if watched else ()

    def probe_ok(self, rollout: Ref) -> bool | None:
        watched = self._watched.get(rollout)
        return watched.probe_ok if watched else None

    async def run(self) -> None:
        """Measure for ever."""
        loop = asyncio.get_running_loop()
        connector = aiohttp.TCPConnector(limit=_AT_ONCE, keepalive_timeout=30)
        async with aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT) as session:
            while True:
                started = loop.time()
                try:
                    await self.round(session)
                except Exception:
                    # One odd answer must not blind the judge for ever: it sees samples grow old.
                    log.exception("a round of measurements failed")
                elapsed = loop.time() - started
                telemetry.SCRAPE_SECONDS.observe(elapsed)
                await asyncio.sleep(max(0.05, self._seconds - elapsed))

    async def round(self, session: aiohttp.ClientSession) -> None:
        """Measure everything once."""
        active = {ref_of(obj): obj for obj in self._store.all(ROLLOUT) if not owners.ended(obj)}
        for ref in set(self._watched) - set(active):
            del self._watched[ref]
        async with asyncio.TaskGroup() as group:
            for ref, obj in active.items():
                group.create_task(self._measure(session, ref, obj))

    async def _measure(self, session: aiohttp.ClientSession, ref: Ref, obj: Manifest) -> None:
        watched = self._watched.setdefault(ref, _Watched())
        policy = obj["spec"]["policyRef"]["name"]
        pods = {
            pod["metadata"]["uid"]: pod
            for pod in self._store.where("Pod", ref.namespace, names.POLICY_LABEL, policy)
            if self._is_scraped(pod, ref)
        }
        self._forget(watched, obj)
        for uid in watched.asked.keys() - pods.keys():
            # By a late answer it would seem to live, and its unfinished requests would count twice.
            watched.asked[uid].cancel()
        new = {uid: pod for uid, pod in pods.items() if uid not in watched.asked}
        for uid, pod in new.items():
            asked = asyncio.create_task(self._scrape(session, watched, uid=uid, pod=pod))
            watched.asked[uid] = asked
            asked.add_done_callback(partial(_answered, watched, uid))
        probe = asyncio.create_task(
            self._probe(session, watched, Ref(POLICY, ref.namespace, policy))
        )
        await asyncio.wait([probe, *watched.asked.values()], timeout=_PATIENCE)
        await probe
        for uid in new.keys() & watched.asked.keys():
            watched.asked[uid].add_done_callback(lambda _: self._measured(ref))
        for uid, sample in watched.samples.items():
            if uid not in pods and not sample.gone:
                watched.samples[uid] = replace(sample, gone=True, ready=False)
        self._measured(ref)

    @staticmethod
    def _is_scraped(pod: Manifest, rollout: Ref) -> bool:
        labels = pod["metadata"]["labels"]
        # The comparator of another rollout of the policy compares other variants.
        of = labels.get(names.ROLLOUT_LABEL, rollout.name)
        phase = (pod.get("status") or {}).get("phase")
        dead = phase in {"Failed", "Succeeded"}
        return labels.get(names.ROLE_LABEL) in _SCRAPED_ROLES and of == rollout.name and not dead

    @staticmethod
    def _forget(watched: _Watched, obj: Manifest) -> None:
        """Drop what is gone since a former stage."""
        status = obj.get("status") or {}
        stage = (obj["metadata"]["uid"], status.get("stage"), status.get("step"))
        if stage != watched.stage:
            watched.stage = stage
            watched.samples = {uid: s for uid, s in watched.samples.items() if not s.gone}

    async def _scrape(
        self, session: aiohttp.ClientSession, watched: _Watched, *, uid: str, pod: Manifest
    ) -> None:
        address = (pod.get("status") or {}).get("podIP")
        if not address:
            return
        host = f"[{address}]" if ":" in address else address
        ready = states.pod_ready(pod)
        try:
            async with (
                self._slots,
                session.get(f"http://{host}:{names.SERVING_PORT}/metrics") as response,
            ):
                response.raise_for_status()
                series = self._reader.read(await response.text())
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, OverflowError) as error:
            telemetry.SCRAPES.labels("error").inc()
            log.debug("not scraped", extra={"pod": pod["metadata"]["name"], "why": str(error)})
            if uid in watched.samples:
                watched.samples[uid] = replace(watched.samples[uid], ready=ready)
            return
        telemetry.SCRAPES.labels("ok").inc()
        labels: Mapping[str, str] = pod["metadata"]["labels"]
        watched.samples[uid] = PodSample(
            pod=pod["metadata"]["name"],
            role=labels[names.ROLE_LABEL],
            digest=labels.get(names.DIGEST_LABEL, ""),
            unix_milliseconds=int(time.time() * 1000),
            series=series,
            ready=ready,
        )

    async def _probe(
        self, session: aiohttp.ClientSession, watched: _Watched, policy_ref: Ref
    ) -> None:
        """Ask through the gateway whether the model is ready."""
        policy = self._store.get(policy_ref)
        serving = ((policy or {}).get("spec") or {}).get("serving")
        if policy is None or not serving:
            return
        address = await self._address(policy)
        if address is None:
            watched.probe_ok = None
            return
        hostnames: list[Any] = serving.get("hostnames") or []
        model = serving.get("modelName") or policy_ref.name
        headers = {"Host": hostnames[0].replace("*", "probe", 1)} if hostnames else {}
        try:
            async with (
                self._slots,
                session.get(
                    f"http://{address}/v2/models/{model}/ready",
                    headers=headers,
                    timeout=_PROBE_TIMEOUT,
                ) as response,
            ):
                await response.read()
                watched.probe_ok = response.status == _OK
        except (aiohttp.ClientError, TimeoutError, OSError):
            watched.probe_ok = False


def _answered(watched: _Watched, uid: str, asked: asyncio.Task[None]) -> None:
    """A pod has answered, in its round or after it, or never will."""
    del watched.asked[uid]
    if not asked.cancelled() and (error := asked.exception()) is not None:
        # One odd answer must not blind the judge for ever: it sees samples grow old.
        log.error("a pod was not measured", exc_info=error)
