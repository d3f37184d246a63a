# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from kompakt.jobs.data.words import count_words, first_tokens, word_spans

LETTERS = "abcxyz"


def tokenizer() -> Tokenizer:
    """Knows single letters and some pairs, and parts punctuation off."""
    parts = ["[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{c}" for c in LETTERS), "ab", "##xy", "."]
    made = Tokenizer(WordPiece({part: i for i, part in enumerate(parts)}, unk_token="[UNK]"))
    made.pre_tokenizer = BertPreTokenizer()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return made


@given(st.text(alphabet=f"{LETTERS}. \t\n\u00a0", max_size=40))
def test_each_word_has_the_token_that_begins_it(text: str) -> None:
    """Found one by one, against the offsets that the tokenizer gives."""
    encoding = tokenizer().encode(text)
    places = first_tokens(encoding, text)
    assert len(places) == count_words(text) == len(word_spans(text))
    for (begin, end), place in zip(word_spans(text), places, strict=True):
        assert text[begin:end] == re.sub(r"\s", "", text[begin:end])
        assert place is not None
        assert encoding.offsets[place][0] == begin


def test_words_behind_the_end_have_no_token() -> None:
    """What is truncated is not answered."""
    short = tokenizer()
    short.enable_truncation(max_length=5)
    assert first_tokens(short.encode("ab xyz abc"), "ab xyz abc") == [1, 2, None]
    assert first_tokens(short.encode(""), "") == []
