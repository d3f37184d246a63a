# SPDX-License-Identifier: Apache-2.0
"""A model that answers a vector: served, and compared."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.serving.test_sessions import to_openvino

from kompakt.serving.agreement import NearVectors, SameLabel, SameTags, Vector, agreement_of
from kompakt.serving.artifact import ArtifactError, load_artifact
from kompakt.serving.embedder import Embedder

MODEL = "/v2/models/sentiment"
STABLE = {"good": (1.0, 0.0), "great": (1.0, 1.0), "bad": (-1.0, 0.0), "odd": (0.0, 2.0)}
CANDIDATE = STABLE | {"good": (3.0, 1.0), "great": (2.0, 1.0), "bad": (0.0, 1.0)}
"""Cosines of 0.949, 0.949 and 0; the least that agrees is 0.9."""


async def test_a_vector_is_served_as_it_is(
    make_artifact: Any, serve_model: Any, infer_body: Any, parse_metrics: Any
) -> None:
    """One output, `embedding`, a row for each text; the metadata tells task, width and cosine."""
    async with serve_model(make_artifact(vectors=STABLE)) as served:
        answer = await served.call("POST", f"{MODEL}/infer", infer_body("good great", "odd bad"))
        assert answer.status == 200
        [output] = answer.json()["outputs"]
        assert output == {
            "name": "embedding",
            "datatype": "FP32",
            "shape": [2, 2],
            "data": [2.0, 1.0, -1.0, 2.0],
        }
        metadata = (await served.call("GET", MODEL)).json()
        assert metadata["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": [-1, 2]}]
        assert metadata["labels"] == ["embedding"]
        assert metadata["parameters"] == {
            "max_sequence_length": 16,
            "task": "SentenceEmbedding",
            "min_cosine_basis_points": 9000,
        }
        wrong = infer_body("good", outputs=[{"name": "label"}])
        answer = await served.call("POST", f"{MODEL}/infer", wrong)
        assert answer.status == 400
        assert "this model has ['embedding']" in answer.json()["error"]
        series = parse_metrics((await served.call("GET", "/metrics")).body)
        [counted] = [n for s, n in series.items() if s.startswith("kompakt_predictions_total{")]
        assert counted == 2


async def test_what_is_no_vector_is_an_error(
    make_artifact: Any, serve_model: Any, infer_body: Any
) -> None:
    """Not a 200 with a null in it, as JSON would have it."""
    folder = make_artifact(vectors=STABLE | {"awful": (0.0, float("nan"))})
    async with serve_model(folder) as served:
        body = infer_body("good", "awful")
        assert (await served.call("POST", f"{MODEL}/infer", body)).status == 500
        assert (await served.call("POST", f"{MODEL}/infer", infer_body("good"))).status == 200


@pytest.mark.slow
def test_both_runtimes_embed_the_same(make_artifact: Any) -> None:
    """What OpenVINO fills up is no part of the vector."""
    one, other = (
        Embedder(load_artifact(folder))
        for folder in (
            make_artifact("onnx", vectors=STABLE),
            to_openvino(make_artifact("openvino", vectors=STABLE)),
        )
    )
    for model in (one, other):
        model.warm_up()
    texts = ["good great bad", "odd"]
    np.testing.assert_allclose(one.answer(texts).vectors, other.answer(texts).vectors, atol=1e-6)


@pytest.mark.parametrize(
    "changes", [{"minCosineBasisPoints": None}, {"embeddingWidth": None}, {"labels": ["a", "b"]}]
)
def test_a_manifest_says_how_vectors_are_compared(
    make_artifact: Any, changes: dict[str, Any]
) -> None:
    """Without, nobody could judge a candidate."""
    folder: Path = make_artifact(vectors=STABLE)
    path = folder / "variant.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))
    with pytest.raises(
        ArtifactError, match="labels of a SentenceEmbedding are one, and it has min"
    ):
        load_artifact(folder)


def test_a_graph_of_another_width_is_refused(make_artifact: Any) -> None:
    """What the manifest says is what callers are told."""
    folder: Path = make_artifact(vectors=STABLE)
    path = folder / "variant.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"embeddingWidth": 3}))
    with pytest.raises(ArtifactError, match=r"shape \[2\] for a text, .* names a width of 3"):
        Embedder(load_artifact(folder)).warm_up()


def artifacts(make_artifact: Any) -> list[Path]:
    """The stable one and the candidate."""
    both = (("stable", STABLE), ("candidate", CANDIDATE))
    return [make_artifact(name, vectors=vectors) for name, vectors in both]


@pytest.mark.slow
async def test_vectors_agree_by_their_cosine(
    make_artifact: Any,
    comparing: Any,
    call_app: Any,
    infer_body: Any,
    parse_metrics: Any,
    wait_until: Any,
) -> None:
    """Counted under one name; a text without a direction agrees with nothing."""
    async with comparing(artifacts(make_artifact)) as comparator:
        call = call_app(comparator)

        def series() -> dict[str, float]:
            found: dict[str, float] = parse_metrics(comparator.registry.render())
            return found

        pairs = 'kompakt_shadow_pairs_total{label="embedding"}'
        assert series()[pairs] == 0
        for text in ("good", "great", "bad", "odd", "so"):
            assert (await call("POST", f"{MODEL}/infer", infer_body(text))).status == 202
        body = infer_body("odd", "bad", "good")
        assert (await call("POST", f"{MODEL}/infer", body)).status == 202
        await wait_until(lambda: series()[pairs] == 8)
        # Twice `bad`, once `so`, whose vector is zero.
        assert series()['kompakt_shadow_disagreements_total{label="embedding"}'] == 3
        assert series()['kompakt_shadow_errors_total{leg="candidate"}'] == 0


@pytest.mark.slow
async def test_the_golden_set_is_texts_alone(
    make_artifact: Any,
    comparing: Any,
    parse_metrics: Any,
    wait_until: Any,
    tmp_path: Path,
) -> None:
    """What the reference answers is right, so a candidate can only lose."""
    golden = tmp_path / "golden.jsonl"
    texts = ("good", "great", "bad", "odd", "bad bad")
    golden.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = {"golden": golden, "golden_rps": 10_000.0, "golden_interval_seconds": 1000.0}
    async with comparing(artifacts(make_artifact), **options) as comparator:

        def series(name: str) -> float:
            found: dict[str, float] = parse_metrics(comparator.registry.render())
            return found[f"kompakt_golden_{name}"]

        await wait_until(lambda: series("pass") == 1)
        assert series("pairs") == 5
        assert (series("lost"), series("gained")) == (2, 0)


@pytest.mark.slow
async def test_a_golden_set_without_labels_says_nothing_of_a_classifier(
    make_artifact: Any,
    comparing: Any,
    parse_metrics: Any,
    wait_until: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No pass is counted, in which nothing would be lost."""
    golden = tmp_path / "golden.jsonl"
    golden.write_text('{"text": "good"}\n')
    folders = [make_artifact(name) for name in ("stable", "candidate")]
    async with comparing(folders, golden=golden, golden_rps=10_000.0) as comparator:
        await wait_until(lambda: "it is not replayed" in caplog.text)
        assert parse_metrics(comparator.registry.render())["kompakt_golden_pass"] == 0


