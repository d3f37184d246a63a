# SPDX-License-Identifier: Apache-2.0
"""How often the rollout's judge is wrong, and how soon it decides, beside other controllers.

    python bench/judge.py [--rollouts N] [--rates R ...] [--runs L ...] [--look S] [--out FILE]

Rollouts are simulated over rates of requests, candidates from healthy to five times the error
budget, and errors that are independent or come in runs; every judge reads the same answers
(`judge_streams`). Counted are, for each: promotions, rollbacks, what is undecided at the deadline,
and how many of the candidate's answers a decision took. The strategy is the default one with one
objective, the ratio of answered requests: `kompakt` in mode Certify, `kompakt-guard` in mode Guard,
which promotes what is not shown to be bad.

Counters are looked at every five seconds, the operator looks each second: fewer looks at the same
evidence make no more errors, and decide up to five seconds later (`--look 1` to compare).

A rollback of a candidate within its budget is wrong, and so is a promotion of one beyond it. Cells
in which `kompakt` breaks what it is to keep (PROMISE, DECISIVE) are named at the end: runs are
expected there, since the judge takes requests as independent and says so.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
from bench.judge_ours import Thresholds, kompakt, weights
from bench.judge_peers import Argo, Flagger, Kayenta
from bench.judge_streams import (
    PROMOTED,
    ROLLED_BACK,
    UNDECIDED,
    WHOLE,
    Kind,
    Outcome,
    Stream,
    World,
)

from kompakt.api.strategy import Rollout, Slo
from kompakt.jobs import machine

ROOT = Path(__file__).parents[1]
RATES = (0.02, 0.1, 0.5, 1.0, 5.0, 20.0, 50.0, 200.0)
CANDIDATES = (0.5, 1.0, 2.0, 5.0)
"""Ratios of bad requests, in error budgets."""
STABLE = 0.25
"""The stable variant's."""
RUNS = (1, 3, 10)
"""Mean lengths of a run of bad requests; 1: each is bad by itself."""
OURS = ("kompakt", "kompakt-guard")
JUDGES = (*OURS, "flagger", "argo", "kayenta")
PROMISE = 0.01
"""Most wrong decisions of a cell."""
DECISIVE = 0.95
"""Least promotions of healthy candidates before the deadline, from this rate on."""
DECISIVE_RATE = 5.0
_BATCH = 500
"""Rollouts at a time, for the memory's sake."""


@dataclass(frozen=True)
class Cell:
    """Rollouts that are alike."""

    rate: float
    """Requests of all users per second."""
    candidate: float
    """Its ratio of bad requests, in error budgets."""
    run: int


@dataclass(frozen=True)
class Setting:
    """What is the same in all cells."""

    bad_permille: int
    deadline: int
    look: int
    rollouts: int
    seed: int
    flagger: Flagger
    argo: Argo
    kayenta: Kayenta

    def strategy(self, mode: Literal["Guard", "Certify"]) -> Rollout:
        """The default one with this objective."""
        good = 10_000 - 10 * self.bad_permille
        slo = Slo(name="availability", type="Availability", good_basis_points=good, mode=mode)
        return Rollout(slos=[slo], deadline_seconds=self.deadline)


@dataclass(frozen=True)
class Row:
    """One judge in one cell. Names are in camel case in the file."""

    requestsPerSecond: float  # noqa: N815 -- a key of the file
    errorBudgets: float  # noqa: N815
    """The candidate's ratio of bad requests."""
    meanRun: int  # noqa: N815
    judge: str
    rollouts: int
    promoted: float
    """Shares of all rollouts."""
    rolledBack: float  # noqa: N815
    undecided: float
    wrong: float
    """The share that is rolled back within the budget, or promoted beyond it."""
    samplesMedian: float | None  # noqa: N815
    """Answers of the candidate until the decision; None without any decision."""
    samplesP90: float | None  # noqa: N815
    secondsMedian: float | None  # noqa: N815
    secondsP90: float | None  # noqa: N815


def main() -> None:
    """Simulates, writes the file, prints a table and what is not kept."""
    options = _options()
    setting = Setting(
        bad_permille=options.bad_permille,
        deadline=options.deadline,
        look=options.look,
        rollouts=options.rollouts,
        seed=options.seed,
        flagger=Flagger(threshold=options.flagger_threshold),
        argo=Argo(count=options.argo_count, failure_limit=options.argo_failure_limit),
        kayenta=Kayenta(),
    )
    cells = [Cell(*one) for one in product(options.rates, options.candidates, options.runs)]
    rows: list[Row] = []
    print(_heading())
    with ProcessPoolExecutor(options.processes) as pool:
        for found in pool.map(simulate, cells, [setting] * len(cells)):
            rows += found
            print(_line(found), flush=True)
    broken = broken_promises(rows)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    told = {"setting": asdict(setting), "rows": [asdict(row) for row in rows], "broken": broken}
    options.out.write_text(json.dumps(told, indent=1) + "\n")
    print(
        f"\n{len(broken)} promises of kompakt are not kept in {len(cells)} cells", *broken, sep="\n"
    )


def simulate(cell: Cell, setting: Setting) -> list[Row]:
    """Every judge over the rollouts of a cell."""
    place = [round(1000 * cell.rate), round(1000 * cell.candidate), cell.run]
    found: dict[str, list[Outcome]] = {judge: [] for judge in JUDGES}
    for number, begin in enumerate(range(0, setting.rollouts, _BATCH)):
        seed = np.random.SeedSequence([setting.seed, number, *place])
        size = min(_BATCH, setting.rollouts - begin)
        for judge, outcome in _decide(world_of(cell, setting, size=size, seed=seed), setting):
            found[judge].append(outcome)
    return [row_of(cell, judge, outcomes) for judge, outcomes in found.items()]


