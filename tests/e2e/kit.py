# SPDX-License-Identifier: Apache-2.0
"""What the tests of the whole way are made of: the cluster, the operator, users, a policy."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from kompakt.api import telemetry

if TYPE_CHECKING:
    from tests.cluster_fixture import Cluster

IMAGE = "localhost/kompakt:dev"
RUNTIME_CLASS = "host-userland"
POLL_SECONDS = 0.25
Object = dict[str, Any]


class Kube:
    """What the tests ask of the cluster, in one namespace."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace

    def __call__(self, *args: str, text: str | None = None) -> str:
        """One kubectl command in the namespace."""
        return self.cluster("--namespace", self.namespace, *args, text=text)

    def apply(self, *manifests: Object) -> None:
        """Apply objects, as a user does."""
        self("apply", "--filename", "-", text=yaml.safe_dump_all(manifests))

    def get(self, kind: str, name: str) -> Object | None:
        """An object, or None."""
        found = self("get", kind, name, "--output", "json", "--ignore-not-found")
        return json.loads(found) if found.strip() else None

    def items(self, kind: str, selector: str = "") -> list[Object]:
        """Objects by labels."""
        listed = self("get", kind, "--selector", selector, "--output", "json")
        return list(json.loads(listed)["items"])

    def wait(
        self,
        kind: str,
        name: str,
        until: Callable[[Object], Any],
        *,
        seconds: float = 60,
        what: str = "",
    ) -> Object:
        """The object, once it is as it should be. Fails with its status otherwise."""
        deadline = time.monotonic() + seconds
        found: Object | None = None
        while time.monotonic() < deadline:
            found = self.get(kind, name)
            if found is not None and until(found):
                return found
            time.sleep(POLL_SECONDS)
        status = json.dumps((found or {}).get("status"), indent=1)[-3000:]
        everything = self("get", "compressionpolicies,compressionruns,variantrollouts,pods")
        raise AssertionError(
            f"{kind}/{name} not {what or 'as it should be'} after {seconds:.0f} s: "
            f"{status}\n{everything}"
        )


def condition(obj: Object, type_: str) -> Object:
    """The condition of a type; an empty one when it is absent."""
    conditions = (obj.get("status") or {}).get("conditions") or []
    return next((c for c in conditions if c["type"] == type_), {})


def is_true(type_: str) -> Callable[[Object], bool]:
    """A predicate for `Kube.wait`."""
    return lambda obj: condition(obj, type_).get("status") == "True"


def stage(*names: str) -> Callable[[Object], bool]:
    """A predicate for `Kube.wait`: the rollout is in one of the stages."""
    return lambda obj: (obj.get("status") or {}).get("stage") in names


# --- the operator --------------------------------------------------------------------------------


@dataclass
class Operator:
    """The operator as a process of this machine."""

    kube: Kube
    log: Path
    process: subprocess.Popen[bytes] | None = None
    peak_mebibytes: float = 0.0

    def start(self, **environment: str) -> None:
        """Start it, once."""
        command = [sys.executable, "-m", "kompakt.operator"]
        command += ["--kubeconfig", str(self.kube.cluster.kubeconfig)]
        command += ["--namespace", self.kube.namespace]
        command += ["--operator-namespace", self.kube.namespace]
        command += ["--jobs-image", IMAGE, "--serving-image", IMAGE]
        command += ["--image-pull-policy", "Never", "--runtime-class-name", RUNTIME_CLASS]
        command += ["--lease-duration=3", "--lease-renew-deadline=2", "--lease-retry-period=0.5"]
        command += ["--metrics-host", "127.0.0.1", "--metrics-port", "0", "--resync-seconds", "30"]
        with self.log.open("ab") as sink:
            self.process = subprocess.Popen(
                command, stderr=sink, stdout=sink, env={**os.environ, **environment}
            )

    def kill(self) -> None:
        """As a machine that loses its power does."""
        assert self.process is not None
        self.observe()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=10)

    def wait_until_dead(self, seconds: float = 60) -> None:
        """Wait for a death that was ordered by `KOMPAKT_FAULT`."""
        assert self.process is not None
        assert self.process.wait(timeout=seconds) == -signal.SIGKILL

    def stop(self) -> None:
        """End it by SIGTERM; it must end well."""
        assert self.process is not None
        self.observe()
        self.process.terminate()
        assert self.process.wait(timeout=30) == 0

    def observe(self) -> None:
        """Note how much memory it has needed so far."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        self.peak_mebibytes = max(self.peak_mebibytes, int(peak.split()[1]) / 1024)

    def logged(self) -> list[Object]:
        """Its log."""
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


# --- users ---------------------------------------------------------------------------------------


@dataclass
class Users:
    """A client that sends sentences through the gateway all the time, and counts what it gets.

    No retries: each broken connection is a failed request.
    """

    gateway: str
    host: str
    model: str
    texts: Sequence[str]
    per_second: float = 40.0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self, threads: int = 2) -> None:
        """Begin."""
        for number in range(threads):
            thread = threading.Thread(
                target=self._send, args=(number, threads / self.per_second), daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End, after the requests under way."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=30)

    def _send(self, number: int, pause: float) -> None:
        shuffled = random.Random(number)
        connection = http.client.HTTPConnection(self.gateway, timeout=10)
        while not self._stop.wait(pause):
            body = json.dumps(
                {
                    "inputs": [
                        {
                            "name": "text",
                            "shape": [1],
                            "datatype": "BYTES",
                            "data": [shuffled.choice(self.texts)],
                        }
                    ]
                }
            )
            try:
                connection.request(
                    "POST",
                    f"/v2/models/{self.model}/infer",
                    body,
                    {
                        "Host": self.host,
                        "Content-Type": "application/json",
                        # A liar: if the route let it pass, nothing would be counted, and no rollout
                        # would ever end.
                        telemetry.SHADOW_HEADER: "1",
                    },
                )
                response = connection.getresponse()
                answer = response.read()
                self.outcomes[str(response.status)] += 1
                if response.status != http.HTTPStatus.OK:
                    self.failures.append(f"{response.status} {answer[:200]!r}")
            except (OSError, http.client.HTTPException) as error:
                self.outcomes["broken"] += 1
                self.failures.append(repr(error))
                connection.close()
        connection.close()


SLOS: list[Object] = [
    {"name": "errors", "type": "Availability", "goodBasisPoints": 9500},
    {"name": "agreement", "type": "Disagreement", "maxExcessBasisPoints": 2000},
    {
        "name": "latency",
        "type": "Latency",
        "thresholdMicroseconds": 2_000_000,
        "goodBasisPoints": 9000,
    },
]
"""Loose: these tests are about the way, on a machine that others use. The judge has its own."""


# --- objects --------------------------------------------------------------------------------------


def claim(name: str) -> Object:
    """A claim that pods on all nodes may mount."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }


