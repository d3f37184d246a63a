# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.jobs.conftest import write_tokenizer

from kompakt.jobs.compress.states import Alignment, Wanted, match_layers

Benches = Callable[[str], Any]


def test_states_are_what_the_layers_give(bench_of: Benches) -> None:
    """The model's own parts, called one after the other, give the same; no hook stays behind."""
    bench = bench_of("electra")
    (batch,) = bench.data.batches([0, 1, 2], 3)
    encoder = bench.encoder
    with torch.no_grad():
        found = Wanted(hidden=(0, 1), attention=1).run(encoder, batch.inputs)
        x, mask = encoder.embed(**batch.inputs)
        first, second = encoder.encoder_layers()
        after_first = first(x, mask)
        after_second = second(after_first, mask)
        expected = [second.query(after_first), second.key(after_first), second.value(after_first)]
        logits = encoder(**batch.inputs)
    assert torch.equal(found.hidden[0], after_first)
    assert torch.equal(found.hidden[1], after_second)
    assert all(torch.equal(a, b) for a, b in zip(found.attention, expected, strict=True))
    assert torch.equal(found.logits, logits)
    assert not any(module._forward_hooks for module in encoder.modules())


@settings(max_examples=200, deadline=None)
@given(data=st.data(), teacher=st.integers(1, 7))
def test_layers_are_matched_in_order_at_the_least_distance(data: Any, teacher: int) -> None:
    """As good as the best of all ways to match them, found by trying each."""
    student = data.draw(st.integers(1, teacher))
    numbers = st.integers(0, 100)
    table = data.draw(
        st.lists(
            st.lists(numbers, min_size=teacher, max_size=teacher),
            min_size=student,
            max_size=student,
        )
    )
    found = match_layers(
        lambda layer, place: float(table[layer][place]), student=student, teacher=teacher
    )
    ways = [(*chosen, teacher - 1) for chosen in combinations(range(teacher - 1), student - 1)]
    assert found in ways

    def total(way: tuple[int, ...]) -> int:
        return sum(table[layer][place] for layer, place in enumerate(way))

    if student < teacher:
        assert total(found) == min(map(total, ways))


def test_a_removed_layer_has_no_match(bench_of: Benches) -> None:
    """The states of the layers before it are still the teacher's, which tells them."""
    bench = bench_of("bert")
    (batch,) = bench.data.batches(list(range(8)), 8)
    alignment = Alignment.same(batch.inputs["attention_mask"])
    with torch.no_grad():
        theirs = Wanted(hidden=(0, 1)).run(bench.encoder, batch.inputs)
        bench.encoder.keep_layers([0])
        ours = Wanted(hidden=(0,)).run(bench.encoder, batch.inputs)
    assert torch.equal(ours.hidden[0], theirs.hidden[0])
    assert match_layers(lambda _layer, _place: 0.0, student=1, teacher=2) == (1,)
    assert alignment.student is None


def test_tokens_are_aligned_by_what_they_stand_for(tmp_path: Any) -> None:
    """Where one tokenizer splits a word, that word is left out, and all after it moves along."""
    from kompakt.jobs.models.text import open_tokenizer

    parts = ["act", "##or", "p", "##l", "##o", "##t"]
    write_tokenizer(tmp_path / "student.json", extra=parts, words=["the", "was", "good"])
    write_tokenizer(tmp_path / "teacher.json", words=["the", "actor", "was", "good", "plot"])
    student, teacher = (
        open_tokenizer(tmp_path / f"{name}.json", max_sequence_length=9)
        for name in ("student", "teacher")
    )
    texts = ["the actor was good", "good", "plot was plot was good good"]
    found = Alignment.by_characters(student.encode_batch(texts), teacher.encode_batch(texts))
    assert found.student is not None
    assert found.teacher is not None
    pairs = [
        [
            (int(s), int(t))
            for s, t, real in zip(
                found.student[row], found.teacher[row], found.mask[row], strict=True
            )
            if real
        ]
        for row in range(3)
    ]
    assert pairs[0] == [(0, 0), (1, 1), (4, 3), (5, 4), (6, 5)]
    assert pairs[1] == [(0, 0), (1, 1), (2, 2)]
    # The student's are cut off: [CLS] p ##l ##o ##t was p ##l [SEP].
    assert pairs[2] == [(0, 0), (5, 2), (8, 7)]
    states = torch.arange(9.0)[None, :, None].expand(3, 9, 1)
    assert found.of_student(states)[0, :, 0].tolist() == [0, 1, 4, 5, 6]
    assert found.of_teacher(states)[0, :, 0].tolist() == [0, 1, 3, 4, 5]


@pytest.mark.parametrize("words", [["the"], []])
def test_texts_without_common_words_have_their_special_tokens(
    tmp_path: Any, words: list[str]
) -> None:
    """The first token, which the head reads, always belongs together."""
    from kompakt.jobs.models.text import open_tokenizer

    write_tokenizer(tmp_path / "student.json", extra=["t", "##h", "##e"], words=[])
    write_tokenizer(tmp_path / "teacher.json", words=["the"])
    student, teacher = (
        open_tokenizer(tmp_path / f"{name}.json", max_sequence_length=9)
        for name in ("student", "teacher")
    )
    text = " ".join(words)
    found = Alignment.by_characters([student.encode(text)], [teacher.encode(text)])
    assert found.mask.tolist() == [[True, True]]
    assert found.teacher is not None
    assert found.teacher.tolist() == [[0, 1 + len(words)]]
