# SPDX-License-Identifier: Apache-2.0
"""Tiny real artifacts, real servers around them, and a caller of ASGI applications."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import orjson
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from kompakt.api.artifact import ArtifactFile, ArtifactManifest, sha256_digest
from kompakt.api.base import Task
from kompakt.serving import comparator_app
from kompakt.serving.app import ModelService, Settings
from kompakt.serving.asgi import Health, Scope
from kompakt.serving.comparator import Comparator, ShadowMeter
from kompakt.serving.endpoint import Endpoint, Limits
from kompakt.serving.lifecycle import Application, make_server

LABELS = ("negative", "neutral", "positive")
WORDS = ("[UNK]", "bad", "plain", "good", "awful", "so", "great", "odd")
MEANINGS = {"bad": "negative", "awful": "negative", "good": "positive", "great": "positive"}
MODEL_NAME = "sentiment"


def _votes(meanings: Mapping[str, str]) -> NDArray[np.float32]:
    """The row of a word is 3 in the column of its label, 1 in neutral."""
    table = np.zeros((len(WORDS), len(LABELS)), dtype=np.float32)
    for row, word in enumerate(WORDS):
        table[row, LABELS.index(meanings.get(word, "neutral"))] = 3 if word in meanings else 1
    return table


def _amounts(numbers: Mapping[str, float]) -> NDArray[np.float32]:
    """One column; a word without a number counts for nothing."""
    return np.array([[numbers.get(word, 0.0)] for word in WORDS], dtype=np.float32)


def _graph(table: NDArray[np.float32], *, each_token: bool) -> onnx.ModelProto:
    """Sum of the rows of a text's words, or the rows themselves."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["kept"]),
        helper.make_node("Identity", ["kept"], ["logits"])
        if each_token
        else helper.make_node("ReduceSum", ["kept", "tokens"], ["logits"], keepdims=0),
    ]
    ids, mask = (
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
        for name in ("input_ids", "attention_mask")
    )
    shape = ["batch", "length", table.shape[1]] if each_token else ["batch", table.shape[1]]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)
    constants = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.array([2]), "last"),
        numpy_helper.from_array(np.array([1]), "tokens"),
    ]
    graph = helper.make_graph(nodes, "words", [ids, mask], [logits], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def write_artifact(
    folder: Path,
    meanings: Mapping[str, str],
    *,
    max_sequence_length: int = 16,
    numbers: Mapping[str, float] | None = None,
    each_token: bool = False,
    vectors: Mapping[str, Sequence[float]] | None = None,
) -> Path:
    """An artifact whose answers can be worked out by hand. With `numbers`, it is a regression: the
    sum of those of the words. With `each_token`, each word has its own answer. With `vectors`, a
    text's embedding is the sum of those of the words.
    """
    folder.mkdir(parents=True)
    table = _votes(meanings) if numbers is None else _amounts(numbers)
    if vectors is not None:
        table = np.array([vectors.get(word, (0, 0)) for word in WORDS], dtype=np.float32)
    onnx.save(_graph(table, each_token=each_token), folder / "model.onnx")
    task: Task = "TextClassification" if numbers is None else "Regression"
    words = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    # Many checkpoints come like this; a server that kept it would pad every text.
    tokenizer.enable_padding(length=12)
    tokenizer.save(str(folder / "tokenizer.json"))
    if vectors is not None:
        task = "SentenceEmbedding"
    labels = list(LABELS) if numbers is None else ["stars"]
    manifest = ArtifactManifest(
        task="TokenClassification" if each_token else task,
        labels=labels if vectors is None else ["embedding"],
        min_cosine_basis_points=None if vectors is None else 9000,
        embedding_width=None if vectors is None else table.shape[1],
        tolerance_micros=None if numbers is None else 500_000,
        max_sequence_length=max_sequence_length,
        source_digest="sha256:" + "0" * 64,
        files=[_file(folder, "model.onnx"), _file(folder, "tokenizer.json")],
    )
    (folder / "variant.json").write_bytes(manifest.canonical())
    return folder


def _file(folder: Path, name: str) -> ArtifactFile:
    data = (folder / name).read_bytes()
    return ArtifactFile(path=name, digest=sha256_digest(data), size_bytes=len(data))


MakeArtifact = Callable[..., Path]


@pytest.fixture
def make_artifact(tmp_path: Path) -> MakeArtifact:
    """A callable that writes an artifact of a name and of word meanings, and gives its folder."""

    def make(
        name: str = "artifact", meanings: Mapping[str, str] = MEANINGS, **options: Any
    ) -> Path:
        return write_artifact(tmp_path / name, meanings, **options)

    return make


@dataclass
class Answer:
    """An HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return orjson.loads(self.body)


@dataclass
class Caller:
    """Calls an ASGI application without HTTP in between."""

    app: Application
    chunks: list[bytes] = field(default_factory=list)

    async def __call__(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        chunks: list[bytes] | None = None,
    ) -> Answer:
        """One request, in one or several chunks."""
        if isinstance(body, dict):
            body = orjson.dumps(body)
        parts = chunks if chunks is not None else [body or b""]
        incoming = [
            {"type": "http.request", "body": part, "more_body": index < len(parts) - 1}
            for index, part in enumerate(parts)
        ]
        sent: list[Any] = []

        async def receive() -> Any:
            return incoming.pop(0) if incoming else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope: Scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()],
            "state": {},
        }
        await self.app(scope, receive, send)
        return _answer(sent)


def _answer(sent: list[Any]) -> Answer:
    if not sent:
        return Answer(0, {}, b"")
    start, *bodies = sent
    headers = {k.decode(): v.decode() for k, v in start["headers"]}
    body = b"".join(message.get("body", b"") for message in bodies)
    assert int(headers["content-length"]) == len(body)
    return Answer(start["status"], headers, body)


@dataclass
class Served:
    """A loaded endpoint."""

    endpoint: Endpoint
    digest: str

    @property
    def call(self) -> Caller:
        """Calls it directly."""
        return Caller(self.endpoint)


@pytest.fixture
def call_app() -> Callable[[Application], Caller]:
    """`call_app(app)` makes a caller of any application."""
    return Caller


ServeModel = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture
def serve_model() -> ServeModel:
    """A context manager that loads a folder behind an endpoint, without HTTP."""

    @contextlib.asynccontextmanager
    async def serve(
        folder: Path, *, threads: int = 1, queue: int = 64, limits: Limits | None = None
    ) -> AsyncGenerator[Served]:
        endpoint = Endpoint(model_name=MODEL_NAME, health=Health(), limits=limits)
        settings = Settings(model_dir=folder, digest=None, threads=threads, queue=queue)
        service = ModelService(endpoint, settings)
        await service.start()
        assert endpoint.model is not None
        try:
            yield Served(endpoint, endpoint.model.digest)
        finally:
            await service.stop()

    return serve


ServeHttp = Callable[[Application], AbstractAsyncContextManager[str]]


@pytest.fixture
def serve_http() -> ServeHttp:
    """A context manager that puts an application behind real HTTP on loopback: its URL."""

    @contextlib.asynccontextmanager
    async def serve(app: Application) -> AsyncGenerator[str]:
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        server = make_server(app)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        await eventually(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            await task

    return serve


@pytest.fixture
def comparing(serve_model: ServeModel, serve_http: ServeHttp) -> Callable[..., Any]:
    """A comparator between the models of two folders, the stable one first, behind HTTP."""

    @contextlib.asynccontextmanager
    async def compare(folders: Sequence[Path], **options: Any) -> AsyncGenerator[Comparator]:
        async with contextlib.AsyncExitStack() as stack:
            urls = []
            for folder in folders:
                served = await stack.enter_async_context(serve_model(folder))
                urls.append(await stack.enter_async_context(serve_http(served.endpoint)))
            health, meter = Health(), ShadowMeter(warmup_pairs=0)
            comparator = Comparator(health=health, meter=meter, capacity=64)
            settings = comparator_app.Settings(urls[0], urls[1], "sentiment", **options)
            service = comparator_app.ComparisonService(comparator, meter, health, settings)
            await service.start()
            try:
                yield comparator
            finally:
                await service.stop()

    return compare


@pytest.fixture
def infer_body() -> Callable[..., dict[str, Any]]:
    """`infer_body("text", …, **more)`: a valid request."""

    def make(*texts: str, **more: Any) -> dict[str, Any]:
        tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)}
        return {"inputs": [tensor], **more}

    return make


Series = dict[str, float]


@pytest.fixture
def parse_metrics() -> Callable[[bytes], Series]:
    """Exposition → series with their labels as written → numbers; checks what a scraper checks."""

    def parse(text: bytes) -> Series:
        series: Series = {}
        for line in text.decode().splitlines():
            if line.startswith("#"):
                assert line.startswith(("# HELP ", "# TYPE "))
                continue
            name, number = line.rsplit(" ", 1)
            assert name not in series
            series[name] = float(number)
        return series

    return parse


async def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait until something holds, or fail."""
    end = time.monotonic() + seconds
    for _ in iter(condition, True):
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.005)


