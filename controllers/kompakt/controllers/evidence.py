# SPDX-License-Identifier: Apache-2.0
"""From counters of pods to evidence for objectives.

Pods count from their start and are scraped again and again. Evidence is the sum of the differences
between two scrapes of the same pod, so it begins when a stage begins, however old the pods are. The
ledger (evidence, and the counters that it was counted from) is written to the status now and then;
in between it is counted anew from the last written one each time. So nothing is counted twice and
nothing is lost, whenever the operator dies.

Invariants:

- counting the same samples again adds nothing;
- a pod seen for the first time within a stage counts from 0, a counter that went back does too: its
  process is new. What the old process had started and not finished is taken for failed requests, as
  it is when a pod is gone. Such turns are to be written at once (`Ledger.turned`): between two
  checkpoints a second one would pass unnoticed;
- what is not in a sample is not counted: neither as good nor as bad.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from kompakt.api import names, telemetry
from kompakt.api.rollout import CounterPoint, Evidence, PodCounters
from kompakt.api.strategy import Slo
from kompakt.controllers import objects
from kompakt.controllers.plan import PodSample

Role = Literal["Candidate", "Stable", "Comparator"]

FRESH_SECONDS = 10
"""A sample older than this says nothing about now."""
_PODS_MAX = 64
_ROLES: tuple[Role, ...] = ("Comparator", "Candidate", "Stable")
_LEGS = ("candidate", "reference")
_GONE = "gone"
_LOST = "lost"


@dataclass(frozen=True)
class Digests:
    """Of the two variants."""

    candidate: str
    stable: str

    def role(self, sample: PodSample) -> Role | None:
        """What a pod is to the rollout; None for pods that do not concern it."""
        if sample.role == names.ROLE_COMPARATOR:
            return "Comparator"
        if sample.role != names.ROLE_SERVING:
            return None
        if sample.digest == objects.digest_label(self.candidate):
            return "Candidate"
        return "Stable" if sample.digest == objects.digest_label(self.stable) else None


@dataclass(frozen=True)
class Ledger:
    """Evidence, and the counters that it was counted from."""

    pods: Sequence[PodCounters] = ()
    evidence: Sequence[Evidence] = ()
    samples: int = 0
    """Pairs compared (Shadow) or answers of the candidate (other stages), in this stage."""
    turned: bool = False
    """A pod came, was restarted, or went: the ledger is to be written at once."""

    def of(self, slo: Slo) -> Evidence:
        """The evidence for an objective; empty when it counts something else now."""
        found = next((e for e in self.evidence if e.slo == slo.name), None)
        if found is None or found.counted != counted(slo):
            return Evidence(slo=slo.name, stage="", counted=counted(slo))
        return found


def counted(slo: Slo) -> str:
    """What an objective counts as bad."""
    return f"Latency/{_edge(slo)}" if slo.type == "Latency" else slo.type


def fresh_roles(
    samples: Iterable[PodSample], digests: Digests, *, now: float
) -> Mapping[Role, int]:
    """How many pods of each role have told their counters lately."""
    found: dict[Role, int] = {}
    for sample in samples:
        role = digests.role(sample)
        age = now - sample.unix_milliseconds / 1000
        if role is not None and not sample.gone and age <= FRESH_SECONDS:
            found[role] = found.get(role, 0) + 1
    return found


def begin(
    ledger: Ledger,
    samples: Iterable[PodSample],
    *,
    stage: str,
    slos: Sequence[Slo],
    digests: Digests,
) -> Ledger:
    """The ledger at the start of a stage: what was counted before stays behind.

    Latency and availability begin anew: little traffic flatters. Disagreement and accuracy do not
    depend on the traffic's division, and go on.
    """
    readings = _readings(samples, slos, digests)
    silent = [p for p in ledger.pods if p.pod not in readings]
    evidence = []
    for slo in slos:
        old = ledger.of(slo)
        if slo.type in {"Latency", "Availability"}:
            old = old.evolve(stage=stage, candidate=CounterPoint(), reference=CounterPoint())
        evidence.append(old.evolve(stage=old.stage or stage))
    return Ledger(pods=_remembered(readings.values(), silent), evidence=evidence)


def fold(
    ledger: Ledger,
    samples: Iterable[PodSample],
    *,
    shadow: bool,
    slos: Sequence[Slo],
    digests: Digests,
) -> Ledger:
    """The ledger with the newest samples counted in.

    `shadow`: latency and availability are those that the comparator sees of the mirrored requests,
    else those that the serving pods see of the users'.
    """
    samples = tuple(samples)
    readings = _readings(samples, slos, digests)
    before = {p.pod: p for p in ledger.pods}
    pods = _remembered(before.values(), [r for pod, r in readings.items() if pod not in before])
    pods = [readings.get(p.pod, p) for p in pods]
    differences: list[tuple[Role, Mapping[str, int]]] = []
    turned = False
    for pod in pods:
        difference, turn = _difference(before.get(pod.pod), pod)
        differences.append((pod.role, difference))
        turned = turned or turn
    evidence = []
    for slo in slos:
        old = ledger.of(slo)
        if slo.type == "Accuracy":
            evidence.append(_accuracy(old, samples))
            continue
        ours, theirs = _points(slo, differences, shadow=shadow)
        evidence.append(
            old.evolve(
                candidate=_sum(old.candidate, ours),
                reference=_sum(old.reference, theirs),
                pooled=_sum(old.pooled, ours),
            )
        )
    return Ledger(
        pods=pods,
        evidence=evidence,
        samples=ledger.samples + _stage_samples(differences, shadow=shadow),
        turned=turned,
    )


def _edge(slo: Slo) -> int:
    return telemetry.edge_for(slo.threshold_microseconds or 0)


def _series(name: str, **labels: str) -> str:
    inside = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    return f"{name}{{{inside}}}" if inside else name


def _le(edge: int) -> str:
    """A bucket's edge as the text format writes it."""
    return repr(edge / 1_000_000)


