# SPDX-License-Identifier: Apache-2.0
"""Makes the table of real trials that `bench/search.py` replays searches over.

    python bench/search_trials.py STATE --prefixes-only    # trains; one thread, any load beside it
    python bench/search_trials.py STATE --artifacts-only   # quantizes, evaluates; any load
    python bench/search_trials.py STATE --measure          # times; on a quiet machine
    python bench/search_trials.py STATE --write            # writes the table of what is measured

Each does what is missing of those above it. STATE is a folder outside the repository: whatever is
there is not made again, so that each command can be killed and repeated. The chains run as in the
Jobs, on the example's model, with 256 labelled and 6,000 unlabelled texts.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.search_table import (
    SOURCE,
    SPACE,
    TABLE,
    Figures,
    Point,
    key,
    points,
    read_space,
    write_table,
)
from bench.texts import budgeted, of_length
from examples.sentiment.prepare import prepare
from typing_extensions import override

from kompakt.api.artifact import TOKENIZER_NAME
from kompakt.api.base import Digest
from kompakt.api.job import CompressResult, CompressTask, ImportResult, ImportTask
from kompakt.api.measure import PairedCounts
from kompakt.api.recipe import CompressionRecipeSpec, Step
from kompakt.api.source import DataSource
from kompakt.jobs import machine
from kompakt.jobs.benchmark.interleave import interleave
from kompakt.jobs.compress.chain import compress
from kompakt.jobs.compress.steps import name_of, split
from kompakt.jobs.data.examples import Dataset
from kompakt.jobs.data.reader import read
from kompakt.jobs.data.targets import Targets
from kompakt.jobs.errors import JobError
from kompakt.jobs.evaluate.classifier import Classifier
from kompakt.jobs.evaluate.paired import evaluate
from kompakt.jobs.evaluate.predictions import logits_of
from kompakt.jobs.importing import import_model
from kompakt.jobs.store import Store
from kompakt.jobs.task import Workplace

TRAINING_THREADS = 1
"""One Job's share of the machine: whoever else works beside hardly slows it."""
LABELLED, UNLABELLED, CALIBRATION = 256, 6000, 128
SELECTION_PERMILLE = 250
"""As in a Measure task."""
TOKENS = 128
TEXTS = 64
ROUNDS = 15
SECONDS = 2.0
"""Of a row's benchmark, baseline and candidate together."""
SEED = 0


@dataclass(frozen=True)
class _Work:
    """The folder with everything that was made."""

    folder: Path
    held_out: int

    @property
    def store(self) -> Store:
        return Store(f"file://{self.folder / 'store'}")

    def known(self, kind: str, name: str) -> Any | None:
        """What was noted under a name, if anything was."""
        path = self.folder / kind / f"{name}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def note(self, kind: str, name: str, value: Any) -> None:
        """Notes it; the file appears whole or not at all."""
        path = self.folder / kind / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        begun = path.with_suffix(f".{os.getpid()}")
        begun.write_text(json.dumps(value))
        begun.rename(path)


def main() -> None:
    """Does what is missing of what is asked for."""
    options = _options()
    space = read_space(options.space)
    chosen = _first_prefixes(space, options.limit)
    folder = options.state.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    work = _Work(folder, options.held_out)
    if options.write:
        _write(work, space, chosen, options.out)
        return
    # Before torch is imported: it is one Job's share of the machine.
    os.environ.setdefault("OMP_NUM_THREADS", str(TRAINING_THREADS))
    maker = _Maker(work)
    maker.train(list(dict.fromkeys(key(_prefix(p.steps(space))) for p in chosen)), space, chosen)
    if options.prefixes_only:
        return
    maker.artifacts(space, chosen)
    if options.measure:
        _measure(work, maker.baseline, space, chosen)