def profile(name: str, pool: str, **spec: Any) -> Object:
    """A hardware profile on a pool of the local cluster."""
    labels = [{"key": "kompakt.dev/pool", "value": pool}]
    taint = {"key": "kompakt.dev/pool", "operator": "Exists"}
    return {
        "apiVersion": "kompakt.dev/v1alpha1",
        "kind": "HardwareProfile",
        "metadata": {"name": name},
        "spec": {"nodeLabels": labels, "tolerations": [taint], **spec},
    }


def profiles(prefix: str) -> list[Object]:
    """They are cluster-scoped: their names carry the namespace's."""
    # Small, so that two rollouts fit on the pool beside what a demo has left there.
    edge = {"cpuMillis": 300, "memoryMebibytes": 512, "jobMemoryMebibytes": 1536}
    # No Python with torch fits into 64 MiB: its measurements are killed.
    starved = {"cpuMillis": 300, "memoryMebibytes": 64}
    return [
        profile(f"{prefix}-cpu", "cpu", cpuMillis=600, memoryMebibytes=2048),
        profile(f"{prefix}-edge", "edge", **edge),
        profile(f"{prefix}-starved", "edge", **starved),
    ]


def policy(kube: Kube, name: str, **changes: Any) -> Object:
    """A policy for the tiny model, quick in everything; `changes` replace parts of its spec."""
    spec: Object = {
        "model": {"uri": "pvc://inputs/checkpoint", "maxSequenceLength": 32},
        "data": {
            "evaluation": {
                "uri": "pvc://inputs/evaluation.jsonl",
                "labelField": "label",
                "sliceFields": ["domain"],
            },
            "goldenSet": {"uri": "pvc://inputs/golden.jsonl", "labelField": "label"},
            "training": {"uri": "pvc://inputs/training.jsonl", "labelField": "label"},
        },
        "store": {"persistentVolumeClaim": {"name": "store"}},
        "recipes": [{"name": "int8"}],
        "targets": [{"name": "edge", "hardwareProfileRef": {"name": f"{kube.namespace}-edge"}}],
        "gates": [{"name": "quality", "metric": "Accuracy", "maxDropBasisPoints": 1000}],
        "optimizeFor": "Size",
        "jobs": {"hardwareProfileRef": {"name": f"{kube.namespace}-cpu"}},
        "serving": {
            "target": "edge",
            "gatewayRef": {"name": "public", "namespace": "gateways"},
            "hostnames": [host(kube, name)],
            "deletionPolicy": "Delete",
        },
        "rollout": {
            "shadow": {"percent": 100, "minimumPairs": 60},
            "canary": {
                "steps": [
                    {"weightPermille": 200, "minimumRequests": 30},
                    {"weightPermille": 500, "minimumRequests": 60},
                ]
            },
            "slos": SLOS,
            "deadlineSeconds": 300,
            "watchSeconds": 4,
        },
    }
    return {
        "apiVersion": "kompakt.dev/v1alpha1",
        "kind": "CompressionPolicy",
        "metadata": {"name": name},
        "spec": {**spec, **changes},
    }


def host(kube: Kube, name: str) -> str:
    """Host name of a policy: the gateway serves the tests of everybody."""
    return f"{name}.{kube.namespace}.example.com"


def recipe(name: str, *steps: Object) -> Object:
    """A recipe."""
    return {
        "apiVersion": "kompakt.dev/v1alpha1",
        "kind": "CompressionRecipe",
        "metadata": {"name": name},
        "spec": {"steps": list(steps)},
    }


INT8 = recipe("int8", {"quantize": {"method": "DynamicInt8"}})


def rollout(name: str, policy_name: str, candidate: str, **strategy: Any) -> Object:
    """A rollout made by hand; `strategy` replaces parts of a quick one."""
    quick: Object = {
        "shadow": {"percent": 100, "minimumPairs": 20},
        "canary": {
            "steps": [
                {"weightPermille": 200, "minimumRequests": 20},
                {"weightPermille": 500, "minimumRequests": 40},
            ]
        },
        "slos": SLOS,
        "deadlineSeconds": 240,
        "watchSeconds": 2,
    }
    return {
        "apiVersion": "kompakt.dev/v1alpha1",
        "kind": "VariantRollout",
        "metadata": {"name": name},
        "spec": {
            "policyRef": {"name": policy_name},
            "candidateRef": {"name": candidate},
            "strategy": {**quick, **strategy},
        },
    }


FOR_EVER: Object = {"steps": [{"weightPermille": 500, "minimumRequests": 100_000_000}]}
"""A canary that stays where it is."""
