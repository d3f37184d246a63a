# SPDX-License-Identifier: Apache-2.0
"""Whether a checkpoint's weights and settings are those of its architecture, and fit each other. No
torch here: names and shapes are enough.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kompakt.jobs.errors import ModelUnsupported
from kompakt.jobs.models.architectures import (
    ACTIVATIONS,
    FACTORS,
    HEAD_MODULES,
    HEAD_WIDTH_KEY,
    UNUSED_WEIGHTS,
    WINDOWS_KEY,
)

if TYPE_CHECKING:
    from kompakt.jobs.models.checkpoint import Checkpoint

LEAST_WINDOW = 4
"""Of attention: a block of queries, and one key before and behind it."""
MAX_PARAMETERS = 500_000_000
"""An ONNX file holds 2 GiB; fp32 weights beyond that need external data, which no artifact has."""


def check_weights(checkpoint: Checkpoint, *, origin: str) -> None:
    """Every weight is there, and none that would change the answers without our knowing."""
    architecture, found = checkpoint.architecture, set(checkpoint.names.values())
    # transformers would fill a missing head with random numbers, and the model would answer noise.
    head = [f"{name}.weight" for name in HEAD_MODULES if name in architecture.modules]
    absent = [name for name in head if name not in found]
    if absent:
        missing = architecture.theirs(absent[0])
        raise ModelUnsupported(
            f"{origin} has no classification head ({missing} is missing in its weights): it is a"
            " base model; fine-tune it for classification first"
        )
    if head and (outputs := checkpoint.shapes[architecture.theirs("out.weight")][0]) != len(
        checkpoint.labels
    ):
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
    # The pooler of pretraining is a part of a text classifier's head, and of no other.
    pooler = () if "head" in architecture.modules else ("pooler.",)
    unused = (*UNUSED_WEIGHTS, *pooler)
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


def check_settings(checkpoint: Checkpoint, *, origin: str) -> None:
    """Settings that the encoder does not know would change the answers."""
    config, architecture = checkpoint.config, checkpoint.architecture
    hidden = checkpoint.hidden
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
    _check_windows(checkpoint, origin=origin)
    if architecture.relative:
        _check_relative(checkpoint, hidden=hidden, origin=origin)
    positions = config.get("position_embedding_type", "absolute")
    if positions != "absolute" or config.get("is_decoder") or config.get("add_cross_attention"):
        raise ModelUnsupported(
            f"{origin} is no plain encoder with absolute positions (position_embedding_type"
            f" {positions}, is_decoder {bool(config.get('is_decoder'))})"
        )


def _check_windows(checkpoint: Checkpoint, *, origin: str) -> None:
    found = checkpoint.config.get(WINDOWS_KEY, [])
    sizes = isinstance(found, list) and all(
        isinstance(size, int) and (size == 0 or size >= LEAST_WINDOW) for size in found
    )
    if not sizes or (found and len(found) != checkpoint.layer_count):
        raise ModelUnsupported(
            f"config.json of {origin} has {WINDOWS_KEY} {found!r}, which must be {LEAST_WINDOW} or"
            f" more, or 0, for each of {checkpoint.layer_count} layers; correct it"
        )
    if any(found) and checkpoint.architecture.relative:
        raise ModelUnsupported(
            f"config.json of {origin} has {WINDOWS_KEY}, which is not for relative positions; take"
            " it out"
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
