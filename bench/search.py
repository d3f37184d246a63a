# SPDX-License-Identifier: Apache-2.0
"""How many trials the search needs to find the front, beside random search.

    python bench/search.py [--seeds N] [--samplers NAME ...] [--table FILE] [--out FILE]

Searches are replayed over a table of real trials (`data/search-trials.csv`, made by
`search_trials.py`): the sampler proposes as it does for a run, and what the table says is what the
trial gave. Accuracy is that on all held-out texts.

The measure is the volume that the trials so far dominate, in three directions: logarithm of the
speed-up, logarithm of the source's size over the size, and accuracy above the gate. The reference
point is the source with the drop that the gate allows (1×, its size, that drop), so that what the
gate rejects adds nothing. Counted are the trials until the volume is 95 % of that of the whole
table, and until the fastest that keeps the gate is within 5 % of the table's fastest; median and
quartiles over the seeds. No trial is proposed twice, by any sampler.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import quantiles
from typing import Any

import numpy as np
from bench.search_table import SOURCE, SPACE, TABLE, Figures, Point, points, read_space, read_table

from kompakt.api.measure import Benchmark, Evaluation, Hardware, LatencyFigures, PairedCounts
from kompakt.api.policy import Gate, Search, Target
from kompakt.api.recipe import CompressionRecipeSpec
from kompakt.api.run import TargetResult, Trial
from kompakt.controllers.hypervolume import hypervolume
from kompakt.controllers.search import Proposal, propose
from kompakt.controllers.told import Goal
from kompakt.jobs import machine

ROOT = Path(__file__).parents[1]
SAMPLERS = ("GaussianProcess", "TPE", "NSGAII", "Grid", "Random")
ENOUGH = 0.95
BUDGET = 48
"""What the sampler is told: the largest that a policy may set."""
MICROSECONDS = 100_000
"""Of the source's answers, so that a ratio has five digits."""
LAST_NUMBER = 63
"""Trials of a run are numbered up to it; nothing in the search looks at the number."""
DIGEST = "sha256:" + "0" * 64


@dataclass(frozen=True)
class Row:
    """One sampler. Names are in camel case in the file."""

    sampler: str
    gateBasisPoints: int  # noqa: N815 -- a key of the file
    trials: int
    """In the table."""
    feasible: int
    trialsToFront: list[float]  # noqa: N815
    """First quartile, median, third quartile."""
    trialsToFastest: list[float]  # noqa: N815
    shareOfRandom: float | None  # noqa: N815
    """Its median of trials to the front over that of random search."""
    seeds: list[dict[str, int]]


@dataclass(frozen=True)
class _World:
    """What a replay needs, in a process of its own."""

    space: Mapping[str, CompressionRecipeSpec]
    table: Mapping[Point, Figures | None]
    source: Figures
    gate: int

    def coordinates(self, points: Sequence[Point]) -> np.ndarray[Any, Any]:
        """[points with figures, directions]; less is better."""
        found = [f for f in (self.table[point] for point in points) if f is not None]
        rows = [
            [
                -math.log(f.speedup_permille / 1000),
                math.log(f.size_bytes / self.source.size_bytes),
                f.drop_basis_points,
            ]
            for f in found
        ]
        return np.array(rows).reshape(-1, 3)

    def volume(self, points: Sequence[Point]) -> float:
        """What these dominate."""
        # A drop as large as the gate keeps it.
        return hypervolume(self.coordinates(points), np.array([0.0, 0.0, self.gate + 1.0]))

    def fastest(self, points: Sequence[Point]) -> int:
        """The largest speed-up that keeps the gate; 0 without one."""
        kept = [f for f in map(self.table.__getitem__, points) if f is not None and self.keeps(f)]
        return max((f.speedup_permille for f in kept), default=0)

    def keeps(self, figures: Figures) -> bool:
        """Whether the gate lets it through."""
        return figures.drop_basis_points <= self.gate


