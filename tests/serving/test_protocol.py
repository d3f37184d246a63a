# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest

from kompakt.api.artifact import sha256_digest
from kompakt.serving.artifact import load_artifact
from kompakt.serving.asgi import Health
from kompakt.serving.endpoint import Endpoint

INFER = "/v2/models/sentiment/infer"


@pytest.fixture
async def served(make_artifact: Any, serve_model: Any) -> AsyncGenerator[Any]:
    """An endpoint with the tiny model."""
    async with serve_model(make_artifact()) as loaded:
        yield loaded


async def test_metadata_routes_answer_what_the_protocol_says(served: Any) -> None:
    """Server, model and version can be discovered by a client that knows only the protocol."""
    server = (await served.call("GET", "/v2")).json()
    assert server["name"] == "kompakt"
    assert server["extensions"] == []

    model = (await served.call("GET", "/v2/models/sentiment")).json()
    assert (
        model == (await served.call("GET", f"/v2/models/sentiment/versions/{served.digest}")).json()
    )
    assert model["versions"] == [served.digest]
    assert model["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert model["outputs"] == [
        {"name": "label", "datatype": "BYTES", "shape": [-1]},
        {"name": "scores", "datatype": "FP32", "shape": [-1, 3]},
    ]
    assert model["labels"] == ["negative", "neutral", "positive"]


@pytest.mark.parametrize(
    "path",
    [
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/sentiment/ready",
    ],
)
async def test_health_routes_say_yes_once_the_model_is_loaded(served: Any, path: str) -> None:
    """Live and ready are 200, under each of the protocol's names."""
    assert (await served.call("GET", path)).status == 200
    assert (await served.call("HEAD", path)).status == 200


async def test_an_answer_has_label_and_scores_in_order(
    served: Any, infer_body: Callable[..., Any]
) -> None:
    """Each text gets its label, and scores that are the softmax of the model's logits."""
    answer = await served.call("POST", INFER, infer_body("good", "so bad", "odd", id="42"))
    assert answer.status == 200
    document = answer.json()
    assert document["model_name"] == "sentiment"
    assert document["model_version"] == served.digest
    assert document["id"] == "42"
    assert document["parameters"] == {"variant": served.digest}
    label, scores = document["outputs"]
    assert label == {
        "name": "label",
        "datatype": "BYTES",
        "shape": [3],
        "data": ["positive", "negative", "neutral"],
    }
    assert (scores["name"], scores["datatype"], scores["shape"]) == ("scores", "FP32", [3, 3])
    total = 2 + math.exp(3)  # logits of "good": 0, 0, 3
    assert scores["data"][:3] == pytest.approx(
        [1 / total, 1 / total, math.exp(3) / total], rel=1e-6
    )
    assert sum(scores["data"]) == pytest.approx(3, rel=1e-6)


async def test_the_variant_is_named_in_a_header_of_every_answer(
    served: Any, infer_body: Callable[..., Any]
) -> None:
    """Who reads responses at the gateway can tell which variant gave them, errors included."""
    short = served.digest.removeprefix("sha256:")[:12]
    for answer in (
        await served.call("POST", INFER, infer_body("good")),
        await served.call("POST", INFER, b"garbage"),
        await served.call("GET", "/v2/health/ready"),
        await served.call("GET", "/nowhere"),
    ):
        assert answer.headers["x-kompakt-variant"] == short


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        (None, ["label", "scores"]),
        ([], ["label", "scores"]),
        (["label"], ["label"]),
        (["scores", "label"], ["scores", "label"]),
    ],
    ids=["none", "empty", "one", "order"],
)
async def test_only_requested_outputs_are_returned(
    served: Any, infer_body: Callable[..., Any], asked: list[str] | None, given: list[str]
) -> None:
    """`outputs` selects and orders; without it everything comes."""
    more = {} if asked is None else {"outputs": [{"name": name} for name in asked]}
    document = (await served.call("POST", INFER, infer_body("good", **more))).json()
    assert [output["name"] for output in document["outputs"]] == given
    assert "id" not in document


@pytest.mark.parametrize(
    ("shape", "data"),
    [([2], ["good", "bad"]), ([2, 1], ["good", "bad"]), ([2, 1], [["good"], ["bad"]])],
    ids=["flat", "column-flat", "column-nested"],
)
async def test_both_shapes_of_a_column_are_understood(
    served: Any, shape: list[int], data: list[Any]
) -> None:
    """[n] and [n, 1], flat or nested: clients differ, the texts are the same."""
    tensor = {"name": "text", "shape": shape, "datatype": "BYTES", "data": data}
    answer = await served.call("POST", INFER, {"inputs": [tensor]})
    assert answer.json()["outputs"][0]["data"] == ["positive", "negative"]


