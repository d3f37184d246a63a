# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from kompakt.api.source import DataSource
from kompakt.jobs.data.reader import read
from kompakt.jobs.errors import DataInvalid, DigestMismatch, InvalidInput, SourceUnreadable

ROWS = [{"review": f"text {i}", "stars": i % 3, "shop": "a" * (60 + i)} for i in range(10)]


def jsonl(path: Path, rows: list[object]) -> str:
    """A JSON Lines file."""
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return f"file://{path}"


def source(uri: str, **fields: object) -> DataSource:
    """A source with the field names of ROWS."""
    return DataSource.model_validate(
        {"uri": uri, "textField": "review", "labelField": "stars", "sliceFields": ["shop"]} | fields
    )


def test_json_lines_are_read_in_order(tmp_path: Path) -> None:
    """Texts, labels as text, and slice values cut to what a status can hold."""
    dataset = read(source(jsonl(tmp_path / "a.jsonl", [*ROWS])))
    assert dataset.texts == [f"text {i}" for i in range(10)]
    assert [example.label for example in dataset.examples[:4]] == [0, 1, 2, 0]
    assert {len(example.slices["shop"]) for example in dataset.examples} == {60, 61, 62, 63}
    digest = hashlib.sha256((tmp_path / "a.jsonl").read_bytes()).hexdigest()
    assert dataset.digest == f"sha256:{digest}"


def test_every_format_gives_the_same_examples(tmp_path: Path) -> None:
    """CSV and gzip, with a byte order mark or quoted line breaks, read as JSON Lines do."""
    rows = [("one, two", "good"), ("three\nfour", "bad"), ('"five"', "good")]
    expected = [{"review": text, "stars": label, "shop": "x"} for text, label in rows]
    table = "review,stars,shop\r\n" + "".join(
        '"{}",{},x\r\n'.format(text.replace('"', '""'), label) for text, label in rows
    )
    (tmp_path / "a.csv").write_text("\ufeff" + table, newline="")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(table.encode()))
    plain = jsonl(tmp_path / "a.jsonl", [*expected])
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    reference = [(e.text, e.label, e.slices) for e in read(source(plain)).examples]
    for name in ("a.csv", "a.csv.gz", "b.jsonl.gz"):
        found = read(source(f"file://{tmp_path / name}")).examples
        assert [(e.text, e.label, e.slices) for e in found] == reference


def test_a_sample_is_seeded_and_keeps_the_order(tmp_path: Path) -> None:
    """`limit` takes the same examples for the same seed, in the file's order, and others for
    others.
    """
    uri = jsonl(tmp_path / "a.jsonl", [{"review": str(i)} for i in range(1000)])
    plain = source(uri, labelField=None, sliceFields=[], limit=50)
    first = [int(text) for text in read(plain, seed=1).texts]
    assert first == [int(text) for text in read(plain, seed=1).texts]
    assert first == sorted(first)
    assert len(set(first)) == 50
    assert first != [int(text) for text in read(plain, seed=2).texts]
    assert read(plain, seed=1).digest == read(plain.evolve(limit=None)).digest


def test_slices_have_their_weights(tmp_path: Path) -> None:
    """A text's weight is the product of its slices' weights, and a sample follows it."""
    lines = [
        json.dumps({"review": f"r{i}", "stars": 1, "shop": "a" if i % 10 else "b"})
        for i in range(1000)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    weight = {"field": "shop", "value": "b", "weightPermille": 9000}
    weighted = source(f"file://{tmp_path}/a.jsonl", sliceWeights=[weight])
    assert {e.slices["shop"]: e.weight for e in read(weighted).examples} == {"a": 1.0, "b": 9.0}
    samples = [read(weighted.evolve(limit=100), seed=seed).examples for seed in range(8)]
    drawn = sum(example.slices["shop"] == "b" for sample in samples for example in sample)
    assert 37 < drawn / len(samples) < 49  # 44 by the exponential keys; unweighted it would be 10


def test_a_sample_larger_than_the_data_is_the_data(tmp_path: Path) -> None:
    """`limit` above the number of examples takes all of them."""
    assert len(read(source(jsonl(tmp_path / "a.jsonl", [*ROWS]), limit=1000)).examples) == 10


def test_the_same_text_twice_is_fine(tmp_path: Path) -> None:
    """Duplicates are examples like any other."""
    assert len(read(source(jsonl(tmp_path / "a.jsonl", [ROWS[0], ROWS[0]]))).examples) == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"review": "x", "stars": null, "shop": "s"}\n'),
        ("a.csv", "review,stars,shop\nx,,s\n"),
    ],
    ids=["json", "csv"],
)
def test_null_and_nothing_are_no_label(tmp_path: Path, name: str, content: str) -> None:
    """A part of the data may be labelled: the others have null, or nothing in CSV."""
    (tmp_path / name).write_text(content)
    (example,) = read(source(f"file://{tmp_path}/{name}")).examples
    assert example.label is None


