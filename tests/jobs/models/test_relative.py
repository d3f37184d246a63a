# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.jobs.conftest import make_texts

from kompakt.jobs.models.checkpoint import inspect
from kompakt.jobs.models.export import export, parity
from kompakt.jobs.models.load import load
from kompakt.jobs.models.relative import rows_by_distance
from kompakt.jobs.models.text import open_tokenizer

Checkpoints = Callable[[str], Path]


@pytest.mark.slow
@pytest.mark.parametrize(("longest", "span"), [(512, 256), (48, 12), (128, 32), (24, 20)])
def test_buckets_are_those_of_transformers(longest: int, span: int) -> None:
    """For each distance that two tokens can have."""
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    distances = torch.arange(1 - longest, longest)
    expected = make_log_bucket_position(distances, span, longest).long() + span
    assert torch.equal(rows_by_distance(longest, span=span), expected.clamp(0, 2 * span - 1))


def test_small_distances_have_rows_of_their_own() -> None:
    """And far ones share, symmetrically."""
    rows = rows_by_distance(512, span=256).tolist()
    assert rows[511 - 128 : 511 + 129] == list(range(128, 385))
    assert rows == sorted(rows)
    assert [512 - row for row in reversed(rows)] == rows
    assert len(set(rows)) < 512


@pytest.mark.slow
def test_the_exported_graph_knows_distances_at_every_length(checkpoint_of: Checkpoints) -> None:
    """Lengths other than the traced one, alone and padded, up to the longest."""
    folder = checkpoint_of("deberta-v2")
    checkpoint = inspect(folder, origin="test")
    encoder, names = load(checkpoint), checkpoint.architecture.input_names
    tokenizer = open_tokenizer(folder / "tokenizer.json", max_sequence_length=48)
    texts = [*make_texts(10), "good film " * 40]
    encodings = tokenizer.encode_batch(texts)
    assert {len(encoding) for encoding in encodings} >= {48}
    path = folder / "model.onnx"
    export(encoder, path, input_names=names)
    assert parity(encoder, path, encodings, input_names=names, pad_id=0, threads=1) < 1e-4


def test_every_distance_counts(checkpoint_of: Checkpoints) -> None:
    """Words in another order have another answer, though no position is added to them."""
    encoder = load(inspect(checkpoint_of("deberta-v2"), origin="test"))
    ids = torch.tensor([[2, 5, 9, 14, 22, 3], [2, 22, 14, 9, 5, 3]])
    with torch.no_grad():
        one, other = encoder(ids, torch.ones_like(ids))
    assert (one - other).abs().max() > 1e-2
