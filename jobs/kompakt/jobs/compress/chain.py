# SPDX-License-Identifier: Apache-2.0
"""The Compress task: a recipe's steps one after the other, then the artifact.

Each torch step's result is stored as a checkpoint under a key of everything it follows from:
parent, step, data, seed. A Job that is killed, or another trial that begins with the same steps,
goes on from the last one. A recipe without torch steps works on the baseline's graph, and torch is
not even imported.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kompakt.api.artifact import (
    MODEL_FILES,
    TOKENIZER_NAME,
    ArtifactManifest,
    canonical_json,
    sha256_digest,
)
from kompakt.api.base import Digest
from kompakt.api.job import CompressResult, CompressTask
from kompakt.api.recipe import Quantize, Step
from kompakt.api.source import DataSource
from kompakt.jobs.artifact import count_parameters, describe_variant
from kompakt.jobs.compress.first_token import compute_first_token
from kompakt.jobs.compress.graph import Graph, GraphData
from kompakt.jobs.compress.sources import Texts, choose, gather
from kompakt.jobs.compress.steps import (
    check_positions,
    check_task,
    graph_step,
    name_of,
    split,
    torch_step,
)
from kompakt.jobs.data.examples import Dataset
from kompakt.jobs.data.targets import Targets
from kompakt.jobs.data.words import count_words
from kompakt.jobs.errors import Failed, JobError
from kompakt.jobs.evaluate.classifier import Classifier
from kompakt.jobs.evaluate.predictions import logits_of
from kompakt.jobs.progress import say
from kompakt.jobs.result import shorten
from kompakt.jobs.task import Workplace

if TYPE_CHECKING:
    from kompakt.jobs.models.encoder import Encoder

STEPS_VERSION = 4
"""Part of every key: raised when a step's code gives another result for the same input."""
PARITY_TEXTS = 16
SMOKE_TEXTS = (
    "a short text",
    "",
    "another one that is quite a bit longer than the first, isn't it? " * 20,
)
SUMMARY_LENGTH = 256


def compress(task: CompressTask, place: Workplace) -> CompressResult:
    """Runs the steps and stores the artifact."""
    started = time.monotonic()
    torch_steps, graph_steps = split(task.steps)
    sources = choose(task, torch_steps, graph_steps)
    baseline = place.scratch / "baseline"
    artifact = place.scratch / "artifact"
    artifact.mkdir()
    with place.stage("fetch"):
        manifest = place.store.get_artifact(task.baseline_digest, baseline)
        check_task(task.steps, manifest.task)
        texts = gather(sources, labels=manifest.labels, seed=task.seed)
    notes: list[str] = []
    graph = Graph(baseline)
    if sources.training is not None and texts.training is not None:
        graph = Graph(place.scratch / "exported")
        graph.folder.mkdir()
        chain = _Chain(
            task, place, manifest=manifest, source=sources.training, dataset=texts.training
        )
        notes += chain.run(torch_steps, graph.path)
        chain.data.tokenizer.save(str(artifact / TOKENIZER_NAME), pretty=False)
    else:
        shutil.copyfile(baseline / TOKENIZER_NAME, artifact / TOKENIZER_NAME)
    parameters = count_parameters(graph.path)
    data = GraphData(
        tokenizer=artifact / TOKENIZER_NAME,
        max_sequence_length=manifest.max_sequence_length,
        texts=texts.drawn(seed=task.seed),
        labelled=texts.labelled,
        threads=place.threads,
        details=place.details,
    )
    with place.stage("narrow"):
        graph = _narrowed(graph, place.scratch / "narrowed", data)
    for number, step in enumerate(graph_steps):
        with place.stage(name_of(step)):
            folder = place.scratch / f"graph-{number}"
            graph, note = graph_step(step).apply(graph, folder, data)
            notes.append(note)
    with place.stage("store"):
        for name in MODEL_FILES[graph.runtime]:
            shutil.copyfile(graph.folder / name, artifact / name)
        made = describe_variant(
            artifact,
            manifest,
            runtime=graph.runtime,
            precision=graph.precision,
            temperature_micros=graph.temperature_micros,
            parent_digest=task.baseline_digest,
            recipe=task.recipe,
            steps_digest=_steps_digest(task, texts),
        )
        _check_answers(artifact, manifest, threads=place.threads)
        digest = place.store.put_artifact(artifact, made)
    return CompressResult(
        artifact_digest=digest,
        runtime=graph.runtime,
        size_bytes=made.size_bytes,
        parameters=parameters,
        seconds=round(time.monotonic() - started),
        summary=shorten("; ".join(notes), SUMMARY_LENGTH),
    )


