# SPDX-License-Identifier: Apache-2.0
"""Pruning in a closed loop: prune a little, distil, look, and go on while the gate holds.

A recipe says so by several prune steps with a gate. A stage is such a step and what follows it, up
to the next prune step. What can only come once, at the end, belongs to none: lowRank,
attentionScope, and a distill step with quantizationAware. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kompakt.api.recipe import Step
from kompakt.api.steps import Prune

_ALL = 10_000
"""Basis points."""


@dataclass(frozen=True)
class Check:
    """What a model answers to texts that no step has seen."""

    texts: int
    agreeing: int
    """Of these, with the original's answer."""
    labelled: int
    """Of the texts, with a known label."""
    right: int
    """Of these, with the right label."""
    original_right: int
    """The same of the original."""

    def to_wire(self) -> dict[str, int]:
        """For the store and the report."""
        return asdict(self)

    @classmethod
    def of_wire(cls, wire: Any) -> Check | None:
        """What `to_wire` gave; None of anything else."""
        try:
            return cls(**{name: int(value) for name, value in wire.items()})
        except (AttributeError, TypeError, ValueError):
            return None


@dataclass(frozen=True)
class Stage:
    """Some steps in a row."""

    positions: tuple[int, ...]
    """Where they stand in the recipe."""
    min_agreement: int | None
    """In basis points."""
    max_drop: int | None
    """In basis points."""

    @property
    def gated(self) -> bool:
        """Whether anything is asked of it."""
        return self.min_agreement is not None or self.max_drop is not None

    def wrong(self, check: Check) -> str | None:
        """Which limit is broken, in figures; None where none is."""
        if self.min_agreement is not None and (
            check.agreeing * _ALL < self.min_agreement * check.texts
        ):
            found = _percent(check.agreeing, check.texts)
            return f"agreement {found} % < {_percent(self.min_agreement, _ALL)} %"
        lost = check.original_right - check.right
        if self.max_drop is not None and lost * _ALL > self.max_drop * check.labelled:
            found = _percent(lost, check.labelled)
            return f"accuracy fell by {found} > {_percent(self.max_drop, _ALL)} points"
        return None


@dataclass(frozen=True)
class Plan:
    """The order in which a recipe's torch steps run, by their positions."""

    before: tuple[int, ...]
    stages: tuple[Stage, ...]
    after: tuple[int, ...]
    """What follows the last stage that holds, whichever that is."""

    @classmethod
    def of(cls, steps: Sequence[Step]) -> Plan:
        """Without a gate, no stage: one step follows the other."""
        everything = tuple(range(len(steps)))
        first = next((n for n in everything if is_gated(steps[n])), None)
        if first is None:
            return cls(everything, (), ())
        end = next((n for n in everything[first:] if _comes_last(steps[n])), len(steps))
        starts = [n for n in everything[first:end] if steps[n].prune is not None]
        stages = [
            Stage(everything[start:stop], *_limits(steps[start].prune))
            for start, stop in zip(starts, [*starts[1:], end], strict=True)
        ]
        return cls(everything[:first], tuple(stages), everything[end:])


def is_gated(step: Step) -> bool:
    """Whether it is a prune step with a gate."""
    return step.prune is not None and _limits(step.prune) != (None, None)


def without_gate(step: Step) -> Step:
    """The step as far as its result is concerned."""
    if step.prune is None:
        return step
    prune = step.prune.evolve(min_agreement_basis_points=None, max_drop_basis_points=None)
    return step.evolve(prune=prune)


def _limits(prune: Prune | None) -> tuple[int | None, int | None]:
    if prune is None:
        return None, None
    return prune.min_agreement_basis_points, prune.max_drop_basis_points


def _comes_last(step: Step) -> bool:
    aware = step.distill is not None and step.distill.quantization_aware == "Enabled"
    return step.ends_pruning or aware


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f}".rstrip("0").rstrip(".")
