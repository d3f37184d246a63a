# SPDX-License-Identifier: Apache-2.0
"""The small parts: options, logs, faults, parsing, settings of kopf, health."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from typing import Any

import pytest
from kopf._cogs.structs import references as kopf_references

from kompakt.api import names
from kompakt.operator import logs, telemetry
from kompakt.operator.errors import InvalidObject
from kompakt.operator.faults import Fault
from kompakt.operator.informer import settings
from kompakt.operator.metrics_server import Health
from kompakt.operator.observe import parse
from kompakt.operator.options import parse as parse_options
from kompakt.operator.outcomes import count, time_job
from kompakt.operator.resources import BY_NAME, MADE, kind_of
from kompakt.operator.store import Store
from kompakt.operator.workqueue import WorkQueue


def test_options_come_from_the_command_line_alone() -> None:
    """The variables that Kubernetes sets for a Service `kompakt-metrics` mean nothing; those of the
    downward API say who and where we are.
    """
    environment = {
        "KOMPAKT_METRICS_PORT": "tcp://10.96.177.203:8080",
        "POD_NAME": "operator-0",
        "POD_NAMESPACE": "system",
    }

    options = parse_options(["--workers=5", "--namespace=a,b"], environment)

    assert options.workers == 5
    assert options.metrics_port == 8081
    assert options.namespaces == ("a", "b")
    assert (options.lease.identity, options.lease.namespace) == ("operator-0", "system")
    assert options.pods.runtime_class_name is None


def test_logs_are_json_with_the_object_at_hand() -> None:
    """One object a line, with the fields of the block around it and of the call."""
    record = logging.makeLogRecord({"msg": "applied %s", "args": ("x",), "levelno": logging.INFO})
    record.object = "Service/team/s"

    with logs.fields(namespace="team", reconcile_id="ab"):
        entry = json.loads(logs.JsonFormatter().format(record))

    assert entry["message"] == "applied x"
    assert entry["namespace"] == "team"
    assert entry["object"] == "Service/team/s"
    assert entry["time"].endswith("Z")
    assert "namespace" not in json.loads(logs.JsonFormatter().format(record))


def test_a_fault_kills_at_the_named_moment_only() -> None:
    """The second application of a route, as if by SIGKILL, and nothing before."""
    program = (
        "from kompakt.operator.faults import Fault\n"
        "f = Fault.from_environment({'KOMPAKT_FAULT': 'after:Apply:HTTPRoute:2'})\n"
        "for kind in ('HTTPRoute', 'Service', 'Service', 'HTTPRoute', 'never'):\n"
        "    f.reached('before', 'Apply', kind); print(kind, flush=True)\n"
        "    f.reached('after', 'Apply', kind)\n"
    )

    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert ended.returncode == -signal.SIGKILL
    assert ended.stdout.split() == ["HTTPRoute", "Service", "Service", "HTTPRoute"]


def test_a_fault_that_cannot_be_read_is_refused() -> None:
    """A test that names no moment must not pass by not dying."""
    with pytest.raises(SystemExit, match="must look like"):
        Fault.from_environment({"KOMPAKT_FAULT": "after:Apply"})
    Fault.from_environment({}).reached("after", "Apply", "HTTPRoute")


def test_kopf_is_a_mere_informer() -> None:
    """It posts no Events, joins no peering, and sees no Jobs, pods and routes of others."""
    chosen = settings()

    assert not chosen.posting.enabled
    assert chosen.peering.standalone
    selectors = {
        (key.group, key.version, key.any_name): selector
        for key, selector in chosen.watching.label_selectors.items()
        if isinstance(key, kopf_references.Selector)
    }
    ours = f"{names.MANAGED_BY_LABEL}={names.MANAGED_BY}"
    kinds = [BY_NAME[name] for name in MADE]
    assert selectors == {(kind.group, kind.version, kind.plural): ours for kind in kinds}


@pytest.mark.parametrize(
    ("part", "value", "field"),
    [
        ("spec", {"policyRef": {"name": "p"}, "candidateRef": {}}, "spec.candidateRef.name"),
        ("status", {"stage": "Dancing"}, "status.stage"),
    ],
)
def test_what_does_not_parse_names_the_field(part: str, value: Any, field: str) -> None:
    """With the object, the reason and the mend."""
    obj = {
        "kind": "VariantRollout",
        "metadata": {"name": "r", "namespace": "team"},
        "spec": {"policyRef": {"name": "p"}, "candidateRef": {"name": "c"}},
    }

    with pytest.raises(InvalidObject, match=field) as caught:
        parse(obj | {part: value})

    assert "VariantRollout r" in caught.value.message


def test_a_kind_outside_the_table_is_a_defect() -> None:
    """What is not in the table is not in the RBAC either: it shows in a test, not in a cluster."""
    with pytest.raises(KeyError):
        kind_of({"apiVersion": "v1", "kind": "Secret"})
    with pytest.raises(KeyError):
        kind_of({"apiVersion": "apps/v2", "kind": "Deployment"})


async def test_liveness_is_the_queue_s_progress() -> None:
    """A key that waits for minutes means that the process is of no use, though it answers."""
    queue: WorkQueue[Any] = WorkQueue()
    health = Health(queue, Store())
    assert health.stuck() == ""

    queue._schedule.add("x", now=-1000)

    assert "has waited" in health.stuck()


def test_a_job_is_timed_once() -> None:
    """When it is first seen to have ended; not when it had ended before the operator looked."""
    metadata = {"labels": {names.TASK_LABEL: "import"}}
    started = {"startTime": "2026-01-01T00:00:00Z"}
    ended = {
        "completionTime": "2026-01-01T00:00:20Z",
        "conditions": [{"type": "Complete", "status": "True"}],
    }
    running = {"metadata": metadata, "status": started}
    done = {"metadata": metadata, "status": {**started, **ended}}
    timed = telemetry.JOB_SECONDS.labels("import", "succeeded")
    before = timed._sum.get()

    for old, new in ((running, running), (running, done), (done, done), (None, done)):
        time_job(old, new)

    assert timed._sum.get() == before + 20


def test_ends_of_rollouts_are_counted_once() -> None:
    """With the reason of the decision, when the status first says so."""
    from kompakt.api.rollout import Decision, VariantRolloutStatus

    decision = Decision(
        unix_milliseconds=1,
        from_stage="Canary/0",
        to_stage="RollingBack",
        weight_permille=0,
        reason="LatencyFailed",
    )
    back = VariantRolloutStatus(stage="RolledBack", decisions=[decision])
    counter = telemetry.ROLLBACKS.labels("LatencyFailed")
    before = counter._value.get()

    count("VariantRollout", VariantRolloutStatus(stage="RollingBack"), back)
    count("VariantRollout", back, back)

    assert counter._value.get() == before + 1