class _Chain:
    """The torch part of a recipe."""

    def __init__(
        self,
        task: CompressTask,
        place: Workplace,
        *,
        manifest: ArtifactManifest,
        source: DataSource,
        dataset: Dataset,
    ) -> None:
        with place.stage("import torch"):
            import torch

            from kompakt.jobs.compress import latency, training
            from kompakt.jobs.models import checkpoint, export, load, text
        torch.manual_seed(task.seed)
        torch.set_num_threads(place.threads)
        self._checkpoint = checkpoint
        self._export = export
        self._latency = latency
        self._load = load
        self._text = text
        self._max_sequence_length = manifest.max_sequence_length
        self._task = task
        self._place = place
        self._data_key = {
            "digest": dataset.digest,
            "source": source.evolve(digest=None, secret_ref=None).to_wire(),
        }
        self._source_folder = place.scratch / "source"
        place.store.get_checkpoint(task.checkpoint_digest, self._source_folder)
        self._origin = checkpoint.inspect(
            self._source_folder, origin=f"checkpoint {task.checkpoint_digest}"
        )
        check_positions(task.steps, relative=self._origin.architecture.relative)
        source_checkpoint = self._origin
        tokenizer = text.open_tokenizer(
            place.scratch / "baseline" / TOKENIZER_NAME,
            max_sequence_length=manifest.max_sequence_length,
        )
        self.data = training.TrainingData(
            dataset=dataset,
            task=manifest.task,
            labels=Targets(manifest.task, manifest.labels).known(dataset),
            tokenizer=tokenizer,
            input_names=self._origin.architecture.input_names,
            pad_id=text.pad_id(self._origin.config),
            seed=task.seed,
            teacher=lambda texts: logits_of(
                task.baseline_digest,
                texts,
                folder=place.scratch / "baseline",
                store=place.store,
                threads=place.threads,
                name="teacher",
            ),
            original=lambda: load.load(source_checkpoint),
            original_tokenizer=tokenizer,
            quantize=_quantize(task.steps),
            latency_table=latency.LatencyMeter(place.store, place.scratch).table,
            details=place.details,
        )

    def run(self, steps: list[Step], graph: Path) -> list[str]:
        """Applies the steps, from the last stored result on, and exports the model."""
        keys = self._keys(steps)
        done, folder, notes = self._resume(keys)
        place = self._place
        with place.stage("load"):
            self._go_on_from(folder)
            encoder = self._load.load(self._origin)
        titles = _titles(steps)
        for number in range(done, len(steps)):
            step, title = steps[number], titles[number]
            self.data.keep = lambda: self._store(encoder)
            with place.stage(title):
                notes.append(torch_step(step).apply(encoder, self.data))
            if name_of(step) in place.details:
                place.details[title] = place.details.pop(name_of(step))
            with place.stage(f"store after {title}"):
                place.store.put_json(
                    f"steps/{keys[number]}",
                    {"checkpoint": self._store(encoder), "notes": notes},
                )
        with place.stage("export"):
            self._export.export(encoder, graph, input_names=self.data.input_names)
            texts = sorted(self.data.order()[:PARITY_TEXTS])
            largest = self._export.parity(
                encoder,
                graph,
                [self.data.encodings[index] for index in texts],
                input_names=self.data.input_names,
                pad_id=self.data.pad_id,
                threads=place.threads,
            )
        place.details["parity"] = largest
        return notes

    def _keys(self, steps: list[Step]) -> list[str]:
        """For each step, the name of everything its result follows from."""
        keys: list[str] = []
        parent = self._task.checkpoint_digest
        for step in steps:
            recipe: dict[str, Any] = {
                "version": STEPS_VERSION,
                "parent": parent,
                "teacher": self._task.baseline_digest,
                "step": step.to_wire(),
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

    def _resume(self, keys: list[str]) -> tuple[int, Path, list[str]]:
        """How many steps are done already, the folder with their result, and what they said."""
        for number in range(len(keys), 0, -1):
            entry = self._place.store.get_json(f"steps/{keys[number - 1]}")
            if not isinstance(entry, dict) or "checkpoint" not in entry:
                continue
            folder = self._place.scratch / f"resumed-{number}"
            try:
                self._place.store.get_checkpoint(entry["checkpoint"], folder)
            except JobError as error:
                say(f"step {number} was done before, but its result is lost: {error}")
                continue
            say(f"the first {number} of {len(keys)} steps were done before")
            self._place.details["resumedAfterSteps"] = number
            return number, folder, list(entry.get("notes", []))
        return 0, self._source_folder, []

    def _go_on_from(self, folder: Path) -> None:
        """Takes the config of a step's result, and the tokenizer if it was trimmed."""
        if folder == self._source_folder:
            return
        before = self._origin.vocabulary
        self._origin = self._checkpoint.inspect(folder, origin=folder.name)
        if self._origin.vocabulary != before:
            self.data.pad_id = self._text.pad_id(self._origin.config)
            self.data.tokenizer = self._text.open_tokenizer(
                folder / TOKENIZER_NAME, max_sequence_length=self._max_sequence_length
            )

    def _store(self, encoder: Encoder) -> Digest:
        folder = self._place.scratch / "checkpoint"
        shutil.rmtree(folder, ignore_errors=True)
        new_ids = self.data.new_ids
        trimmed = None if new_ids is None else (self.data.tokenizer, new_ids)
        names = self._load.save(encoder, self._origin, folder, trimmed=trimmed)
        return self._place.store.put_checkpoint(folder, names)


def _narrowed(graph: Graph, target: Path, data: GraphData) -> Graph:
    """The same model without what no answer depends on."""
    target.mkdir()
    made = Graph(target)
    changed = compute_first_token(graph.path, made.path, data.encode(SMOKE_TEXTS))
    data.details["firstTokenOnly"] = changed
    return made if changed else graph


def _quantize(steps: list[Step]) -> Quantize | None:
    return next((step.quantize for step in steps if step.quantize is not None), None)


def _titles(steps: list[Step]) -> list[str]:
    """What the report calls the steps: by name, with a number where there are several of it."""
    names = [name_of(step) for step in steps]
    return [
        f"{name} {names[: place + 1].count(name)}" if names.count(name) > 1 else name
        for place, name in enumerate(names)
    ]


def _steps_digest(task: CompressTask, texts: Texts) -> Digest:
    """What an artifact was made by, beside its parent."""
    return sha256_digest(
        canonical_json(
            {
                "version": STEPS_VERSION,
                "steps": [step.to_wire() for step in task.steps],
                "data": texts.digests,
                "seed": task.seed,
            }
        )
    )


def _check_answers(folder: Path, manifest: ArtifactManifest, *, threads: int) -> None:
    """Opens the artifact as a server does: whatever it answers must at least be numbers."""
    logits = Classifier(folder, threads=threads).answer_all(SMOKE_TEXTS)
    if manifest.task == "TokenClassification":
        rows = sum(map(count_words, SMOKE_TEXTS))
        # Minus infinity stands for words that the model does not read.
        answered = logits[~np.isneginf(logits).all(axis=1)]
    else:
        rows, answered = len(SMOKE_TEXTS), logits
    if logits.shape != (rows, manifest.width) or not np.isfinite(answered).all():
        raise Failed(
            f"the compressed model answers {logits.shape} logits that are not all numbers; lower"
            " the compression"
        )
