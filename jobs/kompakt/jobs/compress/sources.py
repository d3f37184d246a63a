# SPDX-License-Identifier: Apache-2.0
"""Which texts the steps of a recipe see: those to train with, those to take ranges from, and those
to fit scores on.

The last are never trained on: where the calibration source has no labels they are taken out of the
training source, by a hash of their text, so that equal texts never sit on both sides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from kompakt.api.artifact import canonical_json, sha256_digest
from kompakt.api.base import Digest
from kompakt.api.job import CompressTask
from kompakt.api.recipe import Step
from kompakt.api.source import DataSource
from kompakt.jobs.compress.graph import FEWEST_CHECKS, MOST_CHECKS, Labelled
from kompakt.jobs.compress.stages import is_gated
from kompakt.jobs.compress.steps import entry_of, name_of
from kompakt.jobs.data.examples import Dataset, draw
from kompakt.jobs.data.reader import read
from kompakt.jobs.data.targets import known_labels
from kompakt.jobs.errors import StepInvalid

Steps = Sequence[Step]
FEWEST_LABELS = 50
CHECKED_PART = 4
"""Gates may hold out one of so many texts."""


@dataclass(frozen=True)
class Gates:
    """The gates of prune steps."""

    any: bool = False
    labels: bool = False
    """Whether one of them is about accuracy."""


@dataclass(frozen=True)
class Sources:
    """Where the texts come from; absent where no step needs any."""

    training: DataSource | None
    """For torch steps."""
    calibration: DataSource | None
    """For graph steps."""
    labelled: DataSource | None
    """For `calibrate`."""
    fitted: int
    """Labelled texts that `calibrate` looks at, at most."""
    gates: Gates = Gates()
    """What asks for texts that nothing is trained on."""


@dataclass(frozen=True)
class Texts:
    """What they hold."""

    training: Dataset | None
    calibration: Dataset | None
    labelled: tuple[Labelled, ...]
    checks: Dataset | None = None
    """What gates look at; None where there are none."""

    def drawn(self, *, seed: int) -> list[str]:
        """The texts to take ranges from in a random order, those of weighted slices earlier."""
        if self.calibration is None:
            return []
        examples = self.calibration.examples
        return [examples[index].text for index in draw(examples, seed=seed)]

    @property
    def digests(self) -> list[Digest | None]:
        """Of everything that an artifact follows from."""
        fitted = [[entry.text, entry.label] for entry in self.labelled]
        return [
            None if self.training is None else self.training.digest,
            None if self.calibration is None else self.calibration.digest,
            sha256_digest(canonical_json(fitted)) if fitted else None,
        ]


def choose(task: CompressTask, torch_steps: Steps, graph_steps: Steps) -> Sources:
    """Which of the task's sources the steps need; refuses a task that has none for one of them."""
    training, calibration = task.training, task.calibration
    fitting = [step.calibrate for step in graph_steps if step.calibrate is not None]
    labelled = None
    if fitting:
        known = [s for s in (calibration, training) if s is not None and s.label_field is not None]
        if not known:
            raise StepInvalid(
                f"the step calibrate of the recipe {task.recipe} needs labelled texts: set"
                " labelField of data.calibration, or of data.training"
            )
        labelled = known[0]
    return Sources(
        training=_needed(task, torch_steps, training, calibration),
        calibration=_needed(task, graph_steps, calibration, training),
        labelled=labelled,
        fitted=fitting[0].examples if fitting else 0,
        gates=Gates(
            any=any(is_gated(step) for step in torch_steps),
            labels=any(
                step.prune is not None and step.prune.max_drop_basis_points is not None
                for step in torch_steps
            ),
        ),
    )


def gather(sources: Sources, *, labels: Sequence[str], seed: int) -> Texts:
    """Reads each source once.

    Args:
        sources: As `choose` gave them.
        labels: Of the model.
        seed: Of the samples that sources may ask for.
    """
    wanted = (sources.training, sources.calibration, sources.labelled)
    found: list[tuple[DataSource, Dataset]] = []
    for source in wanted:
        if source is not None and all(source != known for known, _ in found):
            found.append((source, read(source, seed=seed)))
    training, calibration, labelled = (
        next((dataset for known, dataset in found if known == source), None) for source in wanted
    )
    held: tuple[Labelled, ...] = ()
    if labelled is not None:
        held = hold_out(labelled, known_labels(labelled, labels), sources.fitted)
        if sources.training == sources.labelled and training is not None:
            training = without(training, {entry.text for entry in held})
    checks = None
    if sources.gates.any and training is not None:
        checks = checked(training, labels=sources.gates.labels)
        training = without(training, set(checks.texts))
    return Texts(training, calibration, held, checks)


def hold_out(dataset: Dataset, labels: Sequence[int | None], count: int) -> tuple[Labelled, ...]:
    """So many labelled texts at most, the same ones whatever else the data holds; half of the data
    at most.
    """
    known = {
        example.text: label
        for example, label in zip(dataset.examples, labels, strict=True)
        if label is not None and example.text.strip()
    }
    order = sorted(known, key=lambda text: hashlib.sha256(text.encode()).digest())
    held = order[: min(count, len(dataset.examples) // 2)]
    if len(held) < FEWEST_LABELS:
        raise StepInvalid(
            f"calibrate needs at least {FEWEST_LABELS} labelled texts, and as many beside them;"
            f" {dataset.uri} has {len(known)} with a label: name more"
        )
    return tuple(Labelled(text, known[text]) for text in held)


def checked(dataset: Dataset, *, labels: bool) -> Dataset:
    """The texts that gates look at, chosen as those of `hold_out`; some must have a label where
    `labels` says so.
    """
    known = {e.text: e for e in reversed(dataset.examples) if e.text.strip()}
    order = sorted(known, key=lambda text: hashlib.sha256(text.encode()).digest())
    chosen = order[: min(MOST_CHECKS, len(order) // CHECKED_PART)]
    if len(chosen) < FEWEST_CHECKS:
        raise StepInvalid(
            f"a gate of prune holds out {FEWEST_CHECKS} training texts, which may be a quarter of"
            f" them at most, and {dataset.uri} has {len(order)}: name"
            f" {CHECKED_PART * FEWEST_CHECKS}, or leave minAgreementBasisPoints and"
            " maxDropBasisPoints out"
        )
    labelled = sum(known[text].label is not None for text in chosen)
    if labels and labelled < FEWEST_LABELS:
        raise StepInvalid(
            f"prune.maxDropBasisPoints needs {FEWEST_LABELS} labelled texts among those that are"
            f" held out; of {len(chosen)} from {dataset.uri} {labelled} have a label: name more, or"
            " take minAgreementBasisPoints, which needs none"
        )
    return replace(dataset, examples=tuple(known[text] for text in chosen))


def without(dataset: Dataset, texts: Collection[str]) -> Dataset:
    """The rest of the data, with a digest of its own: what is trained on it is another model."""
    rest = tuple(example for example in dataset.examples if example.text not in texts)
    key = [dataset.digest, sorted(texts)]
    return replace(dataset, examples=rest, digest=sha256_digest(canonical_json(key)))


def _needed(
    task: CompressTask, steps: Steps, first: DataSource | None, second: DataSource | None
) -> DataSource | None:
    needy = [step for step in steps if entry_of(step).needs_texts]
    if not needy:
        return None
    if first is None and second is None:
        role = "training" if entry_of(needy[0]).needs_torch else "calibration"
        raise StepInvalid(
            f"the step {name_of(needy[0])} of the recipe {task.recipe} needs texts: set data.{role}"
        )
    return first or second
