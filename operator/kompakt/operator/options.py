# SPDX-License-Identifier: Apache-2.0
"""What an installation sets, by the command line alone.

Not by the environment: in a namespace with a Service `kompakt-metrics`, Kubernetes itself sets
`KOMPAKT_METRICS_PORT=tcp://…` in every pod.
"""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from kompakt.controllers.plan import Settings


@dataclass(frozen=True)
class LeaseOptions:
    """Times of the leader election, in seconds. `duration` > `renew_deadline` > `retry_period`."""

    name: str = "kompakt-operator"
    namespace: str = "kompakt-system"
    identity: str = ""
    duration: float = 15.0
    """Others wait so long after the last renewal before they take over."""
    renew_deadline: float = 10.0
    """The leader stops when it could not renew for so long: before anybody else starts."""
    retry_period: float = 2.0


@dataclass(frozen=True)
class Options:
    """Everything that the command line says."""

    pods: Settings
    lease: LeaseOptions
    kubeconfig: str | None = None
    context: str | None = None
    namespaces: tuple[str, ...] = ()
    """Empty: the whole cluster."""
    workers: int = 8
    metrics_host: str = "0.0.0.0"  # noqa: S104 -- probes and Prometheus come from outside the pod
    metrics_port: int = 8081
    scrape_seconds: float = 1.0
    resync_seconds: float = 300.0
    log_level: str = "INFO"
    log_format: str = "json"


def parse(arguments: Sequence[str] | None, environment: Mapping[str, str]) -> Options:
    """Read the command line. The downward API may say who and where this pod is: `POD_NAME`,
    `POD_NAMESPACE`.
    """
    values = _parser(environment).parse_args(arguments)
    if not values.lease_duration > values.lease_renew_deadline > values.lease_retry_period > 0:
        message = (
            "the lease's times must fall: --lease-duration > --lease-renew-deadline > "
            f"--lease-retry-period > 0, not {values.lease_duration}, "
            f"{values.lease_renew_deadline}, {values.lease_retry_period}"
        )
        raise SystemExit(f"kompakt-operator: {message}")
    pods = Settings(
        jobs_image=values.jobs_image,
        serving_image=values.serving_image,
        image_pull_policy=values.image_pull_policy,
        runtime_class_name=values.runtime_class_name or None,
        operator_namespace=values.operator_namespace,
    )
    lease = LeaseOptions(
        name=values.lease_name,
        namespace=values.lease_namespace or values.operator_namespace,
        identity=values.identity,
        duration=values.lease_duration,
        renew_deadline=values.lease_renew_deadline,
        retry_period=values.lease_retry_period,
    )
    names = {name.strip() for entry in values.namespace for name in entry.split(",")} - {""}
    return Options(
        pods=pods,
        lease=lease,
        kubeconfig=values.kubeconfig or None,
        context=values.context or None,
        namespaces=tuple(sorted(names)),
        workers=values.workers,
        metrics_host=values.metrics_host,
        metrics_port=values.metrics_port,
        scrape_seconds=values.scrape_seconds,
        resync_seconds=values.resync_seconds,
        log_level=values.log_level.upper(),
        log_format=values.log_format,
    )


def _parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kompakt-operator",
        description="Runs the compression lifecycle of NLP models in a Kubernetes cluster.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )

    def add(flag: str, default: object, text: str, *, choices: Sequence[str] = ()) -> None:
        kind: Callable[[str], Any] = type(default)
        parser.add_argument(flag, default=default, type=kind, help=text, choices=choices or None)

    release = version("kompakt")
    # A restarted container of the same pod has the name of the dead one, and so goes on at once.
    # Elsewhere two processes of one host must not take each other for themselves.
    identity = environment.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}"
    add("--kubeconfig", "", "file with the cluster's address; in a pod: its ServiceAccount")
    add("--context", "", "context of the kubeconfig")
    parser.add_argument(
        "--namespace",
        action="append",
        default=[],
        help="serve this namespace only (repeatable, or with commas); absent: the whole cluster",
    )
    add("--jobs-image", f"kompakt-jobs:{release}", "image of the Jobs")
    add("--serving-image", f"kompakt-serving:{release}", "image of serving pods and comparators")
    pull = ("Always", "IfNotPresent", "Never")
    add("--image-pull-policy", "IfNotPresent", "pull policy of both", choices=pull)
    add("--runtime-class-name", "", "RuntimeClass of pods whose hardware profile names none")
    operator_namespace = environment.get("POD_NAMESPACE", "kompakt-system")
    add(
        "--operator-namespace",
        operator_namespace,
        "where the operator runs; recipes there are found by every policy",
    )
    add("--lease-name", "kompakt-operator", "Lease of the leader election")
    add("--lease-namespace", "", "where the Lease is; the operator's own namespace when empty")
    add("--identity", identity, "name of this replica in the Lease")
    add("--lease-duration", 15.0, "seconds after which a silent leader is replaced")
    add("--lease-renew-deadline", 10.0, "seconds after which a leader that cannot renew stops")
    add("--lease-retry-period", 2.0, "seconds between renewals")
    add("--workers", 8, "objects that are worked on at once")
    add("--metrics-host", "0.0.0.0", "address of /metrics, /livez and /readyz")  # noqa: S104
    add("--metrics-port", 8081, "port of the same; 0 takes any")
    add("--scrape-seconds", 1.0, "seconds between two scrapes of a rollout's pods")
    add("--resync-seconds", 300.0, "seconds after which everything is listed and planned again")
    add("--log-level", "INFO", "DEBUG, INFO, WARNING or ERROR")
    add("--log-format", "json", "one JSON object a line, or text", choices=("json", "text"))
    return parser
