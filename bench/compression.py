# SPDX-License-Identifier: Apache-2.0
"""What each recipe makes of the example's model: size, speed, accuracy, beside ONNX Runtime fp32.

    python bench/compression.py [--recipes NAME ...] [--seeds N] [--out FILE]

Each recipe of the catalogue (or those named) is run as its Job would be, in a process of its own,
`import torch` included, on all cores and with no more data than it needs. Then
every artifact answers beside the fp32 baseline: interleaved, one text at a time, tokenization
included, on texts of 32 and of 128 tokens of the source's tokenizer; and both answer the same
held-out sentences. A text is answered once on one thread by each, as a server answers it, and once
on as many threads as make each of them fastest: on all cores a small model can be slower than on
one. A recipe that trains is run once for each seed; the median by speed-up is
marked. What a step left in the store is not used again: every run is timed whole.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from bench.texts import budgeted, of_length
from examples.sentiment.prepare import prepare

from kompakt.api.artifact import TOKENIZER_NAME
from kompakt.api.base import Digest
from kompakt.api.job import TaskResult
from kompakt.api.measure import ANSWER_THREADS
from kompakt.api.recipe import CompressionRecipeSpec, Step
from kompakt.api.source import DataSource
from kompakt.controllers import family
from kompakt.controllers.bounds import drop_basis_points, upper_bound_basis_points
from kompakt.jobs import machine
from kompakt.jobs.benchmark.interleave import interleave
from kompakt.jobs.benchmark.intervals import Interval
from kompakt.jobs.data.reader import read
from kompakt.jobs.data.targets import Targets
from kompakt.jobs.evaluate.classifier import Classifier
from kompakt.jobs.evaluate.paired import evaluate
from kompakt.jobs.evaluate.predictions import logits_of
from kompakt.jobs.store import Store

ResultT = TypeVar("ResultT")
ROOT = Path(__file__).parents[1]
CATALOGUE = ROOT / "charts" / "kompakt" / "files" / "catalogue"
HELD_OUT = 3000
LENGTHS = (32, 128)
ROUNDS = 15
SECONDS = 8.0
"""Of a benchmark at one length, baseline and candidate together."""
TEXTS = 64
"""Of one length."""
CONFIDENCE = 0.95
NEED_NO_TEXTS = {"DynamicInt8", "BFloat16", "Float16", "WeightOnly"}
"""Methods of quantization."""
LABELLED, UNLABELLED = 256, 6000
CALIBRATION, CHECKED = 128, 512
"""Texts; the latter on top where a recipe checks its choice."""


@dataclass(frozen=True)
class Row:
    """One artifact. Names are those of the issue that asked for it, in camel case in the file."""

    recipe: str
    needs: str
    seed: int
    seconds: float
    """The Job from its start to its end."""
    sizeBytes: int  # noqa: N815 -- a key of the file
    speedup32: float
    speedup128: float
    speedup128Low: float  # noqa: N815
    served32: float
    """On one thread each, as the servers answer."""
    served128: float
    served128Low: float  # noqa: N815
    accuracyDropBasisPoints: int  # noqa: N815
    accuracyDropUpperBoundBasisPoints: int  # noqa: N815
    summary: str
    median: bool = False
    """Whether it is the one of its recipe to be quoted."""


@dataclass(frozen=True)
class Bench:
    """Where it happens."""

    folder: Path
    store: str
    checkpoint: Path
    training: Path
    calibration: Path
    """With `CHECKED` texts beside those that ranges are taken from."""
    evaluation: Path

    def job(self, body: dict[str, Any]) -> tuple[TaskResult, float]:
        """Runs a task as a Job does; its result and the seconds it took."""
        task, log = self.folder / "task.json", self.folder / "termination-log"
        task.write_text(json.dumps({"store": self.store, "reportName": "bench", **body}))
        log.unlink(missing_ok=True)
        command = [sys.executable, "-m", "kompakt.jobs", "run"]
        command += ["--task", str(task), "--termination-log", str(log)]
        started = time.monotonic()
        with (self.folder / "job.log").open("wb") as output:
            code = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, check=False
            ).returncode
        seconds = time.monotonic() - started
        result = TaskResult.model_validate_json(log.read_bytes())
        if code != 0:
            sys.exit(f"a {body['kind']} task failed: {result.reason}: {result.message}")
        return result, seconds

    def forget_steps(self) -> None:
        """What earlier runs left is taken away, so that the next is timed whole."""
        for name in ("steps", "predictions", "findings", "latency"):
            shutil.rmtree(self.folder / "store" / name, ignore_errors=True)


def main() -> None:
    """Measures, writes the file, and prints a table."""
    options = _options()
    recipes = {
        path.stem: CompressionRecipeSpec.model_validate(yaml.safe_load(path.read_text())["spec"])
        for path in sorted([*CATALOGUE.glob("*.yaml"), *options.files])
    }
    unknown = sorted(set(options.recipes) - set(recipes))
    if unknown:
        sys.exit(f"no recipe is called {', '.join(unknown)}; there are {', '.join(recipes)}")
    os.environ.setdefault("OMP_NUM_THREADS", str(machine.threads()))
    with tempfile.TemporaryDirectory(prefix="kompakt-bench-") as folder:
        bench = _prepare(Path(folder))
        result, _ = bench.job(
            {
                "kind": "Import",
                "importModel": {
                    "model": {"uri": f"file://{bench.checkpoint}", "maxSequenceLength": 128},
                    "data": {},
                },
            }
        )
        imported = _there(result.imported)
        judge = _Judge(bench, imported.artifact_digest)
        rows: list[Row] = []
        for recipe in options.recipes or recipes:
            spec = recipes[recipe]
            trains = _trains(spec)
            runs = []
            for seed in range(options.seeds if trains else 1):
                bench.forget_steps()
                # The members of a family go on from each other; each is timed for its own part.
                for name, steps in _chains(recipe, spec):
                    result, seconds = bench.job(
                        {
                            "kind": "Compress",
                            "compress": {
                                "recipe": name,
                                "checkpointDigest": imported.source_digest,
                                "baselineDigest": imported.artifact_digest,
                                "steps": [step.to_wire() for step in steps],
                                "seed": seed,
                                **_data(bench, spec),
                            },
                        }
                    )
                    compressed = _there(result.compressed)
                    row = Row(
                        recipe=name,
                        needs=_needs(spec),
                        seed=seed,
                        seconds=round(seconds, 1),
                        sizeBytes=compressed.size_bytes,
                        summary=compressed.summary,
                        **judge.figures(compressed.artifact_digest),
                    )
                    runs.append(row)
                    _say(row)
            rows += _with_median(runs)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    hardware = machine.hardware(threads_used=machine.threads())
    print(f"on {hardware.cpu_model}, {hardware.threads} threads, {' '.join(hardware.cpu_features)}")
    for row in rows:
        if row.median:
            _say(row)


class _Judge:
    """Measures artifacts beside the baseline."""

    def __init__(self, bench: Bench, baseline: Digest) -> None:
        self._store = Store(bench.store)
        self._folder = bench.folder
        self._baseline = baseline
        self._threads = machine.threads()
        self._dataset = read(_source(bench.evaluation, labelField="label", limit=HELD_OUT))
        manifest = self._store.get_artifact(baseline, self._folder / "baseline")
        self._labels = Targets(manifest.task, manifest.labels).resolve(self._dataset)
        self._texts = {
            length: list(
                of_length(
                    self._dataset.texts,
                    self._folder / "baseline" / TOKENIZER_NAME,
                    tokens=length,
                    count=TEXTS,
                )
            )
            for length in LENGTHS
        }

    def figures(self, digest: Digest) -> dict[str, Any]:
        """The measured fields of a row."""
        found: dict[str, Any] = {}
        for length in LENGTHS:
            best = self._speedup(
                self._fastest(self._baseline, length), self._fastest(digest, length), length
            )
            served = self._speedup(
                self._opened(self._baseline, ANSWER_THREADS),
                self._opened(digest, ANSWER_THREADS),
                length,
            )
            found[f"speedup{length}"] = round(best.median, 2)
            found[f"served{length}"] = round(served.median, 2)
        evaluation = evaluate(
            self._dataset,
            self._labels,
            baseline=self._answers(self._baseline),
            candidate=self._answers(digest),
            selection_permille=0,
        )
        counts = evaluation.confirmation
        return found | {
            "speedup128Low": round(best.low, 2),
            "served128Low": round(served.low, 2),
            "accuracyDropBasisPoints": drop_basis_points(counts),
            "accuracyDropUpperBoundBasisPoints": upper_bound_basis_points(
                counts, confidence=CONFIDENCE
            ),
        }

    def _speedup(self, theirs: Classifier, ours: Classifier, length: int) -> Interval:
        timings = interleave(
            baseline=theirs.answer,
            candidate=ours.answer,
            texts=self._texts[length],
            rounds=ROUNDS,
            seconds=SECONDS,
            seed=length,
        )
        return timings.speedup

    def _fastest(self, digest: Digest, length: int) -> Classifier:
        """On one thread or on all, whichever answers faster."""
        one, all_ = (self._opened(digest, threads) for threads in (1, self._threads))
        timings = interleave(
            baseline=one.answer,
            candidate=all_.answer,
            texts=self._texts[length],
            rounds=ROUNDS,
            seconds=SECONDS / 4,
            seed=length,
        )
        return all_ if timings.speedup.median > 1 else one

    @cache  # noqa: B019 -- there is one judge, and it lives as long as the process
    def _opened(self, digest: Digest, threads: int) -> Classifier:
        folder = self._folder / digest.replace(":", "-")
        if not folder.exists():
            self._store.get_artifact(digest, folder)
        classifier = Classifier(folder, threads=threads)
        classifier.warm_up()
        return classifier

    def _answers(self, digest: Digest) -> np.ndarray[Any, Any]:
        return logits_of(
            digest,
            self._dataset.texts,
            folder=self._folder / digest.replace(":", "-"),
            store=self._store,
            threads=self._threads,
            name="evaluate",
        )


def _prepare(folder: Path) -> Bench:
    """The example, and its training texts cut to what the budget allows."""
    example = prepare(print)
    chosen = budgeted(example.data("training"), labelled=LABELLED, unlabelled=UNLABELLED, seed=0)
    training, calibration = folder / "training.jsonl", folder / "calibration.jsonl"
    training.write_text("".join(json.dumps(line) + "\n" for line in chosen))
    texts = ({"text": line["text"]} for line in chosen[-CALIBRATION - CHECKED :])
    calibration.write_text("".join(json.dumps(text) + "\n" for text in texts))
    return Bench(
        folder=folder,
        store=f"file://{folder / 'store'}",
        checkpoint=example.checkpoint,
        training=training,
        calibration=calibration,
        evaluation=example.data("evaluation"),
    )


def _source(path: Path, **fields: Any) -> DataSource:
    return DataSource.model_validate({"uri": f"file://{path}", "textField": "text", **fields})


def _data(bench: Bench, spec: CompressionRecipeSpec) -> dict[str, Any]:
    """The data that a recipe may see."""
    found: dict[str, Any] = {}
    if _needs(spec) != "nothing":
        limit = _calibration(spec)
        found["calibration"] = _source(bench.calibration, limit=limit).to_wire()
    if _trains(spec):
        found["training"] = _source(bench.training, labelField="label").to_wire()
    return found


def _needs(spec: CompressionRecipeSpec) -> str:
    if _trains(spec):
        return f"{LABELLED} labelled + {UNLABELLED} unlabelled"
    quantize = [step.quantize for step in spec.steps if step.quantize is not None]
    looks = any(one.activation_aware_alpha_permille for one in quantize)
    if not looks and {one.method for one in quantize} <= NEED_NO_TEXTS:
        return "nothing"
    return f"{_calibration(spec)} unlabelled"


def _calibration(spec: CompressionRecipeSpec) -> int:
    quantize = [step.quantize for step in spec.steps if step.quantize is not None]
    return CALIBRATION + CHECKED * any(step.mixed == "Enabled" for step in quantize)


def _trains(spec: CompressionRecipeSpec) -> bool:
    return any(not step.works_on_graph for step in spec.steps)


def _there(found: ResultT | None) -> ResultT:
    if found is None:
        sys.exit("a task ended well without a result")
    return found


def _with_median(rows: Sequence[Row]) -> list[Row]:
    """Marks the median by speed-up of each artifact's runs."""
    chosen = []
    for name in dict.fromkeys(row.recipe for row in rows):
        runs = sorted((r for r in rows if r.recipe == name), key=lambda row: row.speedup128)
        chosen.append(runs[(len(runs) - 1) // 2])
    return [Row(**asdict(row) | {"median": row in chosen}) for row in rows]


def _chains(name: str, spec: CompressionRecipeSpec) -> Iterator[tuple[str, list[Step]]]:
    """The recipe's chain, or those of its family by their shares of latency."""
    shares: list[int | None] = [*spec.family] or [None]
    for share, steps in zip(shares, family.chains(spec), strict=True):
        yield (name if share is None else f"{name}/{share}"), steps


def _say(row: Row) -> None:
    print(
        f"{row.recipe:28} seed {row.seed}: {row.seconds:6.1f} s, {row.sizeBytes / 1e6:5.1f} MB,"
        f" {row.speedup32:.2f}x @32, {row.speedup128:.2f}x [{row.speedup128Low:.2f}] @128, served"
        f" {row.served32:.2f}x @32, {row.served128:.2f}x [{row.served128Low:.2f}] @128,"
        f" {row.accuracyDropBasisPoints:+d} bp (<= {row.accuracyDropUpperBoundBasisPoints});"
        f" {row.summary}",
        flush=True,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--recipes", nargs="*", default=[], help="names; all when absent")
    parser.add_argument("--files", nargs="*", type=Path, default=[], help="more recipes, as YAML")
    parser.add_argument("--seeds", type=int, default=3, help="runs of a recipe that trains")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench" / "compression.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
