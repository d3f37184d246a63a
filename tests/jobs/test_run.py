# SPDX-License-Identifier: Apache-2.0
"""Whole Jobs, as a pod's container runs them: task file in, exit code and termination log out."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kompakt.api.job import RESULT_MAX_BYTES, TaskResult
from kompakt.api.measure import PairedCounts
from kompakt.api.source import DataSource
from kompakt.jobs.cli import main
from kompakt.jobs.data.examples import first_look
from kompakt.jobs.data.reader import read
from kompakt.jobs.errors import Failed, InvalidInput, JobError
from kompakt.jobs.store import Store


class Jobs:
    """Runs tasks against one store."""

    def __init__(self, workshop: Any) -> None:
        self.workshop = workshop
        self.root: Path = workshop.root
        self.store = Store(workshop.store)

    def run(self, task: dict[str, Any] | str) -> tuple[int, TaskResult]:
        """The exit code and the termination message."""
        text = task if isinstance(task, str) else json.dumps(task)
        (self.root / "task.json").write_text(text)
        log = self.root / "termination-log"
        log.unlink(missing_ok=True)
        code = main(["run", "--task", str(self.root / "task.json"), "--termination-log", str(log)])
        raw = log.read_bytes()
        assert len(raw) <= RESULT_MAX_BYTES
        return code, TaskResult.model_validate_json(raw)

    def run_ahead(self, task: dict[str, Any]) -> tuple[int, TaskResult | None]:
        """The same for what is done before the target's limits hold."""
        path, log = self.root / "task.json", self.root / "termination-log"
        path.write_text(json.dumps(task))
        log.unlink(missing_ok=True)
        code = main(["run", "--ahead", "--task", str(path), "--termination-log", str(log)])
        return code, TaskResult.model_validate_json(log.read_bytes()) if log.exists() else None

    def import_task(self, **changes: Any) -> dict[str, Any]:
        """Imports the checkpoint, with evaluation data unless told otherwise."""
        model = {"uri": f"file://{self.workshop.checkpoint}", "maxSequenceLength": 40}
        data = {
            "evaluation": {
                "uri": self.workshop.data("evaluation.jsonl", 60),
                "labelField": "label",
                "sliceFields": ["domain"],
            }
        }
        body: dict[str, Any] = {"model": model, "data": data} | changes
        return {
            "kind": "Import",
            "store": self.workshop.store,
            "reportName": "run-import",
            "importModel": body,
        }

    def report(self, name: str) -> dict[str, Any]:
        """A stored report."""
        found = self.store.get_json(f"reports/{name}")
        assert isinstance(found, dict)
        return found


@pytest.fixture
def jobs(workshop: Any) -> Jobs:
    """Jobs over a checkpoint and an empty store."""
    return Jobs(workshop)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["DynamicInt8", "OpenVinoInt8"])
def test_the_whole_way(jobs: Jobs, method: str) -> None:
    """Import, compress, measure: each Job works on what the one before left in the store, in
    either runtime.
    """
    code, result = jobs.run(jobs.import_task())
    assert (code, result.outcome, result.reason) == (0, "Succeeded", "Succeeded")
    imported = result.imported
    assert imported is not None
    assert imported.labels == ["negative", "neutral", "positive"]
    assert imported.data_examples == {"evaluation": 60}
    assert 0 < imported.max_absolute_error_nanos < 100_000
    report = jobs.report("run-import")
    assert report["task"]["kind"] == "Import"
    assert report["result"]["imported"]["artifactDigest"] == imported.artifact_digest
    assert report["details"]["model"]["architecture"] == "BertForSequenceClassification"
    assert report["versions"]["onnxruntime"]

    training = {"uri": jobs.workshop.data("training.jsonl", 80, seed=3), "labelField": "label"}
    code, result = jobs.run(
        {
            "kind": "Compress",
            "store": jobs.workshop.store,
            "reportName": "run-trial-0",
            "compress": {
                "recipe": "prune-int8",
                "checkpointDigest": imported.source_digest,
                "baselineDigest": imported.artifact_digest,
                "steps": [
                    {"prune": {"ffnKeepPermille": 500}},
                    {"quantize": {"method": method, "samples": 16}},
                ],
                "training": training,
            },
        }
    )
    assert code == 0
    compressed = result.compressed
    assert compressed is not None

    evaluation = jobs.import_task()["importModel"]["data"]["evaluation"]
    measure = {
        "kind": "Measure",
        "store": jobs.workshop.store,
        "reportName": "run-measure-0",
        "measure": {
            "target": "edge",
            "baselineDigest": imported.artifact_digest,
            "candidateDigest": compressed.artifact_digest,
            "evaluation": evaluation,
            "benchmarkRounds": 5,
            "benchmarkSeconds": 1,
        },
    }
    assert jobs.run_ahead(measure) == (0, None)
    answers = list((jobs.root / "store" / "predictions").iterdir())
    assert len(answers) == 2
    code, result = jobs.run(measure)
    assert code == 0
    assert list((jobs.root / "store" / "predictions").iterdir()) == answers
    assert result.measured is not None
    measurement = result.measured.measurement
    assert measurement.target == "edge"
    counts = measurement.evaluation
    assert counts.selection.examples + counts.confirmation.examples == 60
    assert counts.confirmation.lost + counts.confirmation.gained <= (
        counts.confirmation.disagreements
    )
    assert {s.value for s in counts.slices} == {"short", "long"}
    benchmark = measurement.benchmark
    assert benchmark.rounds == 5
    assert benchmark.speedup_low_permille <= benchmark.speedup_permille
    assert benchmark.baseline.p50_microseconds > 0
    assert 20 < benchmark.candidate.peak_memory_mebibytes < 400
    assert benchmark.hardware.cpu_millis >= 1000


