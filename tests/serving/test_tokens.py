# SPDX-License-Identifier: Apache-2.0
"""A model that labels words: served, and compared."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.serving.test_sessions import to_openvino
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from kompakt.serving.agreement import SameTags
from kompakt.serving.artifact import ArtifactError, load_artifact
from kompakt.serving.tagger import Tagger, word_tokens

MODEL = "/v2/models/sentiment"
STABLE = {"bad": "negative", "awful": "negative", "good": "positive", "great": "positive"}
CANDIDATE = {"bad": "negative", "good": "positive", "great": "positive"}


async def test_words_are_labelled_with_offsets(
    make_artifact: Any, serve_model: Any, infer_body: Any, parse_metrics: Any
) -> None:
    """Punctuation is a word; `words` parts the texts, of which one is empty of words."""
    async with serve_model(make_artifact(each_token=True)) as served:
        body = infer_body("so bad!", " good  great")
        answer = await served.call("POST", f"{MODEL}/infer", body)
        assert answer.status == 200
        outputs = {output["name"]: output for output in answer.json()["outputs"]}
        labels = ["neutral", "negative", "neutral", "positive", "positive"]
        assert outputs["label"]["data"] == labels
        assert outputs["words"] == {
            "name": "words",
            "datatype": "INT64",
            "shape": [2],
            "data": [3, 2],
        }
        assert outputs["offsets"]["shape"] == [5, 2]
        assert outputs["offsets"]["data"] == [0, 2, 3, 6, 6, 7, 1, 5, 7, 12]
        sure = math.exp(3) / (math.exp(3) + 2)
        assert outputs["score"]["data"][1] == pytest.approx(sure, abs=1e-6)
        metadata = (await served.call("GET", MODEL)).json()
        assert [output["shape"] for output in metadata["outputs"]] == [[-1], [-1], [-1, 2], [-1]]
        assert metadata["parameters"]["task"] == "TokenClassification"
        series = parse_metrics((await served.call("GET", "/metrics")).body)
        counted = [n for s, n in series.items() if s.startswith("kompakt_predictions_total{")]
        assert sum(counted) == 5


def test_both_runtimes_label_the_same(make_artifact: Any) -> None:
    """What OpenVINO fills up is no word; a text longer than the model reads ends where it does."""
    models = [
        Tagger(load_artifact(folder))
        for folder in (
            make_artifact("onnx", each_token=True),
            to_openvino(make_artifact("ir", each_token=True)),
        )
    ]
    for model in models:
        model.warm_up()
    texts = ["good", "so bad odd", "great " * 11, "awful so " * 30]
    found = [model.answer(texts) for model in models]
    assert found[0].labels == found[1].labels
    assert found[0].words == found[1].words == [1, 3, 11, 16]
    assert found[0].offsets.tolist() == found[1].offsets.tolist()


def test_a_classifier_is_no_tagger(make_artifact: Any) -> None:
    """Found while warming up: better no pod than wrong labels."""
    folder = make_artifact()
    document = json.loads((folder / "variant.json").read_bytes())
    (folder / "variant.json").write_text(json.dumps(document | {"task": "TokenClassification"}))
    with pytest.raises(ArtifactError, match=r"answers with shape \[3\] for a text"):
        Tagger(load_artifact(folder)).warm_up()


def test_a_space_before_a_word_is_no_part_of_it() -> None:
    """Byte-level tokenizers count it to the word."""
    tokenizer = Tokenizer(BPE({c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, trim_offsets=False)
    text = "ab  cd é."
    spans = word_tokens(tokenizer.encode(text), text)
    assert [text[begin:end] for _, begin, end in spans] == ["ab", "cd", "é", "."]


def artifacts(make_artifact: Any) -> list[Path]:
    """The stable one and the candidate."""
    both = (("stable", STABLE), ("candidate", CANDIDATE))
    return [make_artifact(name, meanings, each_token=True) for name, meanings in both]


@pytest.mark.slow
async def test_texts_are_compared_word_by_word(
    make_artifact: Any,
    comparing: Any,
    call_app: Any,
    infer_body: Any,
    parse_metrics: Any,
    wait_until: Any,
) -> None:
    """One other label makes it another answer; what counts is texts."""
    async with comparing(artifacts(make_artifact)) as comparator:
        call = call_app(comparator)

        def series() -> dict[str, float]:
            found: dict[str, float] = parse_metrics(comparator.registry.render())
            return found

        texts = ["good bad", "so awful, so bad", "awful awful"]
        more = {"outputs": [{"name": "score"}]}
        for request in (infer_body(*texts), infer_body("good", **more), infer_body("so awful")):
            assert (await call("POST", f"{MODEL}/infer", request)).status == 202
        await wait_until(lambda: series()['kompakt_shadow_pairs_total{label="text"}'] == 5)
        assert series()['kompakt_shadow_disagreements_total{label="text"}'] == 3
        assert series()['kompakt_shadow_errors_total{leg="candidate"}'] == 0


@pytest.mark.slow
async def test_a_golden_text_is_right_when_all_of_its_words_are(
    make_artifact: Any,
    comparing: Any,
    parse_metrics: Any,
    wait_until: Any,
    tmp_path: Path,
) -> None:
    """Labels are of words that white space divides; the first part of one that is cut counts."""
    rows: list[tuple[str, Any]] = [
        ("so awful", ["neutral", "negative"]),  # lost
        ("so awful", "neutral neutral"),  # gained
        ("bad, so good", [0, 1, "positive"]),
        ("bad", ["positive"]),
        ("bad good", ["negative"]),  # not as many labels as words: wrong for both
    ]
    golden = tmp_path / "golden.jsonl"
    golden.write_text("".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in rows))
    options = {"golden": golden, "golden_rps": 10_000.0, "golden_interval_seconds": 1000.0}
    async with comparing(artifacts(make_artifact), **options) as comparator:

        def series(name: str) -> float:
            found: dict[str, float] = parse_metrics(comparator.registry.render())
            return found[f"kompakt_golden_{name}"]

        await wait_until(lambda: series("pass") == 1)
        assert series("pairs") == 5
        assert (series("lost"), series("gained")) == (1, 1)


words = st.lists(st.tuples(st.sampled_from(["a", "b.", "c-d"]), st.sampled_from("XYO")), max_size=5)


@given(words)
def test_an_answer_is_right_as_it_is_written(some: list[tuple[str, str]]) -> None:
    """A served answer, cut finer than white space does, is right for its own labels, and wrong as
    soon as the label of a word's first part is another.
    """
    rule = SameTags(("X", "Y", "O"))
    text = " ".join(word for word, _ in some)
    truth = rule.truth(tuple(label for _, label in some), text)
    served: list[tuple[int, int, str]] = []
    at = 0
    for word, label in some:
        parts = [at + i for i, character in enumerate(word) if character != "-"]
        served += [(p, p + 1, label if p == at else "O") for p in parts]
        at += len(word) + 1
    assert truth is not None
    assert rule.right(tuple(served), truth)
    for place, (begin, end, label) in enumerate(served):
        if begin == 0 or text[begin - 1] == " ":
            wrong = (begin, end, "X" if label != "X" else "Y")
            assert not rule.right((*served[:place], wrong, *served[place + 1 :]), truth)
            assert not rule.same((*served[:place], wrong, *served[place + 1 :]), tuple(served))
