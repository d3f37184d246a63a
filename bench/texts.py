# SPDX-License-Identifier: Apache-2.0
"""The texts of benches: training data cut to a budget, and sentences put together to one length."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kompakt.jobs.models.text import open_tokenizer


def budgeted(training: Path, *, labelled: int, unlabelled: int, seed: int) -> list[dict[str, Any]]:
    """Rows of a JSONL file in random order, as many as a budget has; most lose their label."""
    lines = [json.loads(line) for line in training.read_text().splitlines()]
    random.Random(seed).shuffle(lines)
    chosen = lines[: labelled + unlabelled]
    for line in chosen[labelled:]:
        line["label"] = None
    return chosen


def of_length(texts: Iterable[str], tokenizer: Path, *, tokens: int, count: int) -> Iterator[str]:
    """Sentences put together to texts of just so many tokens, or one less."""
    opened = open_tokenizer(tokenizer, max_sequence_length=4 * tokens)
    words = [word for text in texts for word in text.split()]
    draw = random.Random(tokens)
    for _ in range(count):
        start = draw.randrange(len(words) - tokens)
        taken = tokens
        while len(opened.encode(" ".join(words[start : start + taken]))) > tokens:
            taken -= 1
        yield " ".join(words[start : start + taken])
