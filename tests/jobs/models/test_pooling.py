# SPDX-License-Identifier: Apache-2.0
"""Models without a head: what their embedding is, against that of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.jobs.conftest import make_texts, write_checkpoint, write_layout
from tokenizers import Tokenizer

from kompakt.api.source import ModelSource
from kompakt.jobs.compress.first_token import narrow
from kompakt.jobs.errors import ModelUnsupported, SourceUnreadable, TaskInvalid
from kompakt.jobs.models.architectures import ARCHITECTURES
from kompakt.jobs.models.checkpoint import file_names, inspect
from kompakt.jobs.models.export import export, parity
from kompakt.jobs.models.load import load, save
from kompakt.jobs.models.pooling import Pooling, pooling_files, read_pooling
from kompakt.jobs.models.session import OnnxSession
from kompakt.jobs.models.source import fetch
from kompakt.jobs.models.tasks import check_task
from kompakt.jobs.models.text import pad

pytestmark = pytest.mark.slow


def inputs(pad_id: int) -> dict[str, torch.Tensor]:
    """Three texts, one of them padded."""
    ids = torch.randint(4, 30, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[1, -5:], mask[1, -5:] = pad_id, 0
    return {"input_ids": ids, "attention_mask": mask}


def reference(folder: Path, given: dict[str, torch.Tensor], pooling: Pooling) -> torch.Tensor:
    """Written out: the states of transformers, pooled and normalized."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        states = model(**given).last_hidden_state
    mask = given["attention_mask"][..., None]
    mean = (states * mask).sum(1) / mask.sum(1)
    pooled = mean if pooling.tokens == "Mean" else states[:, 0]
    return torch.nn.functional.normalize(pooled, dim=1) if pooling.normalize else pooled


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
@pytest.mark.parametrize(("mode", "normalize"), [("mean_tokens", True), ("cls_token", False)])
def test_embeddings_equal_those_of_transformers(
    model_type: str, mode: str, *, normalize: bool, tmp_path: Path
) -> None:
    """Of every architecture and pooling, beside padding too; and once it was saved again, which
    takes the pooling along.
    """
    folder = write_checkpoint(tmp_path / "model", model_type, embeds=True)
    write_layout(folder, mode=mode, normalize=normalize)
    checkpoint = inspect(folder, origin="test")
    assert (checkpoint.task, checkpoint.labels) == ("SentenceEmbedding", ("embedding",))
    assert checkpoint.parameters == load(checkpoint).parameter_count
    save(load(checkpoint), checkpoint, tmp_path / "again")
    assert checkpoint.pooling is not None
    given = inputs(checkpoint.config["pad_token_id"])
    expected = reference(folder, given, checkpoint.pooling)
    assert expected.std() > 0.05
    for path in (folder, tmp_path / "again"):
        found = inspect(path, origin="test")
        assert found.pooling == Pooling(tokens=checkpoint.pooling.tokens, normalize=normalize)
        with torch.no_grad():
            answer = load(found)(**given)
        torch.testing.assert_close(answer, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_weights_of_a_model_with_a_head_are_found_too(tmp_path: Path) -> None:
    """Files of old have the class of pretraining, its names, and its heads; those do no harm."""
    folder = write_layout(write_checkpoint(tmp_path / "model", embeds=True))
    expected = load(inspect(folder, origin="test")).state_dict()
    state = {
        f"bert.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()
    }
    state["bert.pooler.dense.weight"] = torch.zeros(4, 4)
    state["cls.predictions.bias"] = torch.zeros(4)
    save_file(state, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    found = load(inspect(folder, origin="test")).state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_without_a_word_of_the_checkpoint_it_is_the_normalized_mean(tmp_path: Path) -> None:
    """And it is known that nobody said so."""
    checkpoint = inspect(write_checkpoint(tmp_path / "model", embeds=True), origin="test")
    assert checkpoint.pooling == Pooling(tokens="Mean", normalize=True, declared=False)
    assert str(checkpoint.pooling) == "the mean of all tokens, normalized"
    given = inputs(0)
    with torch.no_grad():
        found = load(checkpoint)(**given)
        short = {name: tensor[1:2, :7] for name, tensor in given.items()}
        alone = load(checkpoint)(**short)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(found[1:2], alone, atol=1e-5, rtol=1e-5)  # padding has no part


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({"pooling_mode": "mean", "embedding_dimension": 64}, "Mean"),
        ({"pooling_mode": "cls"}, "First"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "First"),
    ],
)
def test_both_ways_of_writing_a_pooling(
    settings: dict[str, Any], tokens: str, tmp_path: Path
) -> None:
    """By flags, and by name."""
    folder = write_layout(tmp_path)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    assert read_pooling(folder, origin="test").tokens == tokens


def module(kind: str, path: str = "") -> dict[str, str]:
    """An entry of modules.json."""
    return {"path": path, "type": f"sentence_transformers.models.{kind}"}


TRANSFORMER, POOLING = module("Transformer"), module("Pooling", "1_Pooling")
DENSE = module("Dense", "2_Dense")


