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
    ACTIVATIONS,
    ARCHITECTURES,
    CLASSES,
    FACTORS,
    HEAD_WIDTH_KEY,
    UNUSED_WEIGHTS,
    Architecture,
)
from kompakt.jobs.models.tasks import task_of

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
    """Of a Regression, what its one number is called."""
    shapes: dict[str, tuple[int, ...]]
    """Of every weight in the files."""
    names: dict[str, str]
    """From the weights that the encoder has to what it calls them."""
    head_width: int
    """0 when it cannot be told."""
    activation: str

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
    return sorted(path.name for path in folder.iterdir() if path.is_file() and matches(path.name))


def matches(name: str) -> bool:
    """Whether a file of this name belongs to a checkpoint."""
    return any(Path(name).match(pattern) for pattern in FILE_PATTERNS)


def inspect(folder: Path, *, origin: str) -> Checkpoint:
    """Checks a checkpoint; `origin` is what errors call it."""
    config = read_config(folder, origin=origin)
    architecture = _architecture(config, origin=origin)
    shapes = _weight_shapes(folder, origin=origin)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise SourceUnreadable(
            f"{origin} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}); save it beside the"
            " model with tokenizer.save_pretrained(folder)"
        )
    labels = _labels(config, origin=origin)
    checkpoint = Checkpoint(
        folder=folder,
        architecture=architecture,
        config=config,
        task=task_of(architecture, config, labels, origin=origin),
        labels=labels,
        shapes=shapes,
        names=architecture.ours(shapes),
        head_width=_head_width(config, architecture, shapes),
        activation=str(config.get(architecture.activation_key, "gelu")),
    )
    _check_weights(checkpoint, origin=origin)
    _check_settings(checkpoint, origin=origin)
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


def _architecture(config: dict[str, Any], *, origin: str) -> Architecture:
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
    named = config.get("architectures") or [family.class_name]
    for architecture in (family, family.for_tokens()):
        if architecture.class_name in named:
            return architecture
    raise ModelUnsupported(
        f"{origin} is a {named[0]}, not a text classifier; supported are {supported}"
    )


def _head_width(
    config: dict[str, Any], architecture: Architecture, shapes: dict[str, tuple[int, ...]]
) -> int:
    """As written by us, or the hidden size over the heads; 0 when that is no whole number."""
    width, heads = config.get(HEAD_WIDTH_KEY), config.get(architecture.heads_key)
    hidden = shapes.get(architecture.theirs("out.weight"), (0, 0))[1]
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


def _check_weights(checkpoint: Checkpoint, *, origin: str) -> None:
    """Every weight is there, and none that would change the answers without our knowing."""
    architecture, found = checkpoint.architecture, set(checkpoint.names.values())
    # transformers would fill a missing head with random numbers, and the model would answer noise.
    head = ["out.weight"] if architecture.each_token else ["head.weight", "out.weight"]
    absent = [name for name in head if name not in found]
    if absent:
        missing = architecture.theirs(absent[0])
        raise ModelUnsupported(
            f"{origin} has no classification head ({missing} is missing in its weights): it is a"
            " base model; fine-tune it for classification first"
        )
    outputs = checkpoint.shapes[architecture.theirs("out.weight")][0]
    if outputs != len(checkpoint.labels):
        raise ModelUnsupported(
            f"{origin} names {len(checkpoint.labels)} labels in config.json, but its head has"
            f" {outputs} outputs; correct id2label"
        )
    missing_weights = sorted(_expected(checkpoint) - found)
    if missing_weights:
        raise ModelUnsupported(
            f"{origin} lacks {len(missing_weights)} weights, first of them"
            f" {architecture.theirs(missing_weights[0])}; save it again with save_pretrained"
        )
    # Older token classifiers were saved with the pooler of pretraining, which they do not use.
    unused = (*UNUSED_WEIGHTS, ".pooler.") if architecture.each_token else UNUSED_WEIGHTS
    unknown = [
        name
        for name in checkpoint.shapes
        if name not in checkpoint.names and not any(part in name for part in unused)
    ]
    if unknown:
        raise ModelUnsupported(
            f"{origin} has {len(unknown)} weights that a {architecture.class_name} does not have,"
            f" first of them {unknown[0]}; merge adapters into the model before saving it"
        )
    if checkpoint.parameters > MAX_PARAMETERS:
        raise ModelUnsupported(
            f"{origin} has {checkpoint.parameters:,} parameters; up to {MAX_PARAMETERS:,} fit into"
            " one ONNX file"
        )


_FACTORED_KINDS = (f"{FACTORS[0]}.weight", f"{FACTORS[1]}.weight", f"{FACTORS[1]}.bias")


def _expected(checkpoint: Checkpoint) -> set[str]:
    """What the encoder calls the weights that it cannot do without."""
    tables = {"word", "position", "relative"}
    optional = {"token_type", "projection"}
    expected: set[str] = set()
    for name in checkpoint.architecture.modules:
        if name in optional:
            continue
        kinds = ("weight",) if name in tables else ("weight", "bias")
        numbers = range(checkpoint.layer_count or 1) if "{}" in name else (0,)
        for module in (name.format(number) for number in numbers):
            factored = module in checkpoint.ranks
            parts = _FACTORED_KINDS if factored else kinds
            expected.update(f"{module}.{kind}" for kind in parts)
    if checkpoint.architecture.token_type_ids:
        expected.add("token_type.weight")
    return expected


