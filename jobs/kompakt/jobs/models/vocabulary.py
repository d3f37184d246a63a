# SPDX-License-Identifier: Apache-2.0
"""A tokenizer's vocabulary: which tokens it can do without, and the tokenizer without them. No
torch here.

Invariants, for every subset that `closure` returns and every text:

- a text of which each character was known has no unknown token afterwards;
- a text whose tokens all stay is split as before.

Why they hold, by the tokenizer's model:

- WordPiece takes the longest token at each place. It goes on from any place as long as each single
  character has a token, at the start of a word and (`##x`) within it; all of these stay. Where a
  vocabulary lacks one, every token with that character stays, which is enough at the start of a
  token; within a later part of a word it is not, and such vocabularies are refused.
- BPE starts from characters (or bytes), which all stay, and merges. Tokens that stay keep all
  tokens that they are merged from, so the merges that made a text's tokens are still there, and of
  those that are left they still come first.
- Unigram looks for the best path, and knows a character when it has a token of its own.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kompakt.jobs.errors import StepInvalid

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SUPPORTED = ("WordPiece", "BPE", "Unigram")
_BYTE = re.compile("<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a fast tokenizer, with their ids."""

    spec: dict[str, Any]
    """What tokenizer.json says."""
    tokens: Mapping[str, int]
    """Also those that were added to the model's."""
    added: frozenset[str]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        """Reads a tokenizer.

        Raises:
            StepInvalid: Without some of its tokens it would not know texts that it knows now.
        """
        spec = json.loads(tokenizer.to_str())
        model = spec["model"]
        kind = model.get("type")
        if kind not in SUPPORTED:
            raise StepInvalid(
                f"trimVocabulary cannot be applied: the model's tokenizer is a {kind}, whose words"
                " have no parts to fall back to; leave the step out"
            )
        entries = model["vocab"]
        tokens = (
            {piece: index for index, (piece, _score) in enumerate(entries)}
            if kind == "Unigram"
            else dict(entries)
        )
        added = {token["content"]: token["id"] for token in spec["added_tokens"]}
        vocabulary = cls(spec=spec, tokens=tokens | added, added=frozenset(added))
        vocabulary._refuse_gaps()
        return vocabulary

    def closure(self, ids: Iterable[int]) -> set[int]:
        """These tokens, and all that their texts need."""
        closed: set[int] = set()
        open_ids = list(ids)
        while open_ids:
            current = open_ids.pop()
            if current not in closed:
                closed.add(current)
                open_ids.extend(self._merged_from.get(current, ()))
        return closed

    @cached_property
    def always(self) -> frozenset[int]:
        """What stays whatever the texts: special tokens, single characters, and tokens with a
        character that has none of its own.
        """
        names = {token for token in self.tokens if self._is_basic(token)}
        if self._kind == "WordPiece" or self._model.get("ignore_merges"):
            names.update(filter(self._gaps, self._words))
        special = {self.tokens[token] for token in self.added}
        if self._unknown in self.tokens:
            special.add(self.tokens[self._unknown])
        special.update(_ids_around(self.spec.get("post_processor")))
        return frozenset(self.closure(special | {self.tokens[name] for name in names}))

    def without_others(self, kept: Iterable[int]) -> tuple[str, dict[int, int]]:
        """tokenizer.json with only these tokens, and from the old ids to the new, whose order is
        the same.
        """
        new = {old: index for index, old in enumerate(sorted(kept))}
        spec = copy.deepcopy(self.spec)
        model = spec["model"]
        if model["type"] == "Unigram":
            model["vocab"] = [entry for old, entry in enumerate(model["vocab"]) if old in new]
            if model.get("unk_id") is not None:
                model["unk_id"] = new[model["unk_id"]]
        else:
            model["vocab"] = {
                token: new[old] for token, old in model["vocab"].items() if old in new
            }
        if model["type"] == "BPE":
            model["merges"] = [
                merge
                for merge in model["merges"]
                if all(self.tokens[token] in new for token in (*merge, self._merged(*merge)))
            ]
        for token in spec["added_tokens"]:
            token["id"] = new[token["id"]]
        if spec.get("padding"):
            spec["padding"]["pad_id"] = new[spec["padding"]["pad_id"]]
        _renumber(spec.get("post_processor"), new)
        return json.dumps(spec, ensure_ascii=False), new

    @property
    def _model(self) -> dict[str, Any]:
        model: dict[str, Any] = self.spec["model"]
        return model

    @property
    def _kind(self) -> str:
        return str(self._model["type"])

    @property
    def _unknown(self) -> str:
        """Empty where there is none."""
        if self._kind != "Unigram":
            return self._model.get("unk_token") or ""
        number = self._model.get("unk_id")
        return "" if number is None else str(self._model["vocab"][number][0])

    @property
    def _prefix(self) -> str:
        """Of a token within a word."""
        return self._model.get("continuing_subword_prefix") or ""

    @property
    def _suffix(self) -> str:
        """Of a token at a word's end."""
        return self._model.get("end_of_word_suffix") or ""

    def reachable(self, tokenizer: Tokenizer) -> list[int]:
        """Ids of the tokens that some text is split into; vocabularies have unused places, too."""
        inside = [id_ for token, id_ in self.tokens.items() if self._is_inside(token)]
        others = [id_ for token, id_ in self.tokens.items() if not self._is_inside(token)]
        texts = tokenizer.decode_batch([[id_] for id_ in others], skip_special_tokens=False)
        found = tokenizer.encode_batch(texts, add_special_tokens=False)
        alone = (id_ for id_, one in zip(others, found, strict=True) if id_ in one.ids)
        return sorted([*inside, *alone])

    def _is_inside(self, token: str) -> bool:
        """Whether it stands within a word only, and so for no text by itself."""
        return bool(self._prefix) and token.startswith(self._prefix)

    @property
    def _words(self) -> Iterable[str]:
        """Tokens that stand for text as it is written."""
        special = self.added | {self._unknown}
        return (t for t in self.tokens if t not in special and not self._is_byte(t))

    def _is_byte(self, token: str) -> bool:
        """Whether it stands for a byte of a character that has no token."""
        return bool(self._model.get("byte_fallback")) and _BYTE.fullmatch(token) is not None

    def _is_basic(self, token: str) -> bool:
        """Whether it is a single character, in any of its forms, or a byte."""
        forms = (token, token.removeprefix(self._prefix))
        inner = {form.removesuffix(self._suffix) for form in forms} | {*forms}
        return 1 in map(len, inner) or self._is_byte(token)

    def _spelling(self, token: str) -> list[str]:
        """A token as single characters."""
        prefix, suffix = self._prefix, self._suffix
        within = bool(prefix) and token.startswith(prefix) and token != prefix
        ends = bool(suffix) and token.endswith(suffix) and token != suffix
        characters = list(token[len(prefix) * within : len(token) - len(suffix) * ends])
        if ends and characters:
            characters[-1] += suffix
        return [
            prefix + character if within or place else character
            for place, character in enumerate(characters)
        ]

    def _gaps(self, token: str) -> list[int]:
        """The places of its characters that have no token of their own."""
        spelled = enumerate(self._spelling(token))
        return [place for place, character in spelled if character not in self.tokens]

    def _refuse_gaps(self) -> None:
        if self._kind == "BPE":
            return
        for token in self._words:
            gaps = self._gaps(token)
            if self._kind == "WordPiece":
                gaps = [place for place in gaps if place and token.startswith(self._prefix)]
            if gaps:
                raise StepInvalid(
                    f"trimVocabulary cannot be applied: the tokenizer has the token {token}, but"
                    f" none for {self._spelling(token)[gaps[0]]} alone, so texts could become"
                    " unknown; leave the step out"
                )

    def _merged(self, left: str, right: str) -> str:
        return left + right.removeprefix(self._prefix)

    @cached_property
    def _merged_from(self) -> dict[int, set[int]]:
        """For each token of BPE, all that any merge makes it from."""
        parts: dict[int, set[int]] = {}
        for left, right in self._model.get("merges", ()):
            ends = {self.tokens[left], self.tokens[right]}
            parts.setdefault(self.tokens[self._merged(left, right)], set()).update(ends)
        return parts


