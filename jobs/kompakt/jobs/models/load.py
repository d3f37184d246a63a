# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in and out of torch, under the names that transformers gives their weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from kompakt.jobs.models.architectures import FFN_SIZES_KEY, HEAD_WIDTH_KEY, HEADS_KEY
from kompakt.jobs.models.checkpoint import CONFIG_NAME, WEIGHTS_NAME, Checkpoint, file_names
from kompakt.jobs.models.encoder import Encoder, EncoderConfig


def load(checkpoint: Checkpoint) -> Encoder:
    """Loads a checked checkpoint, as fp32 whatever it is stored as."""
    from safetensors.torch import load_file

    shapes = {ours: checkpoint.shapes[theirs] for theirs, ours in checkpoint.names.items()}
    architecture = checkpoint.architecture
    encoder = Encoder(
        EncoderConfig(
            vocabulary=shapes["word.weight"][0],
            positions=shapes["position.weight"][0],
            token_types=shapes.get("token_type.weight", (0,))[0],
            embedding=shapes["word.weight"][1],
            hidden=shapes["head.weight"][1],
            head_width=checkpoint.head_width,
            head_counts=checkpoint.head_counts,
            ffn_sizes=checkpoint.ffn_sizes,
            labels=len(checkpoint.labels),
            activation=checkpoint.activation,
            head_activation=architecture.head_activation,
            norm_epsilon=checkpoint.config.get("layer_norm_eps", architecture.norm_epsilon),
            first_position=architecture.first_position,
        )
    )
    state: dict[str, torch.Tensor] = {}
    for file in sorted(checkpoint.folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            if name in checkpoint.names:
                state[checkpoint.names[name]] = tensor.float()
    encoder.load_state_dict(state, strict=True)
    return encoder.eval()


def save(encoder: Encoder, like: Checkpoint, folder: Path) -> list[str]:
    """Writes a checkpoint with the config and tokenizer of another; returns its files' names."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    layers = encoder.encoder_layers()
    sizes, heads = [layer.ffn_size for layer in layers], [layer.heads for layer in layers]
    config = dict(like.config)
    if len(layers) != like.layer_count:
        config[like.architecture.layers_key] = len(layers)
    if all(count * like.head_width == encoder.head.in_features for count in heads):
        config[like.architecture.heads_key] = heads[0]
        config.pop(HEADS_KEY, None)
        config.pop(HEAD_WIDTH_KEY, None)
    else:
        config |= {HEADS_KEY: heads, HEAD_WIDTH_KEY: like.head_width}
    if len(set(sizes)) == 1:
        config[like.architecture.ffn_size_key] = sizes[0]
        config.pop(FFN_SIZES_KEY, None)
    else:
        config[FFN_SIZES_KEY] = sizes
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    state = {
        like.architecture.theirs(name): tensor.detach().contiguous()
        for name, tensor in encoder.state_dict().items()
    }
    save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    for name in file_names(like.folder):
        if name != CONFIG_NAME and "safetensors" not in name:
            (folder / name).write_bytes((like.folder / name).read_bytes())
    return file_names(folder)
