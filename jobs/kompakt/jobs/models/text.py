# SPDX-License-Identifier: Apache-2.0
"""From texts to token ids, by the Rust tokenizer alone: the same in Jobs and in servers. No torch
here.

An artifact's tokenizer.json truncates to the model's length and pads nothing. Checkpoints often
ship one that pads every text to 128 tokens, which makes short texts five times as slow; whoever
pads does so for his batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kompakt.jobs.errors import ModelUnsupported, SourceUnreadable
from kompakt.jobs.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Ids = NDArray[np.int64]
LEAST_WIDTH = 8
"""Of a batch with a certain number of tokens; shorter texts are rare."""
WIDTH_STEP = 16


def open_tokenizer(path: Path, *, max_sequence_length: int) -> Tokenizer:
    """A tokenizer that truncates and does not pad."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length=max_sequence_length)
    return tokenizer


def write_tokenizer(
    checkpoint: Checkpoint, to: Path, *, max_sequence_length: int, origin: str
) -> Tokenizer:
    """Writes the tokenizer.json of an artifact, from whatever form the checkpoint has it in."""
    from tokenizers import Tokenizer

    source = checkpoint.folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(source)) if source.is_file() else _convert(checkpoint)
    except Exception as error:  # the Rust library raises plain Exception
        raise SourceUnreadable(
            f"the tokenizer of {origin} cannot be read: {error}; save it with"
            " tokenizer.save_pretrained(folder)"
        ) from error
    rows = checkpoint.config.get("vocab_size")
    if rows is not None and tokenizer.get_vocab_size() > int(rows):
        raise ModelUnsupported(
            f"the tokenizer of {origin} has {tokenizer.get_vocab_size()} tokens, but the model has"
            " embeddings for"
            f" {rows}; they do not belong together"
        )
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length=max_sequence_length)
    tokenizer.save(str(to), pretty=False)
    return tokenizer


def _convert(checkpoint: Checkpoint) -> Tokenizer:
    """The fast form of a tokenizer that comes as vocabulary files only."""
    from transformers import AutoTokenizer

    slow = AutoTokenizer.from_pretrained(
        checkpoint.folder, use_fast=True, local_files_only=True, trust_remote_code=False
    )
    fast: Tokenizer = slow.backend_tokenizer
    return fast


def pad(
    encodings: Sequence[Encoding], *, pad_id: int, input_names: Sequence[str], width: int = 0
) -> dict[str, Ids]:
    """A batch as the graph's inputs, padded to its longest text, or to a width beyond that."""
    shape = (len(encodings), max(width, *(len(encoding) for encoding in encodings)))
    arrays = {
        "input_ids": np.full(shape, pad_id, dtype=np.int64),
        "attention_mask": np.zeros(shape, dtype=np.int64),
        "token_type_ids": np.zeros(shape, dtype=np.int64),
    }
    for row, encoding in enumerate(encodings):
        length = len(encoding)
        arrays["input_ids"][row, :length] = encoding.ids
        arrays["attention_mask"][row, :length] = 1
        arrays["token_type_ids"][row, :length] = encoding.type_ids
    return {name: arrays[name] for name in input_names}


def used_inputs(names: Sequence[str], tokenizer: Tokenizer) -> tuple[str, ...]:
    """Of the inputs that a model may have, those that a single text gives anything else to than
    zeros: of most tokenizers all tokens are of type 0, and those of a second text would be of
    type 1. Without that input, what stands for type 0 is a constant of the graph.
    """
    # A template gives the types, whatever the text.
    if any(any(encoding.type_ids) for encoding in tokenizer.encode_batch(["", "any text"])):
        return tuple(names)
    return tuple(name for name in names if name != "token_type_ids")


def length_batches(encodings: Sequence[Any], size: int) -> Iterator[list[int]]:
    """Indices in batches of texts of about equal length, so that hardly anything is padding."""
    order = sorted(range(len(encodings)), key=lambda index: len(encodings[index]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def token_batches(
    lengths: Sequence[int], *, tokens: int, longest: int
) -> Iterator[tuple[list[int], int]]:
    """Indices in batches of about equal length, each with the width to pad to.

    Width times texts is `tokens` in nearly all of them: the widths are its divisors. Where kernels
    are compiled for each shape, hardly any shapes are left.
    """
    divisors = {width for width in range(LEAST_WIDTH, tokens + 1) if tokens % width == 0}
    beyond = range(tokens, longest, WIDTH_STEP)  # of single texts
    ladder = sorted({width for width in (*divisors, *beyond) if width < longest} | {longest})
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    while order:
        width = next(width for width in ladder if width >= lengths[order[0]])
        count = max(1, tokens // width)
        yield order[:count], width
        order = order[count:]


def pad_id(config: dict[str, Any]) -> int:
    """The id that fills a batch up; masked, so any will do where a model names none."""
    return int(config.get("pad_token_id") or 0)