def _check_settings(checkpoint: Checkpoint, *, origin: str) -> None:
    """Settings that the encoder does not know would change the answers."""
    config, architecture = checkpoint.config, checkpoint.architecture
    hidden = checkpoint.shapes[architecture.theirs("out.weight")][1]
    if checkpoint.head_width < 1:
        key = HEAD_WIDTH_KEY if HEAD_WIDTH_KEY in config else architecture.heads_key
        wrong = (
            "is no width of a head"
            if key == HEAD_WIDTH_KEY
            else f"does not divide the hidden size {hidden}"
        )
        raise ModelUnsupported(
            f"config.json of {origin} has {key} {config.get(key, 0)}, which {wrong}; correct it"
        )
    _check_factors(checkpoint, origin=origin)
    _check_layers(checkpoint, hidden=hidden, origin=origin)
    if checkpoint.activation not in ACTIVATIONS:
        raise ModelUnsupported(
            f"{origin} has the activation {checkpoint.activation}; supported are"
            f" {', '.join(ACTIVATIONS)}"
        )
    for key, known in architecture.fixed.items():
        if config.get(key) not in known:
            raise ModelUnsupported(
                f"{origin} has {key} {config.get(key)!r} in config.json; of a"
                f" {architecture.class_name} only {' or '.join(map(repr, known))} is supported"
            )
    if architecture.relative:
        _check_relative(checkpoint, hidden=hidden, origin=origin)
    positions = config.get("position_embedding_type", "absolute")
    if positions != "absolute" or config.get("is_decoder") or config.get("add_cross_attention"):
        raise ModelUnsupported(
            f"{origin} is no plain encoder with absolute positions (position_embedding_type"
            f" {positions}, is_decoder {bool(config.get('is_decoder'))})"
        )


def _check_factors(checkpoint: Checkpoint, *, origin: str) -> None:
    """A matrix that is stored as two is not stored as one too, and the two can be multiplied."""
    theirs, shapes = checkpoint.architecture.theirs, checkpoint.shapes
    for module in checkpoint.ranks:
        first, second = (theirs(f"{module}.{factor}.weight") for factor in FACTORS)
        whole = theirs(f"{module}.weight")
        if whole in shapes:
            raise ModelUnsupported(
                f"{origin} has {whole} whole and in two factors; leave one of the two out"
            )
        if not len(shapes[first]) == len(shapes[second]) == 2 or (  # noqa: PLR2004 axes
            shapes[second][1] != shapes[first][0]
        ):
            raise ModelUnsupported(
                f"{second} of {origin} is {' x '.join(map(str, shapes[second]))}, which cannot be"
                f" multiplied by {first}, {' x '.join(map(str, shapes[first]))}; save the model"
                " again"
            )


def _check_relative(checkpoint: Checkpoint, *, hidden: int, origin: str) -> None:
    """The table of distances is as config.json says."""
    config = checkpoint.config
    rows, width = checkpoint.shapes[checkpoint.architecture.theirs("relative.weight")]
    buckets = config.get("position_buckets")
    farthest = config.get("max_relative_positions", -1)
    if not isinstance(buckets, int) or (2 * buckets, hidden) != (rows, width):
        raise ModelUnsupported(
            f"{origin} has position_buckets {buckets!r} in config.json, which its table of relative"
            f" positions ({rows} x {width}) does not fit; correct it"
        )
    if farthest not in {-1, checkpoint.positions} or checkpoint.positions <= buckets:
        raise ModelUnsupported(
            f"{origin} has max_relative_positions {farthest!r} and {checkpoint.positions}"
            f" max_position_embeddings in config.json; supported is -1, with more positions than"
            f" position_buckets ({buckets})"
        )


def _check_layers(checkpoint: Checkpoint, *, hidden: int, origin: str) -> None:
    """The matrices of each layer fit each other: of a pruned model only they tell its sizes."""
    width = checkpoint.head_width
    if not any(checkpoint.matrix_shape(n, "query")[0] for n in range(checkpoint.layer_count)):
        raise ModelUnsupported(
            f"{origin} has no attention head in any layer, so its answers depend on no text"
        )
    for number in range(checkpoint.layer_count):
        rows, neurons = (checkpoint.matrix_shape(number, n)[0] for n in ("query", "up"))
        if rows % width:
            name = checkpoint.architecture.theirs(f"layers.{number}.query.weight")
            raise ModelUnsupported(
                f"{origin} has {rows} rows in {name}, which is no multiple of the width {width} of"
                f" a head; correct {HEAD_WIDTH_KEY} in config.json"
            )
        expected = dict.fromkeys(("query", "key", "value"), (rows, hidden)) | {
            "attended": (hidden, rows),
            "up": (neurons, hidden),
            "down": (hidden, neurons),
        }
        for module, shape in expected.items():
            found = checkpoint.matrix_shape(number, module)
            if found != shape:
                name = checkpoint.architecture.theirs(f"layers.{number}.{module}.weight")
                raise ModelUnsupported(
                    f"{name} of {origin} is {' x '.join(map(str, found))}, but the layer's other"
                    f" weights ask for {' x '.join(map(str, shape))}; save the model again with"
                    " save_pretrained"
                )
