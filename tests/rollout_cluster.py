# SPDX-License-Identifier: Apache-2.0
"""A small cluster: Deployments that become ready, a gateway that takes routes, users who send
requests, a comparator that gets copies of them, pods that count, and a scraper.

Time is simulated; the same seed and the same events are the same history.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from kompakt.api import names, telemetry
from kompakt.controllers.plan import Apply, Delete, DeploymentState, Manifest, PodSample, RouteState
from kompakt.controllers.render.route import parse_route

READY_SECONDS = 3
ACCEPT_SECONDS = 1
START = 1_800_000_000.0


@dataclass(frozen=True)
class Behaviour:
    """How a variant answers."""

    slow: float = 0.001
    error: float = 0.0
    differ: float = 0.01
    """From the stable variant, on the same input."""
    lost: int = 2
    """Of 300 golden examples."""


@dataclass
class Pods:
    """A Deployment of one pod."""

    manifest: Manifest
    ready_at: float
    broken: bool = False
    born: int = 0
    """When its pod came: a new pod has a new name."""
    counters: dict[str, int] = field(default_factory=dict)

    @property
    def labels(self) -> dict[str, str]:
        """Of the Deployment."""
        labels: dict[str, str] = self.manifest["metadata"]["labels"]
        return labels

    @property
    def pod(self) -> str:
        """Name of the pod."""
        return f"{self.manifest['metadata']['name']}-{self.born}"

    @property
    def role(self) -> str:
        """As the labels tell."""
        return self.labels.get(names.ROLE_LABEL, "")

    @property
    def digest(self) -> str:
        """As the labels tell."""
        return self.labels.get(names.DIGEST_LABEL, "")

    def leg(self, leg: str) -> str:
        """The Service that a comparator's command line names."""
        (container,) = self.manifest["spec"]["template"]["spec"]["containers"]
        command: list[str] = container["command"]
        return command[command.index(f"--{leg}") + 1].split("/")[2].split(":")[0]

    def ready(self, now: float) -> bool:
        """Whether the pod answers."""
        return not self.broken and now >= self.ready_at

    def count(self, name: str, by: int = 1, /, **labels: str) -> None:
        """Count up a series."""
        inside = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
        key = f"{name}{{{inside}}}" if inside else name
        self.counters[key] = self.counters.get(key, 0) + by

    def duration(self, name: str, *, slow: bool, **labels: str) -> None:
        """Count one duration."""
        self.count(f"{name}_count", **labels)
        for edge, fast in (("0.025", not slow), ("+Inf", True)):
            self.count(f"{name}_bucket", int(fast), le=edge, **labels)


