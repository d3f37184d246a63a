# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from kompakt.jobs.compress.first_token import compute_first_token, narrow
from kompakt.jobs.errors import ExportMismatch
from kompakt.jobs.models.architectures import ARCHITECTURES
from kompakt.jobs.models.checkpoint import inspect
from kompakt.jobs.models.export import export
from kompakt.jobs.models.load import load
from kompakt.jobs.models.session import OnnxSession, open_session
from kompakt.jobs.models.text import open_tokenizer

Checkpoints = Callable[[str], Path]
TEXTS = ["good", "the film was not very good", "a bad plot and a weak actor but a bright scene"]
TOKENS = 9


def exported(folder: Path, checkpoint_of: Checkpoints, model_type: str) -> tuple[Path, list[Any]]:
    """A model's graph, and some texts for it."""
    checkpoint = inspect(checkpoint_of(model_type), origin="test")
    path = folder / "model.onnx"
    export(load(checkpoint), path, input_names=checkpoint.architecture.input_names)
    tokenizer = open_tokenizer(checkpoint.folder / "tokenizer.json", max_sequence_length=40)
    return path, tokenizer.encode_batch(TEXTS)


def computed_sizes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The real shape of what each node gives, for two texts of `TOKENS` tokens."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    names = [
        node.output[0]
        for node in copy.graph.node
        if node.op_type in {"MatMul", "Softmax", "LayerNormalization"}
    ]
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    session = open_session(copy.SerializeToString(), threads=1)
    ones = np.ones((2, TOKENS), dtype=np.int64)
    found = session.run(names, {entry.name: ones for entry in session.get_inputs()})
    return {name: value.shape for name, value in zip(names, found, strict=True)}


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_the_last_layer_works_on_one_token(
    model_type: str, checkpoint_of: Checkpoints, tmp_path: Path
) -> None:
    """Same answers for every architecture; only the last keys and values are still of all tokens,
    what keys make of positions, and all of the layers before.
    """
    path, encodings = exported(tmp_path, checkpoint_of, model_type)
    target = tmp_path / "narrow.onnx"

    assert compute_first_token(path, target, encodings)

    before, after = computed_sizes(onnx.load(str(path))), computed_sizes(onnx.load(str(target)))
    keys = {"/key/", "/value/", "/MatMul_2_" if model_type == "deberta-v2" else "/value/"}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {
        name for name in before if "/layers.1/" in name and not any(part in name for part in keys)
    }
    assert all(TOKENS in before[name] and 1 in after[name] for name in changed)
    assert after["/layers.1/up/MatMul_output_0"][1] == 1


def test_a_layer_without_heads_or_neurons_is_no_trouble(
    checkpoint_of: Checkpoints, tmp_path: Path
) -> None:
    """Pruning may leave only biases; then the choice goes up into the layer before."""
    checkpoint = inspect(checkpoint_of("bert"), origin="test")
    encoder = load(checkpoint)
    encoder.encoder_layers()[1].keep_heads(torch.arange(0))
    encoder.encoder_layers()[1].keep_neurons(torch.arange(0))
    path, target = tmp_path / "model.onnx", tmp_path / "narrow.onnx"
    export(encoder, path, input_names=checkpoint.architecture.input_names)
    tokenizer = open_tokenizer(checkpoint.folder / "tokenizer.json", max_sequence_length=40)

    assert compute_first_token(path, target, tokenizer.encode_batch(TEXTS))

    assert computed_sizes(onnx.load(str(target)))["/layers.0/up/MatMul_output_0"][1] == 1


def pooled(pool: str) -> onnx.ModelProto:
    """Tokens' numbers, and the first or the mean of them as the answer."""
    axes = numpy_helper.from_array(np.array([1]), "one")
    zero = numpy_helper.from_array(np.array(0), "zero")
    table = numpy_helper.from_array(np.eye(4, 3, dtype=np.float32), "table")
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["x"])]
    nodes += [helper.make_node("Tanh", ["x"], ["y"])]
    if pool == "first":
        nodes += [helper.make_node("Gather", ["y", "zero"], ["logits"], axis=1)]
    else:
        nodes += [helper.make_node("ReduceMean", ["y"], ["logits"], axes=[1], keepdims=0)]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph(nodes, "g", [ids], [logits], [table, zero, axes])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_head_that_reads_all_tokens_keeps_them() -> None:
    """Mean pooling: nothing to save, and the graph is as it was."""
    model = pooled("mean")
    before = model.SerializeToString()

    assert narrow(model) == 0
    assert model.SerializeToString() == before


def test_it_stops_where_it_does_not_know() -> None:
    """The table of a lookup is no activation: the choice stays behind it."""
    model = pooled("first")

    assert narrow(model) == 1
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Gather", "Slice", "Tanh", "Gather"]


def test_a_change_of_the_answers_is_told(
    checkpoint_of: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that answers otherwise is not written."""
    path, encodings = exported(tmp_path, checkpoint_of, "bert")
    run = OnnxSession.run
    calls = iter(range(100))

    def drift(self: OnnxSession, batch: Any) -> Any:
        return run(self, batch) + 1e-3 * next(calls)

    monkeypatch.setattr(OnnxSession, "run", drift)
    with pytest.raises(ExportMismatch, match="please report the model"):
        compute_first_token(path, tmp_path / "narrow.onnx", encodings)
    assert not (tmp_path / "narrow.onnx").exists()