def tensor(**changes: Any) -> dict[str, Any]:
    """A request whose one tensor has some fields changed; None removes a field."""
    whole = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["good"], **changes}
    return {"inputs": [{key: value for key, value in whole.items() if value is not None}]}


REFUSED: dict[str, tuple[Any, list[str]]] = {
    "empty": (b"", ["body is empty", '"inputs"']),
    "not-json": (b"{", ["body is not JSON"]),
    "not-utf-8": (b'{"inputs": "\xff"}', ["not UTF-8", "byte 12"]),
    "lone-surrogate": (rb'{"inputs": "\ud800"}', ["body is not JSON"]),
    "deep": (b"[" * 100_000, ["body is not JSON"]),
    "not-an-object": (b"[]", ["the body is a list", "object"]),
    "no-inputs": ({}, ["inputs is missing"]),
    "null-inputs": ({"inputs": None}, ["inputs is missing or null"]),
    "no-tensor": ({"inputs": []}, ["inputs holds 0 tensors"]),
    "two-tensors": ({"inputs": [{}, {}]}, ["inputs holds 2 tensors", "'text'"]),
    "tensor-is-text": ({"inputs": ["good"]}, ["inputs[0] is a string"]),
    "no-name": (tensor(name=None), ["inputs[0].name is missing", "'text'"]),
    "wrong-name": (tensor(name="x" * 500), ["inputs[0].name is 'xxx", "'text'"]),
    "no-datatype": (tensor(datatype=None), ["inputs[0].datatype is missing", "'BYTES'"]),
    "wrong-datatype": (tensor(datatype="FP32"), ["inputs[0].datatype is 'FP32'", "'BYTES'"]),
    "no-shape": (tensor(shape=None), ["inputs[0].shape", "missing"]),
    "bad-shape": (tensor(shape=[1, 2]), ["inputs[0].shape must be [n] or [n, 1]"]),
    "empty-shape": (tensor(shape=[]), ["inputs[0].shape must be [n] or [n, 1]"]),
    "boolean-shape": (tensor(shape=[True]), ["inputs[0].shape must be [n] or [n, 1]"]),
    "zero": (tensor(shape=[0], data=[]), ["n from 1 to 64", "n is 0"]),
    "too-many": (tensor(shape=[65], data=["a"] * 65), ["n from 1 to 64", "n is 65"]),
    "huge": (tensor(shape=[2**60]), ["n from 1 to 64"]),
    "no-data": (tensor(data=None), ["inputs[0].data is missing"]),
    "data-is-text": (tensor(data="good"), ["inputs[0].data is a string"]),
    "fewer": (tensor(shape=[2]), ["inputs[0].data holds 1 items", "says 2"]),
    "null-item": (tensor(data=[None]), ["inputs[0].data[0] is missing or null"]),
    "number-item": (tensor(shape=[2], data=["a", 7]), ["inputs[0].data[1] is a number"]),
    "nested-item": (tensor(data=[["a", "b"]]), ["inputs[0].data[0] is a list"]),
    "binary": (tensor(parameters={"binary_data_size": 9}), ["binary_data_size", "JSON"]),
    "no-tokens": (tensor(data=["  "]), ["inputs[0].data[0]", "tokenizer"]),
    "id-number": ({**tensor(), "id": 5}, ["id is a number", "string"]),
    "outputs-object": ({**tensor(), "outputs": {}}, ["outputs is an object"]),
    "output-text": ({**tensor(), "outputs": ["label"]}, ["outputs[0] is a string"]),
    "output-unknown": ({**tensor(), "outputs": [{"name": "logits"}]}, ["outputs[0].name", "label"]),
    "output-twice": (
        {**tensor(), "outputs": [{"name": "label"}, {"name": "label"}]},
        ["outputs[1].name repeats"],
    ),
}


@pytest.mark.parametrize(("body", "said"), REFUSED.values(), ids=REFUSED.keys())
async def test_a_bad_request_is_told_what_is_wrong(served: Any, body: Any, said: list[str]) -> None:
    """400 with JSON that names the field and the mend, and the next request is answered."""
    answer = await served.call("POST", INFER, body)
    assert answer.status == 400
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert list(document) == ["error"]
    for words in said:
        assert words in document["error"]
    assert len(document["error"]) < 400
    assert (await served.call("POST", INFER, tensor())).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v2/", 404),
        ("GET", "/v2/models/other", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("GET", "/v2/models/sentiment/versions/1", 404),
        ("POST", "/v2/models/sentiment/versions/1/infer", 404),
        ("POST", "/v2/models/sentiment/explain", 404),
        ("GET", INFER, 405),
        ("PUT", INFER, 405),
        ("POST", "/v2", 405),
        ("POST", "/v2/models/sentiment", 405),
        ("DELETE", "/metrics", 405),
        ("POST", "/v2/health/ready", 405),
    ],
)
async def test_unknown_things_and_methods_get_404_and_405(
    served: Any, method: str, path: str, status: int
) -> None:
    """With an error in words, and the allowed methods where the path is right."""
    answer = await served.call(method, path)
    assert answer.status == status
    assert answer.json()["error"]
    assert ("allow" in answer.headers) == (status == 405)