def test_blank_lines_are_skipped_and_no_value_is_a_slice(tmp_path: Path) -> None:
    """An empty line is no example; null is a slice of its own."""
    (tmp_path / "a.jsonl").write_text('\n{"review": "x", "stars": "good", "shop": null}\n\n')
    (example,) = read(source(f"file://{tmp_path / 'a.jsonl'}")).examples
    assert example.slices == {"shop": "(none)"}
    assert example.line == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(
            '{"review": "x", "stars": 1, "shop": "s"}\n{"body": "x", "stars": 1, "shop": "s"}\n',
            r"'review' is missing in line 2 of .*; fields there: body, stars, shop; set textField",
            id="no text field",
        ),
        pytest.param(
            '{"review": "x", "rating": 1, "shop": "s"}\n',
            r"field 'stars' is missing in line 1 of .*; set labelField",
            id="no label field",
        ),
        pytest.param(
            '{"review": "x", "stars": 1}\n', r"'shop' is missing .*; set sliceFields", id="no slice"
        ),
        pytest.param(
            '{"review": 5, "stars": 1, "shop": "s"}\n', r"is not a text but the int 5", id="number"
        ),
        pytest.param(
            '{"review": null, "stars": 1, "shop": "s"}\n', r"is not a text but null", id="null"
        ),
        pytest.param("review,stars\nx,1\n", r"line 1 of .* is no JSON: .* \.csv", id="CSV unnamed"),
        pytest.param('["x"]\n', r"line 1 of .* is a JSON list", id="a list"),
        pytest.param("\n\n", r"holds no examples", id="nothing"),
        pytest.param("", r"holds no examples", id="an empty file"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, content: str, message: str) -> None:
    """What cannot be an example is an error that names the line and the setting to change."""
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataInvalid, match=message):
        read(source(f"file://{tmp_path / 'a.jsonl'}"))


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        pytest.param("a.jsonl", b"\xff\xfe\x00", DataInvalid, id="not UTF-8"),
        pytest.param("a.jsonl.gz", b"{}", DataInvalid, id="no gzip"),
        pytest.param(
            "a.jsonl.gz", gzip.compress(b'{"review"' * 99)[:30], DataInvalid, id="cut gzip"
        ),
        pytest.param("a.csv", b'review,stars,shop\n"x,1,s\n', DataInvalid, id="open quote"),
    ],
)
def test_broken_files_are_the_users_to_mend(
    tmp_path: Path, name: str, content: bytes, error: type[InvalidInput]
) -> None:
    """A file that is no text or no gzip is invalid input, which is never retried."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error) as caught:
        read(source(f"file://{tmp_path / name}"))
    assert caught.value.exit_code == 42


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The address is in the message, and what to check."""
    with pytest.raises(SourceUnreadable, match=r"nowhere\.jsonl cannot be read: there is no such"):
        read(source(f"file://{tmp_path}/nowhere.jsonl"))


def test_volumes_are_found_where_the_operator_mounts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pvc://claim/path` is a path below the claim's mount."""
    monkeypatch.setattr("kompakt.jobs.location.VOLUMES_MOUNT", str(tmp_path))
    (tmp_path / "datasets").mkdir()
    jsonl(tmp_path / "datasets/a.jsonl", [*ROWS])
    assert len(read(source("pvc://datasets/a.jsonl")).examples) == 10


def test_another_content_than_asked_for_is_refused(tmp_path: Path) -> None:
    """A digest in the source pins the file's bytes; the message has the one that was found."""
    uri = jsonl(tmp_path / "a.jsonl", [*ROWS])
    digest = read(source(uri)).digest
    assert len(read(source(uri, digest=digest)).examples) == 10
    jsonl(tmp_path / "a.jsonl", [*ROWS[1:]])
    with pytest.raises(DigestMismatch, match=f"has the digest sha256:.* but {digest} is asked for"):
        read(source(uri, digest=digest))


def test_words_and_their_labels_may_be_lists(tmp_path: Path) -> None:
    """A list of words is the text with spaces between; a list of labels stays one."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": ["New", "York"], "label": ["B-LOC", 2]}\n')
    [example] = read(DataSource(uri=f"file://{path}", label_field="label")).examples
    assert (example.text, example.label) == ("New York", ("B-LOC", 2))
    path.write_text('{"text": ["New York", "is"], "label": null}\n')
    with pytest.raises(
        DataInvalid, match=r"'text' in line 1 .* not one of words without white space"
    ):
        read(DataSource(uri=f"file://{path}"))
