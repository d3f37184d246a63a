# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from kompakt.jobs.artifact import count_parameters
from kompakt.jobs.errors import ExportMismatch
from kompakt.jobs.models.architectures import ARCHITECTURES
from kompakt.jobs.models.checkpoint import inspect
from kompakt.jobs.models.encoder import Encoder
from kompakt.jobs.models.export import export, parity
from kompakt.jobs.models.load import load
from kompakt.jobs.models.session import open_session
from kompakt.jobs.models.text import open_tokenizer, pad, used_inputs

Checkpoints = Callable[[str], Path]
TEXTS = (
    "good",
    "the film was not very good",
    "a bad plot and a weak actor but a bright scene " * 3,
)


def parameters_in_graph(encoder: Encoder) -> int:
    """All but the table of relative positions: the graph has what the layers make of it."""
    return sum(p.numel() for name, p in encoder.named_parameters() if "relative" not in name)


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_graphs_answer_as_torch_does(
    model_type: str, checkpoint_of: Checkpoints, tmp_path: Path
) -> None:
    """Every architecture, exported, equals torch at all lengths, alone and in padded batches."""
    checkpoint = inspect(checkpoint_of(model_type), origin="test")
    encoder = load(checkpoint)
    names = checkpoint.architecture.input_names
    export(encoder, tmp_path / "model.onnx", input_names=names)
    tokenizer = open_tokenizer(checkpoint.folder / "tokenizer.json", max_sequence_length=40)
    encodings = tokenizer.encode_batch(list(TEXTS))
    assert len({len(encoding) for encoding in encodings}) == 3
    largest = parity(
        encoder,
        tmp_path / "model.onnx",
        encodings,
        input_names=names,
        pad_id=checkpoint.config["pad_token_id"],
        threads=1,
    )
    assert largest < 1e-4
    assert not encoder.training, "exporting must not leave the model in training mode"
    session = open_session(tmp_path / "model.onnx", threads=1)
    assert tuple(entry.name for entry in session.get_inputs()) == names
    assert {entry.type for entry in session.get_inputs()} == {"tensor(int64)"}
    assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [
        ("logits", "tensor(float)", ["batch", 3])
    ]
    assert count_parameters(tmp_path / "model.onnx") == parameters_in_graph(encoder)


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_pruned_graphs_answer_as_torch_does(
    model_type: str, checkpoint_of: Checkpoints, tmp_path: Path
) -> None:
    """Layers of different sizes, some of them empty, are exported as they are."""
    checkpoint = inspect(checkpoint_of(model_type), origin="test")
    encoder = load(checkpoint)
    first, second = encoder.encoder_layers()
    first.keep_heads(torch.tensor([1, 3]))
    first.keep_neurons(torch.arange(0))
    second.keep_heads(torch.arange(0))
    second.keep_neurons(torch.arange(24))
    names = checkpoint.architecture.input_names
    export(encoder, tmp_path / "model.onnx", input_names=names)
    tokenizer = open_tokenizer(checkpoint.folder / "tokenizer.json", max_sequence_length=40)
    parity(
        encoder,
        tmp_path / "model.onnx",
        tokenizer.encode_batch(list(TEXTS)),
        input_names=names,
        pad_id=checkpoint.config["pad_token_id"],
        threads=1,
    )
    assert count_parameters(tmp_path / "model.onnx") == parameters_in_graph(encoder)


def test_empty_halves_cost_a_bias(checkpoint_of: Checkpoints, tmp_path: Path) -> None:
    """Without heads and neurons nothing of a layer is left but two sums and two norms."""
    checkpoint = inspect(checkpoint_of("bert"), origin="test")
    operators = []
    for number in (2, 1):
        encoder = load(checkpoint)
        for layer in encoder.encoder_layers():
            layer.keep_heads(torch.arange(0))
            layer.keep_neurons(torch.arange(0))
        encoder.keep_layers(range(number))
        export(encoder, tmp_path / "m", input_names=checkpoint.architecture.input_names)
        operators.append(Counter(n.op_type for n in onnx.load(str(tmp_path / "m")).graph.node))
    assert operators[0] - operators[1] == {"Add": 2, "LayerNormalization": 2}


