# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kompakt.api import names
from kompakt.api.rollout import CounterPoint
from kompakt.api.strategy import Slo
from kompakt.controllers import evidence
from kompakt.controllers.evidence import Digests, Ledger
from kompakt.controllers.plan import PodSample

CANDIDATE, STABLE = "sha256:" + "c" * 64, "sha256:" + "a" * 64
DIGESTS = Digests(candidate=CANDIDATE, stable=STABLE)
LATENCY = Slo(name="latency", type="Latency", threshold_microseconds=25_000, good_basis_points=9900)
ERRORS = Slo(name="errors", type="Availability", good_basis_points=9990)
AGREEMENT = Slo(name="agreement", type="Disagreement", max_excess_basis_points=200)
ACCURACY = Slo(name="accuracy", type="Accuracy", max_drop_basis_points=150)
SLOS = (LATENCY, ERRORS, AGREEMENT, ACCURACY)


def server(
    pod: str = "c-1",
    *,
    digest: str = CANDIDATE,
    ok: int = 0,
    slow: int = 0,
    error: int = 0,
    invalid: int = 0,
    waiting: int = 0,
    at: int = 0,
    gone: bool = False,
) -> PodSample:
    """A scrape of a serving pod."""
    series = {
        "kompakt_requests_started_total": ok + error + invalid + waiting,
        'kompakt_requests_finished_total{outcome="ok"}': ok,
        'kompakt_requests_finished_total{outcome="error"}': error,
        'kompakt_requests_finished_total{outcome="invalid"}': invalid,
        'kompakt_request_duration_seconds_bucket{le="0.025"}': ok - slow,
        'kompakt_request_duration_seconds_bucket{le="+Inf"}': ok,
        "kompakt_request_duration_seconds_count": ok,
    }
    label = digest.removeprefix("sha256:")[:40]
    return PodSample(pod, names.ROLE_SERVING, label, at, series, gone=gone)


def comparator(
    *,
    pairs: Mapping[str, int] | None = None,
    differ: int = 0,
    slow: int = 0,
    errors: int = 0,
    golden: tuple[int, int, int, int] = (0, 0, 0, 0),
    at: int = 0,
) -> PodSample:
    """A scrape of the comparator, with `slow` and `errors` on the candidate's leg."""
    by_label = pairs or {}
    answered = sum(by_label.values())
    series = {f'kompakt_shadow_pairs_total{{label="{label}"}}': n for label, n in by_label.items()}
    series |= {'kompakt_shadow_disagreements_total{label="positive"}': differ}
    for leg, late, failed in (("candidate", slow, errors), ("reference", 0, 0)):
        series |= {
            f'kompakt_shadow_calls_total{{leg="{leg}"}}': answered + failed,
            f'kompakt_shadow_errors_total{{leg="{leg}"}}': failed,
            f'kompakt_shadow_duration_seconds_bucket{{le="0.025",leg="{leg}"}}': answered - late,
            f'kompakt_shadow_duration_seconds_count{{leg="{leg}"}}': answered,
        }
    gauges = ("pass", "pairs", "lost", "gained")
    series |= {f"kompakt_golden_{g}": v for g, v in zip(gauges, golden, strict=True)}
    return PodSample("x-comparator", names.ROLE_COMPARATOR, "", at, series)


def begin(*samples: PodSample, ledger: Ledger | None = None, stage: str = "Canary/0") -> Ledger:
    """A stage begins."""
    return evidence.begin(ledger or Ledger(), samples, stage=stage, slos=SLOS, digests=DIGESTS)


def fold(ledger: Ledger, *samples: PodSample, shadow: bool = False) -> Ledger:
    """Count the newest samples in."""
    return evidence.fold(ledger, samples, shadow=shadow, slos=SLOS, digests=DIGESTS)


def seen(ledger: Ledger, slo: Slo) -> tuple[int, int]:
    """Bad and total of the candidate."""
    point = ledger.of(slo).candidate
    return point.bad, point.total


def test_what_was_before_the_stage_does_not_count() -> None:
    """Pods have a past; evidence begins with the stage."""
    ledger = begin(server(ok=1000, slow=900, error=50))

    ledger = fold(ledger, server(ok=1100, slow=903, error=51))

    assert seen(ledger, LATENCY) == (3, 100)
    assert seen(ledger, ERRORS) == (1, 101)
    assert ledger.samples == 101


def test_counting_the_same_samples_again_adds_nothing() -> None:
    """A checkpoint knows what it has counted."""
    sample = server(ok=10, slow=1)
    once = fold(begin(server()), sample)

    assert fold(once, sample).evidence == once.evidence


