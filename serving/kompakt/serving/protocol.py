# SPDX-License-Identifier: Apache-2.0
"""The Open Inference Protocol, version 2, as far as text models need it: pure functions over bytes.

Request: one BYTES tensor `text` of shape [n] or [n, 1]. Response: of a TextClassification `label`
(BYTES, [n]) and `scores` (FP32, [n, labels]), of a Regression `score` (FP32, [n]), of a
TokenClassification, for all words of all texts, `label`, `score` and `offsets` (INT64, [words, 2]),
with `words` (INT64, [n]), how many of them are of each text, of a SentenceEmbedding `embedding`
(FP32, [n, width]). Tensors travel as JSON; the binary extension is refused in words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

INPUT: Final = "text"
LABEL: Final = "label"
SCORES: Final = "scores"
SCORE: Final = "score"
OFFSETS: Final = "offsets"
WORDS: Final = "words"
EMBEDDING: Final = "embedding"
DEADLINE_HEADER: Final = "x-kompakt-deadline-ms"
"""Milliseconds from the request's arrival within which its turn must come."""
NO_BINARY: Final = (
    "binary tensors are not supported; send `data` as JSON (tritonclient: binary_data=False)"
)
_EXAMPLE: Final = '{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["…"]}]}'


class InvalidRequestError(ValueError):
    """The caller's fault; the message names the field, the reason and the mend."""


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A valid request."""

    texts: list[str]
    outputs: tuple[str, ...]
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor that a model answers with."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    """For one text, or one word; the number of these goes before it."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the metadata says of a model."""

    outputs: tuple[Output, ...]
    labels: tuple[str, ...]
    parameters: Mapping[str, str | int]

    @property
    def output_names(self) -> tuple[str, ...]:
        """In the order in which they are sent to whoever names none."""
        return tuple(output.name for output in self.outputs)


def parse_request(body: bytes, *, max_batch: int, outputs: tuple[str, ...]) -> InferRequest:
    """Read the body of `POST …/infer`, for a model with these outputs.

    Raises InvalidRequestError.
    """
    document = _object(_json(body), "the body")
    request_id = document.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise InvalidRequestError(f"id is {_kind(request_id)}; it must be a string, or left out")
    inputs = document.get("inputs")
    if not isinstance(inputs, list):
        raise InvalidRequestError(
            f"inputs is {_kind(inputs)}; it must be a list of one tensor: {_EXAMPLE}"
        )
    if len(inputs) != 1:
        raise InvalidRequestError(
            f"inputs holds {len(inputs)} tensors; send exactly one, named {INPUT!r}"
        )
    return InferRequest(
        texts=_texts(_object(inputs[0], "inputs[0]"), max_batch),
        outputs=_requested(document.get("outputs"), outputs),
        id=request_id,
    )


def tensor(name: str, datatype: str, shape: Sequence[int], data: object) -> dict[str, Any]:
    """An output as it travels; `data` is row-major, and may be a numpy array."""
    return {"name": name, "datatype": datatype, "shape": list(shape), "data": data}


def render_response(
    request: InferRequest, tensors: Mapping[str, Any], *, model_name: str, digest: str
) -> bytes:
    """The body of the answer, with the outputs in the order in which they were asked for."""
    document: dict[str, Any] = {
        "model_name": model_name,
        "model_version": digest,
        "parameters": {"variant": digest},
        "outputs": [tensors[name] for name in request.outputs],
    }
    if request.id is not None:
        document["id"] = request.id
    # Serialized as FP32, a score has the fewest digits that give it back exactly.
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def render_metadata(facts: ModelFacts, *, model_name: str, digest: str) -> bytes:
    """The body of `GET /v2/models/{name}`. `labels` is this server's addition: the columns of
    `scores`.
    """
    return orjson.dumps(
        {
            "name": model_name,
            "versions": [digest],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
            "outputs": [
                {"name": output.name, "datatype": output.datatype, "shape": [-1, *output.shape]}
                for output in facts.outputs
            ],
            "labels": list(facts.labels),
            "parameters": dict(facts.parameters),
        }
    )


