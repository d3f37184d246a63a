# SPDX-License-Identifier: Apache-2.0
"""The example's sentences: read, labelled, made unique, and divided.

The corpus is the ground truth of Hutto and Gilbert (ICWSM 2014), 23,703 sentences from four
domains, each rated by some 20 people from -4 (very negative) to +4. A class follows from the mean
rating.

Invariants: the splits are disjoint and hold no sentence twice (case and spaces aside); which split
a sentence is in follows from a salted hash of its text alone, so it does not depend on the order of
the files, nor on the hash by which a measurement divides the evaluation split again.
"""

from __future__ import annotations

import hashlib
import html
import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Final

LABELS: Final = ("negative", "neutral", "positive")
_FILES: Final = {
    "tweets": "tweets_GroundTruth.txt",
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "movie": "movieReviewSnippets_GroundTruth.txt",
    "nyt": "nytEditorialSnippets_GroundTruth.txt",
}
_INNER_ARCHIVE: Final = "additional_resources/hutto_ICWSM_2014.tar.gz"


@dataclass(frozen=True)
class Sentence:
    """A sentence and the mean of its ratings."""

    text: str
    rating: float
    domain: str

    @property
    def key(self) -> str:
        """What makes two sentences the same."""
        return " ".join(self.text.casefold().split())

    def label(self, threshold: float) -> str:
        """The class: `neutral` strictly between -threshold and +threshold."""
        if self.rating <= -threshold:
            return "negative"
        return "positive" if self.rating >= threshold else "neutral"


def parse(domain: str, lines: Iterable[str]) -> Iterator[Sentence]:
    """Sentences of one file; a line is an id, the mean rating and the text, separated by tabs.

    Raises ValueError for a line of any other form.
    """
    for number, line in enumerate(lines, start=1):
        fields = line.strip().split("\t", 2)
        try:
            _, rating, text = fields
            yield Sentence(html.unescape(text).strip(), float(rating), domain)
        except ValueError:
            msg = f"line {number} of the {domain} sentences is not `id, rating, text`: {line!r}"
            raise ValueError(msg) from None


def read(sdist: Path) -> list[Sentence]:
    """All sentences in a source distribution of vaderSentiment."""
    with tarfile.open(sdist) as outer:
        member = next(m for m in outer.getmembers() if m.name.endswith(_INNER_ARCHIVE))
        inner_bytes = _content(outer, member)
    sentences: list[Sentence] = []
    with tarfile.open(fileobj=io.BytesIO(inner_bytes)) as inner:
        members = {Path(m.name).name: m for m in inner.getmembers()}
        for domain, name in _FILES.items():
            text = _content(inner, members[name]).decode("utf-8-sig")
            # Not splitlines(): it would also break at the U+0085 that one review holds.
            sentences += parse(domain, (line for line in text.split("\n") if line.strip()))
    return sentences


def unique(sentences: Iterable[Sentence]) -> list[Sentence]:
    """Each sentence once, in the domain where it is met first, with the mean of its ratings."""
    groups: dict[str, list[Sentence]] = {}
    for sentence in sentences:
        groups.setdefault(sentence.key, []).append(sentence)
    return [
        Sentence(same[0].text, fmean(s.rating for s in same), same[0].domain)
        for same in groups.values()
    ]


def split(
    sentences: Iterable[Sentence], sizes: Mapping[str, int], *, salt: str
) -> tuple[dict[str, list[Sentence]], list[Sentence]]:
    """Disjoint splits of the given sizes, and the sentences that are left.

    Raises ValueError when there are too few sentences.
    """

    def rank(sentence: Sentence) -> bytes:
        return hashlib.sha256(f"{salt}\0{sentence.key}".encode()).digest()

    ordered = sorted(sentences, key=rank)
    if len(ordered) < (needed := sum(sizes.values())):
        msg = f"the splits need {needed} sentences, but there are {len(ordered)}"
        raise ValueError(msg)
    splits: dict[str, list[Sentence]] = {}
    start = 0
    for name, size in sizes.items():
        splits[name] = ordered[start : start + size]
        start += size
    return splits, ordered[start:]


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    if file is None:
        msg = f"{member.name} is not a file"
        raise ValueError(msg)
    with file:
        return file.read()
