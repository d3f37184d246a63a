# SPDX-License-Identifier: Apache-2.0
"""Kompakt's rollout over simulated answers: the stages of `rollout_stages`, judged by the real
`objectives.assess`, for all rollouts of a batch at once.

For a number of bad answers, a judgement turns once as the total grows: from broken to not broken,
and from not passed to passed. Both totals are found by bisection with the judge itself and kept;
so most looks compare counts with a table. Where the limit is broken, the judge is asked with the
stable variant's counts.

Where both variants break the limit, the environment is degraded: the rollout is held, and goes on
with new evidence when one of them has kept it for a while.

Left out: everything but one objective of type Availability; pods, gateways and their waiting (a
stage begins at the look at which the one before it passed); Watching. A pair that only the stable
variant fails to answer counts as compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from bench.judge_streams import (
    PROMOTED,
    ROLLED_BACK,
    WHOLE,
    Decisions,
    Ints,
    Mask,
    Outcome,
    World,
)

from kompakt.api.rollout import CounterPoint, Evidence
from kompakt.api.strategy import Rollout
from kompakt.controllers.evidence import Ledger, Role, counted
from kompakt.controllers.objectives import Assessment, Scope, assess, limit
from kompakt.controllers.rollout_progress import RECOVERY_REQUESTS
from kompakt.controllers.rollout_stages import RECOVERY_SECONDS

_FRESH: Mapping[Role, int] = {"Candidate": 1, "Stable": 1}
_SCOPE = Scope(shadow=False, compares=True)


@dataclass(frozen=True)
class _Stage:
    candidate: int
    """Permille of all traffic."""
    stable: int
    wanted: int
    """Samples before the next stage."""
    shadow: bool = False


class _Rollouts:
    """Where each of them is."""

    def __init__(self, world: World, strategy: Rollout) -> None:
        self._world, self._stages = world, _stages(strategy)
        self._weights = np.array(
            [[world.cells(s.candidate), world.cells(s.stable)] for s in self._stages]
        )
        self._limit = limit(strategy.slos[0], offline=None)
        self.decisions = Decisions(world)
        self.stage = np.zeros(world.rollouts, np.int64)
        self.restarts = np.zeros(world.rollouts, np.int64)
        self.held: Ints = np.full(world.rollouts, -1)
        """The look since which it is held; -1: it is not."""
        self._at, self._began = np.zeros((2, world.rollouts, 2), np.int64)
        self._before = np.zeros((2, world.rollouts), np.int64)

    def advance(self) -> None:
        """To the next look."""
        self._at += self._weights[self.stage] * self.decisions.open[:, None]
        self.total_now, self.bad_now = self._world.candidate.upto(self._at[:, 0])
        self.total, self.bad = self.total_now - self._before[0], self.bad_now - self._before[1]

    @property
    def last(self) -> Mask:
        """In the last step of the canary."""
        found: Mask = self.stage == len(self._stages) - 1
        return found

    @property
    def complete(self) -> Mask:
        """With as many samples as the stage asks for; a failed answer is none that is compared."""
        wanted = np.array([s.wanted for s in self._stages])[self.stage]
        mirrored = np.array([s.shadow for s in self._stages])[self.stage]
        found: Mask = self.total - np.where(mirrored, self.bad, 0) >= wanted
        return found

    def stable(self) -> tuple[Ints, Ints]:
        """Total and bad ones of the stable variant in the stage."""
        now, began = (self._world.stable.upto(at[:, 1]) for at in (self._at, self._began))
        return now[0] - began[0], now[1] - began[1]

    def begin(self, which: Mask) -> None:
        """Evidence begins anew."""
        self._before[0][which], self._before[1][which] = self.total_now[which], self.bad_now[which]
        self._began[which] = self._at[which]

    def hold(self, which: Mask, look: int) -> None:
        """Their environment is degraded."""
        self.held[which] = look
        self.restarts += which
        self.begin(which)

    def recover(self, look: int) -> None:
        """Those that are held for long enough go on, or wait as long again."""
        due = self.decisions.open & (self.held >= 0)
        due &= (look - self.held) * self._world.look >= RECOVERY_SECONDS
        if not due.any():
            return
        keeps = np.zeros_like(due)
        for total, bad in (self.stable(), (self.total, self.bad)):
            keeps |= (total >= RECOVERY_REQUESTS) & (bad <= self._limit * total)
        self.hold(due, look)
        self.held[due & keeps] = -1


def kompakt(world: World, strategy: Rollout, thresholds: Thresholds) -> Outcome:
    """Shadow, then the canary's steps, each with evidence of its own."""
    rollouts = _Rollouts(world, strategy)
    decisions = rollouts.decisions
    certified = np.full(world.rollouts, strategy.slos[0].mode != "Certify")
    for look in range(1, world.deadline // world.look + 1):
        now = look * world.look
        rollouts.advance()
        broken, fails, degraded = _judge(rollouts, thresholds)
        certified |= ~broken & thresholds.passes(rollouts.total_now, rollouts.bad_now)
        decisions.end(fails, ROLLED_BACK, samples=rollouts.total_now, seconds=now)
        free = decisions.open & (rollouts.held < 0)
        ready = free & ~broken & rollouts.complete
        done = ready & rollouts.last & certified
        decisions.end(done, PROMOTED, samples=rollouts.total_now, seconds=now)
        moves = ready & ~rollouts.last
        rollouts.stage += moves
        rollouts.begin(moves)
        rollouts.recover(look)
        rollouts.hold(free & degraded, look)
        if not decisions.open.any():
            break
    return decisions.outcome()


class Thresholds:
    """At which totals the judge's word on some bad answers changes; grows as it is asked."""

    def __init__(self, strategy: Rollout) -> None:
        self._strategy = strategy
        self._pace = max(1, round(1 / limit(strategy.slos[0], offline=None)))
        self._broken = np.zeros(1, np.int64)
        """The largest total of which so many bad ones break the limit."""
        self._passes = np.zeros(0, np.int64)
        """The smallest total of which so many bad ones keep it for sure."""

    def broken(self, total: Ints, bad: Ints) -> Mask:
        """Where the limit is broken, whoever is to blame, by evidence that has not begun anew."""
        self._grow(int(bad.max()))
        return (total > 0) & (total <= self._broken[bad])

    def passes(self, total: Ints, bad: Ints) -> Mask:
        """Where the limit is kept."""
        self._grow(int(bad.max()))
        return (total > 0) & (total >= self._passes[bad])

    @lru_cache(maxsize=100_000)  # noqa: B019 -- one table lives as long as its process
    def ask(
        self, candidate: tuple[int, int], stable: tuple[int, int] = (0, 0), restarts: int = 0
    ) -> Assessment:
        """The judge's word on (total, bad) of the candidate, beside the stable variant's. Evidence
        that has begun anew has less odds.
        """
        slo = self._strategy.slos[0]
        point = CounterPoint(total=candidate[0], bad=candidate[1])
        evidence = Evidence(
            slo=slo.name,
            stage="Canary/0",
            candidate=point,
            reference=CounterPoint(total=stable[0], bad=stable[1]),
            pooled=point,
            counted=counted(slo),
        )
        return assess(
            self._strategy,
            Ledger(evidence=[evidence]),
            scope=_SCOPE,
            fresh=_FRESH,
            before=(),
            restarts=restarts,
            offline=None,
        )[0]

    def _grow(self, most: int) -> None:
        broken: list[int] = self._broken.tolist()
        passes: list[int] = self._passes.tolist()
        if most < min(len(broken), len(passes)):
            return
        most += most // 8  # the next ones are asked for soon
        for bad in range(len(broken), most + 1):
            broken.append(self._broken_until(bad, broken[-1], broken[-1] + self._pace))
        for bad in range(len(passes), most + 1):
            before = passes[-1] if passes else bad
            passes.append(self._passes_from(bad, max(bad, before - 1), before + self._pace))
        self._broken, self._passes = np.array(broken), np.array(passes)

    def _broken_until(self, bad: int, before: int, guess: int) -> int:
        def holds(total: int) -> bool:
            return self.ask((total, bad)).broken

        # One more bad answer breaks what so many broke before.
        low = max(bad, before)
        return last_total(holds, low=low, guess=guess) if before or holds(low) else 0

    def _passes_from(self, bad: int, low: int, guess: int) -> int:
        def holds(total: int) -> bool:
            return self.ask((total, bad)).verdict.verdict != "Pass"

        return last_total(holds, low=low, guess=guess) + 1


def last_total(holds: Callable[[int], bool], *, low: int, guess: int) -> int:
    """The largest total for which it holds; it does for `low`, and for no total after one for which
    it does not.
    """
    step, high = 1, max(guess, low + 1)
    if holds(high):
        while holds(high):
            low, high, step = high, high + step, 2 * step
    else:
        while high - step > low and not holds(high - step):
            high, step = high - step, 2 * step
        low = max(low, high - step)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def weights(strategy: Rollout) -> list[int]:
    """All shares of the traffic that a variant gets, in permille."""
    return sorted({w for s in _stages(strategy) for w in (s.candidate, s.stable)})


def _stages(strategy: Rollout) -> list[_Stage]:
    percent = strategy.shadow.percent
    mirrored = percent * 10
    shadow = _Stage(mirrored, mirrored, strategy.shadow.minimum_pairs, shadow=True)
    steps = [
        _Stage(s.weight_permille, WHOLE - s.weight_permille, s.minimum_requests)
        for s in strategy.canary.steps
    ]
    return [shadow, *steps] if percent else steps


def _judge(rollouts: _Rollouts, thresholds: Thresholds) -> tuple[Mask, Mask, Mask]:
    """Which of those that are open break the limit, which of them fail, and which are held for
    their environment.
    """
    # With less odds, fewer break it.
    suspects = rollouts.decisions.open & thresholds.broken(rollouts.total, rollouts.bad)
    broken, fails, degraded = np.zeros((3, len(suspects)), np.bool_)
    if not suspects.any():
        return broken, fails, degraded
    theirs, their_bad = rollouts.stable()
    for row in np.flatnonzero(suspects).tolist():
        found = thresholds.ask(
            (int(rollouts.total[row]), int(rollouts.bad[row])),
            (int(theirs[row]), int(their_bad[row])),
            int(rollouts.restarts[row]),
        )
        broken[row], fails[row] = found.broken, found.failed
        degraded[row] = found.environment
    return broken, fails, degraded
