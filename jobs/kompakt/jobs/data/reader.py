# SPDX-License-Identifier: Apache-2.0
"""Reads JSON Lines or CSV, plain or gzipped, from any location; every error names the line and the
mend.

The file is streamed and hashed as it is read, so memory follows `limit`, not the file's size.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import heapq
import io
import json
import math
import random
import zlib
from collections.abc import Iterator
from typing import Any

from typing_extensions import Buffer, override

from kompakt.api.base import Digest
from kompakt.api.source import DataSource
from kompakt.jobs.data.examples import Dataset, Example, Label, draw_key
from kompakt.jobs.errors import DataInvalid, DigestMismatch, JobError, SourceUnreadable
from kompakt.jobs.location import CREDENTIALS_HINT, describe, resolve

SLICE_VALUE_LENGTH = 63
"""A slice's value must fit into a status field and a metric's label."""
NO_VALUE = "(none)"
CSV_FIELD_BYTES = 16 << 20


def read(source: DataSource, *, seed: int = 0) -> Dataset:
    """All examples of a source, or the seeded sample that its `limit` asks for."""
    location = resolve(source.uri)
    try:
        with location.fs.open(location.path, "rb") as raw:
            hashing = _HashingReader(raw)
            examples = _sample(_examples(source, hashing), limit=source.limit, seed=seed)
            hashing.drain()
    except JobError:
        raise
    except UnicodeDecodeError as error:
        raise DataInvalid(f"{source.uri} is not UTF-8 text: {error}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataInvalid(
            f"{source.uri} is named .gz but is no whole gzip file: {error}"
        ) from error
    except Exception as error:  # drivers raise what they like
        raise SourceUnreadable(
            f"the data {source.uri} cannot be read: {describe(error)}; {CREDENTIALS_HINT}"
        ) from error
    if source.digest is not None and hashing.digest != source.digest:
        raise DigestMismatch(
            f"the data {source.uri} has the digest {hashing.digest}, but {source.digest} is asked"
            " for; correct the"
            " digest, or leave it out to take whatever is there"
        )
    if not examples:
        raise DataInvalid(f"{source.uri} holds no examples")
    return Dataset(uri=source.uri, digest=hashing.digest, examples=tuple(examples))


def write_normalised(dataset: Dataset, stream: Any) -> None:
    """Writes JSON Lines `{"text", "label"?, "slices"}`, whatever the source's format and field
    names were.
    """
    for example in dataset.examples:
        line: dict[str, object] = {"text": example.text}
        if example.label is not None:
            line["label"] = example.label
        line["slices"] = example.slices
        stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def _examples(source: DataSource, raw: io.RawIOBase) -> Iterator[Example]:
    name = source.uri.lower()
    stream: Any = io.BufferedReader(raw, 1 << 20)
    if name.endswith(".gz"):
        name = name.removesuffix(".gz")
        stream = gzip.open(stream)  # noqa: SIM115 the location's context closes what is below
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    from_csv = name.endswith(".csv")
    rows = _csv_rows(source, text) if from_csv else _json_rows(source, text)
    for line, row in rows:
        label: Label | None = None
        if source.label_field is not None:
            value = _value(source, row, "labelField", source.label_field, line)
            label = _label(value, from_csv=from_csv)
        slices = {
            name: _slice(_value(source, row, "sliceFields", name, line))
            for name in source.slice_fields
        }
        second = source.second_text_field
        yield Example(
            text=_text(source, row, "textField", source.text_field, line),
            label=label,
            second=None if second is None else _text(source, row, "secondTextField", second, line),
            slices=slices,
            weight=math.prod(
                weight.weight_permille / 1000
                for weight in source.slice_weights
                if slices.get(weight.field) == weight.value
            ),
            line=line,
        )


def _json_rows(source: DataSource, stream: io.TextIOBase) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataInvalid(
                f"line {number} of {source.uri} is no JSON: {error}; write one JSON object a line,"
                " or name a CSV"
                " file .csv"
            ) from error
        if not isinstance(row, dict):
            raise DataInvalid(
                f"line {number} of {source.uri} is a JSON {type(row).__name__}; write one JSON"
                " object a line"
            )
        yield number, row


def _csv_rows(source: DataSource, stream: io.TextIOBase) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(CSV_FIELD_BYTES)
    reader = csv.DictReader(stream, strict=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise DataInvalid(f"line {reader.line_num} of {source.uri} is no CSV: {error}") from error


def _value(source: DataSource, row: dict[str, Any], setting: str, name: str, line: int) -> Any:
    try:
        return row[name]
    except KeyError:
        fields = ", ".join(str(key) for key in row if key is not None)[:300]
        raise DataInvalid(
            f"field {name!r} is missing in line {line} of {source.uri}; fields there: {fields}; set"
            f" {setting}"
        ) from None


def _text(source: DataSource, row: dict[str, Any], setting: str, name: str, line: int) -> str:
    value = _value(source, row, setting, name, line)
    if isinstance(value, list):
        if value and all(map(_is_word, value)):
            return " ".join(value)
        raise DataInvalid(
            f"field {name!r} in line {line} of {source.uri} is a list, but not one of"
            " words without white space; correct the data, or write one text"
        )
    if not isinstance(value, str):
        raise DataInvalid(
            f"field {name!r} in line {line} of {source.uri} is not a text but {_kind(value)};"
            f" set {setting}, or correct the data"
        )
    return value


def _label(value: Any, *, from_csv: bool) -> Label | None:
    if value is None or value == "":
        return None  # unlabelled; whoever needs a label says so
    if isinstance(value, list):
        words = [_label(item, from_csv=False) for item in value]
        return tuple("null" if w is None or isinstance(w, tuple) else w for w in words)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return _kind(value)  # no label is called so: the error about unknown labels names it
    if isinstance(value, int | float):
        return value
    # CSV knows no numbers; whoever reads the label next should be told that it is an index.
    return int(value) if from_csv and value.strip().isdecimal() else value.strip()


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and len(value.split()) == 1 and value == value.strip()


def _slice(value: Any) -> str:
    if value is None or value == "":
        return NO_VALUE
    return str(value)[:SLICE_VALUE_LENGTH]


def _kind(value: Any) -> str:
    return "null" if value is None else f"the {type(value).__name__} {value!r}"[:80]


def _sample(examples: Iterator[Example], *, limit: int | None, seed: int) -> list[Example]:
    """Those with the smallest random keys, so that a stream can be sampled without knowing its
    length.
    """
    if limit is None:
        return list(examples)
    rng = random.Random(seed)
    keyed = (
        (draw_key(rng.random(), example.weight), number, example)
        for number, example in enumerate(examples)
    )
    chosen = heapq.nsmallest(limit, keyed)
    return [example for _, _, example in sorted(chosen, key=lambda item: item[1])]


class _HashingReader(io.RawIOBase):
    """Passes bytes on and hashes them, so that a file is read once."""

    def __init__(self, raw: Any) -> None:
        super().__init__()
        self._raw = raw
        self._hash = hashlib.sha256()

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: Buffer, /) -> int:
        data = self._raw.read(memoryview(buffer).nbytes)
        self._hash.update(data)
        memoryview(buffer)[: len(data)] = data
        return len(data)

    def drain(self) -> None:
        """Hashes what a reader left, such as bytes after the end of a gzip stream."""
        while data := self._raw.read(1 << 20):
            self._hash.update(data)

    @property
    def digest(self) -> Digest:
        return f"sha256:{self._hash.hexdigest()}"
