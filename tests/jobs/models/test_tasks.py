# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.jobs.conftest import write_checkpoint

from kompakt.api.source import ModelSource
from kompakt.jobs.errors import ModelUnsupported, TaskInvalid
from kompakt.jobs.models.checkpoint import inspect
from kompakt.jobs.models.load import load
from kompakt.jobs.models.tasks import check_task, task_of


@pytest.mark.parametrize(
    ("problem", "outputs", "task"),
    [
        (None, 1, "Regression"),
        (None, 2, "TextClassification"),
        ("regression", 1, "Regression"),
        ("single_label_classification", 3, "TextClassification"),
    ],
)
def test_a_task_follows_from_the_outputs(problem: str | None, outputs: int, task: str) -> None:
    """As transformers chooses its loss."""
    config = {} if problem is None else {"problem_type": problem}
    assert task_of(config, ["x"] * outputs, origin="here") == task


@pytest.mark.parametrize(
    ("problem", "outputs", "message"),
    [
        ("regression", 2, r"problem type regression and 2 outputs; a regression has one"),
        ("single_label_classification", 1, r"and 1 outputs; .*two or more: correct problem_type"),
        ("multi_label_classification", 4, r"supported are single_label_.* and regression"),
    ],
)
def test_heads_that_answer_otherwise_are_refused(problem: str, outputs: int, message: str) -> None:
    """With what can be served."""
    with pytest.raises(ModelUnsupported, match=message):
        task_of({"problem_type": problem}, ["x"] * outputs, origin="here")


@pytest.mark.parametrize(
    ("source", "found", "error", "message"),
    [
        ({}, "Regression", ModelUnsupported, r"has one output.* set model\.task to Regression"),
        (
            {"task": "Regression", "toleranceMicros": 1},
            "TextClassification",
            ModelUnsupported,
            r"several outputs.* set model\.task to TextClassification",
        ),
        ({"task": "Regression"}, "Regression", TaskInvalid, r"toleranceMicros is missing"),
        ({"toleranceMicros": 1}, "TextClassification", TaskInvalid, r"leave it out"),
    ],
)
def test_a_policy_says_what_its_model_does(
    source: dict[str, Any], found: Any, error: type[Exception], message: str
) -> None:
    """Anything else would be measured and served by a rule that nobody asked for."""
    with pytest.raises(error, match=message):
        check_task(ModelSource.model_validate({"uri": "hf://org/name"} | source), found)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
def test_a_number_equals_that_of_transformers(model_type: str, tmp_path: Path) -> None:
    """The one output is the number itself, with nothing applied to it."""
    from transformers import AutoModelForSequenceClassification

    folder = write_checkpoint(tmp_path / "model", model_type, labels=("stars",))
    reference = AutoModelForSequenceClassification.from_pretrained(
        folder, attn_implementation="eager"
    )
    checkpoint = inspect(folder, origin="test")
    assert (checkpoint.task, checkpoint.labels) == ("Regression", ("stars",))
    ids = torch.randint(4, 30, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = reference.eval()(ids, attention_mask=torch.ones_like(ids)).logits
        found = load(checkpoint)(ids, torch.ones_like(ids))
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
