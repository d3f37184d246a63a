# SPDX-License-Identifier: Apache-2.0
"""The Measure task: accuracy and latency of a candidate beside the baseline, on this very node.

Two containers of one pod do it, one after the other: `answer` with the CPUs of a Job, `measure`
under the limits of the target. No torch here: the target may be small.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kompakt.api.artifact import ArtifactManifest
from kompakt.api.base import Digest
from kompakt.api.device import Device, given
from kompakt.api.job import MeasureResult, MeasureTask
from kompakt.api.measure import ANSWER_THREADS, Benchmark, Measurement
from kompakt.jobs import machine
from kompakt.jobs.benchmark.footprint import peak_memory
from kompakt.jobs.benchmark.interleave import figures, interleave
from kompakt.jobs.data.examples import Dataset, first_look
from kompakt.jobs.data.reader import read
from kompakt.jobs.data.targets import Target, Targets
from kompakt.jobs.errors import DataInvalid, Failed
from kompakt.jobs.evaluate.classifier import Classifier, Logits
from kompakt.jobs.evaluate.paired import evaluate
from kompakt.jobs.evaluate.predictions import logits_of
from kompakt.jobs.models.session import require
from kompakt.jobs.task import Workplace


@dataclass(frozen=True)
class _Fetched:
    """An artifact in a folder."""

    digest: Digest
    folder: Path
    manifest: ArtifactManifest


@dataclass(frozen=True)
class _Pair:
    """What is compared, on what."""

    baseline: _Fetched
    candidate: _Fetched
    dataset: Dataset
    targets: list[Target]
    """Of each example, what is right."""


def answer(task: MeasureTask, place: Workplace) -> None:
    """The part of the work that no limit changes: what both answer to each text. Left in the store.

    Answers depend on the CPU's features, not on the share of it that a pod may use, so they are
    made with more of it than a benchmark may have.
    """
    device = given()
    require(device)
    _answers(place, _fetch(task, place), device)


def measure(task: MeasureTask, place: Workplace) -> MeasureResult:
    """Evaluates, then benchmarks."""
    device = given()
    require(device)
    pair = _fetch(task, place)
    # First, while this process is small: both must fit into the pod's memory together.
    with place.stage("memory"):
        peaks = [
            peak_memory(one.folder, pair.dataset.texts, threads=ANSWER_THREADS, device=device)
            for one in (pair.baseline, pair.candidate)
        ]
    baseline, candidate = _answers(place, pair, device)
    evaluation = evaluate(
        pair.dataset,
        pair.targets,
        task=pair.baseline.manifest.task,
        tolerance=pair.baseline.manifest.tolerance,
        labels=pair.baseline.manifest.labels,
        baseline=baseline,
        candidate=candidate,
        selection_permille=task.selection_permille,
    )
    with place.stage("benchmark"):
        benchmark = _benchmark(task, pair, peaks, device)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    place.details["involuntaryContextSwitches"] = usage.ru_nivcsw
    place.details["peakMemoryMebibytes"] = machine.peak_memory_mebibytes()
    return MeasureResult(
        measurement=Measurement(
            target=task.target,
            baseline_digest=task.baseline_digest,
            candidate_digest=task.candidate_digest,
            evaluation=evaluation,
            benchmark=benchmark,
        )
    )


def _fetch(task: MeasureTask, place: Workplace) -> _Pair:
    with place.stage("fetch"):
        baseline, candidate = (
            _Fetched(digest, folder, place.store.get_artifact(digest, folder))
            for digest, folder in (
                (task.baseline_digest, place.scratch / "baseline"),
                (task.candidate_digest, place.scratch / "candidate"),
            )
        )
        theirs, ours = baseline.manifest, candidate.manifest
        if (ours.task, ours.labels) != (theirs.task, theirs.labels):
            raise Failed(
                f"the candidate {candidate.digest} has another task or other labels than the"
                f" baseline {baseline.digest}; they cannot be compared"
            )
        dataset = read(task.evaluation, seed=task.seed)
        if task.first_look_permille is not None:
            labels = theirs.task == "TextClassification"
            dataset = _first_look(task, dataset, by_label=labels)
        targets = Targets(baseline.manifest.task, baseline.manifest.labels).resolve(dataset)
    return _Pair(baseline, candidate, dataset, targets)


def _first_look(task: MeasureTask, dataset: Dataset, *, by_label: bool) -> Dataset:
    """The texts that a first look is at; the digest stays that of the data."""
    share = task.first_look_permille or 0
    indices = first_look(
        dataset.examples, selection=task.selection_permille, share=share, by_label=by_label
    )
    if not indices:
        raise DataInvalid(
            f"the selection split of {dataset.uri} is empty: a first look needs more examples"
        )
    return replace(dataset, examples=tuple(dataset.examples[index] for index in indices))


def _answers(place: Workplace, pair: _Pair, device: Device) -> tuple[Logits, Logits]:
    """The logits of both, from the store where they are there already; those of second texts
    follow on those of all first.
    """
    with place.stage("evaluate"):
        baseline, candidate = (
            logits_of(
                one.digest,
                pair.dataset.all_texts,
                folder=one.folder,
                store=place.store,
                threads=place.threads,
                name=f"evaluate {one.folder.name}",
                device=device,
            )
            for one in (pair.baseline, pair.candidate)
        )
    return baseline, candidate


def _benchmark(task: MeasureTask, pair: _Pair, peaks: Sequence[int], device: Device) -> Benchmark:
    theirs, ours = (
        Classifier(one.folder, threads=ANSWER_THREADS, device=device)
        for one in (pair.baseline, pair.candidate)
    )
    for one in (theirs, ours):
        one.warm_up()
    timings = interleave(
        baseline=theirs.answer,
        candidate=ours.answer,
        texts=pair.dataset.texts,
        rounds=task.benchmark_rounds,
        seconds=task.benchmark_seconds,
        seed=task.seed,
        share=machine.cpu_millis() / 1000 / ANSWER_THREADS,
    )
    speedup = timings.speedup
    return Benchmark(
        rounds=task.benchmark_rounds,
        requests=len(timings.baseline),
        baseline=figures(timings.baseline, peak_memory_mebibytes=peaks[0]).evolve(
            execution_provider=theirs.accelerator
        ),
        candidate=figures(timings.candidate, peak_memory_mebibytes=peaks[1]).evolve(
            execution_provider=ours.accelerator
        ),
        speedup_permille=round(speedup.median * 1000),
        speedup_low_permille=round(speedup.low * 1000),
        speedup_high_permille=round(speedup.high * 1000),
        hardware=machine.hardware(threads_used=ANSWER_THREADS),
    )
