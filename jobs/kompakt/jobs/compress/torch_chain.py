# SPDX-License-Identifier: Apache-2.0
"""The torch part of a recipe: one step after the other, as far as its gates hold, then the export.

Each step's result is stored as a checkpoint under a key of everything it follows from: parent,
step, data, seed. A Job that is killed, or another trial that begins with the same steps, goes on
from the last one. What a gate found stands beside the result that it looked at.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kompakt.api.artifact import (
    TOKENIZER_NAME,
    ArtifactManifest,
    canonical_json,
    sha256_digest,
)
from kompakt.api.base import Digest
from kompakt.api.job import CompressTask
from kompakt.api.recipe import Step
from kompakt.api.source import DataSource
from kompakt.api.steps import Quantize
from kompakt.jobs.compress.agreement import Rule
from kompakt.jobs.compress.stages import Check, Plan, without_gate
from kompakt.jobs.compress.steps import check_positions, name_of, torch_step
from kompakt.jobs.data.examples import Dataset
from kompakt.jobs.data.targets import Targets, known_labels
from kompakt.jobs.errors import JobError
from kompakt.jobs.evaluate.predictions import logits_of
from kompakt.jobs.progress import say
from kompakt.jobs.task import Workplace

if TYPE_CHECKING:
    from kompakt.jobs.models.encoder import Encoder

STEPS_VERSION = 8
"""Part of every key: raised when a step's code gives another result for the same input."""
PARITY_TEXTS = 16

Positions = tuple[int, ...]
"""Of steps in the recipe."""


