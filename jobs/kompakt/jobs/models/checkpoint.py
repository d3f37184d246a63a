# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint says about itself, checked before anything heavy is loaded. No torch here.

A checkpoint is a local folder with config.json, safetensors and a tokenizer. Whatever is wrong with
it is found from the config and from the headers of the weight files, in milliseconds.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kompakt.api.base import Task
from kompakt.jobs.errors import ModelUnsupported, SourceUnreadable, UnsafeFormat
from kompakt.jobs.models.architectures import (
    ARCHITECTURES,
    CLASSES,
    FACTORS,
    HEAD_WIDTH_KEY,
    WINDOWS_KEY,
    Architecture,
)
from kompakt.jobs.models.checks import check_settings, check_weights
from kompakt.jobs.models.pooling import (
    LAYOUT_FILES,
    Pooling,
    is_layout,
    pooling_files,
    read_pooling,
)
from kompakt.jobs.models.tasks import EMBEDDING_LABEL, task_of

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
    *LAYOUT_FILES,
)
"""The files that make a checkpoint; no other is fetched, hashed or stored."""
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")
RELATIVE_LONGEST = 512
"""Where config.json of a model with relative positions says nothing else."""
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
    task: Task
    """As its head and config.json have it."""
    labels: tuple[str, ...]
    """Of a Regression, what its one number is called; of a SentenceEmbedding one too."""
    shapes: dict[str, tuple[int, ...]]
    """Of every weight in the files."""
    names: dict[str, str]
    """From the weights that the encoder has to what it calls them."""
    head_width: int
    """0 when it cannot be told."""
    activation: str
    pooling: Pooling | None = None
    """Of a SentenceEmbedding."""

    @property
    def hidden(self) -> int:
        """Width of the states between the layers."""
        return _hidden(self.shapes, self.names)

    @property
    def layer_count(self) -> int:
        """How many layers there are weights for."""
        return len({n.split(".")[1] for n in self.names.values() if n.startswith("layers.")})

    @property
    def head_counts(self) -> tuple[int, ...]:
        """Attention heads of each layer, as the weights have them."""
        numbers = range(self.layer_count)
        return tuple(self.matrix_shape(n, "query")[0] // self.head_width for n in numbers)

    @property
    def ffn_sizes(self) -> tuple[int, ...]:
        """FFN neurons of each layer, as the weights have them."""
        return tuple(self.matrix_shape(n, "up")[0] for n in range(self.layer_count))

    @property
    def windows(self) -> tuple[int, ...]:
        """Of each layer, how many tokens one looks at, 0 for all; empty where all look at all."""
        return tuple(self.config.get(WINDOWS_KEY, ()))

    @property
    def ranks(self) -> dict[str, int]:
        """By the encoder's name of a matrix that is stored as two factors, the size in between."""
        suffix = f".{FACTORS[0]}.weight"
        return {
            ours.removesuffix(suffix): self.shapes[theirs][0]
            for theirs, ours in self.names.items()
            if ours.endswith(suffix)
        }

    def matrix_shape(self, number: int, name: str) -> tuple[int, ...]:
        """Shape of one of a layer's matrices, or of the product of its factors."""
        module = f"layers.{number}.{name}"
        if module not in self.ranks:
            return self.shapes[self.architecture.theirs(f"{module}.weight")]
        first, second = (
            self.shapes[self.architecture.theirs(f"{module}.{factor}.weight")] for factor in FACTORS
        )
        return (second[0], first[1])

    @property
    def vocabulary(self) -> int:
        """How many tokens have an embedding."""
        return self.shapes[self.architecture.theirs("word.weight")][0]

    @property
    def positions(self) -> int:
        """Of how many tokens it knows the places, as its table or config.json says."""
        if self.architecture.relative:
            return int(self.config.get("max_position_embeddings", RELATIVE_LONGEST))
        return self.shapes[self.architecture.theirs("position.weight")][0]

    @property
    def parameters(self) -> int:
        """How many numbers the encoder has."""
        return sum(math.prod(self.shapes[name]) for name in self.names)


def file_names(folder: Path) -> list[str]:
    """The files of a folder that belong to the checkpoint, sorted."""
    names = [path.name for path in folder.iterdir() if path.is_file() and matches(path.name)]
    return sorted([*names, *(name for name in pooling_files(folder) if (folder / name).is_file())])


def matches(name: str) -> bool:
    """Whether a file of this name belongs to a checkpoint."""
    return any(Path(name).match(pattern) for pattern in FILE_PATTERNS)


def inspect(folder: Path, *, origin: str) -> Checkpoint:
    """Checks a checkpoint; `origin` is what errors call it."""
    config = read_config(folder, origin=origin)
    architecture = _architecture(config, embeds=is_layout(folder), origin=origin)
    shapes = _weight_shapes(folder, origin=origin)
    if architecture.embeds:
        architecture = ARCHITECTURES[architecture.model_type].for_embeddings(shapes)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise SourceUnreadable(
            f"{origin} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}); save it beside the"
            " model with tokenizer.save_pretrained(folder)"
        )
    labels = (EMBEDDING_LABEL,) if architecture.embeds else _labels(config, origin=origin)
    names = architecture.ours(shapes)
    checkpoint = Checkpoint(
        folder=folder,
        architecture=architecture,
        config=config,
        task=task_of(architecture, config, labels, origin=origin),
        labels=labels,
        shapes=shapes,
        names=names,
        head_width=_head_width(config, architecture, _hidden(shapes, names)),
        activation=str(config.get(architecture.activation_key, "gelu")),
        pooling=read_pooling(folder, origin=origin) if architecture.embeds else None,
    )
    check_weights(checkpoint, origin=origin)
    check_settings(checkpoint, origin=origin)
    return checkpoint


def check_length(checkpoint: Checkpoint, max_sequence_length: int, *, origin: str) -> None:
    """Refuses inputs longer than the model has positions for."""
    architecture = checkpoint.architecture
    longest = checkpoint.positions - architecture.first_position
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


def _architecture(config: dict[str, Any], *, embeds: bool, origin: str) -> Architecture:
    model_type = config.get("model_type")
    supported = ", ".join(CLASSES)
    if "auto_map" in config:
        raise ModelUnsupported(
            f"{origin} brings its own code (auto_map in config.json), which is never run; supported"
            f" are {supported}"
        )
    family = ARCHITECTURES.get(str(model_type))
    if family is None:
        raise ModelUnsupported(
            f"{origin} is of the type {model_type!r}, which is not supported; supported are"
            f" {supported}"
        )
    named = config.get("architectures") or ([] if embeds else [family.class_name])
    for architecture in (family, family.for_tokens(), family.for_embeddings()):
        if architecture.class_name in named:
            return architecture
    if embeds:  # files of old have the class that the encoder was pretrained as
        return family.for_embeddings()
    raise ModelUnsupported(
        f"{origin} is a {named[0]}, neither a text classifier nor an encoder alone; supported are"
        f" {supported}"
    )


def _hidden(shapes: dict[str, tuple[int, ...]], names: dict[str, str]) -> int:
    """What the embeddings give to the first layer; 0 where there are none."""
    ours = {name: shapes[theirs] for theirs, name in names.items()}
    return ours.get("projection.weight", ours.get("word.weight", (0, 0))[1:])[0]


def _head_width(config: dict[str, Any], architecture: Architecture, hidden: int) -> int:
    """As written by us, or the hidden size over the heads; 0 when that is no whole number."""
    width, heads = config.get(HEAD_WIDTH_KEY), config.get(architecture.heads_key)
    if width is None and isinstance(heads, int) and heads > 0 and hidden % heads == 0:
        width = hidden // heads
    return max(0, width) if isinstance(width, int) else 0


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
