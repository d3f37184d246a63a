# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from kompakt.api.job import ImportTask
from kompakt.jobs.importing import import_model
from kompakt.jobs.store import Store
from kompakt.jobs.task import Workplace


@pytest.mark.slow
@pytest.mark.parametrize(
    ("roles", "examples", "source"),
    [
        (("calibration", "evaluation", "training"), 20, "training"),
        (("calibration", "evaluation"), 20, "calibration"),
        (("evaluation",), 20, None),
        (("training",), 0, ...),
    ],
    ids=["training", "calibration", "no such data", "not wanted"],
)
def test_the_analysis_is_stored_beside_the_baseline(
    workshop: Any, roles: tuple[str, ...], examples: int, source: Any
) -> None:
    """Under the artifact's digest; what sensitivity is taken from is never the evaluation data."""
    data = {
        role: {"uri": workshop.data(f"{role}.jsonl", 50, seed=seed), "labelField": "label"}
        for seed, role in enumerate(roles)
    }
    task = ImportTask.model_validate(
        {
            "model": {"uri": f"file://{workshop.checkpoint}", "maxSequenceLength": 40},
            "data": data,
            "analysisExamples": examples,
        }
    )
    scratch = workshop.root / "job"
    scratch.mkdir()
    place = Workplace(store=Store(workshop.store), scratch=scratch, threads=1)
    digest = import_model(task, place).artifact_digest
    document = place.store.get_json(f"analysis/{digest.replace(':', '-')}")
    if source is ...:
        assert document is None
        return
    assert document is not None
    parts = document["profile"]["parts"]
    assert list(parts) == [
        "embeddings",
        "layers.0.attention",
        "layers.0.feedForward",
        "layers.1.attention",
        "layers.1.feedForward",
        "head",
    ]
    assert document["profile"]["texts"] == 32
    assert document["hardware"]["cpuModel"]
    if source is None:
        assert "sensitivity" not in document
    else:
        assert (document["sensitivity"]["data"], document["sensitivity"]["texts"]) == (source, 20)