def test_wrong_input_is_found_ahead(jobs: Jobs) -> None:
    """The container before the benchmark says what is wrong itself; nobody reads its log."""
    _, imported = jobs.run(jobs.import_task())
    assert imported.imported is not None
    digest = imported.imported.artifact_digest
    evaluation = {"uri": jobs.workshop.data("other.jsonl", 8), "labelField": "mood"}
    body = {
        "target": "edge",
        "baselineDigest": digest,
        "candidateDigest": digest,
        "evaluation": evaluation,
    }
    task = {"kind": "Measure", "store": jobs.workshop.store, "reportName": "r", "measure": body}
    code, result = jobs.run_ahead(task)
    assert code == 42
    assert result is not None
    assert result.outcome == "InvalidInput"
    assert "'mood' is missing" in result.message


def test_only_a_measurement_has_something_to_do_ahead(jobs: Jobs) -> None:
    """Told to do another task ahead, the program says so."""
    code, result = jobs.run_ahead(jobs.import_task())
    assert code == 42
    assert result is not None
    assert "nothing of a task of kind Import" in result.message


@pytest.mark.slow
def test_a_baseline_measured_against_itself(jobs: Jobs) -> None:
    """The same artifact twice: no answer differs, and the speedup is about one."""
    _, result = jobs.run(jobs.import_task())
    assert result.imported is not None
    digest = result.imported.artifact_digest
    code, result = jobs.run(
        {
            "kind": "Measure",
            "store": jobs.workshop.store,
            "reportName": "self",
            "measure": {
                "target": "edge",
                "baselineDigest": digest,
                "candidateDigest": digest,
                "evaluation": jobs.import_task()["importModel"]["data"]["evaluation"],
                "benchmarkRounds": 9,
                "benchmarkSeconds": 1,
            },
        }
    )
    assert code == 0
    assert result.measured is not None
    measurement = result.measured.measurement
    assert measurement.evaluation.confirmation.disagreements == 0
    assert 0.6 < measurement.benchmark.speedup_permille / 1000 < 1.6


@pytest.mark.slow
def test_a_first_look_leaves_the_rest_alone(jobs: Jobs) -> None:
    """Only a part of the selection split is answered, and nothing of the confirmation split."""
    _, result = jobs.run(jobs.import_task())
    assert result.imported is not None
    digest = result.imported.artifact_digest
    measure: dict[str, Any] = {
        "kind": "Measure",
        "store": jobs.workshop.store,
        "reportName": "look",
        "measure": {
            "target": "edge",
            "baselineDigest": digest,
            "candidateDigest": digest,
            "evaluation": jobs.import_task()["importModel"]["data"]["evaluation"],
            **dict.fromkeys(("selectionPermille", "firstLookPermille"), 500),
            "benchmarkRounds": 5,
            "benchmarkSeconds": 1,
        },
    }
    assert jobs.run_ahead(measure) == (0, None)
    code, result = jobs.run(measure)
    texts = read(DataSource.model_validate(measure["measure"]["evaluation"]))

    assert result.measured is not None, result
    seen = result.measured.measurement.evaluation
    part = first_look(texts.examples, selection=500, share=500)
    assert seen.selection.examples == len(part) < len(texts.examples) / 2
    assert seen.confirmation == PairedCounts()
    measure["measure"]["selectionPermille"] = 0
    code, result = jobs.run(measure)
    assert (code, result.reason) == (42, "DataInvalid")
    assert "a first look needs more examples" in result.message


