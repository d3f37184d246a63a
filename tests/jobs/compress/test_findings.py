# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.jobs.conftest import Places

from kompakt.api.job import CompressTask, ImportTask
from kompakt.jobs.compress import findings as module
from kompakt.jobs.compress.chain import compress
from kompakt.jobs.compress.findings import Findings
from kompakt.jobs.compress.importance import fisher
from kompakt.jobs.compress.sensitivity import sensitivity
from kompakt.jobs.importing import import_model
from kompakt.jobs.store import Store

from .conftest import Bench

pytestmark = pytest.mark.slow

TEXTS = 24


@pytest.fixture
def bench(bench_of: Callable[[str], Bench]) -> Bench:
    """A tiny model and its texts."""
    return bench_of("bert")


@pytest.fixture
def known(tmp_path: Path) -> Findings:
    """Of an empty store."""
    return Findings(Store(f"file://{tmp_path / 'findings'}"))


def batches(bench: Bench, *, size: int = 8, shuffle: int | None = None) -> list[Any]:
    """The same texts in batches of another size, in another order."""
    chosen = list(range(TEXTS))
    if shuffle is not None:
        random.Random(shuffle).shuffle(chosen)
    return list(bench.data.batches(chosen, size))


def find(known: Findings, bench: Bench, some: list[Any] | None = None, **changes: Any) -> Any:
    """The Fisher information of these texts, in one list."""
    labels = changes.get("labels", bench.data.labels)
    units = known.fisher(bench.encoder, some or batches(bench), labels=labels)
    return torch.cat(units.all)


def refuse(*_args: Any, **_named: Any) -> Any:
    """Instead of what must not be computed again."""
    pytest.fail("computed again")


def test_scores_are_found_once_however_the_texts_are_batched(
    bench: Bench, known: Findings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit those of the first time."""
    first = find(known, bench)
    assert torch.equal(
        first, torch.cat(fisher(bench.encoder, batches(bench), labels=bench.data.labels).all)
    )
    monkeypatch.setattr(module, "fisher", refuse)
    assert torch.equal(find(known, bench), first)
    assert torch.equal(find(known, bench, batches(bench, size=5, shuffle=1)), first)


def test_curves_are_found_once(
    bench: Bench, known: Findings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And depend on what they are measured on."""
    scores = fisher(bench.encoder, batches(bench), labels=bench.data.labels)
    some = batches(bench)
    expected = sensitivity(bench.encoder, scores, fit_on=some, check_on=some[:1])
    assert known.sensitivity(bench.encoder, scores, fit_on=some, check_on=some[:1]) == expected
    with monkeypatch.context() as patch:
        patch.setattr(module, "sensitivity", refuse)
        assert known.sensitivity(bench.encoder, scores, fit_on=some, check_on=some[:1]) == expected
    assert known.sensitivity(bench.encoder, scores, fit_on=some, check_on=some[1:]) != expected
    scores.heads[0].neg_()
    assert known.sensitivity(bench.encoder, scores, fit_on=some, check_on=some[:1]) != expected


def other_weight(bench: Bench) -> dict[str, Any]:
    """One number of the last matrix."""
    with torch.no_grad():
        list(bench.encoder.parameters())[-2][0, 0] += 1.0
    return {}


def other_labels(bench: Bench) -> dict[str, Any]:
    """Of one text."""
    labels = list(bench.data.labels)
    labels[3] = (labels[3] + 1) % 3
    return {"labels": labels}


def other_texts(bench: Bench) -> dict[str, Any]:
    """One fewer."""
    return {"some": list(bench.data.batches(list(range(TEXTS - 1)), 8))}


@pytest.mark.parametrize("change", [other_weight, other_labels, other_texts])
def test_what_findings_follow_from_is_all_in_their_names(
    change: Callable[[Bench], dict[str, Any]], bench: Bench, known: Findings
) -> None:
    """Another model, another label, other texts: found anew, and as without a store."""
    first = find(known, bench)
    changes = change(bench)
    again = find(known, bench, **changes)
    assert not torch.equal(again, first)
    assert torch.equal(again, find(Findings(), bench, **changes))


def test_what_cannot_be_read_is_found_anew(bench: Bench, tmp_path: Path) -> None:
    """Half a file is none."""
    known = Findings(Store(f"file://{tmp_path / 'findings'}"))
    first = find(known, bench)
    (file,) = tmp_path.rglob("fisher-*.npy")
    file.write_bytes(file.read_bytes()[:-50])
    assert torch.equal(find(known, bench), first)
    file.write_bytes(b"")
    assert torch.equal(find(known, bench), first)


def test_pruning_uses_what_the_analysis_found(
    workshop: Any, place: Places, task: Callable[..., CompressTask]
) -> None:
    """And a second trial, that prunes less, what the first one did."""
    training = workshop.data("training.jsonl", 80)
    model = {"uri": f"file://{workshop.checkpoint}", "maxSequenceLength": 40}
    data = {"training": {"uri": training, "labelField": "label"}}
    body = {"model": model, "data": data, "analysisExamples": 64}
    import_model(ImportTask.model_validate(body), place())

    def kept(kind: str) -> int:
        return len(list(Path(workshop.store.removeprefix("file://")).rglob(f"{kind}-*.npy")))

    assert kept("fisher") == 1
    for permille in (700, 800):
        prune = {"samples": 64, "latencyKeepPermille": permille, "latencyPrecision": "Fp32"}
        compress(task({"prune": prune}), place())
        assert (kept("fisher"), kept("sensitivity")) == (1, 1)
    compress(task({"prune": prune | {"samples": 48}}), place())
    assert (kept("fisher"), kept("sensitivity")) == (2, 2)