def test_a_new_pod_counts_from_its_start() -> None:
    """A pod that comes within the stage has no past, and is written down at once."""
    ledger = fold(begin(server("c-1", ok=5)), server("c-1", ok=5), server("c-2", ok=7, slow=2))

    assert seen(ledger, LATENCY) == (2, 7)
    assert ledger.turned
    assert not fold(ledger, server("c-1", ok=6), server("c-2", ok=8, slow=2)).turned


def test_a_restarted_pod_counts_anew() -> None:
    """Counters that went back belong to a new process; what the old one left unanswered failed."""
    ledger = fold(begin(server()), server(ok=100, waiting=2))

    ledger = fold(ledger, server(ok=4, slow=1))

    assert seen(ledger, LATENCY) == (1, 104)
    assert seen(ledger, ERRORS) == (2, 106)
    assert ledger.turned


def test_a_pod_that_dies_fails_what_it_had_begun() -> None:
    """A request started and never finished is bad, and is counted once."""
    last = server(ok=10, waiting=3, gone=True)
    ledger = fold(begin(server()), last)

    assert seen(ledger, ERRORS) == (3, 13)
    assert ledger.turned
    assert seen(fold(ledger, last), ERRORS) == (3, 13)
    assert seen(fold(fold(ledger), last), ERRORS) == (3, 13)


def test_a_pod_that_cannot_be_read_for_a_while_is_not_new() -> None:
    """After an outage of the metrics, counting goes on where it stopped."""
    ledger = fold(begin(server(ok=100)), server(ok=110))

    ledger = fold(fold(ledger), server(ok=150))

    assert seen(ledger, LATENCY) == (0, 50)


def test_a_stage_that_begins_remembers_pods_that_are_silent() -> None:
    """A pod that could not be read when a stage began does not bring its whole past into it."""
    ledger = begin(ledger=fold(begin(server(ok=100)), server(ok=110)), stage="Canary/1")

    assert seen(fold(ledger, server(ok=115)), LATENCY) == (0, 5)


def test_the_caller_s_faults_count_for_nobody() -> None:
    """An invalid request is neither good nor bad."""
    assert seen(fold(begin(server()), server(invalid=9)), ERRORS) == (0, 0)


def test_both_variants_are_counted_side_by_side() -> None:
    """The stable variant is seen over the same time; pods of other digests do not concern us."""
    other = "sha256:" + "9" * 64
    start = (server("c-1", ok=50), server("s-1", digest=STABLE, ok=900))
    now = (
        server("c-1", ok=60),
        server("s-1", digest=STABLE, ok=990, slow=4),
        server("o-1", digest=other, ok=77),
    )

    found = fold(begin(*start), *now).of(LATENCY)

    assert (found.candidate, found.reference) == (
        CounterPoint(total=10, bad=0),
        CounterPoint(total=90, bad=4),
    )


def test_shadow_traffic_is_seen_through_the_comparator() -> None:
    """While traffic is mirrored, both legs of the comparator are compared, not the pods."""
    ledger = begin(comparator(pairs={"positive": 5, "negative": 5}, differ=4), stage="Shadow")
    now = comparator(pairs={"positive": 30, "negative": 25}, differ=11, slow=6, errors=2)

    ledger = fold(ledger, now, server(ok=1000, slow=1000, error=1000), shadow=True)

    assert seen(ledger, AGREEMENT) == (7, 45)
    assert seen(ledger, LATENCY) == (6, 45)
    assert seen(ledger, ERRORS) == (2, 47)
    assert ledger.of(LATENCY).reference == CounterPoint(total=45, bad=0)
    assert ledger.samples == 45


def test_latency_begins_anew_with_each_stage_but_is_pooled() -> None:
    """Little traffic flatters, so a step stands alone; a certificate may rest on all of them.
    Agreement does not depend on weights, and goes on.
    """
    mirrored = comparator(pairs={"positive": 40}, differ=3, slow=2)
    shadow = fold(begin(comparator(), stage="Shadow"), mirrored, shadow=True)

    canary = fold(
        begin(mirrored, server(), ledger=shadow), mirrored, server(ok=10, slow=1), shadow=False
    )

    latency = canary.of(LATENCY)
    assert (latency.stage, latency.candidate, latency.pooled) == (
        "Canary/0",
        CounterPoint(total=10, bad=1),
        CounterPoint(total=50, bad=3),
    )
    assert seen(canary, AGREEMENT) == (3, 40)
    assert canary.of(AGREEMENT).stage == "Shadow"