def _first_prefixes(space: Mapping[str, CompressionRecipeSpec], limit: int | None) -> list[Point]:
    """The points of the first so many prefixes."""
    every = list(points(space))
    prefixes = list(dict.fromkeys(key(_prefix(point.steps(space))) for point in every))[:limit]
    return [point for point in every if key(_prefix(point.steps(space))) in prefixes]


def _prefix(steps: list[Step]) -> list[Step]:
    return split(steps)[0]


@dataclass
class _Timed(Workplace):
    """Notes the seconds of steps as they end: the next one may be killed."""

    work: _Work = field(kw_only=True)
    named: Mapping[str, str] = field(kw_only=True)
    """What the seconds of a stage are noted by."""

    @override
    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        with super().stage(name):
            yield
        if name in self.named:
            self.work.note("steps", self.named[name], self.seconds[name])


class _Maker:
    """Runs chains, as Jobs do."""

    def __init__(self, work: _Work) -> None:
        self._work = work
        self._training, self._calibration, self._evaluation = _data(work.folder)
        self._imported = self._import()

    @property
    def baseline(self) -> Digest:
        """The artifact of the unchanged model."""
        return self._imported.artifact_digest

    def train(
        self,
        prefixes: Sequence[str],
        space: Mapping[str, CompressionRecipeSpec],
        chosen: Sequence[Point],
    ) -> None:
        """Runs the steps that change weights; their checkpoints are in the store afterwards."""
        for number, prefix in enumerate(prefixes):
            if self._work.known("prefixes", prefix) is not None:
                continue
            steps = next(
                s for s in (_prefix(point.steps(space)) for point in chosen) if key(s) == prefix
            )
            text = ", ".join(str(step.to_wire()) for step in steps)
            _say(f"prefix {number + 1} of {len(prefixes)}: {text}")
            names = [name_of(step) for step in steps]
            if len(set(names)) < len(names):
                sys.exit(f"{names}: this table's recipes have each step once")
            keys = [key(steps[:count]) for count in range(1, len(steps) + 1)]
            try:
                found, seconds = self._compress(
                    "prefix", steps, named=dict(zip(names, keys, strict=True))
                )
            except JobError as error:
                _say(f"failed: {error}")
                self._work.note("prefixes", prefix, {"reason": error.reason})
                continue
            self._work.note("prefixes", prefix, {"summary": found.summary})
            _say(f"{found.size_bytes / 1e6:.1f} MB, {sum(seconds.values()):.0f} s; {found.summary}")

    def artifacts(
        self, space: Mapping[str, CompressionRecipeSpec], chosen: Sequence[Point]
    ) -> None:
        """Quantizes each prefix in each way, and has the artifacts answer the held-out texts."""
        dataset = read(
            _source(self._evaluation, labelField="label", limit=self._work.held_out), seed=SEED
        )
        if self._work.known("artifacts", SOURCE) is None:
            self._work.note("artifacts", SOURCE, self._evaluated(self.baseline, dataset))
        for number, point in enumerate(chosen):
            steps = point.steps(space)
            if self._work.known("artifacts", key(steps)) is not None:
                continue
            prefix = self._work.known("prefixes", key(_prefix(steps))) or {}
            if "reason" in prefix:
                self._work.note("artifacts", key(steps), prefix)
                continue
            try:
                made = self._artifact(point, steps, dataset)
            except JobError as error:
                made = {"reason": error.reason}
            self._work.note("artifacts", key(steps), made)
            _say(f"artifact {number + 1} of {len(chosen)}: {point}: {made}")

    def _artifact(self, point: Point, steps: list[Step], dataset: Dataset) -> dict[str, Any]:
        found, seconds = self._compress(point.recipe, steps)
        # The prefix is run again where its checkpoints are those of an older version.
        others = {"import torch", *map(name_of, _prefix(steps))}
        own = sum(taken for stage, taken in seconds.items() if stage not in others)
        return {
            **self._evaluated(found.artifact_digest, dataset),
            "seconds": round(own + self._trained(_prefix(steps))),
        }

    def _evaluated(self, digest: Digest, dataset: Dataset) -> dict[str, Any]:
        store = self._work.store
        source = store.manifest(self.baseline)
        targets = Targets(source.task, source.labels).resolve(dataset)
        with tempfile.TemporaryDirectory() as scratch:
            theirs, ours = (
                logits_of(
                    one,
                    dataset.texts,
                    folder=Path(scratch) / name,
                    store=store,
                    threads=machine.threads(),
                    name=name,
                )
                for name, one in (("source", self.baseline), ("candidate", digest))
            )
        evaluation = evaluate(
            dataset,
            targets,
            baseline=theirs,
            candidate=ours,
            selection_permille=SELECTION_PERMILLE,
        )
        return {
            "digest": digest,
            "size_bytes": store.manifest(digest).size_bytes,
            "seconds": 0,
            **_counts("selection", evaluation.selection),
            **_counts("confirmation", evaluation.confirmation),
        }

    def _trained(self, prefix: list[Step]) -> float:
        """Seconds that the prefix took when it was trained, shared steps included."""
        taken = (self._work.known("steps", key(prefix[: n + 1])) for n in range(len(prefix)))
        return sum(seconds or 0.0 for seconds in taken)

    def _compress(
        self, recipe: str, steps: list[Step], *, named: Mapping[str, str] | None = None
    ) -> tuple[CompressResult, dict[str, float]]:
        """A chain's result, and the seconds of its stages; those named are noted."""
        with tempfile.TemporaryDirectory(prefix="kompakt-trial-") as scratch:
            place = _Timed(
                store=self._work.store,
                scratch=Path(scratch),
                threads=TRAINING_THREADS,
                work=self._work,
                named=named or {},
            )
            task = CompressTask(
                recipe=recipe,
                checkpoint_digest=self._imported.source_digest,
                baseline_digest=self._imported.artifact_digest,
                steps=steps,
                training=_source(self._training, labelField="label"),
                calibration=_source(self._calibration),
                seed=SEED,
            )
            return compress(task, place), place.seconds

    def _import(self) -> ImportResult:
        found = self._work.known("import", "result")
        if found is not None:
            return ImportResult.model_validate(found)
        task = ImportTask.model_validate(
            {
                "model": {
                    "uri": f"file://{prepare(print).checkpoint}",
                    "maxSequenceLength": TOKENS,
                }
            }
        )
        with tempfile.TemporaryDirectory(prefix="kompakt-trial-") as scratch:
            place = Workplace(
                store=self._work.store, scratch=Path(scratch), threads=TRAINING_THREADS
            )
            result = import_model(task, place)
        self._work.note("import", "result", result.to_wire())
        return result


