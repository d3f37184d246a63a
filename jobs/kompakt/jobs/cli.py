# SPDX-License-Identifier: Apache-2.0
"""`kompakt-job`: what the containers of Jobs and the init containers of serving pods start.

Each command imports what it needs and no more: fetching starts in a fraction of a second.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from kompakt.api.names import TASK_SPEC_PATH, TERMINATION_LOG


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.command == "run":
        return _run(options)
    from kompakt.jobs.errors import JobError

    try:
        if options.command == "fetch-artifact":
            _fetch_artifact(options)
        else:
            _fetch_data(options)
    except JobError as error:
        sys.stderr.write(f"{error.reason}: {error}\n")
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kompakt-job", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="run a task, and leave its result in the termination log")
    run.add_argument("--task", type=Path, default=Path(TASK_SPEC_PATH))
    run.add_argument("--termination-log", type=Path, default=Path(TERMINATION_LOG))
    run.add_argument(
        "--ahead",
        action="store_true",
        help="do only the part of a measurement that the target's limits do not change",
    )

    artifact = commands.add_parser(
        "fetch-artifact", help="copy an artifact out of the store, checked"
    )
    artifact.add_argument("--store", required=True, help="root of the store, as a URI")
    artifact.add_argument("--digest", required=True, help="sha256:… of the artifact")
    artifact.add_argument("--to", required=True, type=Path, help="folder to copy it into")

    data = commands.add_parser("fetch-data", help="write a data source as plain JSON Lines")
    data.add_argument("--source", required=True, help="a DataSource as JSON")
    data.add_argument("--to", required=True, type=Path, help="file to write")
    return parser


def _run(options: argparse.Namespace) -> int:
    from kompakt.jobs import machine

    # Before any library counts the node's CPUs and starts as many threads.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ.setdefault(name, str(machine.threads()))
    # Tokenizers are used before and after forks; their warning about it helps nobody.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if machine.threads() > 1 else "false")
    from kompakt.jobs.run import run

    return run(options.task, options.termination_log, ahead=options.ahead)


def _fetch_artifact(options: argparse.Namespace) -> None:
    from kompakt.jobs.store import Store

    Store(options.store).get_artifact(options.digest, options.to)


def _fetch_data(options: argparse.Namespace) -> None:
    from pydantic import ValidationError

    from kompakt.api.source import DataSource
    from kompakt.jobs.data.reader import read, write_normalised
    from kompakt.jobs.errors import TaskInvalid

    try:
        source = DataSource.model_validate_json(options.source)
    except ValidationError as error:
        raise TaskInvalid(f"--source is no DataSource: {error.errors()[0]['msg']}") from error
    dataset = read(source)
    options.to.parent.mkdir(parents=True, exist_ok=True)
    partial = options.to.with_name(f".{options.to.name}.partial")
    with partial.open("w", encoding="utf-8") as stream:
        write_normalised(dataset, stream)
    partial.replace(options.to)