class TorchChain:
    """Runs steps, and knows how far it is."""

    def __init__(
        self,
        task: CompressTask,
        place: Workplace,
        *,
        manifest: ArtifactManifest,
        source: DataSource,
        dataset: Dataset,
        held_out: Dataset | None = None,
    ) -> None:
        """`held_out` are the texts that gates look at, where there are any."""
        with place.stage("import torch"):
            import torch

            from kompakt.jobs.compress import findings, latency, training
            from kompakt.jobs.compress import held_out as gates
            from kompakt.jobs.models import checkpoint, device, export, load, text
        self._device = device.chosen()
        place.details["device"] = device.describe(self._device)
        torch.manual_seed(task.seed)
        torch.set_num_threads(place.threads)
        self._checkpoint = checkpoint
        self._export = export
        self._gates = gates
        self._latency = latency
        self._load = load
        self._text = text
        self._max_sequence_length = manifest.max_sequence_length
        self._task = task
        self._place = place
        self._held_out = held_out or replace(dataset, examples=())
        self._labels = manifest.labels
        self._rule = Rule(manifest.task, manifest.tolerance)
        self._data_key = {
            "digest": dataset.digest,
            "source": source.evolve(digest=None, secret_ref=None).to_wire(),
        }
        self._source_folder = place.scratch / "source"
        place.store.get_checkpoint(task.checkpoint_digest, self._source_folder)
        self._source = checkpoint.inspect(
            self._source_folder, origin=f"checkpoint {task.checkpoint_digest}"
        )
        check_positions(task.steps, relative=self._source.architecture.relative)
        source_checkpoint = self._source
        tokenizer = text.open_tokenizer(
            place.scratch / "baseline" / TOKENIZER_NAME,
            max_sequence_length=manifest.max_sequence_length,
        )
        self.data = training.TrainingData(
            dataset=dataset,
            task=manifest.task,
            tolerance=manifest.tolerance,
            labels=Targets(manifest.task, manifest.labels).known(dataset),
            tokenizer=tokenizer,
            input_names=text.used_inputs(self._source.architecture.input_names, tokenizer),
            pad_id=text.pad_id(self._source.config),
            seed=task.seed,
            teacher=lambda texts: logits_of(
                task.baseline_digest,
                texts,
                folder=place.scratch / "baseline",
                store=place.store,
                threads=place.threads,
                name="teacher",
            ),
            original=lambda: load.load(source_checkpoint).to(self._device),
            device=self._device,
            original_tokenizer=tokenizer,
            quantize=_quantize(task.steps),
            latency_table=latency.LatencyMeter(place.store, place.scratch).table,
            findings=findings.Findings(place.store),
            details=place.details,
        )
        self._origin = self._source
        """What the model at hand was loaded from, whose config and tokenizer it keeps."""
        self._encoder: Encoder | None = None
        self._done: Positions = ()
        """The steps that the model at hand has behind it."""
        self._notes: list[str] = []

    def run(self, steps: list[Step], graph: Path) -> list[str]:
        """Applies the steps, from the last stored result on, and exports the model."""
        plan = Plan.of(steps)
        kept, stopped = plan.before, []
        checks: list[dict[str, Any]] = []
        for number, stage in enumerate(plan.stages):
            positions = kept + stage.positions
            if stage.gated:
                check = self._check(steps, positions)
                checks.append(check.to_wire() | {"stage": number + 1})
                wrong = stage.wrong(check)
                if wrong is not None:
                    stopped = [f"stopped after {number} of {len(plan.stages)} stages: {wrong}"]
                    break
            kept = positions
        if plan.stages:
            self._place.details["stages"] = checks
        encoder = self._advance(steps, kept + plan.after)
        self._write(encoder, graph)
        return stopped + self._notes

    def _check(self, steps: Sequence[Step], positions: Positions) -> Check:
        """What the gate of the last of these stages finds; computed once."""
        store, key = self._place.store, self._keys([steps[n] for n in positions])[-1]
        known = self._entry(key)
        check = Check.of_wire(known.get("check")) if known else None
        if check is None:
            encoder = self._advance(steps, positions)
            with self._place.stage(f"gate after {_titles(steps)[positions[-1]]}"):
                labels = self._known_labels(self._held_out)
                check = self._gates.look(encoder, self.data, self._held_out, labels, self._rule)
            known = self._entry(key) or {"checkpoint": self._store(encoder), "notes": self._notes}
            store.put_json(f"steps/{key}", known | {"check": check.to_wire()})
        return check

    def _known_labels(self, dataset: Dataset) -> list[int | None]:
        """Accuracy is of classifiers; what others answer is compared with the original alone."""
        if self._rule.task == "TextClassification":
            return known_labels(dataset, self._labels)
        return [None] * len(dataset.examples)

    def _advance(self, steps: Sequence[Step], positions: Positions) -> Encoder:
        """The model with these steps behind it, and no others."""
        encoder = self._go_on(steps, positions)
        place, titles = self._place, _titles(steps)
        keys = self._keys([steps[n] for n in positions])
        for number in range(len(self._done), len(positions)):
            step, title = steps[positions[number]], titles[positions[number]]
            self.data.keep = lambda: self._store(encoder)
            with place.stage(title):
                note = torch_step(step).apply(encoder, self.data)
            self._notes = [*self._notes, note]
            self._done = positions[: number + 1]
            if name_of(step) in place.details:
                place.details[title] = place.details.pop(name_of(step))
            with place.stage(f"store after {title}"):
                place.store.put_json(
                    f"steps/{keys[number]}",
                    {"checkpoint": self._store(encoder), "notes": self._notes},
                )
        return encoder

    def _go_on(self, steps: Sequence[Step], positions: Positions) -> Encoder:
        """The model with as many of these steps behind it as can be had without running any."""
        keys = self._keys([steps[n] for n in positions])
        for number in range(len(keys), -1, -1):
            if self._encoder is not None and self._done == positions[:number]:
                return self._encoder
            folder, notes = self._source_folder, list[str]()
            if number:
                entry = self._entry(keys[number - 1])
                if entry is None:
                    continue
                folder = self._place.scratch / f"resumed-{entry['checkpoint'].split(':')[-1]}"
                try:
                    self._place.store.get_checkpoint(entry["checkpoint"], folder)
                except JobError as error:
                    say(f"step {number} was done before, but its result is lost: {error}")
                    continue
                if self._encoder is None:
                    say(f"the first {number} of {len(keys)} steps were done before")
                    self._place.details["resumedAfterSteps"] = number
                notes = list(entry.get("notes", []))
            break
        with self._place.stage("load"):
            self._take_over(folder)
            self._encoder = self._load.load(self._origin).to(self._device)
        self._done, self._notes = positions[:number], notes
        return self._encoder

    def _entry(self, key: str) -> dict[str, Any] | None:
        """What the store knows of a step's result."""
        entry = self._place.store.get_json(f"steps/{key}")
        known = isinstance(entry, dict) and isinstance(entry.get("checkpoint"), str)
        return entry if known else None

    def _take_over(self, folder: Path) -> None:
        """The config of a step's result, and its tokenizer, which may be trimmed."""
        data = self.data
        origin = self._source
        if folder != self._source_folder:
            origin = self._checkpoint.inspect(folder, origin=folder.name)
        self._origin = origin
        data.new_ids = None
        data.__dict__.pop("encodings", None)
        data.pad_id = self._text.pad_id(origin.config)
        data.tokenizer = data.original_tokenizer
        if origin.vocabulary != self._source.vocabulary:
            data.tokenizer = self._text.open_tokenizer(
                folder / TOKENIZER_NAME, max_sequence_length=self._max_sequence_length
            )

    def _write(self, encoder: Encoder, graph: Path) -> None:
        """Exports the model, and compares."""
        with self._place.stage("export"):
            encoder.to("cpu")  # what traced graphs and ONNX Runtime's answers are compared on
            self._export.export(encoder, graph, input_names=self.data.input_names)
            texts = sorted(self.data.order()[:PARITY_TEXTS])
            largest = self._export.parity(
                encoder,
                graph,
                [self.data.encodings[index] for index in texts],
                input_names=self.data.input_names,
                pad_id=self.data.pad_id,
                threads=self._place.threads,
            )
        self._place.details["parity"] = largest

    def _keys(self, steps: Sequence[Step]) -> list[str]:
        """For each step, the name of everything its result follows from."""
        keys: list[str] = []
        parent = self._task.checkpoint_digest
        for step in steps:
            recipe: dict[str, Any] = {
                "version": STEPS_VERSION,
                "parent": parent,
                "teacher": self._task.baseline_digest,
                "step": without_gate(step).to_wire(),
                "data": self._data_key,
                "seed": self._task.seed,
            }
            if step.prune is not None and step.prune.latency_keep_permille is not None:
                recipe["hardware"] = self._latency.hardware_key(step.prune.latency_precision)
            quantize = _quantize(self._task.steps)
            aware = step.distill is not None and step.distill.quantization_aware == "Enabled"
            if aware and quantize is not None:
                recipe["quantize"] = quantize.to_wire()
            parent = sha256_digest(canonical_json(recipe))
            keys.append(parent.replace(":", "-"))
        return keys

    def _store(self, encoder: Encoder) -> Digest:
        folder = self._place.scratch / "checkpoint"
        shutil.rmtree(folder, ignore_errors=True)
        new_ids = self.data.new_ids
        trimmed = None if new_ids is None else (self.data.tokenizer, new_ids)
        names = self._load.save(encoder, self._origin, folder, trimmed=trimmed)
        return self._place.store.put_checkpoint(folder, names)


def _quantize(steps: Sequence[Step]) -> Quantize | None:
    return next((step.quantize for step in steps if step.quantize is not None), None)


def _titles(steps: Sequence[Step]) -> list[str]:
    """What the report calls the steps: by name, with a number where there are several of it."""
    names = [name_of(step) for step in steps]
    return [
        f"{name} {names[: place + 1].count(name)}" if names.count(name) > 1 else name
        for place, name in enumerate(names)
    ]