def _measure(
    work: _Work,
    baseline: Digest,
    space: Mapping[str, CompressionRecipeSpec],
    chosen: Sequence[Point],
) -> None:
    """Times every artifact beside the baseline."""
    with tempfile.TemporaryDirectory(prefix="kompakt-trial-") as scratch:
        folder = Path(scratch)
        theirs = _opened(work.store, baseline, folder / "baseline")
        rows = (work.folder / "data" / "evaluation.jsonl").read_text().splitlines()
        texts = list(
            of_length(
                (json.loads(row)["text"] for row in rows),
                folder / "baseline" / TOKENIZER_NAME,
                tokens=TOKENS,
                count=TEXTS,
            )
        )
        names = [SOURCE, *(key(point.steps(space)) for point in chosen)]
        for number, name in enumerate(names):
            made = work.known("artifacts", name)
            if made is None or "digest" not in made or work.known("timings", name) is not None:
                continue
            ours = _opened(work.store, made["digest"], folder / name)
            speedup = interleave(
                baseline=theirs.answer,
                candidate=ours.answer,
                texts=texts,
                rounds=ROUNDS,
                seconds=SECONDS,
                seed=number,
            ).speedup
            timing = {
                "speedup_permille": round(1000 * speedup.median),
                "speedup_low_permille": round(1000 * speedup.low),
                "speedup_high_permille": round(1000 * speedup.high),
            }
            work.note("timings", name, timing)
            _say(f"timing {number + 1} of {len(names)}: {timing}")
    hardware = machine.hardware(threads_used=machine.threads())
    work.note(
        "about",
        "machine",
        f"{hardware.cpu_model}, {hardware.threads} threads, {' '.join(hardware.cpu_features)};"
        f" {datetime.now(UTC):%Y-%m-%d}",
    )


