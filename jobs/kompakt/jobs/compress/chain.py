# SPDX-License-Identifier: Apache-2.0
"""The Compress task: a recipe's steps one after the other, then the artifact.

A recipe without torch steps works on the baseline's graph, and torch is not even imported.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

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
from kompakt.jobs.artifact import count_parameters, describe_variant
from kompakt.jobs.compress.agreement import Rule
from kompakt.jobs.compress.first_token import compute_first_token
from kompakt.jobs.compress.graph import SMOKE_TEXTS, Graph, GraphData
from kompakt.jobs.compress.sources import Texts, choose, gather
from kompakt.jobs.compress.steps import check_length, check_task, graph_step, name_of, split
from kompakt.jobs.compress.torch_chain import STEPS_VERSION, TorchChain
from kompakt.jobs.data.words import count_words
from kompakt.jobs.errors import Failed
from kompakt.jobs.evaluate.classifier import Classifier
from kompakt.jobs.result import shorten
from kompakt.jobs.task import Workplace

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
        check_length(task.steps, manifest.max_sequence_length)
        texts = gather(sources, labels=manifest.labels, seed=task.seed)
    notes: list[str] = []
    graph = Graph(baseline)
    if sources.training is not None and texts.training is not None:
        graph = Graph(place.scratch / "exported")
        graph.folder.mkdir()
        chain = TorchChain(
            task,
            place,
            manifest=manifest,
            source=sources.training,
            dataset=texts.training,
            held_out=texts.checks,
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
        rule=Rule(manifest.task, manifest.tolerance),
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


def _narrowed(graph: Graph, target: Path, data: GraphData) -> Graph:
    """The same model without what no answer depends on."""
    target.mkdir()
    made = Graph(target)
    changed = compute_first_token(graph.path, made.path, data.encode(SMOKE_TEXTS))
    data.details["firstTokenOnly"] = changed
    return made if changed else graph


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
