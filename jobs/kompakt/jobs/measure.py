# SPDX-License-Identifier: Apache-2.0
"""The Measure task: accuracy and latency of a candidate beside the baseline, on this very pod.

No torch here: the pod has the limits of the target, which may be small.
"""

from __future__ import annotations

import resource
from pathlib import Path

from kompakt.api.job import MeasureResult, MeasureTask
from kompakt.api.measure import Benchmark, Measurement
from kompakt.jobs import machine
from kompakt.jobs.benchmark.footprint import peak_memory
from kompakt.jobs.benchmark.interleave import figures, interleave
from kompakt.jobs.data.examples import Dataset, resolve_labels
from kompakt.jobs.data.reader import read
from kompakt.jobs.errors import Failed
from kompakt.jobs.evaluate.classifier import Classifier
from kompakt.jobs.evaluate.paired import evaluate
from kompakt.jobs.evaluate.predictions import logits_of
from kompakt.jobs.task import Workplace


def measure(task: MeasureTask, place: Workplace) -> MeasureResult:
    """Evaluates, then benchmarks."""
    baseline, candidate = place.scratch / "baseline", place.scratch / "candidate"
    with place.stage("fetch"):
        known = place.store.get_artifact(task.baseline_digest, baseline)
        manifest = place.store.get_artifact(task.candidate_digest, candidate)
        if manifest.labels != known.labels:
            raise Failed(
                f"the candidate {task.candidate_digest} has other labels than the baseline"
                f" {task.baseline_digest}; they cannot be compared"
            )
        dataset = read(task.evaluation, seed=task.seed)
        labels = resolve_labels(dataset, known.labels)
    lengths = {baseline: known.max_sequence_length, candidate: manifest.max_sequence_length}
    digests = {baseline: task.baseline_digest, candidate: task.candidate_digest}
    # First, while this process is small: both must fit into the pod's memory together.
    with place.stage("memory"):
        peaks = {
            folder: peak_memory(
                folder,
                dataset.texts,
                max_sequence_length=lengths[folder],
                threads=task.threads,
            )
            for folder in (baseline, candidate)
        }
    with place.stage("evaluate"):
        logits = {
            folder: logits_of(
                digests[folder],
                dataset.texts,
                folder=folder,
                store=place.store,
                threads=task.threads,
                name=f"evaluate {folder.name}",
            )
            for folder in (baseline, candidate)
        }
        evaluation = evaluate(
            dataset,
            labels,
            baseline=logits[baseline],
            candidate=logits[candidate],
            selection_permille=task.selection_permille,
        )
    with place.stage("benchmark"):
        benchmark = _benchmark(task, dataset, baseline, candidate, lengths=lengths, peaks=peaks)
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


def _benchmark(
    task: MeasureTask,
    dataset: Dataset,
    baseline: Path,
    candidate: Path,
    *,
    lengths: dict[Path, int],
    peaks: dict[Path, int],
) -> Benchmark:
    theirs, ours = (
        Classifier(folder, max_sequence_length=lengths[folder], threads=task.threads)
        for folder in (baseline, candidate)
    )
    timings = interleave(
        baseline=theirs.answer,
        candidate=ours.answer,
        texts=dataset.texts,
        rounds=task.benchmark_rounds,
        seconds=task.benchmark_seconds,
        seed=task.seed,
    )
    speedup = timings.speedup
    return Benchmark(
        rounds=task.benchmark_rounds,
        requests=len(timings.baseline),
        baseline=figures(timings.baseline, peak_memory_mebibytes=peaks[baseline]),
        candidate=figures(timings.candidate, peak_memory_mebibytes=peaks[candidate]),
        speedup_permille=round(speedup.median * 1000),
        speedup_low_permille=round(speedup.low * 1000),
        speedup_high_permille=round(speedup.high * 1000),
        hardware=machine.hardware(threads_used=task.threads),
    )