def _opened(store: Store, digest: Digest, folder: Path) -> Classifier:
    store.get_artifact(digest, folder)
    classifier = Classifier(folder, threads=machine.threads())
    classifier.warm_up()
    return classifier


def _data(folder: Path) -> tuple[Path, Path, Path]:
    """Training texts, most without their labels; texts for ranges; held-out texts."""
    paths = [
        folder / "data" / f"{name}.jsonl" for name in ("training", "calibration", "evaluation")
    ]
    if not all(path.is_file() for path in paths):
        example = prepare(print)
        lines = budgeted(
            example.data("training"), labelled=LABELLED, unlabelled=UNLABELLED, seed=SEED
        )
        paths[0].parent.mkdir(exist_ok=True)
        paths[0].write_text("".join(json.dumps(line) + "\n" for line in lines))
        texts = ({"text": line["text"]} for line in lines[-CALIBRATION:])
        paths[1].write_text("".join(json.dumps(text) + "\n" for text in texts))
        paths[2].write_bytes(example.data("evaluation").read_bytes())
    training, calibration, evaluation = paths
    return training, calibration, evaluation


def _source(path: Path, **fields: Any) -> DataSource:
    return DataSource.model_validate({"uri": f"file://{path}", "textField": "text", **fields})


def _counts(split_name: str, counts: PairedCounts) -> dict[str, int]:
    return {
        f"{split_name}_examples": counts.examples,
        f"{split_name}_baseline_correct": counts.baseline_correct,
        f"{split_name}_lost": counts.lost,
        f"{split_name}_gained": counts.gained,
    }


def _write(
    work: _Work,
    space: Mapping[str, CompressionRecipeSpec],
    chosen: Sequence[Point],
    out: Path,
) -> None:
    rows: dict[Point, Figures | str] = {}
    for point in (Point(SOURCE, ()), *chosen):
        name = SOURCE if point.recipe == SOURCE else key(point.steps(space))
        made, timing = work.known("artifacts", name), work.known("timings", name)
        if made is not None and "reason" in made:
            rows[point] = made["reason"]
        elif made is not None and timing is not None:
            known = made | timing
            rows[point] = Figures(**{name: known[name] for name in Figures.__annotations__})
    comments = [
        "Real trials of the example's model, made by bench/search_trials.py; do not edit.",
        f"{work.known('about', 'machine')}; {work.held_out} held-out texts",
    ]
    write_table(out, rows, comments=comments)
    found = [asdict(figures) for figures in rows.values() if isinstance(figures, Figures)]
    print(f"{len(rows)} of {len(chosen) + 1} rows, {len(found)} with figures, in {out}")


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("state", type=Path, help="folder for all that is made")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prefixes-only", action="store_true", help="train")
    what.add_argument("--artifacts-only", action="store_true", help="train, quantize, evaluate")
    what.add_argument("--measure", action="store_true", help="train, quantize, evaluate, time")
    what.add_argument("--write", action="store_true", help="write the table of what there is")
    parser.add_argument("--limit", type=int, help="only the first so many prefixes")
    parser.add_argument("--held-out", type=int, default=3000, help="texts to evaluate on")
    parser.add_argument("--space", type=Path, default=SPACE, help="the recipes, as YAML")
    parser.add_argument("--out", type=Path, default=TABLE)
    return parser.parse_args()


if __name__ == "__main__":
    main()