class Cluster:
    """API server, kubelets, gateway and users."""

    def __init__(
        self, *, seed: int, behaviours: dict[str, Behaviour], requests_per_second: int
    ) -> None:
        """`behaviours` by digest label."""
        self.random = random.Random(seed)
        self.behaviours = behaviours
        self.requests_per_second = requests_per_second
        self.now = START
        self.gateway_works = True
        self.gateway_refuses = False
        self.metrics_work = True
        self.deployments: dict[str, Pods] = {}
        self.services: set[str] = set()
        self.route: Manifest | None = None
        self.generation = 0
        self.written_at = 0.0
        self.taken: RouteState | None = None
        """What the proxies do."""
        self.scraped: dict[str, PodSample] = {}
        self.gone: dict[str, PodSample] = {}
        self.answered: dict[str, int] = {}
        """Users' requests by digest label."""
        self.failed = 0

    def tick(self) -> None:
        """One second: the gateway takes the route, users send requests, pods are scraped."""
        self.now += 1
        willing = self.gateway_works and not self.gateway_refuses
        if self.route is not None and willing and self._is_due:
            self.taken = self.live
        for _ in range(self.requests_per_second):
            self._request()
        self._replay()
        if self.metrics_work:
            self._scrape()

    # --- what can be observed --------------------------------------------------------------------

    @property
    def live(self) -> RouteState:
        """The route as it is written."""
        assert self.route is not None
        metadata = {**self.route["metadata"], "generation": self.generation}
        return parse_route({**self.route, "metadata": metadata})

    def observed_route(self) -> RouteState | None:
        """The route with the gateway's answer."""
        if self.route is None:
            return None
        taken = self.taken is not None and self.taken.generation == self.generation
        return replace(self.live, accepted=taken and self.gateway_works)

    def observed_deployments(self) -> dict[str, DeploymentState]:
        """All Deployments."""
        return {
            name: DeploymentState(name, pods.labels, 1, int(pods.ready(self.now)))
            for name, pods in self.deployments.items()
        }

    # --- the API server --------------------------------------------------------------------------

    def apply(self, action: Apply) -> None:
        """Server-side apply."""
        manifest = action.manifest
        name, kind = manifest["metadata"]["name"], manifest["kind"]
        if kind == "Service":
            self.services.add(name)
        elif kind == "Deployment" and name in self.deployments:
            self.deployments[name].manifest = manifest
        elif kind == "Deployment":
            born = int(self.now - START)
            self.deployments[name] = Pods(manifest, self.now + READY_SECONDS, born=born)
        elif kind == "HTTPRoute":
            if self.route is None or self.route["spec"] != manifest["spec"]:
                self.generation += 1
                self.written_at = self.now
            self.route = manifest

    def delete(self, action: Delete) -> None:
        """Delete; what is gone already is fine."""
        if action.kind == "Deployment":
            self.remove_pods(action.name)
        elif action.kind == "Service":
            self.services.discard(action.name)

    def remove_pods(self, name: str) -> None:
        """A Deployment and its pods are gone."""
        pods = self.deployments.pop(name, None)
        sample = self.scraped.pop(pods.pod, None) if pods is not None else None
        if sample is not None:
            self.gone[sample.pod] = replace(sample, gone=True, ready=False)

    # --- traffic ---------------------------------------------------------------------------------

    @property
    def _is_due(self) -> bool:
        return self.now - self.written_at >= ACCEPT_SECONDS

    def _backend(self, service: str | None) -> Pods | None:
        pods = self.deployments.get(service or "")
        return pods if pods is not None and pods.ready(self.now) else None

    def _behaviour(self, pods: Pods) -> Behaviour:
        return self.behaviours.get(pods.digest, Behaviour())

    def _request(self) -> None:
        route = self.taken
        if route is None:
            return
        to_candidate = self.random.random() * 1000 < route.candidate_permille
        service = route.candidate_backend if to_candidate else route.stable_backend
        pods = self._backend(service)
        if pods is None:
            self.failed += 1
        else:
            self._answer(pods)
        if self.random.random() * 100 < route.mirror_percent:
            self._compare(route.mirror_backend)

    def _answer(self, pods: Pods) -> None:
        behaviour = self._behaviour(pods)
        self.answered[pods.digest] = self.answered.get(pods.digest, 0) + 1
        error = self.random.random() < behaviour.error
        pods.count(telemetry.REQUESTS_STARTED)
        pods.count(telemetry.REQUESTS_FINISHED, outcome="error" if error else "ok")
        if not error:
            slow = self.random.random() < behaviour.slow
            pods.duration(telemetry.REQUEST_DURATION, slow=slow)

    def _compare(self, service: str | None) -> None:
        comparator = self._backend(service)
        if comparator is None:
            return
        answers = True
        for leg in ("candidate", "reference"):
            pods = self._backend(comparator.leg(leg))
            behaviour = self._behaviour(pods) if pods is not None else Behaviour(error=1.0)
            error = self.random.random() < behaviour.error
            comparator.count(telemetry.SHADOW_CALLS, leg=leg)
            comparator.count(telemetry.SHADOW_ERRORS, int(error), leg=leg)
            answers = answers and not error
            if not error:
                slow = self.random.random() < behaviour.slow
                comparator.duration(telemetry.SHADOW_DURATION, slow=slow, leg=leg)
        candidate = self._backend(comparator.leg("candidate"))
        if answers and candidate is not None:
            differ = self.random.random() < self._behaviour(candidate).differ
            comparator.count(telemetry.SHADOW_PAIRS, label="positive")
            comparator.count(telemetry.SHADOW_DISAGREEMENTS, int(differ), label="positive")

    def _replay(self) -> None:
        """A pass over the golden set takes ten seconds."""
        for comparator in list(self.deployments.values()):
            is_one = comparator.role == names.ROLE_COMPARATOR and comparator.ready(self.now)
            candidate = self._backend(comparator.leg("candidate")) if is_one else None
            if candidate is not None and int(self.now) % 10 == 0:
                comparator.count(telemetry.GOLDEN_PASS)
                comparator.counters[telemetry.GOLDEN_PAIRS] = 300
                comparator.counters[telemetry.GOLDEN_LOST] = self._behaviour(candidate).lost
                comparator.counters[telemetry.GOLDEN_GAINED] = 2

    def _scrape(self) -> None:
        for pods in self.deployments.values():
            if pods.role != names.ROLE_REFERENCE and pods.ready(self.now):
                self.scraped[pods.pod] = PodSample(
                    pod=pods.pod,
                    role=pods.role,
                    digest=pods.digest,
                    unix_milliseconds=int(self.now * 1000),
                    series=dict(pods.counters),
                )
