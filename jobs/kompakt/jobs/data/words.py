# SPDX-License-Identifier: Apache-2.0
"""The words of a text, which labels of a TokenClassification belong to: what white space divides.

The model reads the text as it is, as a server does; a word's answer is that of its first token.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Encoding

_WORD = re.compile(r"\S+")


def word_spans(text: str) -> list[tuple[int, int]]:
    """Where each word begins and ends, in characters."""
    return [found.span() for found in _WORD.finditer(text)]


def count_words(text: str) -> int:
    """As many as `word_spans` gives."""
    return len(text.split())


def first_tokens(encoding: Encoding, text: str) -> list[int | None]:
    """For each word the place of its first token; None where it has none, as behind the end of what
    a model reads.
    """
    tokens = [
        (start, end, place)
        for place, ((start, end), special) in enumerate(
            zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
        )
        if end > start and not special
    ]
    places: list[int | None] = []
    at = 0
    for begin, stop in word_spans(text):
        while at < len(tokens) and tokens[at][1] <= begin:
            at += 1
        found = at < len(tokens) and tokens[at][0] < stop
        places.append(tokens[at][2] if found else None)
    return places
