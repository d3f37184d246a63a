# SPDX-License-Identifier: Apache-2.0
"""Runs one task: from the TaskSpec in a file to the TaskResult in the termination log, whatever
happens between.

The result is written even when the work fails; only a Job killed from outside (memory, eviction)
leaves none.
"""

from __future__ import annotations

import contextlib
import platform
import sys
import tempfile
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kompakt.api.job import TaskKind, TaskResult, TaskSpec
from kompakt.jobs import machine
from kompakt.jobs.errors import JobError, StoreUnavailable, TaskInvalid
from kompakt.jobs.progress import say
from kompakt.jobs.result import encode, shorten
from kompakt.jobs.store import Store
from kompakt.jobs.task import TaskOutput, Workplace

LIBRARIES = (
    "kompakt",
    "onnxruntime",
    "openvino",
    "nncf",
    "onnx",
    "tokenizers",
    "torch",
    "transformers",
    "numpy",
)


def run(task_path: Path, termination_log: Path, *, ahead: bool = False) -> int:
    """Runs the task in a file and returns the exit code.

    Args:
        task_path: A TaskSpec as JSON.
        termination_log: Gets the TaskResult.
        ahead: Do only what needs no limits of the target (`kompakt.jobs.measure.answer`). The
            container after this one goes on and reports, so only a failure leaves a result.
    """
    started = time.monotonic()
    kind: TaskKind = "Import"
    place: Workplace | None = None
    spec: TaskSpec | None = None
    exit_code = 0
    with tempfile.TemporaryDirectory(prefix="kompakt-") as scratch:
        try:
            spec = _read_task(task_path)
            kind = spec.kind
            place = Workplace(
                store=Store(spec.store), scratch=Path(scratch), threads=machine.threads()
            )
            say(
                f"{kind} with {place.threads} threads, {machine.memory_mebibytes():,} MiB of memory"
            )
            if ahead:
                _perform_ahead(spec, place)
                return 0
            result = _succeeded(kind, _perform(spec, place))
        except JobError as error:
            exit_code = error.exit_code
            result = TaskResult(
                kind=kind,
                outcome=error.outcome,
                reason=error.reason,
                message=shorten(str(error)),
            )
        except Exception as error:  # noqa: BLE001 whatever it was, the operator must learn of it
            traceback.print_exc()
            exit_code = 1
            result = TaskResult(
                kind=kind,
                outcome="Failed",
                reason="Unexpected",
                message=shorten(f"{type(error).__name__}: {error}; the Job's log has the details"),
            )
        if spec is not None and place is not None:
            report = _report(spec, result, place, seconds=time.monotonic() - started)
            try:
                place.store.put_json(f"reports/{spec.report_name}", report)
            except StoreUnavailable as error:
                sys.stderr.write(f"the report is lost: {error}\n")
    _write_result(result, termination_log)
    return exit_code


def _read_task(path: Path) -> TaskSpec:
    try:
        spec = TaskSpec.model_validate_json(path.read_bytes())
    except OSError as error:
        raise TaskInvalid(f"the task {path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise TaskInvalid(f"the task {path} is wrong: {where}: {first['msg']}") from error
    wanted = {"Import": "import_model", "Compress": "compress", "Measure": "measure"}
    given = [name for name in wanted.values() if getattr(spec, name) is not None]
    if given != [wanted[spec.kind]]:
        raise TaskInvalid(
            f"a task of kind {spec.kind} has exactly the member {wanted[spec.kind]}, not"
            f" {' and '.join(given) or 'none'}"
        )
    return spec


def _perform(spec: TaskSpec, place: Workplace) -> TaskOutput:
    if spec.import_model is not None:
        from kompakt.jobs.importing import import_model

        return import_model(spec.import_model, place)
    if spec.compress is not None:
        from kompakt.jobs.compress.chain import compress

        return compress(spec.compress, place)
    if spec.measure is not None:
        from kompakt.jobs.measure import measure

        return measure(spec.measure, place)
    raise AssertionError(spec.kind)  # _read_task saw to it


def _perform_ahead(spec: TaskSpec, place: Workplace) -> None:
    from kompakt.jobs.measure import answer

    if spec.measure is None:
        raise TaskInvalid(f"nothing of a task of kind {spec.kind} can be done ahead")
    answer(spec.measure, place)


def _succeeded(kind: TaskKind, output: TaskOutput) -> TaskResult:
    member = {"Import": "imported", "Compress": "compressed", "Measure": "measured"}[kind]
    return TaskResult(kind=kind, outcome="Succeeded", reason="Succeeded").evolve(**{member: output})


def _report(
    spec: TaskSpec, result: TaskResult, place: Workplace, *, seconds: float
) -> dict[str, Any]:
    return {
        "task": spec.to_wire(),
        "result": result.to_wire(),
        "details": place.details,
        "seconds": place.seconds | {"all": round(seconds, 3)},
        "hardware": machine.hardware(threads_used=place.threads).to_wire(),
        "versions": {"python": platform.python_version()} | _versions(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _write_result(result: TaskResult, termination_log: Path) -> None:
    encoded = encode(result)
    say(encoded.decode())
    try:
        termination_log.write_bytes(encoded)
    except OSError as error:
        sys.stderr.write(f"the termination log cannot be written: {error}\n")
