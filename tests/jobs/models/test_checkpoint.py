# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kompakt.jobs.errors import JobError, ModelUnsupported, SourceUnreadable, UnsafeFormat
from kompakt.jobs.models.architectures import ARCHITECTURES
from kompakt.jobs.models.checkpoint import check_length, file_names, inspect
from kompakt.jobs.models.encoder import Encoder
from kompakt.jobs.models.load import load, save

Checkpoints = Callable[[str], Path]


def change_config(folder: Path, **changes: Any) -> None:
    """Sets keys of config.json; None takes a key out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Edits the weights."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_every_architecture_is_understood(model_type: str, checkpoint_of: Checkpoints) -> None:
    """Labels, sizes and the number of parameters are read without loading anything."""
    checkpoint = inspect(checkpoint_of(model_type), origin="test")
    assert checkpoint.labels == ("negative", "neutral", "positive")
    assert checkpoint.ffn_sizes == (128, 128)
    assert (checkpoint.head_counts, checkpoint.head_width) == ((4, 4), 16)
    assert checkpoint.parameters == load(checkpoint).parameter_count


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, r"is of the type 'gpt2'.*supported are BertForSequence.*Electra"),
        (
            {"architectures": ["BertForMaskedLM"]},
            r"is a BertForMaskedLM, neither a text classifier nor an encoder alone",
        ),
        ({"architectures": ["BertModel"]}, r"2 weights that a BertModel does not have.* classif"),
        ({"auto_map": {"AutoModel": "x.Y"}}, r"brings its own code .* never run"),
        ({"problem_type": "regression"}, r"problem type regression and 3 outputs.*correct"),
        ({"problem_type": "multi_label_classification"}, r"multi_label_.*; supported are single_"),
        ({"id2label": {"0": "a", "1": "b"}}, r"names 2 labels .* head has 3 outputs"),
        ({"id2label": None}, r"names 2 labels .* head has 3 outputs"),
        ({"id2label": {"0": "a", "1": "b", "2": "a"}}, r"the same name twice"),
        ({"id2label": {"0": "a", "2": "b", "3": "c"}}, r"must name the labels 0, 1, 2"),
        ({"id2label": {"x": "a", "y": "b", "z": "c"}}, r"must name the labels 0, 1, 2"),
        ({"id2label": {"0": "score"}}, r"names 1 labels .* head has 3 outputs"),
        ({"hidden_act": "swiglu"}, r"has the activation swiglu; supported are gelu"),
        ({"num_attention_heads": 7}, r"num_attention_heads 7, which does not divide the hidden"),
        ({"num_attention_heads": None}, r"num_attention_heads 0, which does not divide"),
        ({"kompakt_head_width": 0}, r"kompakt_head_width 0, which is no width of a head"),
        ({"kompakt_head_width": "16"}, r"kompakt_head_width 16, which is no width of a head"),
        ({"kompakt_head_width": 24}, r"64 rows in bert\.encoder\.layer\.0\..*query.* width 24"),
        ({"position_embedding_type": "relative_key"}, r"no plain encoder with absolute positions"),
        ({"is_decoder": True}, r"no plain encoder"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_unsupported_models_are_refused(
    checkpoint_of: Checkpoints, changes: dict[str, Any], message: str
) -> None:
    """Whatever the encoder would compute wrongly is refused, with what is supported."""
    folder = checkpoint_of("bert")
    change_config(folder, **changes)
    with pytest.raises(ModelUnsupported, match=message):
        inspect(folder, origin="hf://org/name")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv_kernel_size": 3}, r"conv_kernel_size 3 in config.json; of a DebertaV2.* None or 0"),
        ({"share_att_key": False}, r"share_att_key False .* only True is supported"),
        ({"position_biased_input": True}, r"position_biased_input True"),
        ({"pos_att_type": ["c2p"]}, r"pos_att_type \['c2p'\]"),
        ({"position_buckets": 16}, r"position_buckets 16 .* \(24 x 64\) does not fit"),
        ({"max_relative_positions": 20}, r"max_relative_positions 20 and 48 max_position"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_other_kinds_of_relative_positions_are_refused(
    checkpoint_of: Checkpoints, changes: dict[str, Any], message: str
) -> None:
    """Of the many settings of DeBERTa, those that its third version has."""
    folder = checkpoint_of("deberta-v2")
    change_config(folder, **changes)
    with pytest.raises(ModelUnsupported, match=message):
        inspect(folder, origin="hf://org/name")


def drop_head(state: dict[str, torch.Tensor]) -> None:
    """As a base model that somebody renamed."""
    del state["classifier.weight"], state["classifier.bias"]


def drop_bias(state: dict[str, torch.Tensor]) -> None:
    """One weight is lost."""
    del state["bert.encoder.layer.1.output.dense.bias"]


def add_adapter(state: dict[str, torch.Tensor]) -> None:
    """Weights that would change the answers."""
    state["bert.encoder.layer.0.adapter.down.weight"] = torch.zeros(4, 4)


def narrow_keys(state: dict[str, torch.Tensor]) -> None:
    """A head is gone from the keys alone."""
    name = "bert.encoder.layer.1.attention.self.key.weight"
    state[name] = state[name][:48].contiguous()


def narrow_down(state: dict[str, torch.Tensor]) -> None:
    """Neurons are gone from one of the two matrices alone."""
    name = "bert.encoder.layer.0.output.dense.weight"
    state[name] = state[name][:, :96].contiguous()


def drop_heads(state: dict[str, torch.Tensor]) -> None:
    """No layer has any head left."""
    for name in [name for name in state if ".attention.self." in name]:
        state[name] = state[name][:0].contiguous()
    for name in [name for name in state if ".attention.output.dense.weight" in name]:
        state[name] = state[name][:, :0].contiguous()


def drop_layer(state: dict[str, torch.Tensor]) -> None:
    """The first layer is lost, the second keeps its number."""
    for name in [name for name in state if ".layer.0." in name]:
        del state[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (narrow_keys, r"key\.weight of test is 48 x 64, but .* other weights ask for 64 x 64"),
        (narrow_down, r"output\.dense\.weight of test is 64 x 96, but .* ask for 64 x 128"),
        (drop_heads, r"test has no attention head in any layer"),
        (drop_layer, r"lacks 16 weights, first of them bert\.encoder\.layer\.0\."),
        (drop_head, r"no classification head \(classifier\.weight is missing.*base model"),
        (drop_bias, r"lacks 1 weights, first of them bert\.encoder\.layer\.1\.output\.dense\.bias"),
        (add_adapter, r"1 weights that a BertForSequenceClassification does not have.*adapter"),
    ],
    ids=["keys", "neurons", "no heads", "lost layer", "base model", "lost weight", "adapter"],
)
def test_weights_must_be_those_of_the_architecture(
    checkpoint_of: Checkpoints,
    change: Callable[[dict[str, torch.Tensor]], None],
    message: str,
) -> None:
    """Missing and unknown weights are refused, rather than made up or left out."""
    folder = checkpoint_of("bert")
    change_weights(folder, change)
    with pytest.raises(ModelUnsupported, match=message):
        inspect(folder, origin="test")


def test_heads_of_pretraining_are_ignored(checkpoint_of: Checkpoints) -> None:
    """Buffers and unused heads of other tasks do no harm, nor do names of 2018."""
    folder = checkpoint_of("bert")
    expected = load(inspect(folder, origin="test")).state_dict()

    def change(state: dict[str, torch.Tensor]) -> None:
        state["bert.embeddings.position_ids"] = torch.arange(48)
        state["cls.predictions.bias"] = torch.zeros(4)
        for kind, former in (("weight", "gamma"), ("bias", "beta")):
            name = "bert.embeddings.LayerNorm."
            state[name + former] = state.pop(name + kind)

    change_weights(folder, change)
    found = load(inspect(folder, origin="test")).state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_half_precision_is_loaded_as_single(checkpoint_of: Checkpoints) -> None:
    """Weights in bf16 become fp32, which everything after computes in."""
    folder = checkpoint_of("roberta")

    def change(state: dict[str, torch.Tensor]) -> None:
        state.update({name: tensor.bfloat16() for name, tensor in state.items()})

    change_weights(folder, change)
    state = load(inspect(folder, origin="test")).state_dict()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_pickle_is_refused_with_the_way_out(checkpoint_of: Checkpoints) -> None:
    """A checkpoint as pickle is never opened; the message says how to convert it."""
    folder = checkpoint_of("bert")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsafeFormat, match=r"pytorch_model\.bin: pickle can run code.*save_pretr"):
        inspect(folder, origin="test")


def damage_config(folder: Path) -> None:
    """No JSON."""
    (folder / "config.json").write_text("{")


def damage_weights(folder: Path) -> None:
    """A download that was cut short."""
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"has no config\.json"),
        (damage_config, r"config\.json of test is no JSON"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"has no weights"),
        (damage_weights, r"is no safetensors file: .* cut short"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"has no tokenizer"),
    ],
    ids=["no config", "bad config", "no weights", "half the weights", "no tokenizer"],
)
def test_incomplete_checkpoints_are_refused(
    checkpoint_of: Checkpoints, damage: Callable[[Path], object], message: str
) -> None:
    """Each missing or damaged part has its sentence, and no retry."""
    folder = checkpoint_of("bert")
    damage(folder)
    with pytest.raises(SourceUnreadable, match=message) as caught:
        inspect(folder, origin="test")
    assert isinstance(caught.value, JobError)
    assert caught.value.exit_code == 42


@pytest.mark.parametrize(("model_type", "longest"), [("bert", 48), ("roberta", 46)])
def test_inputs_longer_than_the_model_are_refused(
    checkpoint_of: Checkpoints, model_type: str, longest: int
) -> None:
    """RoBERTa loses two positions to its padding index."""
    checkpoint = inspect(checkpoint_of(model_type), origin="test")
    check_length(checkpoint, longest, origin="test")
    with pytest.raises(ModelUnsupported, match=f"set it to at most {longest}"):
        check_length(checkpoint, longest + 1, origin="test")


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_sizes_survive_saving(model_type: str, checkpoint_of: Checkpoints, tmp_path: Path) -> None:
    """A model whose layers have other sizes is saved and loaded again, bit by bit."""
    checkpoint = inspect(checkpoint_of(model_type), origin="test")
    encoder = load(checkpoint)
    first, second = encoder.encoder_layers()
    first.keep_heads(torch.tensor([0, 2, 3]))
    first.keep_neurons(torch.arange(0))
    second.keep_heads(torch.arange(0))
    second.keep_neurons(torch.arange(48))
    names = save(encoder, checkpoint, tmp_path / "saved")
    assert (
        names
        == file_names(tmp_path / "saved")
        == [
            "config.json",
            "model.safetensors",
            "tokenizer.json",
        ]
    )
    config = json.loads((tmp_path / "saved/config.json").read_text())
    assert config["kompakt_ffn_sizes"] == [0, 48]
    assert (config["kompakt_heads"], config["kompakt_head_width"]) == ([3, 0], 16)
    again = inspect(tmp_path / "saved", origin="test")
    assert (again.ffn_sizes, again.head_counts, again.head_width) == ((0, 48), (3, 0), 16)
    state = load(again).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in encoder.state_dict().items())
    assert set(load_file(tmp_path / "saved/model.safetensors")) == set(checkpoint.shapes)


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_fewer_layers_are_a_plain_model(
    model_type: str, checkpoint_of: Checkpoints, tmp_path: Path
) -> None:
    """Without its first layer the model is one that transformers understands, too."""
    checkpoint = inspect(checkpoint_of(model_type), origin="test")
    encoder = load(checkpoint)
    kept = encoder.encoder_layers()[1].state_dict()
    encoder.keep_layers([1])
    save(encoder, checkpoint, tmp_path / "saved")
    config = json.loads((tmp_path / "saved/config.json").read_text())
    assert config == checkpoint.config | {checkpoint.architecture.layers_key: 1}
    (layer,) = load(inspect(tmp_path / "saved", origin="test")).encoder_layers()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in layer.state_dict().items())


def test_whole_heads_need_no_word_of_ours(checkpoint_of: Checkpoints, tmp_path: Path) -> None:
    """Once the layer that lacks heads is gone, so are our keys."""
    checkpoint = inspect(checkpoint_of("bert"), origin="test")
    encoder = load(checkpoint)
    encoder.encoder_layers()[0].keep_heads(torch.arange(1))
    save(encoder, checkpoint, tmp_path / "pruned")
    pruned = inspect(tmp_path / "pruned", origin="test")
    encoder.keep_layers([1])
    save(encoder, pruned, tmp_path / "saved")
    config = json.loads((tmp_path / "saved/config.json").read_text())
    assert config == checkpoint.config | {"num_hidden_layers": 1}


def test_an_untouched_model_is_saved_as_it_was(checkpoint_of: Checkpoints, tmp_path: Path) -> None:
    """Without pruning, the config says nothing that transformers would not understand."""
    checkpoint = inspect(checkpoint_of("distilbert"), origin="test")
    save(load(checkpoint), checkpoint, tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text()) == checkpoint.config


def test_models_load_ready_to_answer(checkpoint_of: Checkpoints) -> None:
    """A loaded model is not in training mode."""
    encoder = load(inspect(checkpoint_of("bert"), origin="test"))
    assert isinstance(encoder, Encoder)
    assert not encoder.training
