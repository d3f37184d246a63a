# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from kompakt.jobs.errors import StepInvalid
from kompakt.jobs.models.vocabulary import Vocabulary, choose

ALPHABET = "abc#"
UNKNOWN = "[UNK]"
Draw = Any

texts = st.text(alphabet=f"{ALPHABET}d  ", max_size=24)
"""With a character that no vocabulary has."""
pieces = st.text(alphabet=ALPHABET, min_size=1, max_size=4)


@st.composite
def wordpieces(draw: Draw) -> Tokenizer:
    """Any tokens at all, so that characters without one of their own occur."""
    starts = draw(st.sets(pieces, max_size=12))
    parts = draw(st.sets(pieces, max_size=12))
    if draw(st.booleans()):
        starts |= set(ALPHABET)
        parts |= set(ALPHABET)
    vocabulary = [UNKNOWN, *sorted(starts | {f"##{part}" for part in parts})]
    tokenizer = Tokenizer(
        models.WordPiece({t: i for i, t in enumerate(vocabulary)}, unk_token=UNKNOWN)
    )
    splitters = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.BertPreTokenizer()]
    tokenizer.pre_tokenizer = draw(st.sampled_from(splitters))
    return tokenizer


@st.composite
def bpes(draw: Draw) -> Tokenizer:
    """Merges of what is there so far, with and without marks of a word's inner and last parts."""
    prefix = draw(st.sampled_from(["", "##"]))
    suffix = draw(st.sampled_from(["", "</w>"]))
    known = draw(st.sampled_from([ALPHABET, "ab"]))
    forms = {c + s for c in known for s in {"", suffix}}
    tokens = sorted(forms | {prefix + form for form in forms})
    merges: list[tuple[str, str]] = []
    for _ in range(draw(st.integers(0, 14))):
        lefts = [token for token in tokens if not (suffix and token.endswith(suffix))]
        left = draw(st.sampled_from(lefts))
        right = draw(st.sampled_from([t for t in tokens if t.startswith(prefix)]))
        if (left, right) not in merges:
            merges.append((left, right))
            tokens = list(dict.fromkeys([*tokens, left + right.removeprefix(prefix)]))
    ignore_merges = draw(st.booleans())
    if ignore_merges:  # then tokens need no merge, and their characters no token
        some = st.text(alphabet=f"{ALPHABET}d", min_size=2, max_size=4)
        tokens = list(dict.fromkeys([*tokens, *sorted(draw(st.sets(some, max_size=5)))]))
    model = models.BPE(
        vocab={token: number for number, token in enumerate([UNKNOWN, *tokens])},
        merges=merges,
        unk_token=UNKNOWN,
        continuing_subword_prefix=prefix,
        end_of_word_suffix=suffix,
        ignore_merges=ignore_merges,
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


@st.composite
def unigrams(draw: Draw) -> Tokenizer:
    """Pieces with scores as they come."""
    some = draw(st.sets(pieces, max_size=14)) | {*ALPHABET, "▁"}
    scores = [draw(st.integers(-40, -1)) / 4 for _ in some]
    vocabulary = [(UNKNOWN, 0.0), *zip(sorted(some), scores, strict=True)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("kind", [wordpieces, bpes, unigrams])
def test_no_text_becomes_unknown_and_what_stays_is_split_as_before(kind: Any) -> None:
    """For any vocabulary, any choice of tokens and any text."""

    @settings(max_examples=400, deadline=None)
    @given(tokenizer=kind(), some=st.lists(texts, min_size=1, max_size=8), draw=st.data())
    def check(tokenizer: Tokenizer, some: list[str], draw: Any) -> None:
        try:
            vocabulary = Vocabulary.of(tokenizer)
        except StepInvalid:
            assume(False)
        wanted = draw.draw(st.sets(st.sampled_from(sorted(vocabulary.tokens.values()))))
        kept = vocabulary.always | vocabulary.closure(wanted)
        spec, new = vocabulary.without_others(kept)
        trimmed = Tokenizer.from_str(spec)
        assert sorted(trimmed.get_vocab().values()) == list(range(len(kept)))
        for text in some:
            before, after = tokenizer.encode(text), trimmed.encode(text)
            if UNKNOWN not in before.tokens:
                assert UNKNOWN not in after.tokens
            if kept.issuperset(before.ids):
                assert after.tokens == before.tokens
                assert after.ids == [new[old] for old in before.ids]

    check()


def test_some_vocabularies_are_refused_for_a_reason() -> None:
    """A part that is taken apart at a letter without a token of its own: the text would be lost."""
    words = ["[UNK]", "a", "s", "##s", "##k", "ask", "##ski", "##ing", "##i", "##g"]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    assert tokenizer.encode("asking").tokens == ["ask", "##ing"]
    lost = Tokenizer(
        models.WordPiece(
            {w: i for i, w in enumerate(w for w in words if w != "ask")}, unk_token="[UNK]"
        )
    )
    assert lost.encode("asking").tokens == ["[UNK]"]
    with pytest.raises(StepInvalid, match="the token ##ing, but none for ##n alone"):
        Vocabulary.of(tokenizer)
    pieces = [("<unk>", 0.0), ("a", -1.0), ("ab", -2.0)]
    with pytest.raises(StepInvalid, match="the token ab, but none for b alone"):
        Vocabulary.of(Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False)))
    with pytest.raises(StepInvalid, match="is a WordLevel, whose words have no parts"):
        Vocabulary.of(Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")))


def byte_level(words: Sequence[str]) -> Tokenizer:
    """A tokenizer as RoBERTa's, trained on some words."""
    from tokenizers import trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([" ".join(words)] * 3, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


WORDS = ["screenplay", "screening", "player", "playing", "wonderful", "wonder", "full", "ünder"] * 3


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=20), kept_words=st.lists(st.sampled_from(WORDS), max_size=3))
def test_byte_level_tokenizers_stay_lossless(text: str, kept_words: list[str]) -> None:
    """Whatever is dropped, a text can be read back from its tokens."""
    tokenizer = byte_level(WORDS)
    vocabulary = Vocabulary.of(tokenizer)
    wanted = [i for word in kept_words for i in tokenizer.encode(word).ids]
    kept = vocabulary.always | vocabulary.closure(wanted)
    trimmed = Tokenizer.from_str(vocabulary.without_others(kept)[0])
    assert len(kept) < len(vocabulary.tokens)
    assert trimmed.decode(trimmed.encode(text).ids) == tokenizer.decode(tokenizer.encode(text).ids)
    for word in kept_words:
        assert trimmed.encode(word).tokens == tokenizer.encode(word).tokens