def broken(name: str, content: Any) -> Callable[[Path], object]:
    """Writes other content into one of the files."""
    text = content if isinstance(content, str) else json.dumps(content)
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            broken("modules.json", [TRANSFORMER, POOLING, DENSE]),
            ModelUnsupported,
            r"the modules Transformer, Pooling, Dense; supported are a Transformer",
        ),
        (broken("modules.json", [{"path": ""}]), ModelUnsupported, r"the modules None; supported"),
        (
            broken("modules.json", [module("Transformer", "0_BERT"), POOLING]),
            ModelUnsupported,
            r"keeps its encoder in the folder 0_BERT; save it again",
        ),
        (
            broken("modules.json", [TRANSFORMER, module("Pooling", "../other")]),
            SourceUnreadable,
            r"names no folder for its Pooling",
        ),
        (broken("modules.json", "{"), SourceUnreadable, r"modules\.json of test is no JSON"),
        (broken("modules.json", {}), SourceUnreadable, r"modules\.json of test is no JSON list"),
        (
            lambda folder: (folder / "1_Pooling" / "config.json").unlink(),
            SourceUnreadable,
            r"test has no 1_Pooling/config\.json, which modules\.json names; copy it too",
        ),
        (
            broken("1_Pooling/config.json", {"pooling_mode_max_tokens": True}),
            ModelUnsupported,
            r"pools by max_tokens; supported is either mean_tokens or cls_token",
        ),
        (
            broken("1_Pooling/config.json", {"pooling_mode": ["mean", "max"]}),
            ModelUnsupported,
            r"pools by mean_tokens and max; supported",
        ),
        (
            broken("1_Pooling/config.json", {}),
            ModelUnsupported,
            r"pools by nothing; supported",
        ),
        (
            broken("sentence_bert_config.json", {"do_lower_case": True}),
            ModelUnsupported,
            r"has do_lower_case, .* put a Lowercase normalizer into tokenizer\.json",
        ),
        (
            broken(
                "config_sentence_transformers.json",
                {"default_prompt_name": "query", "prompts": {"query": "query: "}},
            ),
            ModelUnsupported,
            r"puts the prompt 'query' before each text.* set default_prompt_name to null",
        ),
    ],
)
def test_an_embedding_that_the_graph_could_not_give_is_refused(
    damage: Callable[[Path], object], error: type[Exception], message: str, tmp_path: Path
) -> None:
    """Instead of serving another one."""
    folder = write_layout(write_checkpoint(tmp_path / "model", embeds=True))
    damage(folder)
    with pytest.raises(error, match=message):
        inspect(folder, origin="test")


@pytest.mark.parametrize(
    ("source", "found", "error", "message"),
    [
        (
            {},
            "SentenceEmbedding",
            ModelUnsupported,
            r"has no head, which is SentenceEmbedding; .*to SentenceEmbedding, or fine-tune",
        ),
        (
            {"task": "SentenceEmbedding", "minCosineBasisPoints": 9500},
            "TextClassification",
            ModelUnsupported,
            r"several outputs.* set model\.task to TextClassification$",
        ),
        (
            {"task": "SentenceEmbedding"},
            "SentenceEmbedding",
            TaskInvalid,
            r"model\.minCosineBasisPoints is missing; say at which cosine",
        ),
        (
            {"minCosineBasisPoints": 9500},
            "TextClassification",
            TaskInvalid,
            r"minCosineBasisPoints is for a SentenceEmbedding, .*; leave it out",
        ),
    ],
)
def test_a_policy_says_how_near_is_near(
    source: dict[str, Any], found: Any, error: type[Exception], message: str
) -> None:
    """There is no distance that would be right for every model."""
    with pytest.raises(error, match=message):
        check_task(ModelSource.model_validate({"uri": "hf://org/name"} | source), found)


def test_what_says_so_is_fetched_and_kept(tmp_path: Path) -> None:
    """The files of the pooling belong to the checkpoint; those of other runtimes do not."""
    folder = write_layout(write_checkpoint(tmp_path / "model", embeds=True), mode="cls_token")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    source = ModelSource.model_validate({"uri": f"file://{folder}"})
    fetch(source, tmp_path / "copy")
    assert pooling_files(tmp_path / "copy") == ["1_Pooling/config.json"]
    assert file_names(tmp_path / "copy") == [
        "1_Pooling/config.json",
        "config.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
    ]
    assert inspect(tmp_path / "copy", origin="test").pooling == Pooling(tokens="First")


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "narrowed"), [("mean_tokens", False), ("cls_token", True)])
def test_an_exported_embedding_answers_as_torch_does(
    mode: str, *, narrowed: bool, tmp_path: Path
) -> None:
    """Of any batch and length; the last layer is computed for the first token alone where only that
    is read, and for all tokens where their mean is.
    """
    folder = write_layout(write_checkpoint(tmp_path / "model", embeds=True), mode=mode)
    checkpoint = inspect(folder, origin="test")
    encoder, names = load(checkpoint), checkpoint.architecture.input_names
    assert encoder.config.reads_first_token == narrowed
    path = tmp_path / "model.onnx"
    export(encoder, path, input_names=names)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    encodings = tokenizer.encode_batch(make_texts(12))
    assert parity(encoder, path, encodings, input_names=names, pad_id=0, threads=1) < 1e-4
    model = onnx.load(str(path))
    assert bool(narrow(model)) == narrowed
    sessions = [OnnxSession(one, threads=1) for one in (path, model.SerializeToString())]
    batch = pad(encodings, pad_id=0, input_names=names)
    whole, narrow_ = (session.run(batch) for session in sessions)
    assert whole.shape == (12, 64)
    np.testing.assert_allclose(narrow_, whole, atol=1e-5)