def test_a_difference_is_no_artifact(checkpoint_of: Checkpoints, tmp_path: Path) -> None:
    """A graph that answers otherwise than the model is refused, also when it answers no numbers."""
    checkpoint = inspect(checkpoint_of("bert"), origin="test")
    encoder = load(checkpoint)
    names = checkpoint.architecture.input_names
    export(encoder, tmp_path / "model.onnx", input_names=names)
    tokenizer = open_tokenizer(checkpoint.folder / "tokenizer.json", max_sequence_length=40)
    encodings = tokenizer.encode_batch(list(TEXTS))
    for damage in (0.01, float("nan")):
        with torch.no_grad():
            encoder.get_parameter("out.bias").add_(damage)
        with pytest.raises(ExportMismatch, match="differs from torch by"):
            parity(
                encoder,
                tmp_path / "model.onnx",
                encodings,
                input_names=names,
                pad_id=0,
                threads=1,
            )


def test_graphs_compute_no_shapes_in_layers(checkpoint_of: Checkpoints, tmp_path: Path) -> None:
    """Reshaping into heads takes one constant; the only shape asked for is the text's length."""
    checkpoint = inspect(checkpoint_of("bert"), origin="test")
    export(
        load(checkpoint),
        tmp_path / "model.onnx",
        input_names=checkpoint.architecture.input_names,
    )
    operators = Counter(n.op_type for n in onnx.load(str(tmp_path / "model.onnx")).graph.node)
    assert operators["Shape"] == 1
    assert operators["Concat"] == 0


def test_exporting_twice_gives_the_same_bytes(checkpoint_of: Checkpoints, tmp_path: Path) -> None:
    """A Job that runs again must come to the same digest."""
    checkpoint = inspect(checkpoint_of("electra"), origin="test")
    for name in ("one", "two"):
        export(load(checkpoint), tmp_path / name, input_names=checkpoint.architecture.input_names)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_what_fills_a_batch_changes_nothing(checkpoint_of: Checkpoints, tmp_path: Path) -> None:
    """Padding is masked, so the id that is used for it does not matter."""
    checkpoint = inspect(checkpoint_of("roberta"), origin="test")
    export(load(checkpoint), tmp_path / "m", input_names=checkpoint.architecture.input_names)
    session = open_session(tmp_path / "m", threads=1)
    mask = np.array([[1, 1, 1, 0, 0]])
    answers = [
        session.run(None, {"input_ids": np.array([[2, 9, 3, p, p]]), "attention_mask": mask})[0]
        for p in (0, 1, 20)
    ]
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_array_equal(answers[0], answers[2])


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_types_that_are_always_zero_are_a_constant(
    model_type: str, checkpoint_of: Checkpoints, tmp_path: Path
) -> None:
    """Without that input a graph answers as with zeros in it, and looks up nothing but words."""
    checkpoint = inspect(checkpoint_of(model_type), origin="test")
    tokenizer = open_tokenizer(checkpoint.folder / "tokenizer.json", max_sequence_length=40)
    encoder, all_names = load(checkpoint), checkpoint.architecture.input_names
    names = used_inputs(all_names, tokenizer)
    assert names == ("input_ids", "attention_mask")
    answers = []
    for count, some in enumerate((all_names, names)):
        path = tmp_path / f"{count}.onnx"
        export(encoder, path, input_names=some)
        session = open_session(path, threads=1)
        batch = pad(tokenizer.encode_batch(list(TEXTS)), pad_id=0, input_names=some)
        answers.append(session.run(["logits"], batch)[0])
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-6 * np.abs(answers[0]).max())
    tables = [
        node.name
        for node in onnx.load(str(path)).graph.node
        if node.op_type == "Gather" and "input_ids" in node.input
    ]
    inputs = {name for node in onnx.load(str(path)).graph.node for name in node.input}
    assert len(tables) == 1
    assert "token_type_ids" not in inputs
    assert "token_type.weight" not in inputs