def choose(
    vocabulary: Vocabulary,
    counts: Mapping[int, int],
    *,
    least: int,
    most: int,
    protected: Iterable[int] = (),
    unseen: Iterable[int] = (),
) -> set[int]:
    """The tokens that stay: by how often texts have them, with all that these need.

    Args:
        vocabulary: All tokens.
        counts: How often each id occurs in the task's texts.
        least: A token that occurs less often goes.
        most: So many tokens stay at most, the most frequent ones first; what must stay may be more.
        protected: Tokens that stay anyway.
        unseen: Others that stay where there is room left, the first ones first.
    """
    kept = set(vocabulary.always | vocabulary.closure(protected))
    frequent = (token for token, count in counts.items() if count >= least)
    for token in (*sorted(frequent, key=lambda token: (-counts[token], token)), *unseen):
        wanted = vocabulary.closure([token]) - kept
        if len(kept) + len(wanted) <= most:
            kept |= wanted
    return kept


def _ids_around(processor: dict[str, Any] | None) -> set[int]:
    """The tokens that are put around a text."""
    if processor is None:
        return set()
    ids = {i for token in processor.get("special_tokens", {}).values() for i in token["ids"]}
    ids.update(processor[name][1] for name in ("sep", "cls") if name in processor)
    return ids.union(*map(_ids_around, processor.get("processors", ())))


def _renumber(processor: dict[str, Any] | None, new: Mapping[int, int]) -> None:
    """Puts the new ids of the tokens around a text in place."""
    if processor is None:
        return
    for part in processor.get("processors", ()):
        _renumber(part, new)
    special = processor.get("special_tokens", {})
    for token in special.values():
        token["ids"] = [new[old] for old in token["ids"]]
    for name in ("sep", "cls"):
        if name in processor:
            content, old = processor[name]
            processor[name] = [content, new[old]]