def main() -> None:
    """Replays, writes the file, and prints a table."""
    options = _options()
    if not options.table.is_file():
        sys.exit(f"there is no table {options.table}: make it with bench/search_trials.py")
    space, table = read_space(options.space), read_table(options.table)
    source = table.pop(Point(SOURCE, ()), None)
    missing = [point for point in points(space) if point not in table]
    if source is None or missing:
        sys.exit(f"{options.table} lacks the source, or some of the space: {missing[:3]}")
    world = _World(space, table, source, options.gate)
    feasible = sum(f is not None and world.keeps(f) for f in table.values())
    print(f"{len(table)} trials, {feasible} of them lose at most {options.gate} basis points")
    work = list(product(options.samplers, range(options.seeds)))
    with ProcessPoolExecutor(options.processes) as pool:
        jobs = [pool.submit(_replay, world, sampler, seed) for sampler, seed in work]
        found = [job.result() for job in jobs]
    rows: list[Row] = []
    for sampler in options.samplers:
        seeds = [one for (name, _), one in zip(work, found, strict=True) if name == sampler]
        rows.append(
            Row(
                sampler=sampler,
                gateBasisPoints=options.gate,
                trials=len(table),
                feasible=feasible,
                trialsToFront=_quartiles([one["front"] for one in seeds]),
                trialsToFastest=_quartiles([one["fastest"] for one in seeds]),
                shareOfRandom=None,
                seeds=seeds,
            )
        )
    by_chance = next((row.trialsToFront[1] for row in rows if row.sampler == "Random"), None)
    if by_chance is not None:
        rows = [
            Row(**asdict(row) | {"shareOfRandom": round(row.trialsToFront[1] / by_chance, 3)})
            for row in rows
        ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    print(f"{'sampler':16} {'95 % of the front':>22} {'of random':>10} {'95 % of the speed':>22}")
    for row in rows:
        share = "" if row.shareOfRandom is None else f"{row.shareOfRandom:.0%}"
        print(
            f"{row.sampler:16} {_words(row.trialsToFront):>22} {share:>10}"
            f" {_words(row.trialsToFastest):>22}"
        )


def _replay(world: _World, sampler: str, seed: int) -> dict[str, int]:
    """Trials until the front is found, and until the fastest is."""
    every = list(world.table)
    volume, speed = ENOUGH * world.volume(every), ENOUGH * world.fastest(every)
    search = Search.model_validate(
        {
            "recipes": [{"name": name} for name in world.space],
            "sampler": sampler,
            "maxTrials": BUDGET,
        }
    )
    target = Target.model_validate({"name": "here", "hardwareProfileRef": {"name": "here"}})
    gates = (Gate(name="accuracy", max_drop_basis_points=world.gate),)
    goal = Goal(target, gates, "Cost", source_bytes=world.source.size_bytes)
    trials: list[Trial] = []
    points: list[Point] = []
    found: dict[str, int] = {}
    while len(found) < 2:  # noqa: PLR2004 -- both
        proposal = propose(search, world.space, trials=trials, goal=goal, run_uid=f"seed {seed}")
        if proposal is None:
            break
        points.append(_point(proposal))
        trials.append(_trial(proposal, world.table[points[-1]], number=len(trials)))
        if "fastest" not in found and world.fastest(points) >= speed:
            found["fastest"] = len(points)
        if "front" not in found and world.volume(points) >= volume:
            found["front"] = len(points)
    return found


def _point(proposal: Proposal) -> Point:
    values = tuple((f"{p.step}.{p.name}", p.value) for p in proposal.parameters)
    return Point(proposal.recipe, values)


def _trial(proposal: Proposal, figures: Figures | None, *, number: int) -> Trial:
    """What a run's status would say of it."""
    trial = Trial(
        number=min(number, LAST_NUMBER),
        recipe=proposal.recipe,
        origin="Search",
        parameters=list(proposal.parameters),
        steps=list(proposal.steps),
        state="Complete" if figures is not None else "Infeasible",
    )
    if figures is None:
        return trial
    taken = round(MICROSECONDS * 1000 / figures.speedup_permille)
    counts = PairedCounts(
        examples=figures.selection_examples + figures.confirmation_examples,
        lost=figures.selection_lost + figures.confirmation_lost,
        gained=figures.selection_gained + figures.confirmation_gained,
    )
    result = TargetResult(
        target="here",
        state="Measured",
        evaluation=Evaluation(data_digest=DIGEST, selection=counts, confirmation=counts),
        benchmark=Benchmark(
            rounds=1,
            requests=1,
            baseline=LatencyFigures(p50_microseconds=MICROSECONDS, mean_microseconds=MICROSECONDS),
            candidate=LatencyFigures(p50_microseconds=taken, mean_microseconds=taken),
            speedup_permille=figures.speedup_permille,
            speedup_low_permille=figures.speedup_low_permille,
            speedup_high_permille=figures.speedup_high_permille,
            hardware=Hardware(),
        ),
    )
    return trial.evolve(targets=[result], size_bytes=figures.size_bytes)


def _quartiles(counts: Sequence[int]) -> list[float]:
    if len(counts) == 1:
        return [float(counts[0])] * 3
    return quantiles(counts, n=4, method="inclusive")


def _words(three: Sequence[float]) -> str:
    low, middle, high = three
    return f"{middle:.1f} [{low:.1f} to {high:.1f}]"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--gate", type=int, default=100, help="drop that is allowed, basis points")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--space", type=Path, default=SPACE)
    parser.add_argument("--processes", type=int, default=machine.threads())
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench" / "search.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