async def test_a_body_over_one_mebibyte_gets_413(served: Any) -> None:
    """Announced by content-length, or found out while it arrives in chunks."""
    answer = await served.call("POST", INFER, headers={"content-length": str(2**20 + 1)})
    assert answer.status == 413
    assert "1048576 bytes" in answer.json()["error"]
    streamed = await served.call("POST", INFER, chunks=[b" " * 2**19] * 3)
    assert streamed.status == 413
    assert streamed.headers["connection"] == "close"


async def test_a_compressed_body_gets_415(served: Any) -> None:
    """Not 400 for JSON that the server merely cannot unpack."""
    answer = await served.call("POST", INFER, b"\x1f\x8b", {"content-encoding": "gzip"})
    assert answer.status == 415


async def test_the_binary_extension_is_refused_in_words(served: Any) -> None:
    """A client that sends binary tensors by default learns what to switch off."""
    headers = {"inference-header-content-length": "5"}
    answer = await served.call("POST", INFER, b'{"a":\x00\x01', headers)
    assert answer.status == 400
    assert "binary_data=False" in answer.json()["error"]


async def test_a_chunked_body_is_put_together(served: Any) -> None:
    """The chunks' borders mean nothing."""
    chunks = [
        b'{"inputs": [{"name": "text", "shape": [1], "dataty',
        b"",
        b'pe": "BYTES", "data": ["good"]}]}',
    ]
    answer = await served.call("POST", INFER, chunks=chunks)
    assert answer.json()["outputs"][0]["data"] == ["positive"]


async def test_before_the_model_is_loaded_inference_gets_503(
    call_app: Any, infer_body: Callable[..., Any]
) -> None:
    """Live, but not ready; inference is refused in words."""
    endpoint = Endpoint(model_name="sentiment", health=Health())
    caller = call_app(endpoint)
    assert (await caller("GET", "/v2/health/live")).status == 200
    assert (await caller("GET", "/v2/health/ready")).status == 503
    assert (await caller("GET", "/v2/models/sentiment")).status == 503
    assert (await caller("GET", "/v2/models/sentiment/ready")).status == 503
    answer = await caller("POST", INFER, infer_body("good"))
    assert answer.status == 503
    assert "loading" in answer.json()["error"]
    assert (await caller("GET", "/metrics")).status == 200


async def test_while_draining_it_is_not_ready_and_serves(
    served: Any, infer_body: Callable[..., Any]
) -> None:
    """Whoever still comes is answered, and told to come elsewhere next time."""
    served.endpoint.health.drain()
    assert (await served.call("GET", "/v2/health/ready")).status == 503
    assert (await served.call("GET", "/v2/health/live")).status == 200
    assert (await served.call("GET", "/v2/models/sentiment/ready")).status == 200
    answer = await served.call("POST", INFER, infer_body("good"))
    assert answer.status == 200
    assert answer.headers["connection"] == "close"


async def test_padding_and_length_of_the_checkpoint_do_not_reach_the_model(
    make_artifact: Any, serve_model: Any, infer_body: Callable[..., Any]
) -> None:
    """A text is cut at the manifest's length, not padded to the tokenizer's."""
    async with serve_model(make_artifact(max_sequence_length=8)) as short:
        answer = await short.call("POST", INFER, infer_body("so " * 8 + "bad " * 50))
        assert answer.json()["outputs"][0]["data"] == ["neutral"]


async def test_an_answer_does_not_depend_on_its_neighbours(
    served: Any, infer_body: Callable[..., Any]
) -> None:
    """The same text gets the same scores alone and among others, to the last digit."""
    alone = (await served.call("POST", INFER, infer_body("so good"))).json()
    among = (await served.call("POST", INFER, infer_body("odd " * 9, "so good", "bad"))).json()
    assert among["outputs"][1]["data"][3:6] == alone["outputs"][1]["data"]


def test_the_folder_of_the_test_is_real(make_artifact: Any) -> None:
    """The tiny artifact is one that `load_artifact` accepts, with the digest of its manifest."""
    folder: Path = make_artifact()
    assert load_artifact(folder).digest == sha256_digest((folder / "variant.json").read_bytes())
