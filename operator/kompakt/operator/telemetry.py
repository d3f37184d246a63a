# SPDX-License-Identifier: Apache-2.0
"""The operator's own Prometheus metrics. No label grows with the number of objects."""

from __future__ import annotations

from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.process_collector import ProcessCollector

disable_created_metrics()  # type: ignore[no-untyped-call]
REGISTRY: Final = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

RECONCILES: Final = Counter(
    "kompakt_reconcile",
    "Plans made and carried out, by kind and result (ok, error).",
    ["kind", "result"],
    registry=REGISTRY,
)
RECONCILE_ERRORS: Final = Counter(
    "kompakt_reconcile_errors",
    "Reconciles that failed, by kind and reason.",
    ["kind", "reason"],
    registry=REGISTRY,
)
RECONCILE_SECONDS: Final = Histogram(
    "kompakt_reconcile_duration_seconds",
    "Time to observe, plan and carry out.",
    ["kind"],
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
    registry=REGISTRY,
)
ACTIONS: Final = Counter(
    "kompakt_actions",
    "Actions carried out, by kind of action and kind of object.",
    ["action", "kind"],
    registry=REGISTRY,
)
QUEUE_DEPTH: Final = Gauge(
    "kompakt_workqueue_depth", "Objects that are due and wait for a worker.", registry=REGISTRY
)
QUEUE_OLDEST: Final = Gauge(
    "kompakt_workqueue_oldest_seconds",
    "How long the one that waits longest has waited; /livez fails by it.",
    registry=REGISTRY,
)
API_REQUESTS: Final = Counter(
    "kompakt_api_requests",
    "Requests to the API server, by verb and status code (`lost`: no answer).",
    ["verb", "code"],
    registry=REGISTRY,
)
SCRAPES: Final = Counter(
    "kompakt_scrapes",
    "Scrapes of serving pods, by result (ok, error).",
    ["result"],
    registry=REGISTRY,
)
SCRAPE_SECONDS: Final = Histogram(
    "kompakt_scrape_round_duration_seconds",
    "Time to scrape all pods of all rollouts once.",
    buckets=(0.003, 0.01, 0.03, 0.1, 0.3, 1, 3),
    registry=REGISTRY,
)
RUNS: Final = Counter(
    "kompakt_runs", "Runs that ended, by result (succeeded, failed).", ["result"], registry=REGISTRY
)
JOB_SECONDS: Final = Histogram(
    "kompakt_job_duration_seconds",
    "Time from the start of a Job to its end, by task (import, compress, measure) and result.",
    ["task", "result"],
    buckets=(10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400),
    registry=REGISTRY,
)
ROLLOUTS: Final = Counter(
    "kompakt_rollouts",
    "Rollouts that ended, by result (promoted, rolled_back).",
    ["result"],
    registry=REGISTRY,
)
ROLLBACKS: Final = Counter(
    "kompakt_rollback", "Rollbacks, by reason of the decision.", ["reason"], registry=REGISTRY
)
POLICIES: Final = Gauge(
    "kompakt_policies", "Policies, by their Ready condition.", ["ready"], registry=REGISTRY
)
ROLLOUTS_ACTIVE: Final = Gauge(
    "kompakt_rollouts_active",
    "Rollouts that have not ended, by stage.",
    ["stage"],
    registry=REGISTRY,
)
LEADER: Final = Gauge("kompakt_leader", "1 while this replica leads.", registry=REGISTRY)