def _readings(
    samples: Iterable[PodSample], slos: Sequence[Slo], digests: Digests
) -> dict[str, PodCounters]:
    """The counters that matter, by pod."""
    edges = sorted({_edge(slo) for slo in slos if slo.type == "Latency"})
    found = {}
    for sample in samples:
        role = digests.role(sample)
        if role is None:
            continue
        read = _comparator if role == "Comparator" else _server
        counters = read(sample.series, edges)
        if sample.gone:
            counters[_GONE] = 1
        found[sample.pod] = PodCounters(pod=sample.pod, role=role, counters=counters)
    return found


def _server(series: Mapping[str, int], edges: Sequence[int]) -> dict[str, int]:
    finished = {
        outcome: _series(telemetry.REQUESTS_FINISHED, outcome=outcome)
        for outcome in ("ok", "invalid", "error")
    }
    keys = {"started": telemetry.REQUESTS_STARTED, **finished}
    counters = {name: series.get(key, 0) for name, key in keys.items()}
    return counters | _durations(series, telemetry.REQUEST_DURATION, edges)


def _comparator(series: Mapping[str, int], edges: Sequence[int]) -> dict[str, int]:
    counters = {
        "pairs": _total(series, telemetry.SHADOW_PAIRS),
        "differ": _total(series, telemetry.SHADOW_DISAGREEMENTS),
    }
    for leg in _LEGS:
        counters[f"{leg}.calls"] = series.get(_series(telemetry.SHADOW_CALLS, leg=leg), 0)
        counters[f"{leg}.errors"] = series.get(_series(telemetry.SHADOW_ERRORS, leg=leg), 0)
        durations = _durations(series, telemetry.SHADOW_DURATION, edges, leg=leg)
        counters |= {f"{leg}.{name}": value for name, value in durations.items()}
    return counters


def _total(series: Mapping[str, int], name: str) -> int:
    return sum(value for key, value in series.items() if key.partition("{")[0] == name)


def _durations(
    series: Mapping[str, int], name: str, edges: Sequence[int], **labels: str
) -> dict[str, int]:
    """How many were answered, and how many of them within each edge."""
    keys = {"answered": _series(f"{name}_count", **labels)}
    keys |= {f"fast.{e}": _series(f"{name}_bucket", le=_le(e), **labels) for e in edges}
    return {counter: series[key] for counter, key in keys.items() if key in series}


def _difference(old: PodCounters | None, new: PodCounters) -> tuple[dict[str, int], bool]:
    """What a pod has counted since, and whether that is to be written at once."""
    gone = bool(new.counters.get(_GONE))
    if old is None:
        difference = {key: value for key, value in new.counters.items() if key != _GONE}
        return difference | {_LOST: _unfinished(new) if gone else 0}, True
    if old.counters.get(_GONE):
        return {}, False
    # A counter that was not read before says nothing about the time since.
    common = (new.counters.keys() & old.counters.keys()) - {_GONE}
    restarted = any(new.counters[key] < old.counters[key] for key in common)
    since = (0 if restarted else old.counters[key] for key in common)
    difference = {key: new.counters[key] - value for key, value in zip(common, since, strict=True)}
    lost = (_unfinished(old) if restarted else 0) + (_unfinished(new) if gone else 0)
    turned = restarted or new.counters.keys() != old.counters.keys()
    return difference | {_LOST: lost}, turned