def test_every_id_in_the_file_is_renumbered() -> None:
    """Added tokens, padding and what is put around a text."""
    words = ["x", "drop", "[UNK]", "[CLS]", "a", "##b", "b", "##a", "[SEP]", "ab", "[PAD]"]
    words += ["##" + c for c in "xdrop"] + list("drop")
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(["[PAD]"])
    tokenizer.add_tokens([AddedToken("Kompakt", single_word=True)])
    tokenizer.enable_padding(pad_id=10, pad_token="[PAD]", length=6)
    around = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 3), ("[SEP]", 8)]
    )
    tokenizer.post_processor = processors.Sequence([around])
    vocabulary = Vocabulary.of(tokenizer)
    kept = choose(vocabulary, {}, least=1, most=1)
    spec, new = vocabulary.without_others(kept)
    trimmed = Tokenizer.from_str(spec)
    assert {"drop", "ab"}.isdisjoint(trimmed.get_vocab())
    found = trimmed.encode("Kompakt")
    assert found.tokens == ["[CLS]", "Kompakt", "[SEP]", "[PAD]", "[PAD]", "[PAD]"]
    expected = tokenizer.encode("Kompakt")
    assert found.ids == [new[old] for old in expected.ids]
    assert found.ids[0] == trimmed.token_to_id("[CLS]") != 3
    assert list(new) == sorted(new), "the order stays"


@pytest.mark.parametrize(
    ("least", "most", "protected", "expected"),
    [
        (1, 99, [], {"ab", "ba", "abba"}),
        (2, 99, [], {"ab", "abba"}),
        (3, 99, [], {"ab"}),
        (1, 6, [], {"ab"}),
        (1, 7, [], {"ab", "abba"}),
        (9, 99, ["ba"], {"ba"}),
        (9, 1, ["ba"], {"ba"}),
    ],
)
def test_frequent_tokens_stay(
    least: int, most: int, protected: list[str], expected: set[str]
) -> None:
    """Beside five that always stay: by count, up to the cap, and protected ones beyond both."""
    words = ["[UNK]", "a", "b", "##a", "##b", "ab", "ba", "abba", "bab"]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    vocabulary = Vocabulary.of(tokenizer)
    assert len(vocabulary.always) == 5
    counts = {words.index("ab"): 3, words.index("ba"): 1, words.index("abba"): 2}
    wanted = [words.index(word) for word in protected]
    kept = choose(vocabulary, counts, least=least, most=most, protected=wanted)
    assert {words[i] for i in kept - vocabulary.always} == expected


def test_what_was_never_seen_fills_up_the_rest() -> None:
    """In the order of ids, behind all that was seen; places that no text leads to stay empty."""
    words = ["[UNK]", "[unused0]", "a", "b", "##a", "##b", "ab", "ba", "aba", "bab", "##ba"]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    vocabulary = Vocabulary.of(tokenizer)
    reachable = vocabulary.reachable(tokenizer)
    assert [words[i] for i in reachable] == [words[0], *words[2:]]
    counts = {words.index("bab"): 2, words.index("b"): 1}
    for room, expected in ((1, {"bab"}), (3, {"bab", "ab", "ba"}), (99, {*words[6:]})):
        most = len(vocabulary.always) + room
        unseen = [i for i in reachable if i not in counts]
        kept = choose(vocabulary, counts, least=0, most=most, unseen=unseen)
        assert {words[i] for i in kept - vocabulary.always} == expected


def test_bpe_keeps_what_a_token_is_merged_from() -> None:
    """`abc` comes of `ab` and `c`, so both stay, and so does the merge."""
    model = models.BPE(
        vocab={t: i for i, t in enumerate(["a", "b", "c", "ab", "bc", "abc", "ca"])},
        merges=[("a", "b"), ("b", "c"), ("ab", "c"), ("c", "a")],
    )
    vocabulary = Vocabulary.of(Tokenizer(model))
    kept = choose(vocabulary, {5: 1}, least=1, most=99)
    assert kept == {0, 1, 2, 3, 5}
    spec = json.loads(vocabulary.without_others(kept)[0])
    assert spec["model"]["merges"] == [["a", "b"], ["ab", "c"]]
