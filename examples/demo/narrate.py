# SPDX-License-Identifier: Apache-2.0
"""What changed between two looks at the operator's objects, in words: what it does, decides, and
why.

Invariant: a note is made only of what the objects say (conditions, trials, decisions, verdicts,
Events), and only when it changed, so each line is said once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from examples.demo.observe import Seen, SeenRollout, Snapshot

from kompakt.api.base import Condition
from kompakt.api.policy import CompressionPolicyStatus
from kompakt.api.rollout import SloVerdict
from kompakt.api.run import CompressionRunStatus, TargetResult, Trial

Tone = Literal["plain", "good", "bad", "dim"]
_TROUBLE = {"Stalled", "Held", "EnvironmentDegraded"}
_TOLD_CONDITIONS = _TROUBLE | {"Ready", "VariantChosen", "Serving"}
_JUDGED = {"Shadow", "Canary", "Watching"}
_MEBI = 1 << 20


@dataclass(frozen=True)
class Note:
    """One line of the story. `time` is Unix seconds."""

    time: float
    source: str
    """Whose word it is: an object's short name, `demo` or `users`."""
    text: str
    tone: Tone = "plain"


def narrate(before: Snapshot, now: Snapshot) -> list[Note]:
    """The notes on everything that is new in `now`."""
    notes = [
        *_policy(before.policy, now.policy, now.time),
        *(note for run in now.runs for note in _run(_same(before.runs, run), run, now.time)),
        *(
            note
            for rollout in now.rollouts
            for note in _rollout(before.rollout(rollout.name), rollout, now.time)
        ),
    ]
    known = {warning.uid for warning in before.warnings}
    notes += [
        Note(now.time, w.object, f"{w.reason}: {w.message}", "bad")
        for w in now.warnings
        if w.uid not in known
    ]
    return notes


def describe_trial(trial: Trial) -> str:
    """A finished trial with its figures."""
    head = f"trial {trial.number} {trial.recipe}"
    if trial.state != "Complete":
        return f"{head}: {trial.state} ({trial.reason}) {trial.message}".rstrip()
    size = f"{trial.size_bytes / _MEBI:.1f} MiB" if trial.size_bytes else "size unknown"
    figures = "; ".join(f"{t.target} {describe_figures(t)}" for t in trial.targets)
    return f"{head}: {size}; {figures}"


def describe_figures(result: TargetResult) -> str:
    """Speed-up with its interval, and the accuracy drop on the confirmation split."""
    if result.evaluation is None or result.benchmark is None:
        return f"{result.state} ({result.reason}) {result.message}".rstrip()
    bench, paired = result.benchmark, result.evaluation.confirmation
    low, high = bench.speedup_low_permille / 1000, bench.speedup_high_permille / 1000
    drop = (paired.lost - paired.gained) / paired.examples if paired.examples else 0.0
    return (
        f"{bench.speedup_permille / 1000:.2f}× [{low:.2f}–{high:.2f}], "
        f"accuracy {-drop:+.2%} on {paired.examples:,}"
    )


def describe_verdict(verdict: SloVerdict) -> str:
    """A verdict with its counts and bounds."""
    words = f"{verdict.slo} {verdict.verdict}: {verdict.bad:,} of {verdict.total:,} bad"
    if verdict.low_basis_points is not None and verdict.high_basis_points is not None:
        low, high = verdict.low_basis_points / 100, verdict.high_basis_points / 100
        words += f", truly between {low:.1f} and {high:.1f} %"
    if verdict.limit_basis_points is not None:
        words += f", at most {verdict.limit_basis_points / 100:.1f} % allowed"
    return words


def stage_name(rollout: SeenRollout) -> str:
    """The stage, with the step for a canary, as the evidence names it."""
    status = rollout.status
    if status.stage == "Canary" and status.step is not None:
        return f"Canary/{status.step}"
    return status.stage or ""


def _same(
    runs: tuple[Seen[CompressionRunStatus], ...], run: Seen[CompressionRunStatus]
) -> Seen[CompressionRunStatus] | None:
    return next((other for other in runs if other.name == run.name), None)