def _unfinished(pod: PodCounters) -> int:
    finished = sum(pod.counters.get(outcome, 0) for outcome in ("ok", "invalid", "error"))
    return max(0, pod.counters.get("started", 0) - finished)


_Differences = Sequence[tuple[Role, Mapping[str, int]]]


def _points(
    slo: Slo, differences: _Differences, *, shadow: bool
) -> tuple[CounterPoint, CounterPoint]:
    """What one objective has seen of the candidate and of the stable variant."""
    if slo.type == "Disagreement":
        return _point(differences, "Comparator", total=("pairs",), bad=("differ",)), CounterPoint()
    sides: tuple[tuple[Role, str], ...] = (
        (("Comparator", "candidate."), ("Comparator", "reference."))
        if shadow
        else (("Candidate", ""), ("Stable", ""))
    )
    if slo.type == "Latency":
        candidate, reference = (
            _point(differences, r, total=(f"{side}answered",), good=(f"{side}fast.{_edge(slo)}",))
            for r, side in sides
        )
    elif shadow:
        candidate, reference = (
            _point(differences, r, total=(f"{side}calls",), bad=(f"{side}errors",))
            for r, side in sides
        )
    else:
        candidate, reference = (
            _point(differences, r, total=("ok", "error", _LOST), bad=("error", _LOST))
            for r, _ in sides
        )
    return candidate, reference


def _point(
    differences: _Differences,
    role: Role,
    *,
    total: Sequence[str],
    bad: Sequence[str] = (),
    good: Sequence[str] = (),
) -> CounterPoint:
    """Sums over the pods of a role that tell all of these counters. What is not good is bad, where
    the good ones are counted.
    """
    telling = [d for r, d in differences if r == role and d.keys() >= {*total, *bad, *good}]
    everything = sum(d[key] for d in telling for key in total)
    if good:
        missed = everything - sum(d[key] for d in telling for key in good)
    else:
        missed = sum(d[key] for d in telling for key in bad)
    return CounterPoint(total=everything, bad=min(max(missed, 0), everything))


def _stage_samples(differences: _Differences, *, shadow: bool) -> int:
    role, keys = ("Comparator", ("pairs",)) if shadow else ("Candidate", ("ok", "error"))
    return sum(d.get(key, 0) for r, d in differences if r == role for key in keys)


def _sum(one: CounterPoint, other: CounterPoint) -> CounterPoint:
    return CounterPoint(total=one.total + other.total, bad=one.bad + other.bad)


def _accuracy(old: Evidence, samples: Iterable[PodSample]) -> Evidence:
    """The last complete pass over the golden set: `candidate` holds pairs and losses, `reference`
    the pass's number and gains, `pooled` how many passes were looked at.
    """
    living = [s for s in samples if s.role == names.ROLE_COMPARATOR and not s.gone]
    newest = max(living, key=lambda s: s.unix_milliseconds, default=None)
    number = newest.series.get(telemetry.GOLDEN_PASS, 0) if newest is not None else 0
    if newest is None or number in {0, old.reference.total}:
        return old
    pairs, lost, gained = (
        newest.series.get(key, 0)
        for key in (telemetry.GOLDEN_PAIRS, telemetry.GOLDEN_LOST, telemetry.GOLDEN_GAINED)
    )
    return old.evolve(
        candidate=CounterPoint(total=pairs, bad=lost),
        reference=CounterPoint(total=number, bad=gained),
        pooled=CounterPoint(total=old.pooled.total + 1),
    )


def _remembered(first: Iterable[PodCounters], then: Iterable[PodCounters]) -> list[PodCounters]:
    """As many pods as there is room for. One that is left out must stay out until a stage begins:
    taken in later, its past would count. Of a large Deployment this is a sample.
    """
    both = [*sorted(first, key=_rank), *sorted(then, key=_rank)]
    return sorted(both[:_PODS_MAX], key=_rank)


def _rank(counters: PodCounters) -> tuple[int, str]:
    return _ROLES.index(counters.role), counters.pod