def world_of(cell: Cell, setting: Setting, *, size: int, seed: np.random.SeedSequence) -> World:
    """Answers of both variants."""
    quantum = math.gcd(WHOLE, *weights(setting.strategy("Certify")))
    budget = setting.bad_permille / 1000
    run = float(cell.run) if cell.run > 1 else None
    candidate, stable = (
        Stream(
            Kind(ratio=budgets * budget, run=run),
            per_cell=cell.rate * setting.look * quantum / WHOLE,
            rollouts=size,
            cells=setting.deadline // setting.look * WHOLE // quantum,
            seed=one,
        )
        for budgets, one in zip((cell.candidate, STABLE), seed.spawn(2), strict=True)
    )
    return World(
        candidate=candidate,
        stable=stable,
        rollouts=size,
        look=setting.look,
        quantum=quantum,
        deadline=setting.deadline,
    )


def row_of(cell: Cell, judge: str, outcomes: Sequence[Outcome]) -> Row:
    """What a judge did in a cell."""
    verdict = np.concatenate([one.verdict for one in outcomes])
    decided = verdict != UNDECIDED
    samples, seconds = (
        np.quantile(counts[decided], (0.5, 0.9)).tolist() if decided.any() else (None, None)
        for counts in (
            np.concatenate([one.samples for one in outcomes]),
            np.concatenate([one.seconds for one in outcomes]),
        )
    )
    promoted, rolled_back = (float((verdict == v).mean()) for v in (PROMOTED, ROLLED_BACK))
    return Row(
        requestsPerSecond=cell.rate,
        errorBudgets=cell.candidate,
        meanRun=cell.run,
        judge=judge,
        rollouts=len(verdict),
        promoted=promoted,
        rolledBack=rolled_back,
        undecided=float((~decided).mean()),
        wrong=promoted if cell.candidate > 1 else rolled_back,
        samplesMedian=samples[0],
        samplesP90=samples[1],
        secondsMedian=seconds[0],
        secondsP90=seconds[1],
    )


def broken_promises(rows: Sequence[Row]) -> list[str]:
    """What `kompakt` does not keep, one sentence for each."""
    found = []
    for row in rows:
        if row.judge != OURS[0]:
            continue
        runs = f"runs of {row.meanRun}" if row.meanRun > 1 else "independent errors"
        where = f"{row.requestsPerSecond:g} requests/s, {row.errorBudgets:g} budgets, {runs}"
        if row.wrong > PROMISE:
            what = "promotions" if row.errorBudgets > 1 else "rollbacks"
            found.append(f"{where}: {row.wrong:.1%} wrong {what}")
        healthy = row.errorBudgets < 1 and row.requestsPerSecond >= DECISIVE_RATE
        if healthy and row.promoted < DECISIVE:
            found.append(f"{where}: only {row.promoted:.1%} promoted before the deadline")
    return found


def _decide(world: World, setting: Setting) -> list[tuple[str, Outcome]]:
    """The outcome of every judge."""
    certify, guard = setting.strategy("Certify"), setting.strategy("Guard")
    steps = [step.weight_permille for step in certify.canary.steps]
    limit = setting.bad_permille / 1000
    table = _thresholds(setting)
    return [
        (OURS[0], kompakt(world, certify, table)),
        (OURS[1], kompakt(world, guard, table)),
        ("flagger", setting.flagger.decide(world, steps, limit=limit)),
        ("argo", setting.argo.decide(world, steps, limit=limit)),
        ("kayenta", setting.kayenta.decide(world, steps, limit=limit)),
    ]


@lru_cache(maxsize=1)
def _thresholds(setting: Setting) -> Thresholds:
    """One table for all cells that a process simulates."""
    return Thresholds(setting.strategy("Certify"))


def _heading() -> str:
    judges = " ".join(f"{judge:>22}" for judge in JUDGES)
    columns = " ".join(f"{'wrong':>6} {'undec.':>6} {'median':>8}" for _ in JUDGES)
    return f"{'':>18} {judges}\n{'req/s':>6} {'budgets':>7} {'run':>3} {columns}"


def _line(rows: Sequence[Row]) -> str:
    one = rows[0]
    figures = " ".join(
        f"{row.wrong:>6.1%} {row.undecided:>6.1%}"
        f" {'' if row.samplesMedian is None else round(row.samplesMedian):>8}"
        for row in rows
    )
    return f"{one.requestsPerSecond:>6g} {one.errorBudgets:>7g} {one.meanRun:>3} {figures}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rollouts", type=int, default=2000, help="in each cell")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--candidates", type=float, nargs="+", default=list(CANDIDATES))
    parser.add_argument("--runs", type=int, nargs="+", default=list(RUNS))
    parser.add_argument("--bad-permille", type=int, default=10, help="the error budget")
    parser.add_argument(
        "--deadline", type=int, default=Rollout().deadline_seconds, help="of a rollout, seconds"
    )
    parser.add_argument("--look", type=int, default=5, help="seconds from one look to the next")
    parser.add_argument("--flagger-threshold", type=int, default=Flagger.threshold)
    parser.add_argument("--argo-count", type=int, default=Argo.count)
    parser.add_argument("--argo-failure-limit", type=int, default=Argo.failure_limit)
    parser.add_argument("--processes", type=int, default=machine.threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench" / "judge.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