def _json(body: bytes) -> Any:
    if not body:
        raise InvalidRequestError(f"the body is empty; send {_EXAMPLE}")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        try:
            body.decode()
        except UnicodeDecodeError as broken:
            raise InvalidRequestError(
                f"the body is not UTF-8 (byte {broken.start}); send JSON encoded as UTF-8"
            ) from None
        raise InvalidRequestError(f"the body is not JSON ({error}); send {_EXAMPLE}") from None


def _object(value: Any, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{field} is {_kind(value)}; it must be an object: {_EXAMPLE}")
    return value


def _texts(tensor: dict[str, Any], max_batch: int) -> list[str]:
    name = tensor.get("name")
    if name != INPUT:
        raise InvalidRequestError(
            f"inputs[0].name is {_shown(name)}; the only input of this model is {INPUT!r}"
        )
    datatype = tensor.get("datatype")
    if datatype != "BYTES":
        raise InvalidRequestError(
            f"inputs[0].datatype is {_shown(datatype)}; {INPUT!r} is a tensor of strings: 'BYTES'"
        )
    parameters = tensor.get("parameters")
    if isinstance(parameters, dict) and "binary_data_size" in parameters:
        raise InvalidRequestError(f"inputs[0].parameters.binary_data_size: {NO_BINARY}")
    count = _count(tensor.get("shape"), max_batch)
    data = tensor.get("data")
    if not isinstance(data, list):
        raise InvalidRequestError(
            f"inputs[0].data is {_kind(data)}; it must be a list of {count} strings"
        )
    if len(data) != count:
        raise InvalidRequestError(
            f"inputs[0].data holds {len(data)} items, inputs[0].shape says {count}; make them equal"
        )
    # Row-major data may come flat or nested: [n, 1] as ["…"] or as [["…"]].
    texts = [item[0] if type(item) is list and len(item) == 1 else item for item in data]
    for index, text in enumerate(texts):
        if type(text) is not str:
            raise InvalidRequestError(
                f"inputs[0].data[{index}] is {_kind(text)}; each item must be a string"
            )
    return texts


def _count(shape: Any, max_batch: int) -> int:
    form = "inputs[0].shape must be [n] or [n, 1]"
    if not isinstance(shape, list):
        raise InvalidRequestError(f"{form}, with n texts in data; it is {_kind(shape)}")
    if any(type(extent) is not int for extent in shape) or shape[1:] not in ([], [1]) or not shape:
        raise InvalidRequestError(f"{form}, with n texts in data; it is {_shown(shape)}")
    count: int = shape[0]
    if not 1 <= count <= max_batch:
        raise InvalidRequestError(
            f"{form} with n from 1 to {max_batch}; n is {count}: send several requests"
        )
    return count


def _requested(outputs: Any, known: tuple[str, ...]) -> tuple[str, ...]:
    if outputs is None:
        return known
    if not isinstance(outputs, list):
        raise InvalidRequestError(
            f"outputs is {_kind(outputs)}; it must be a list such as [{{'name': {known[0]!r}}}]"
        )
    names: list[str] = []
    for index, output in enumerate(outputs):
        name = _object(output, f"outputs[{index}]").get("name")
        if name not in known:
            raise InvalidRequestError(
                f"outputs[{index}].name is {_shown(name)}; this model has {list(known)}"
            )
        if name in names:
            raise InvalidRequestError(
                f"outputs[{index}].name repeats {name!r}; name each output once"
            )
        names.append(name)
    return tuple(names) or known


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "missing or null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list"}
    return names.get(type(value), "an object")


def _shown(value: Any) -> str:
    """The value itself, shortened: it goes back to the caller, and into logs."""
    limit = 60
    text = "missing or null" if value is None else repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…"