@dataclass
class Process:
    """One of the two commands, as a pod runs it."""

    handle: asyncio.subprocess.Process
    log: list[dict[str, Any]]
    _reader: asyncio.Task[None]

    @property
    def url(self) -> str:
        """Where it listens."""
        messages = [str(entry["message"]) for entry in self.log]
        [line] = [message for message in messages if message.startswith("listening on ")]
        return "http://" + line.removeprefix("listening on ")

    async def ended(self, seconds: float = 20.0) -> int:
        """Its exit status."""
        status = await asyncio.wait_for(self.handle.wait(), seconds)
        await self._reader
        return status


@pytest.fixture
async def start_process() -> AsyncGenerator[Callable[..., Awaitable[Process]]]:
    """A callable that runs a command on a free port, until the test ends."""
    running: list[Process] = []

    async def start(*arguments: str) -> Process:
        command = [sys.executable, "-m", "kompakt.serving", *arguments]
        command += ["--host", "127.0.0.1", "--port", "0"]
        handle = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        log: list[dict[str, Any]] = []
        process = Process(handle, log, asyncio.create_task(_read_log(handle, log)))
        running.append(process)
        await eventually(lambda: bool(log) or handle.returncode is not None, 30)
        return process

    yield start
    for process in running:
        if process.handle.returncode is None:
            process.handle.kill()
        await process.ended()


async def _read_log(process: asyncio.subprocess.Process, log: list[dict[str, Any]]) -> None:
    assert process.stderr is not None
    while line := await process.stderr.readline():
        log.append(orjson.loads(line))


@pytest.fixture
def wait_until() -> Callable[..., Awaitable[None]]:
    """A callable that waits until a condition holds, or fails."""
    return eventually
