# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from kompakt.jobs.errors import ModelUnsupported, SourceUnreadable
from kompakt.jobs.models.checkpoint import inspect
from kompakt.jobs.models.text import (
    length_batches,
    open_tokenizer,
    pad,
    token_batches,
    used_inputs,
    write_tokenizer,
)

Checkpoints = Callable[[str], Path]


def test_artifacts_do_not_pad(checkpoint_of: Checkpoints, tmp_path: Path) -> None:
    """A tokenizer that pads all texts to 40 tokens becomes one that pads none and truncates."""
    checkpoint = inspect(checkpoint_of("bert"), origin="test")
    source = json.loads((checkpoint.folder / "tokenizer.json").read_text())
    assert source["padding"]["strategy"] == {"Fixed": 40}
    made = write_tokenizer(checkpoint, tmp_path / "t.json", max_sequence_length=16, origin="test")
    assert len(made.encode("a good film")) == 5
    written = json.loads((tmp_path / "t.json").read_text())
    assert written["padding"] is None
    assert written["truncation"]["max_length"] == 16
    assert len(open_tokenizer(tmp_path / "t.json", max_sequence_length=16).encode("a " * 99)) == 16


def test_a_tokenizer_of_another_model_is_refused(
    checkpoint_of: Checkpoints, tmp_path: Path
) -> None:
    """More tokens than the model has embeddings for would end a request with an error, later."""
    checkpoint = inspect(checkpoint_of("bert"), origin="test")
    data = json.loads((checkpoint.folder / "tokenizer.json").read_text())
    data["model"]["vocab"] |= {f"word{i}": 100 + i for i in range(50)}
    (checkpoint.folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ModelUnsupported, match="do not belong together"):
        write_tokenizer(checkpoint, tmp_path / "t.json", max_sequence_length=16, origin="test")


def test_a_damaged_tokenizer_is_refused(checkpoint_of: Checkpoints, tmp_path: Path) -> None:
    """The library's plain Exception becomes invalid input with the way out."""
    checkpoint = inspect(checkpoint_of("bert"), origin="test")
    (checkpoint.folder / "tokenizer.json").write_text('{"model": {"type": "Unheard"}}')
    with pytest.raises(
        SourceUnreadable, match=r"tokenizer of test cannot be read.*save_pretrained"
    ):
        write_tokenizer(checkpoint, tmp_path / "t.json", max_sequence_length=16, origin="test")


def test_batches_hold_texts_of_equal_length() -> None:
    """All texts once, the shortest first, so that a batch is hardly longer than its shortest."""
    lengths = [9, 1, 8, 2, 7, 3]
    batches = list(length_batches([[0] * n for n in lengths], 2))
    assert batches == [[1, 3], [5, 4], [2, 0]]


@given(
    lengths=st.lists(st.integers(2, 64), max_size=60),
    tokens=st.integers(1, 40).map(lambda n: n * 48),
    longest=st.integers(64, 128),
)
def test_packed_batches_have_as_many_tokens_each(
    lengths: list[int], tokens: int, longest: int
) -> None:
    """Every text is in one batch, each fits into its width, and full batches have few shapes."""
    batches = list(token_batches(lengths, tokens=tokens, longest=longest))
    assert sorted(i for members, _ in batches for i in members) == list(range(len(lengths)))
    for members, width in batches[:-1]:
        assert max(lengths[i] for i in members) <= width <= longest
        assert len(members) * width <= max(tokens, longest)
        assert len(members) == 1 or tokens % width == 0 or width == longest
    if batches:
        members, width = batches[-1]
        assert max(lengths[i] for i in members) <= width <= longest
        assert 1 <= len(members) <= max(1, tokens // width)


def test_padding_is_masked(checkpoint_of: Checkpoints) -> None:
    """A batch is as wide as its longest text, and says which tokens are real."""
    folder = checkpoint_of("bert")
    tokenizer = open_tokenizer(folder / "tokenizer.json", max_sequence_length=40)
    names = ("input_ids", "attention_mask")
    batch = pad(tokenizer.encode_batch(["good", "a good film"]), pad_id=7, input_names=names)
    assert tuple(batch) == names
    assert batch["input_ids"][0].tolist()[3:] == [7, 7]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("template", "kept"),
    [("[CLS] $A [SEP]", 2), ("[CLS] $A:1 [SEP]", 3), ("[CLS]:2 $A [SEP]", 3)],
)
def test_types_are_an_input_where_any_is_not_zero(
    template: str, kept: int, checkpoint_of: Checkpoints
) -> None:
    """What a tokenizer tells a model is asked of the tokenizer, not of the architecture."""
    path = checkpoint_of("bert") / "tokenizer.json"
    tokenizer = open_tokenizer(path, max_sequence_length=40)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(path))
    names = ("input_ids", "attention_mask", "token_type_ids")
    found = used_inputs(names, open_tokenizer(path, max_sequence_length=40))
    assert found == names[:kept]
    assert used_inputs(names[:2], tokenizer) == names[:2]
