# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.jobs.conftest import write_checkpoint

from kompakt.jobs.errors import ModelUnsupported
from kompakt.jobs.models.architectures import WINDOWS_KEY
from kompakt.jobs.models.checkpoint import inspect
from kompakt.jobs.models.encoder import Encoder
from kompakt.jobs.models.export import export
from kompakt.jobs.models.load import load, save
from kompakt.jobs.models.local import attend
from kompakt.jobs.models.session import OnnxSession

pytestmark = pytest.mark.slow

HEADS, WIDTH = 2, 3
Floats = NDArray[np.float64]
NAMES = ("input_ids", "attention_mask", "token_type_ids")


def looks_at(length: int, window: int) -> NDArray[np.bool_]:
    """Which token sees which, [asking, asked], as the docstring of the API has it."""
    block = window // 2
    seen = np.zeros((length, length), dtype=bool)
    for asking in range(length):
        begin = asking - asking % block - (window - block) // 2
        begin = min(max(begin, 0), max(length - window, 0))
        seen[asking, begin + 1 : begin + window] = True
    seen[:, 0] = seen[0, :] = True
    return seen


def masked(query: Floats, key: Floats, value: Floats, seen: NDArray[np.bool_]) -> Floats:
    """Full attention of one text, [tokens, heads * width], with what is not seen masked."""
    parts = []
    for head in range(HEADS):
        own = slice(head * WIDTH, (head + 1) * WIDTH)
        scores = query[:, own] @ key[:, own].T / np.sqrt(WIDTH)
        scores = np.where(seen, scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        parts.append(weights / weights.sum(axis=1, keepdims=True) @ value[:, own])
    return np.concatenate(parts, axis=1)


def mixed(parts: list[torch.Tensor], lengths: list[int], window: int) -> NDArray[np.float32]:
    """What `attend` gives for texts of some lengths, with noise as padding."""
    mask = torch.zeros(len(lengths), 1, 1, parts[0].shape[1])
    for row, length in enumerate(lengths):
        mask[row, ..., length:] = torch.finfo(torch.float32).min
    query, key, value = parts
    found = attend(query, key, value, mask, heads=HEADS, width=WIDTH, window=window)
    return np.asarray(found)


def noise(lengths: list[int], *, wider: int = 0) -> list[torch.Tensor]:
    """Queries, keys and values."""
    shape = (len(lengths), max(lengths) + wider, HEADS * WIDTH)
    return [torch.randn(shape) for _ in range(3)]


lengths_of_texts = st.lists(st.integers(1, 40), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(lengths=lengths_of_texts, window=st.integers(4, 24), wider=st.integers(0, 9))
def test_it_equals_full_attention_with_a_mask(lengths: list[int], window: int, wider: int) -> None:
    """For any lengths, windows and padding, computed text by text in numpy; a window no smaller
    than a text masks nothing.
    """
    torch.manual_seed(sum(lengths) + window)
    parts = noise(lengths, wider=wider)
    found = mixed(parts, lengths, window)
    for row, length in enumerate(lengths):
        query, key, value = (part[row, :length].double().numpy() for part in parts)
        seen = looks_at(length, window)
        assert seen.all() or length > window
        expected = masked(query, key, value, seen)
        np.testing.assert_allclose(found[row, :length], expected, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 60), window=st.integers(8, 32))
def test_every_token_sees_its_neighbours(length: int, window: int) -> None:
    """A quarter of the window on each side, less one; and never more than the window."""
    seen = looks_at(length, window)
    reach = (window - window // 2) // 2 - 1
    for asking in range(length):
        near = seen[asking, max(0, asking - reach) : asking + reach + 1]
        assert near.all()
    assert seen[1:].sum(axis=1).max(initial=0) <= window


def test_padding_changes_no_answer() -> None:
    """A short text beside a long one gets the answer that it gets alone: whole attention."""
    torch.manual_seed(0)
    parts = noise([33, 7])
    together = mixed(parts, [33, 7], 8)
    alone = mixed([part[1:, :7] for part in parts], [7], 8)
    np.testing.assert_allclose(together[1, :7], alone[0], atol=1e-6)


def test_gradients_reach_what_is_seen_and_nothing_else() -> None:
    """Training goes through a window: what it gathers twice gets both gradients."""
    torch.manual_seed(0)
    length, window = 23, 8
    query, key, value = (part.requires_grad_() for part in noise([length]))
    mask = torch.zeros(1, 1, 1, length)
    found = attend(query, key, value, mask, heads=HEADS, width=WIDTH, window=window)
    seen = torch.from_numpy(looks_at(length, window))
    split = [part.view(length, HEADS, WIDTH).transpose(0, 1) for part in (query, key, value)]
    scores = split[0] @ split[1].transpose(1, 2) * WIDTH**-0.5
    weights = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
    expected = (weights @ split[2]).transpose(0, 1).reshape(1, length, -1)
    weight = torch.randn_like(found)
    for part in (query, key, value):
        ours, theirs = (
            torch.autograd.grad((x * weight).sum(), part, retain_graph=True)[0]
            for x in (found, expected)
        )
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def scoped(
    folder: Path, *windows: int, each_token: bool = False, model_type: str = "bert"
) -> Encoder:
    """The tiny model with windows."""
    checkpoint = inspect(write_checkpoint(folder, model_type, each_token=each_token), origin="test")
    encoder = load(checkpoint)
    for layer, window in zip(encoder.encoder_layers(), windows, strict=True):
        layer.window = window
    return encoder


def batch(*lengths: int) -> dict[str, torch.Tensor]:
    """Random texts, padded to the longest."""
    ids = torch.randint(4, 23, (len(lengths), max(lengths)))
    read = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        read[row, :length] = 1
    return {"input_ids": ids, "attention_mask": read, "token_type_ids": torch.zeros_like(ids)}


def test_a_window_hides_far_tokens_from_each_other(tmp_path: Path) -> None:
    """One scoped layer: another token changes the states of those that see it, and no others."""
    encoder = scoped(tmp_path, 8, 0)
    (layer, *_), length, changed = encoder.encoder_layers(), 30, 13
    with torch.no_grad():
        x, mask = encoder.embed(**batch(length))
        other = x.clone()
        other[:, changed] += torch.randn(x.shape[-1])
        moved = (layer(x, mask) - layer(other, mask)).abs().amax(dim=-1)[0] > 1e-6
        layer.window = 0
        all_moved = (layer(x, mask) - layer(other, mask)).abs().amax(dim=-1)[0] > 1e-6
    expected = looks_at(length, 8)[:, changed]
    np.testing.assert_array_equal(moved.numpy(), expected)
    assert all_moved.all()
    assert 0 < expected.sum() < length / 2


def test_short_texts_are_answered_as_before(tmp_path: Path) -> None:
    """Up to the window, bit by bit; beyond, differently."""
    encoder = scoped(tmp_path, 16, 16)
    whole = scoped(tmp_path / "whole", 0, 0)
    with torch.no_grad():
        for length in (1, 2, 15, 16):
            inputs = batch(length)
            assert torch.equal(encoder(**inputs), whole(**inputs))
        inputs = batch(17)
        assert not torch.allclose(encoder(**inputs), whole(**inputs), atol=1e-4)


@pytest.mark.parametrize("kind", ["texts", "tokens"])
def test_the_exported_graph_answers_as_torch(tmp_path: Path, kind: str) -> None:
    """At every length around the window and beyond, padded or not, with heads of two counts; no
    operator in it is one of ours.
    """
    each_token = kind == "tokens"
    encoder = scoped(tmp_path, 8, 8, each_token=each_token)
    encoder.encoder_layers()[0].keep_heads(torch.tensor([0, 2, 3]))
    path = tmp_path / "model.onnx"
    export(encoder, path, input_names=NAMES)
    model = onnx.load(str(path))
    assert {node.domain for node in model.graph.node} == {""}
    assert [entry.domain for entry in model.opset_import] == [""]
    names = [name for node in model.graph.node for name in node.output]
    assert len(names) == len(set(names))
    session = OnnxSession(path, threads=1)
    for lengths in ((1,), (7,), (8,), (9,), (12,), (16,), (31, 3), (17, 40, 8, 9)):
        inputs = batch(*lengths)
        with torch.no_grad():
            expected = encoder(**inputs)
        found = session.run({name: x.numpy() for name, x in inputs.items()})
        if each_token:
            read = inputs["attention_mask"].bool().numpy()
            found, expected = found[read], expected[torch.from_numpy(read)]
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_layers_share_what_follows_from_lengths(tmp_path: Path) -> None:
    """Windows of the same size are placed once for all layers, others on their own."""
    sums = {}
    for windows in ((8, 8), (8, 16), (0, 0)):
        path = tmp_path / "model.onnx"
        export(scoped(tmp_path / "checkpoint", *windows), path, input_names=NAMES)
        nodes = onnx.load(str(path)).graph.node
        sums[windows] = sum(node.op_type == "ReduceSum" for node in nodes)
    assert sums == {(8, 8): 1, (8, 16): 2, (0, 0): 0}


def test_windows_are_a_part_of_the_checkpoint(tmp_path: Path) -> None:
    """Saved and loaded they are the same; without any, nothing is left of them."""
    like = inspect(write_checkpoint(tmp_path / "like"), origin="test")
    encoder = load(like)
    encoder.encoder_layers()[1].window = 8
    save(encoder, like, tmp_path / "scoped")
    found = inspect(tmp_path / "scoped", origin="test")
    assert found.windows == (0, 8)
    again = load(found)
    inputs = batch(30)
    with torch.no_grad():
        assert torch.equal(again(**inputs), encoder(**inputs))
    again.encoder_layers()[1].window = 0
    save(again, found, tmp_path / "whole")
    whole = inspect(tmp_path / "whole", origin="test")
    assert WINDOWS_KEY not in whole.config
    assert load(whole).config == replace(encoder.config, windows=())


@pytest.mark.parametrize("wrong", [[8], [8, 3], [8, 0.5], "8", [8, -1], [True, 8]])
def test_wrong_windows_are_refused(tmp_path: Path, wrong: object) -> None:
    """What is no window of each layer would change answers without our knowing."""
    folder = write_checkpoint(tmp_path)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(json.dumps(json.loads(config) | {WINDOWS_KEY: wrong}))
    with pytest.raises(
        ModelUnsupported, match=r"kompakt_attention_windows .* for each of 2 layers"
    ):
        inspect(folder, origin="test")
