# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in and out of torch, under the names that transformers gives their weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kompakt.jobs.models.architectures import FFN_SIZES_KEY, HEAD_WIDTH_KEY, HEADS_KEY, WINDOWS_KEY
from kompakt.jobs.models.checkpoint import CONFIG_NAME, WEIGHTS_NAME, Checkpoint, file_names
from kompakt.jobs.models.encoder import Encoder, EncoderConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load(checkpoint: Checkpoint) -> Encoder:
    """Loads a checked checkpoint, as fp32 whatever it is stored as."""
    from safetensors.torch import load_file

    shapes = {ours: checkpoint.shapes[theirs] for theirs, ours in checkpoint.names.items()}
    architecture = checkpoint.architecture
    encoder = Encoder(
        EncoderConfig(
            vocabulary=shapes["word.weight"][0],
            positions=shapes.get("position.weight", (0,))[0],
            token_types=shapes.get("token_type.weight", (0,))[0],
            embedding=shapes["word.weight"][1],
            hidden=checkpoint.hidden,
            head_width=checkpoint.head_width,
            head_counts=checkpoint.head_counts,
            ffn_sizes=checkpoint.ffn_sizes,
            labels=len(checkpoint.labels),
            activation=checkpoint.activation,
            head_activation=architecture.head_activation,
            norm_epsilon=checkpoint.config.get("layer_norm_eps", architecture.norm_epsilon),
            first_position=architecture.first_position,
            task=checkpoint.task,
            distances=shapes.get("relative.weight", (0,))[0],
            longest=checkpoint.positions if architecture.relative else 0,
            pooling=checkpoint.pooling,
            windows=checkpoint.windows,
        )
    )
    for name, rank in checkpoint.ranks.items():
        _, number, matrix = name.split(".")
        encoder.encoder_layers()[int(number)].factor(matrix, rank)
    state: dict[str, torch.Tensor] = {}
    for file in sorted(checkpoint.folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            if name in checkpoint.names:
                state[checkpoint.names[name]] = tensor.float()
    encoder.load_state_dict(state, strict=True)
    return encoder.eval()


def save(
    encoder: Encoder,
    like: Checkpoint,
    folder: Path,
    *,
    trimmed: tuple[Tokenizer, Mapping[int, int]] | None = None,
) -> list[str]:
    """Writes a checkpoint with the config and tokenizer of another; returns its files' names.

    A trimmed tokenizer, with its new ids by the old ones, takes the place of the other's.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    layers = encoder.encoder_layers()
    sizes, heads = [layer.ffn_size for layer in layers], [layer.heads for layer in layers]
    config = dict(like.config)
    if len(layers) != like.layer_count:
        config[like.architecture.layers_key] = len(layers)
    if all(count * like.head_width == encoder.config.hidden for count in heads):
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
    config.pop(WINDOWS_KEY, None)
    if any(layer.window for layer in layers):
        config[WINDOWS_KEY] = [layer.window for layer in layers]
    if trimmed is not None:
        config |= {"vocab_size": encoder.config.vocabulary} | _renumbered(config, trimmed[1])
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    state = {
        like.architecture.theirs(name): tensor.detach().cpu().contiguous()
        for name, tensor in encoder.state_dict().items()
    }
    save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    for name in file_names(like.folder):
        if name != CONFIG_NAME and "safetensors" not in name:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes((like.folder / name).read_bytes())
    if trimmed is not None:
        _replace_tokenizer(folder, *trimmed)
    return file_names(folder)


def _renumbered(config: dict[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    """The settings that name special tokens; of one that is no token any more, nothing is left."""
    special = {k: v for k, v in config.items() if k.endswith("_token_id") and isinstance(v, int)}
    return {name: new_ids.get(old) for name, old in special.items()}


def _replace_tokenizer(folder: Path, tokenizer: Tokenizer, new_ids: Mapping[int, int]) -> None:
    """One form of it is enough; the others would still have the old ids."""
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    for name in ("vocab.txt", "vocab.json", "merges.txt", "added_tokens.json"):
        (folder / name).unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    if path.is_file():
        settings = json.loads(path.read_text(encoding="utf-8"))
        added = settings.get("added_tokens_decoder")
        if added is not None:
            kept = {new_ids[int(old)]: token for old, token in added.items() if int(old) in new_ids}
            settings["added_tokens_decoder"] = {str(new): kept[new] for new in sorted(kept)}
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
