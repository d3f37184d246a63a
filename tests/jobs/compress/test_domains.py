# SPDX-License-Identifier: Apache-2.0
"""The weights of a policy's slices, all the way through the steps that look at texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.jobs.conftest import LABELS, Places, make_texts, write_jsonl

from kompakt.api.artifact import ArtifactFile
from kompakt.api.job import CompressTask
from kompakt.jobs.compress.chain import compress
from kompakt.jobs.compress.distill import chosen_texts
from kompakt.jobs.data.examples import Example

pytestmark = pytest.mark.slow

WANTED, OTHERS = 1100, 300
"""More of the wanted ones than any step but distill looks at; distill shows all of them twice."""
STEPS: tuple[dict[str, Any], ...] = (
    {"prune": {"ffnKeepPermille": 500, "headKeepPermille": 750, "samples": 32}},
    {"distill": {"examples": 2 * WANTED, "precision": "Float32", "crossover": "Enabled"}},
    {"quantize": {"method": "StaticInt8", "samples": 32}},
)
WEIGHTS = [
    {"field": "domain", "value": "wanted", "weightPermille": 1_000_000},
    {"field": "domain", "value": "others", "weightPermille": 1},
]


@pytest.fixture
def run(
    workshop: Any, task: Callable[..., CompressTask], place: Places
) -> Callable[..., tuple[list[ArtifactFile], dict[str, Any]]]:
    """Compresses; returns the model's files and the report."""

    def data(name: str, others: int) -> dict[str, Any]:
        """Two domains, one after the other; `others` is the seed of the second."""
        rows = [
            {"text": text, "label": LABELS[len(text) % 3], "domain": domain}
            for domain, count, seed in (("wanted", WANTED, 1), ("others", OTHERS, others))
            for text in make_texts(count, seed=seed)
        ]
        return {"uri": write_jsonl(workshop.root / name, rows), "sliceFields": ["domain"]}

    def make(
        *, weighted: bool, training: int = 2, calibration: int = 3
    ) -> tuple[list[ArtifactFile], dict[str, Any]]:
        weights = {"sliceWeights": WEIGHTS if weighted else []}
        made = place()
        result = compress(
            task(
                *STEPS,
                training=data("training.jsonl", training) | {"labelField": "label"} | weights,
                calibration=data("calibration.jsonl", calibration) | weights,
            ),
            made,
        )
        return made.store.get_artifact(result.artifact_digest, made.scratch / "x").files, (
            made.details
        )

    return make


def test_every_step_draws_by_the_weights(
    run: Callable[..., tuple[list[ArtifactFile], dict[str, Any]]],
) -> None:
    """With all weight on one domain, the texts of the other may be any: pruning, distillation and
    the ranges of static quantization are the same to the last bit. Without weights, each of them
    sees what has changed.
    """
    files, details = run(weighted=True)
    same, again = run(weighted=True, training=12, calibration=13)
    assert same == files
    for step in ("prune", "distill"):
        assert again[step] == details[step]
    assert "resumedAfterSteps" not in again

    files, details = run(weighted=False)
    _, trained = run(weighted=False, training=12)
    assert trained["prune"]["headImportance"] != details["prune"]["headImportance"]
    assert trained["distill"]["heldOutLosses"] != details["distill"]["heldOutLosses"]
    calibrated, resumed = run(weighted=False, calibration=13)
    assert resumed["resumedAfterSteps"] == 2
    assert calibrated != files


@pytest.mark.parametrize("examples", [60, 600])
def test_distillation_shows_a_text_as_often_as_its_weight_says(
    examples: int, bench_of: Callable[[str], Any]
) -> None:
    """Also where all are shown several times over; and held-out texts are of the same kind, but
    never so many that few are left to train on.
    """
    data = bench_of("bert").data
    count = len(data)
    heavy = set(range(0, count, 4))
    weighted = tuple(
        Example(text=example.text, weight=6.0 if n in heavy else 1.0)
        for n, example in enumerate(data.dataset.examples)
    )
    dataset = replace(data.dataset, examples=weighted)
    excess, held = [], []
    for seed in range(12):
        shown, held_out = chosen_texts(replace(data, dataset=dataset, seed=seed), examples)
        assert len(shown) == examples
        assert not set(shown) & set(held_out)
        held.append(len(heavy & set(held_out)) / len(held_out))
        assert len(heavy & set(held_out)) < len(heavy) / 2
        if examples == 600:
            assert set(shown) | set(held_out) == set(range(count))
        heavies = 6 * len(heavy - set(held_out))
        share = heavies / (heavies + count - len(heavy | set(held_out)))
        excess.append(sum(n in heavy for n in shown) / examples - share)
    assert sum(excess) / len(excess) == pytest.approx(0, abs=0.03)
    assert sum(held) / len(held) > 0.4, "by number it would be a quarter"


def test_without_weights_held_out_texts_are_the_last_drawn(
    bench_of: Callable[[str], Any],
) -> None:
    """Pruning has seen the first; and all are shown once before any is shown again."""
    data = bench_of("bert").data
    shown, held_out = chosen_texts(data, 2 * len(data))
    pool = data.order()[: -len(held_out)]
    assert held_out == data.order()[len(pool) :]
    assert shown == (3 * pool)[: 2 * len(data)]
