# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in and out of torch.

A pruned model has another FFN size in each layer, which its config class cannot say: config.json
carries them under `kompakt_ffn_sizes`, and `load` rebuilds the layers before it reads the weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kompakt.jobs.errors import ModelUnsupported
from kompakt.jobs.models.architectures import FFN_SIZES_KEY, Architecture
from kompakt.jobs.models.checkpoint import CONFIG_NAME, WEIGHTS_NAME, Checkpoint, file_names


@dataclass(frozen=True)
class FeedForward:
    """The two matrices of one layer's FFN; a neuron is a row of `up` and a column of `down`."""

    up: nn.Linear
    down: nn.Linear

    @property
    def size(self) -> int:
        """Number of neurons."""
        return self.up.out_features


@dataclass
class TorchModel:
    """A classifier in torch, in evaluation mode (dropout off), fp32, eager attention."""

    module: nn.Module
    architecture: Architecture
    config: dict[str, Any]
    """config.json as it is stored."""

    def feed_forwards(self) -> list[FeedForward]:
        """The FFN of each layer."""
        return [
            FeedForward(
                up=_linear(layer, self.architecture.ffn_up),
                down=_linear(layer, self.architecture.ffn_down),
            )
            for layer in self.module.get_submodule(self.architecture.layers).children()
        ]

    def logits(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """One forward pass: [batch, labels].

        The mask is given in its final form, to be added to the attention scores: of a plain one,
        transformers makes a larger tensor by advanced indexing, which costs an exported graph a
        dozen operators.
        """
        padding = 1.0 - inputs["attention_mask"][:, None, None, :].to(torch.float32)
        additive = padding * torch.finfo(torch.float32).min
        result: torch.Tensor = self.module(**(inputs | {"attention_mask": additive})).logits
        return result

    @property
    def parameters(self) -> int:
        """How many numbers the model has."""
        return sum(parameter.numel() for parameter in self.module.parameters())


def load(checkpoint: Checkpoint) -> TorchModel:
    """Loads a checked checkpoint; weights that do not fit it exactly are refused."""
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.utils import logging as transformers_logging

    # Its reports go to stderr in colours; what they say is checked below and said in one sentence.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    sizes = checkpoint.config.get(FFN_SIZES_KEY)
    if sizes:
        config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True)
        module = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
        model = TorchModel(module.float().eval(), checkpoint.architecture, checkpoint.config)
        resize(model, sizes)
        _load_exactly(model, checkpoint)
        return model
    module, info = AutoModelForSequenceClassification.from_pretrained(
        checkpoint.folder,
        attn_implementation="eager",  # the exporter knows no other, and short texts are faster so
        dtype=torch.float32,
        local_files_only=True,
        output_loading_info=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        raise ModelUnsupported(
            f"the checkpoint lacks {len(missing)} weights of a"
            f" {checkpoint.architecture.class_name}, first of them"
            f" {missing[0]}; save it again with save_pretrained"
        )
    return TorchModel(module.eval(), checkpoint.architecture, checkpoint.config)


def save(model: TorchModel, tokenizer_from: Path, folder: Path) -> list[str]:
    """Writes a checkpoint beside the tokenizer files of another; returns the names of its files."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    sizes = [ffn.size for ffn in model.feed_forwards()]
    config = dict(model.config)
    uniform = config[model.architecture.ffn_size_key]
    if sizes != [uniform] * len(sizes):
        config[FFN_SIZES_KEY] = sizes
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    state = {name: tensor.contiguous() for name, tensor in model.module.state_dict().items()}
    save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    for name in file_names(tokenizer_from):
        if name != CONFIG_NAME and "safetensors" not in name:
            (folder / name).write_bytes((tokenizer_from / name).read_bytes())
    return file_names(folder)


def resize(model: TorchModel, sizes: Sequence[int]) -> None:
    """Gives each layer's FFN a number of neurons, their weights still to be filled."""
    for ffn, size in zip(model.feed_forwards(), sizes, strict=True):
        replace_neurons(
            ffn,
            up=torch.empty(size, ffn.up.in_features),
            up_bias=torch.empty(size),
            down=torch.empty(ffn.down.out_features, size),
        )


def replace_neurons(
    ffn: FeedForward, *, up: torch.Tensor, up_bias: torch.Tensor, down: torch.Tensor
) -> None:
    """Puts other weights, of another size, into a layer's FFN."""
    ffn.up.weight = nn.Parameter(up.contiguous())
    ffn.up.bias = nn.Parameter(up_bias.contiguous())
    ffn.up.out_features = up.shape[0]
    ffn.down.weight = nn.Parameter(down.contiguous())
    ffn.down.in_features = down.shape[1]


def _load_exactly(model: TorchModel, checkpoint: Checkpoint) -> None:
    from safetensors.torch import load_file

    try:
        model.module.load_state_dict(load_file(checkpoint.folder / WEIGHTS_NAME), strict=True)
    except RuntimeError as error:
        raise ModelUnsupported(
            f"the weights do not fit the sizes in {FFN_SIZES_KEY} of config.json:"
            f" {str(error)[:300]}"
        ) from error


def _linear(layer: nn.Module, path: str) -> nn.Linear:
    module = layer.get_submodule(path)
    if not isinstance(module, nn.Linear):
        raise ModelUnsupported(f"{path} is a {type(module).__name__}, not a linear layer")
    return module
