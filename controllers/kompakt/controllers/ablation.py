# SPDX-License-Identifier: Apache-2.0
"""What each step of a chain brought to speed, size and accuracy.

The chain is cut after each of its steps, and every part is measured as a trial of its own. Jobs
keep each step's result, so a part costs an export and a measurement, and no training. What a step
brought is then the difference of two neighbours. Training that is for the quantization after it is
one part with that.
"""

from __future__ import annotations

from collections.abc import Sequence

from kompakt.api.recipe import Step
from kompakt.api.run import CompressionRunStatus, Contribution, Trial
from kompakt.controllers.bounds import drop_basis_points

_MILLE = 1000
_MOST_TRIALS = 64


def proposed(status: CompressionRunStatus, chain: Trial) -> CompressionRunStatus:
    """The status with a trial for each part of the chain that no trial is yet."""
    trials = list(status.trials)
    for length in _lengths(chain.steps):
        steps = chain.steps[:length]
        if _same(trials, steps) is None and len(trials) < _MOST_TRIALS:
            trials.append(
                Trial(
                    number=len(trials),
                    recipe=chain.recipe,
                    origin="Ablation",
                    steps=steps,
                    state="Proposed",
                    proposed_because=(
                        f"the first {length} of {len(chain.steps)} steps of trial {chain.number}"
                    ),
                )
            )
    return status.evolve(trials=trials)


def parts(trials: Sequence[Trial], chain: Trial) -> list[Trial]:
    """The trials of the chain's parts, the shortest first, the chain itself at last."""
    found = (_same(trials, chain.steps[:n]) for n in _lengths(chain.steps))
    return [*(trial for trial in found if trial is not None), chain]


def contributions(parts_: Sequence[Trial], *, target: str) -> list[Contribution]:
    """What the last step of each part added to the part before it; the first to the source."""
    found: list[Contribution] = []
    speed, drop = _MILLE, 0
    for trial in parts_:
        figures = next((t for t in trial.targets if t.target == target), None)
        step = Contribution(step=_name(trial.steps[-1]), trial=trial.number)
        if figures is not None and figures.benchmark and figures.evaluation:
            now = figures.benchmark.speedup_permille
            lost = drop_basis_points(figures.evaluation.confirmation) or 0
            step = step.evolve(
                speedup_permille=now,
                factor_permille=round(_MILLE * now / speed),
                size_bytes=trial.size_bytes,
                accuracy_drop_basis_points=lost,
                added_drop_basis_points=lost - drop,
            )
            speed, drop = max(1, now), lost
        found.append(step)
    return found


def describe(one: Contribution) -> str:
    """A contribution in words."""
    if one.factor_permille is None or one.added_drop_basis_points is None:
        return f"{one.step}: not measured (trial {one.trial})"
    drop = one.added_drop_basis_points
    lost = f"{drop} basis points lost" if drop >= 0 else f"{-drop} basis points won back"
    return f"{one.step}: {one.factor_permille / _MILLE:.2f} times as fast, {lost}"


def _lengths(steps: Sequence[Step]) -> list[int]:
    """Of the parts that are less than the whole."""
    return [
        n
        for n in range(1, len(steps))
        if (training := steps[n - 1].distill) is None or training.quantization_aware == "Disabled"
    ]


def _same(trials: Sequence[Trial], steps: Sequence[Step]) -> Trial | None:
    # What was stopped early has no figures: as a part of the chain it is measured anew.
    tried = (trial for trial in trials if trial.state != "Stopped")
    return next((trial for trial in tried if trial.steps == list(steps)), None)


def _name(step: Step) -> str:
    return next(iter(step.to_wire()))