def test_importing_again_gives_the_same_digests(jobs: Jobs) -> None:
    """A Job that runs twice comes to the same addresses."""
    first = jobs.run(jobs.import_task())[1].imported
    again = jobs.run(jobs.import_task())[1].imported
    assert first == again


@pytest.mark.slow
def test_models_can_be_pinned(jobs: Jobs) -> None:
    """A digest in the model source accepts that content alone, and the message has the other."""
    imported = jobs.run(jobs.import_task())[1].imported
    assert imported is not None
    model = jobs.import_task()["importModel"]["model"]
    right = model | {"digest": imported.source_digest}
    assert jobs.run(jobs.import_task(model=right))[0] == 0
    wrong = model | {"digest": "sha256:" + "0" * 64}
    code, result = jobs.run(jobs.import_task(model=wrong))
    assert (code, result.reason) == (42, "DigestMismatch")
    assert imported.source_digest in result.message


def evaluation(jobs: Jobs, **changes: Any) -> dict[str, Any]:
    """Data with something wrong in it."""
    source = jobs.import_task()["importModel"]["data"]["evaluation"]
    return {"evaluation": {k: v for k, v in (source | changes).items() if v is not None}}


@pytest.mark.parametrize(
    ("changes", "reason", "message"),
    [
        ({"textField": "body"}, "DataInvalid", r"'body' is missing in line 1 of"),
        ({"labelField": "stars"}, "DataInvalid", r"'stars' is missing .* set labelField"),
        ({"labelField": None}, "DataInvalid", r"data.evaluation must be labelled: set data"),
        ({"labelField": "domain"}, "LabelUnknown", r"none of the model's labels \(negative, neu"),
        ({"uri": "file:///nowhere.jsonl"}, "SourceUnreadable", r"nowhere.jsonl cannot be read"),
        ({"uri": "gs://bucket/x.jsonl"}, "SourceUnreadable", r"gs://bucket/x.jsonl cannot be open"),
        ({"digest": "sha256:" + "0" * 64}, "DigestMismatch", r"but sha256:0+ is asked for"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_wrong_data_is_never_retried(
    jobs: Jobs, changes: dict[str, Any], reason: str, message: str
) -> None:
    """Exit 42, a reason for the condition, and a sentence with the mend; before torch is loaded."""
    code, result = jobs.run(jobs.import_task(data=evaluation(jobs, **changes)))
    assert (code, result.outcome, result.reason) == (42, "InvalidInput", reason)
    assert re.search(message, result.message), result.message
    assert "import torch" not in jobs.report("run-import")["seconds"]
    assert jobs.report("run-import")["result"]["reason"] == reason


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("{", r"task\.json is wrong: "),
        ('{"kind": "Import", "reportName": "x"}', r"store: Field required"),
        ('{"kind": "Import", "store": "file:///x", "reportName": "x"}', r"not none"),
        (
            json.dumps(
                {
                    "kind": "Measure",
                    "store": "file:///x",
                    "reportName": "x",
                    "importModel": {"model": {"uri": "file:///x"}},
                }
            ),
            r"a task of kind Measure has exactly the member measure, not import_model",
        ),
    ],
    ids=["no JSON", "no store", "no member", "another member"],
)
def test_a_wrong_task_is_never_retried(jobs: Jobs, task: str, message: str) -> None:
    """Whatever is in the ConfigMap, the operator gets a result."""
    code, result = jobs.run(task)
    assert (code, result.outcome, result.reason) == (42, "InvalidInput", "TaskInvalid")
    assert re.search(message, result.message), result.message


def test_a_store_that_is_not_there_is_retried(jobs: Jobs) -> None:
    """A store that cannot be written is a failure of the cluster, not of the policy."""
    (jobs.root / "file").write_text("")
    code, result = jobs.run(jobs.import_task() | {"store": f"file://{jobs.root}/file/store"})
    assert (code, result.outcome, result.reason) == (1, "Failed", "StoreUnavailable")


def test_an_artifact_that_is_gone_is_said_so(jobs: Jobs) -> None:
    """A task that names what the store does not hold fails with the digest's folder."""
    digest = "sha256:" + "0" * 64
    code, result = jobs.run(
        {
            "kind": "Compress",
            "store": jobs.workshop.store,
            "reportName": "x",
            "compress": {
                "recipe": "int8",
                "checkpointDigest": digest,
                "baselineDigest": digest,
                "steps": [{"quantize": {}}],
            },
        }
    )
    assert (code, result.outcome, result.reason) == (1, "Failed", "ArtifactMissing")
    assert "artifacts/sha256-000" in result.message


def test_a_defect_still_leaves_a_result(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that nobody expected becomes a result, and its details go to the log."""
    monkeypatch.setattr("kompakt.jobs.importing.fetch", lambda *_: 1 / 0)
    code, result = jobs.run(jobs.import_task())
    assert (code, result.outcome, result.reason) == (1, "Failed", "Unexpected")
    assert "ZeroDivisionError" in result.message


def test_a_termination_log_that_cannot_be_written_is_no_defect(
    jobs: Jobs, capsys: pytest.CaptureFixture[str]
) -> None:
    """The result is on stdout too, as its last line."""
    (jobs.root / "task.json").write_text("{")
    log = jobs.root / "absent/log"
    arguments = ["run", "--task", str(jobs.root / "task.json"), "--termination-log", str(log)]
    assert main(arguments) == 42
    captured = capsys.readouterr()
    last = captured.out.strip().splitlines()[-1]
    assert TaskResult.model_validate_json(last).reason == "TaskInvalid"
    assert "the termination log cannot be written" in captured.err


@pytest.mark.slow
def test_artifacts_can_be_fetched(
    jobs: Jobs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The init container's command copies an artifact, and fails with one sentence."""
    imported = jobs.run(jobs.import_task())[1].imported
    assert imported is not None
    arguments = ["fetch-artifact", "--store", jobs.workshop.store, "--to", str(tmp_path / "to")]
    assert main([*arguments, "--digest", imported.artifact_digest]) == 0
    assert {p.name for p in (tmp_path / "to").iterdir()} == {
        "model.onnx",
        "tokenizer.json",
        "variant.json",
    }
    capsys.readouterr()
    assert main([*arguments, "--digest", "sha256:" + "0" * 64]) == 1
    assert capsys.readouterr().err.startswith("ArtifactMissing: the store file://")


def test_data_can_be_fetched(
    jobs: Jobs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The init container's command writes plain JSON Lines, whatever the names were."""
    (tmp_path / "a.csv").write_text("review,stars,shop\ngood film,2,x\n", encoding="utf-8")
    source = {
        "uri": f"file://{tmp_path}/a.csv",
        "textField": "review",
        "labelField": "stars",
        "sliceFields": ["shop"],
    }
    target = tmp_path / "deep/golden.jsonl"
    assert main(["fetch-data", "--source", json.dumps(source), "--to", str(target)]) == 0
    assert [json.loads(line) for line in target.read_text().splitlines()] == [
        {"text": "good film", "label": 2, "slices": {"shop": "x"}}
    ]
    capsys.readouterr()
    assert main(["fetch-data", "--source", "{}", "--to", str(target)]) == 42
    assert capsys.readouterr().err.startswith("TaskInvalid: --source is no DataSource")


@pytest.mark.parametrize(
    "module",
    ["kompakt.jobs.store", "kompakt.jobs.data.reader", "kompakt.jobs.measure"],
)
def test_torch_stays_out(module: str) -> None:
    """Fetching and measuring import neither torch nor transformers; fetching no runtime either."""
    program = (
        f"import sys, kompakt.jobs.cli, {module};"
        "print([m for m in ('torch', 'transformers', 'onnx', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def leaves(kind: type[JobError]) -> set[type[JobError]]:
    """All classes below one."""
    return {k for child in kind.__subclasses__() for k in {child} | leaves(child)}


def test_every_error_is_drawn() -> None:
    """The tree in the docstring has every class, and every class knows its exit code."""
    from kompakt.jobs import errors

    assert errors.__doc__ is not None
    for kind in leaves(JobError):
        assert f"── {kind.__name__} " in errors.__doc__
        assert kind("x").reason == kind.__name__
        assert kind.exit_code == (42 if issubclass(kind, InvalidInput) else 1)
        assert kind.outcome == ("InvalidInput" if issubclass(kind, InvalidInput) else "Failed")
        assert issubclass(kind, InvalidInput | Failed)