vectors = st.lists(st.integers(-1000, 1000), min_size=3, max_size=3)


def vector(*numbers: float) -> Vector:
    """As a leg's answer is read."""
    return Vector(numbers)


@given(one=vectors, other=vectors, scale=st.floats(0.5, 4.0), least=st.floats(0.0001, 0.9999))
def test_only_the_direction_counts(
    one: list[int], other: list[int], scale: float, least: float
) -> None:
    """Symmetric, of any length, and by the cosine as numpy has it."""
    rule = NearVectors(("embedding",), least)
    a, b = np.array(one, dtype=np.float64), np.array(other, dtype=np.float64)
    lengths = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    cosine = float(a @ b) / max(lengths, 1e-300)
    if abs(cosine - least) > 1e-5:
        ours, theirs = vector(*one), vector(*other)
        assert rule.same(ours, theirs) == (cosine > least)
        assert rule.same(theirs, ours) == rule.same(vector(*(a * scale).tolist()), theirs)


def test_a_vector_never_equals_another_answer() -> None:
    """A leg that answers another task disagrees; it does not stop the comparison."""
    ones = vector(1.0, 1.0, 1.0)
    rule = agreement_of("SentenceEmbedding", ("embedding",), {"min_cosine_basis_points": 9000})
    assert rule.same(ones, ones)
    assert not rule.same(ones, "x")
    assert not rule.same(ones, ((0, 1, "x"),))
    assert not rule.same(ones, vector(1.0, 1.0))
    assert not rule.same(ones, vector(1.0, math.nan, 1.0))
    assert not rule.same(vector(0.0, 0.0), vector(0.0, 0.0))
    assert rule.truth("x", "a text") is None
    assert not SameLabel(("x",)).same("x", ones)
    assert not SameTags(("x",)).same(((0, 1, "x"),), ones)
    with pytest.raises(KeyError):
        agreement_of("SentenceEmbedding", ("embedding",), {})