def _conditions(
    source: str, before: list[Condition], now: list[Condition], time: float
) -> Iterator[Note]:
    known = {c.type: (c.status, c.reason) for c in before}
    for c in now:
        if c.type not in _TOLD_CONDITIONS or known.get(c.type) == (c.status, c.reason):
            continue
        if c.type in _TROUBLE and c.status != "True" and c.type not in known:
            continue  # no trouble is no news
        tone: Tone = "plain"
        if c.status == "True":
            tone = "bad" if c.type in _TROUBLE else "good"
        yield Note(time, source, f"{c.type}={c.status} ({c.reason}) {c.message}".rstrip(), tone)


def _policy(
    before: Seen[CompressionPolicyStatus] | None,
    now: Seen[CompressionPolicyStatus] | None,
    time: float,
) -> Iterator[Note]:
    if now is None:
        return
    old = before.status if before else CompressionPolicyStatus()
    source = f"cpol/{now.name}"
    yield from _conditions(source, old.conditions, now.status.conditions, time)
    known = {c.target: c for c in old.chosen}
    for choice in now.status.chosen:
        if known.get(choice.target) != choice:
            tone: Tone = "good" if choice.variant else "bad"
            what = f"{choice.recipe} ({choice.variant})" if choice.variant else "nothing"
            yield Note(time, source, f"{choice.target} gets {what}: {choice.message}", tone)


def _run(
    before: Seen[CompressionRunStatus] | None, now: Seen[CompressionRunStatus], time: float
) -> Iterator[Note]:
    old = before.status if before else CompressionRunStatus()
    source = f"crun/{now.name}"
    baseline = now.status.baseline
    if baseline is not None and old.baseline is None:
        size = (
            f"{baseline.size_bytes / _MEBI:.1f} MiB, {baseline.parameters / 1e6:.1f} M parameters"
        )
        examples = ", ".join(f"{n:,} {role}" for role, n in baseline.data_examples.items())
        yield Note(time, source, f"imported {size}; {examples}")
    if now.status.current and now.status.current != old.current:
        yield Note(time, source, now.status.current, "dim")
    known = {t.number: t.state for t in old.trials}
    for trial in now.status.trials:
        if known.get(trial.number) == trial.state:
            continue
        if trial.state in {"Complete", "Stopped", "Infeasible", "Failed"}:
            tone: Tone = "plain" if trial.state in {"Complete", "Stopped"} else "bad"
            yield Note(time, source, describe_trial(trial), tone)
    for choice in now.status.choices:
        if choice not in old.choices:
            yield Note(time, source, f"{choice.target}: {choice.reason}: {choice.message}", "good")
            for rejected in choice.rejections:
                yield Note(time, source, f"not trial {rejected.trial}: {rejected.message}", "dim")


def _rollout(before: SeenRollout | None, now: SeenRollout, time: float) -> Iterator[Note]:
    source = f"vro/{now.name}"
    old = before.status if before else None
    last = max((d.unix_milliseconds for d in old.decisions), default=0) if old else 0
    known = {(v.slo): v.verdict for v in old.verdicts} if old else {}
    stage = stage_name(now)
    # Evidence begins anew with a stage, and so do its verdicts; at the end nothing is judged.
    anew = stage.partition("/")[0] in _JUDGED and (before is None or stage_name(before) != stage)
    for verdict in now.status.verdicts:
        changed = known.get(verdict.slo) != verdict.verdict
        if (changed or anew) and verdict.verdict != "Undecided":
            tone: Tone = "bad" if verdict.verdict == "Fail" else "good"
            yield Note(time, source, describe_verdict(verdict), tone)
    for d in now.status.decisions:
        if d.unix_milliseconds > last:
            way = f"{d.from_stage} → {d.to_stage}, {d.weight_permille / 10:g} % of the users"
            who = f" (by {d.actor})" if d.actor else ""
            tone = "bad" if d.to_stage in {"RollingBack", "RolledBack", "Held"} else "good"
            yield Note(
                d.unix_milliseconds / 1000, source, f"{way}: {d.reason}: {d.message}{who}", tone
            )
    old_conditions = old.conditions if old else []
    yield from (
        note
        for note in _conditions(source, old_conditions, now.status.conditions, time)
        if note.tone == "bad"
    )