def test_each_pass_over_the_golden_set_is_looked_at_once() -> None:
    """Gauges describe the last complete pass; how many passes were looked at is counted."""
    ledger = fold(begin(comparator()), comparator())
    assert seen(ledger, ACCURACY) == (0, 0)

    for number in (1, 1, 2, 2, 1):  # the last one is of a comparator that was restarted
        ledger = fold(ledger, comparator(golden=(number, 300, 10 * number, 4)))

    found = ledger.of(ACCURACY)
    assert (found.candidate, found.reference.bad, found.pooled.total) == (
        CounterPoint(total=300, bad=10),
        4,
        3,
    )


def test_another_threshold_begins_anew() -> None:
    """What was counted against an old threshold says nothing about a new one."""
    ledger = fold(begin(server()), server(ok=10, slow=5))
    slower = LATENCY.evolve(threshold_microseconds=50_000)

    assert ledger.of(LATENCY).candidate.total == 10
    assert ledger.of(slower).candidate.total == 0


def test_a_missing_series_is_not_a_slow_answer() -> None:
    """A server without the bucket that is asked for gives no evidence about latency."""
    bare = PodSample(
        "c-1",
        names.ROLE_SERVING,
        "c" * 40,
        0,
        {'kompakt_requests_finished_total{outcome="ok"}': 50},
    )

    ledger = fold(begin(), bare)

    assert (seen(ledger, LATENCY), seen(ledger, ERRORS)) == ((0, 0), (0, 50))


def test_a_large_deployment_is_sampled() -> None:
    """The status has room for 64 pods; those left out never bring their past in later."""
    many = [server(f"c-{i:03d}", ok=100) for i in range(80)]
    ledger = fold(begin(*many), *many)

    assert (len(ledger.pods), seen(ledger, LATENCY)) == (64, (0, 0))
    assert seen(fold(ledger, *many[50:]), LATENCY) == (0, 0)


def test_only_the_last_seconds_are_fresh() -> None:
    """An old sample, and one of a dead pod, say nothing about now."""
    samples = (
        server("c-1", at=100_000),
        server("c-2", at=89_000),
        server("c-3", at=100_000, gone=True),
        server("s-1", digest=STABLE, at=95_000),
    )

    assert evidence.fresh_roles(samples, DIGESTS, now=101.0) == {"Candidate": 1, "Stable": 1}


steps = st.lists(
    st.tuples(
        st.integers(0, 2),  # which pod
        st.integers(0, 20),  # answers
        st.integers(0, 5),  # of them slow
        st.sampled_from(["scrape", "scrape", "checkpoint", "restart", "silence"]),
    ),
    max_size=40,
)


@given(history=steps)
def test_nothing_is_counted_twice_or_lost(history: Sequence[tuple[int, int, int, str]]) -> None:
    """Whatever happens between checkpoints, the evidence is what the pods have answered since the
    stage began, as far as they were scraped before they restarted.
    """
    past = 1000
    current = {f"c-{i}": [past, past // 2] for i in range(3)}
    scraped = {pod: list(v) for pod, v in current.items()}
    settled = {pod: [-past, -past // 2] for pod in current}
    written = begin(*(server(pod, ok=ok, slow=slow) for pod, (ok, slow) in current.items()))
    for index, answers, slow, what in history:
        pod = f"c-{index}"
        current[pod][0] += answers
        current[pod][1] += min(slow, answers)
        if what == "silence":
            continue
        if what == "restart":
            # The last counters were seen, and written, before the process ended.
            written = fold(written, *(server(p, ok=o, slow=s) for p, (o, s) in current.items()))
            settled[pod][0] += current[pod][0]
            settled[pod][1] += current[pod][1]
            current[pod] = [0, 0]
        scraped = {p: list(v) for p, v in current.items()}
        now = fold(written, *(server(p, ok=o, slow=s) for p, (o, s) in scraped.items()))
        if now.turned or what == "checkpoint":
            written = now

    final = fold(written, *(server(p, ok=o, slow=s) for p, (o, s) in scraped.items()))

    total = sum(settled[p][0] + scraped[p][0] for p in current)
    slow_total = sum(settled[p][1] + scraped[p][1] for p in current)
    assert seen(final, LATENCY) == (slow_total, total)


@pytest.mark.parametrize("slo", SLOS)
def test_evidence_without_samples_is_empty(slo: Slo) -> None:
    """Nothing seen is nothing: neither good nor bad."""
    assert seen(fold(begin()), slo) == (0, 0)
