# SPDX-License-Identifier: Apache-2.0
"""Vocabulary trimming: tokens that the task's texts hardly use leave the tokenizer, and their rows
the embedding table.

The embedding table is half of a small model, and more once the layers are pruned; a task in one
language and domain uses about half of it. Its lookup takes the same time whatever its size, so this
saves space, not time. Texts with a token that left are split into smaller ones; how many these will
be is measured on texts that were not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from typing_extensions import override

from kompakt.api.steps import TrimVocabulary
from kompakt.jobs.compress.steps import TorchStep
from kompakt.jobs.compress.training import TrainingData
from kompakt.jobs.errors import StepInvalid
from kompakt.jobs.models.encoder import Encoder
from kompakt.jobs.models.vocabulary import Vocabulary, choose

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

LEAST_TEXTS = 32
HELD_OUT_SHARE = 0.1
HELD_OUT_MOST = 2000


class TrimTokens(TorchStep):
    """The step `trimVocabulary`."""

    def __init__(self, parameters: TrimVocabulary) -> None:
        self._parameters = parameters

    @override
    def apply(self, encoder: Encoder, data: TrainingData) -> str:
        from tokenizers import Tokenizer

        if len(data) < LEAST_TEXTS:
            raise StepInvalid(
                f"trimVocabulary needs at least {LEAST_TEXTS} training texts to know the task's"
                f" tokens; {data.dataset.uri} has {len(data)}"
            )
        vocabulary = Vocabulary.of(data.tokenizer)
        protected = self._protected(encoder, data)
        reachable = (
            [] if self._parameters.least_occurrences else vocabulary.reachable(data.tokenizer)
        )
        order = data.order()
        cut = len(order) - min(HELD_OUT_MOST, max(1, int(len(order) * HELD_OUT_SHARE)))

        # Once without the texts that tell how it will be with texts that nobody has seen.
        seen = self._choose(
            vocabulary, (data.encodings[i] for i in order[:cut]), protected, reachable
        )
        held_out = [data.dataset.texts[i] for i in order[cut:]]
        before = [data.encodings[i] for i in order[cut:]]
        after = Tokenizer.from_str(vocabulary.without_others(seen)[0]).encode_batch(held_out)

        kept = sorted(self._choose(vocabulary, data.encodings, protected, reachable))
        rows = encoder.word.num_embeddings
        text, new_ids = vocabulary.without_others(kept)
        encoder.replace_words(encoder.word.weight[kept].detach())
        data.trim(Tokenizer.from_str(text), new_ids)
        changed = sum(a.tokens != b.tokens for a, b in zip(before, after, strict=True))
        data.details["trimVocabulary"] = {
            "tokensBefore": rows,
            "tokensAfter": len(kept),
            "tokensAlwaysKept": len(vocabulary.always),
            "textsHeldOut": len(held_out),
            "textsHeldOutChanged": changed,
            "tokensInTextsHeldOutBefore": sum(map(len, before)),
            "tokensInTextsHeldOutAfter": sum(map(len, after)),
        }
        return (
            f"{len(kept):,} of {rows:,} tokens kept, {changed} of {len(held_out):,} held-out texts"
            " split otherwise"
        )

    def _choose(
        self,
        vocabulary: Vocabulary,
        encodings: Iterable[Encoding],
        protected: Sequence[int],
        reachable: Sequence[int],
    ) -> set[int]:
        counts = Counter(chain.from_iterable(encoding.ids for encoding in encodings))
        return choose(
            vocabulary,
            counts,
            least=self._parameters.least_occurrences,
            most=len(vocabulary.tokens) * self._parameters.keep_permille // 1000,
            protected=protected,
            unseen=[token for token in reachable if token not in counts],
        )

    def _protected(self, encoder: Encoder, data: TrainingData) -> list[int]:
        """Padding, what RoBERTa counts positions by, and the parts of the protected terms."""
        ids = {data.pad_id, *range(encoder.config.first_position)}
        tokenizer = untruncated(data.tokenizer)
        for term in self._parameters.protected_terms:
            # Byte-level tokenizers have other tokens after a space than at a text's start.
            for written in (term, f" {term}"):
                ids.update(tokenizer.encode(written, add_special_tokens=False).ids)
        return sorted(ids)


def untruncated(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that gives all of a text's tokens."""
    from tokenizers import Tokenizer

    whole = Tokenizer.from_str(tokenizer.to_str())
    whole.no_truncation()
    return whole
