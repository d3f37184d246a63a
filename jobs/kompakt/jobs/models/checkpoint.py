# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint says about itself, checked before anything heavy is loaded. No torch here.

A checkpoint is a local folder with config.json, safetensors and a tokenizer. Whatever is wrong with
it is found from the config and from the headers of the weight files, in milliseconds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kompakt.jobs.errors import ModelUnsupported, SourceUnreadable, UnsafeFormat
from kompakt.jobs.models.architectures import ARCHITECTURES, FFN_SIZES_KEY, Architecture

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
FILE_PATTERNS = (
    CONFIG_NAME,
    "*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
"""The files that make a checkpoint; no other is fetched, hashed or stored."""
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")
MAX_PARAMETERS = 500_000_000
"""An ONNX file holds 2 GiB; fp32 weights beyond that need external data, which no artifact has."""
MAX_LABELS = 4096
MAX_LABEL_LENGTH = 256
UNSAFE_HINT = (
    "pickle can run code when it is read, so Kompakt reads safetensors only; convert it once with"
    " AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(folder)"
)


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint in a local folder."""

    folder: Path
    architecture: Architecture
    config: dict[str, Any]
    labels: tuple[str, ...]
    parameters: int

    @property
    def ffn_sizes(self) -> tuple[int, ...]:
        """FFN neurons of each layer."""
        uniform = [self.config[self.architecture.ffn_size_key]]
        layers = int(self.config[self.architecture.layer_count_key])
        return tuple(self.config.get(FFN_SIZES_KEY) or uniform * layers)


def file_names(folder: Path) -> list[str]:
    """The files of a folder that belong to the checkpoint, sorted."""
    return sorted(path.name for path in folder.iterdir() if path.is_file() and matches(path.name))


def matches(name: str) -> bool:
    """Whether a file of this name belongs to a checkpoint."""
    return any(Path(name).match(pattern) for pattern in FILE_PATTERNS)


def inspect(folder: Path, *, origin: str) -> Checkpoint:
    """Checks a checkpoint; `origin` is what errors call it."""
    config = read_config(folder, origin=origin)
    architecture = _architecture(config, origin=origin)
    shapes = _weight_shapes(folder, origin=origin)
    labels = _labels(config, origin=origin)
    # transformers would fill a missing head with random numbers, and the model would answer noise.
    head = shapes.get(architecture.head_weight)
    if head is None:
        raise ModelUnsupported(
            f"{origin} has no classification head ({architecture.head_weight} is missing in its"
            " weights): it is a"
            " base model; fine-tune it for classification first"
        )
    if head[0] != len(labels):
        raise ModelUnsupported(
            f"{origin} names {len(labels)} labels in config.json, but its head has {head[0]}"
            " outputs; correct"
            " id2label"
        )
    parameters = sum(_product(shape) for shape in shapes.values())
    if parameters > MAX_PARAMETERS:
        raise ModelUnsupported(
            f"{origin} has {parameters:,} parameters; up to {MAX_PARAMETERS:,} fit into one ONNX"
            " file"
        )
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise SourceUnreadable(
            f"{origin} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}); save it beside the"
            " model with"
            " tokenizer.save_pretrained(folder)"
        )
    return Checkpoint(
        folder=folder,
        architecture=architecture,
        config=config,
        labels=labels,
        parameters=parameters,
    )


def check_length(checkpoint: Checkpoint, max_sequence_length: int, *, origin: str) -> None:
    """Refuses inputs longer than the model has positions for."""
    positions = checkpoint.config.get("max_position_embeddings")
    if positions is None:
        return
    longest = int(positions) - checkpoint.architecture.position_offset
    if max_sequence_length > longest:
        raise ModelUnsupported(
            f"model.maxSequenceLength is {max_sequence_length}, but {origin} has positions for"
            f" {longest} tokens; set"
            f" it to at most {longest}"
        )


def read_config(folder: Path, *, origin: str) -> dict[str, Any]:
    """config.json as it is written, without the defaults that transformers adds."""
    try:
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceUnreadable(
            f"{origin} has no {CONFIG_NAME}; name a folder as save_pretrained writes it"
        ) from None
    except ValueError as error:
        raise SourceUnreadable(f"{CONFIG_NAME} of {origin} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise SourceUnreadable(f"{CONFIG_NAME} of {origin} is no JSON object")
    return config


def _architecture(config: dict[str, Any], *, origin: str) -> Architecture:
    model_type = config.get("model_type")
    supported = ", ".join(a.class_name for a in ARCHITECTURES.values())
    if "auto_map" in config:
        raise ModelUnsupported(
            f"{origin} brings its own code (auto_map in config.json), which is never run; supported"
            f" are {supported}"
        )
    architecture = ARCHITECTURES.get(str(model_type))
    if architecture is None:
        raise ModelUnsupported(
            f"{origin} is of the type {model_type!r}, which is not supported; supported are"
            f" {supported}"
        )
    named = config.get("architectures") or [architecture.class_name]
    if architecture.class_name not in named:
        raise ModelUnsupported(
            f"{origin} is a {named[0]}, not a text classifier; supported are {supported}"
        )
    if config.get("problem_type") in {"regression", "multi_label_classification"}:
        raise ModelUnsupported(
            f"{origin} has the problem type {config['problem_type']}; only single-label"
            " classification is supported"
        )
    return architecture


def _labels(config: dict[str, Any], *, origin: str) -> tuple[str, ...]:
    # transformers leaves out what equals its defaults, and its default is two unnamed labels.
    names = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    try:
        labels = tuple(str(names[key]) for key in sorted(names, key=int))
        contiguous = sorted(int(key) for key in names) == list(range(len(names)))
    except (TypeError, ValueError):
        contiguous = False
    if not contiguous:
        raise ModelUnsupported(
            f"id2label in config.json of {origin} must name the labels 0, 1, 2 and so on; correct"
            " it"
        )
    if len(labels) < 2:  # noqa: PLR2004 a choice needs two
        raise ModelUnsupported(
            f"{origin} has one output, which is regression; classification needs two labels or more"
        )
    if len(set(labels)) != len(labels):
        raise ModelUnsupported(f"id2label in config.json of {origin} has the same name twice")
    if len(labels) > MAX_LABELS or max(map(len, labels)) > MAX_LABEL_LENGTH:
        raise ModelUnsupported(
            f"{origin} has {len(labels)} labels; up to {MAX_LABELS} of at most {MAX_LABEL_LENGTH}"
            " characters are"
            " supported"
        )
    return labels


def _weight_shapes(folder: Path, *, origin: str) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = [p.name for p in folder.iterdir() if p.suffix in PICKLE_SUFFIXES]
        if pickled:
            raise UnsafeFormat(f"{origin} has its weights as {pickled[0]}: {UNSAFE_HINT}")
        raise SourceUnreadable(
            f"{origin} has no weights ({WEIGHTS_NAME}); name a folder as save_pretrained writes it"
        )
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, framework="np") as weights:
                for name in weights.keys():  # noqa: SIM118 not a mapping
                    shapes[name] = tuple(weights.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise SourceUnreadable(
                f"{file.name} of {origin} is no safetensors file: {error}; was the download cut"
                " short?"
            ) from error
    return shapes


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result
