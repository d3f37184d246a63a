# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from tests.jobs.conftest import make_texts, write_checkpoint
from tokenizers import Tokenizer

from kompakt.api.source import ModelSource
from kompakt.jobs.errors import ModelUnsupported, TaskInvalid
from kompakt.jobs.models.architectures import ARCHITECTURES, BERT
from kompakt.jobs.models.checkpoint import inspect
from kompakt.jobs.models.export import export, parity
from kompakt.jobs.models.load import load, save
from kompakt.jobs.models.session import open_files
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
    assert task_of(BERT, config, ["x"] * outputs, origin="here") == task


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
        task_of(BERT, {"problem_type": problem}, ["x"] * outputs, origin="here")


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


def test_a_token_classifier_is_told_by_its_class(tmp_path: Path) -> None:
    """Its head is one matrix; one output of it would be no choice."""
    checkpoint = inspect(write_checkpoint(tmp_path / "a", each_token=True), origin="test")
    assert checkpoint.task == "TokenClassification"
    assert checkpoint.architecture.class_name == "BertForTokenClassification"
    assert checkpoint.parameters == load(checkpoint).parameter_count
    folder = write_checkpoint(tmp_path / "b", each_token=True, labels=("x",))
    with pytest.raises(ModelUnsupported, match=r"BertForTokenClassification with one output"):
        inspect(folder, origin="test")


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_labels_of_tokens_equal_those_of_transformers(model_type: str, tmp_path: Path) -> None:
    """Of every architecture, beside padding too; and still so once it was saved again."""
    from transformers import AutoModelForTokenClassification

    folder = write_checkpoint(tmp_path / "model", model_type, each_token=True)
    reference, info = AutoModelForTokenClassification.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"]
    checkpoint = inspect(folder, origin="test")
    save(load(checkpoint), checkpoint, tmp_path / "again")
    ids = torch.randint(4, 30, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[1, -4:] = checkpoint.config["pad_token_id"]
    mask[1, -4:] = 0
    with torch.no_grad():
        expected = reference.eval()(ids, attention_mask=mask).logits
        for path in (folder, tmp_path / "again"):
            found = load(inspect(path, origin="test"))(ids, mask)
            assert expected.std() > 0.1
            torch.testing.assert_close(
                found[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=1e-4
            )


@pytest.mark.slow
def test_an_exported_token_classifier_answers_as_torch_does(tmp_path: Path) -> None:
    """Of any length and batch, in both runtimes; what OpenVINO fills up is no part of an answer."""
    folder = write_checkpoint(tmp_path / "model", each_token=True)
    checkpoint = inspect(folder, origin="test")
    encoder, names = load(checkpoint), checkpoint.architecture.input_names
    path = tmp_path / "model.onnx"
    export(encoder, path, input_names=names)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    encodings = tokenizer.encode_batch(make_texts(12))
    assert parity(encoder, path, encodings, input_names=names, pad_id=0, threads=1) < 1e-4
    openvino.save_model(openvino.Core().read_model(path), tmp_path / "model.xml", False)
    ours = open_files(path, "OnnxRuntime", "Float32", longest=40, threads=1)
    theirs = open_files(tmp_path / "model.xml", "OpenVino", "Float32", longest=40, threads=1)
    for length in (3, 8, 19):
        ids = np.random.default_rng(length).integers(4, 30, (2, length))
        batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        batch["token_type_ids"] = np.zeros_like(ids)
        found = theirs.run(batch)
        assert found.shape == (2, length, 3)
        np.testing.assert_allclose(found, ours.run(batch), atol=1e-4)
