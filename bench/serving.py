# SPDX-License-Identifier: Apache-2.0
"""What the server adds to a request: latency over the bare model call, and requests per second.

    python bench/serving.py [--model-dir DIR] [--baseline-path DIR] [--out build/bench/serving.json]

Everything is interleaved: each round measures the bare call (tokenizer and ONNX Runtime in this
process), our server and, where FastAPI can be imported, a FastAPI server with the same model; so
whatever else the machine does falls on all of them. Without --model-dir the model is tiny (a sum of
word scores), so that the overhead is nearly all that there is to see. `--baseline-path` is a folder
that holds FastAPI (`pip install --target DIR fastapi`). Takes less than a minute.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import serving_baseline

HOST = "127.0.0.1"
WARM_UP = 200
CONNECTIONS = 8
WORDS = ("[UNK]", *(f"word{index}" for index in range(999)))
TEXT = " ".join(f"word{index * 37 % 999}" for index in range(20))


@dataclass
class Figures:
    """One contender."""

    latencies_ns: list[int] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


def tiny_artifact(folder: Path) -> Path:
    """A sum of word scores as an artifact: milliseconds to make, microseconds to run."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    from kompakt.api.artifact import ArtifactFile, ArtifactManifest, sha256_digest

    table = np.random.default_rng(0).normal(size=(len(WORDS), 3)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "tokens"], ["logits"], keepdims=0),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    constants = [
        numpy_helper.from_array(array, name)
        for name, array in (("table", table), ("last", np.array([2])), ("tokens", np.array([1])))
    ]
    graph = helper.make_graph(nodes, "tiny", inputs, [output], constants)
    folder.mkdir(parents=True)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), folder / "model.onnx")
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    files = []
    for name in ("model.onnx", "tokenizer.json"):
        data = (folder / name).read_bytes()
        files.append(ArtifactFile(path=name, digest=sha256_digest(data), size_bytes=len(data)))
    manifest = ArtifactManifest(
        task="TextClassification",
        labels=["a", "b", "c"],
        max_sequence_length=128,
        source_digest="sha256:" + "0" * 64,
        files=files,
    )
    (folder / "variant.json").write_bytes(manifest.canonical())
    return folder


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def started(command: list[str], port: int, path: str = "") -> Iterator[None]:
    """A server process, once it answers; ended with the block."""
    environment = os.environ | ({"PYTHONPATH": path} if path else {})
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        request = request_bytes("ready?")
        end = time.monotonic() + 60
        while True:
            if process.poll() is not None or time.monotonic() > end:
                sys.exit(f"{' '.join(command)} does not start (status {process.returncode})")
            with contextlib.suppress(OSError), socket.create_connection((HOST, port)) as link:
                link.sendall(request)
                if b" 200 " in read_answer(link)[:20]:
                    break
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def request_bytes(text: str) -> bytes:
    """A whole HTTP request."""
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}
    body = json.dumps({"inputs": [tensor]}).encode()
    head = (
        "POST /v2/models/bench/infer HTTP/1.1\r\nhost: bench\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def read_answer(link: socket.socket) -> bytes:
    """One response; both servers send content-length."""
    data = b""
    while not complete(data):
        chunk = link.recv(65536)
        if not chunk:
            raise ConnectionError(data)
        data += chunk
    return data


def complete(data: bytes) -> bool:
    """Whether a response has arrived wholly."""
    head, separator, body = data.partition(b"\r\n\r\n")
    if not separator:
        return False
    length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
    return len(body) >= int(length)


def connect(port: int) -> socket.socket:
    """A connection without Nagle's delay."""
    link = socket.create_connection((HOST, port))
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link


def rate(port: int, request: bytes, seconds: float) -> float:
    """Answers per second over CONNECTIONS connections, each with one request under way."""
    answers = 0
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS):
            link = stack.enter_context(connect(port))
            selector.register(link, selectors.EVENT_READ, bytearray())
            link.sendall(request)
        begin = time.perf_counter()
        while (elapsed := time.perf_counter() - begin) < seconds:
            for key, _ in selector.select(1):
                link = key.fileobj  # type: ignore[assignment]
                key.data.extend(link.recv(65536))
                if complete(bytes(key.data)):
                    answers += b" 200 " in key.data[:20]
                    key.data.clear()
                    link.sendall(request)
    return answers / elapsed


def measure(folder: Path, ports: dict[str, int], *, seconds: float) -> dict[str, Figures]:
    """Latency one by one for a third of the time, then rates, in alternating rounds."""
    figures = {name: Figures() for name in ("bare", *ports)}
    run = serving_baseline.load(folder)
    request = request_bytes(TEXT)
    with contextlib.ExitStack() as stack:
        links = {name: stack.enter_context(connect(port)) for name, port in ports.items()}
        end = time.monotonic() + seconds / 3
        while time.monotonic() < end:
            begin = time.perf_counter_ns()
            run(TEXT)
            figures["bare"].latencies_ns.append(time.perf_counter_ns() - begin)
            for name, link in links.items():
                begin = time.perf_counter_ns()
                link.sendall(request)
                read_answer(link)
                figures[name].latencies_ns.append(time.perf_counter_ns() - begin)
    rounds = 5
    for _ in range(rounds):
        for name, port in ports.items():
            spell = seconds * 2 / 3 / rounds / len(ports)
            figures[name].rates.append(rate(port, request, spell))
    return figures


def report(figures: dict[str, Figures], artifact: str) -> dict[str, Any]:
    """Whole numbers with the machine and the counts that they come from."""
    bare = figures["bare"].latencies_ns[WARM_UP:]
    servers = {}
    for name, found in figures.items():
        if name == "bare":
            continue
        latencies = found.latencies_ns[WARM_UP:]
        overheads = [ours - theirs for ours, theirs in zip(latencies, bare, strict=True)]
        servers[name] = {
            "p50Microseconds": microseconds(statistics.median(latencies)),
            "overheadP50Microseconds": microseconds(statistics.median(overheads)),
            "requestsPerSecond": round(statistics.median(found.rates)),
            "requestsPerSecondRounds": [round(rate) for rate in found.rates],
        }
    return {
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "model": artifact,
        "serverThreads": 1,
        "requestsOneByOne": len(bare),
        "connections": CONNECTIONS,
        "bareP50Microseconds": microseconds(statistics.median(bare)),
        "servers": servers,
    }


def microseconds(nanoseconds: float) -> float:
    """With one decimal."""
    return round(nanoseconds / 1000, 1)


def cpu_name() -> str:
    """The processor, as the kernel calls it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "")


def has_fastapi(path: str) -> bool:
    """Whether the baseline can run."""
    command = [sys.executable, "-c", "import fastapi"]
    environment = os.environ | ({"PYTHONPATH": path} if path else {})
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    return done.returncode == 0


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Benchmark the inference server.")
    parser.add_argument("--model-dir", type=Path)
    parser.add_argument("--baseline-path", default="")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--out", type=Path, default=Path("build/bench/serving.json"))
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = arguments.model_dir or tiny_artifact(scratch / "tiny")
        ports = {"kompakt": free_port()}
        ours = [sys.executable, "-m", "kompakt.serving", "serve", "--model-dir", str(folder)]
        ours += ["--model-name", "bench", "--threads", "1", "--drain-seconds", "0"]
        ours += ["--host", HOST, "--port", str(ports["kompakt"])]
        stack.enter_context(started(ours, ports["kompakt"]))
        if has_fastapi(arguments.baseline_path):
            port = ports["fastapi"] = free_port()
            script = str(Path(__file__).with_name("serving_baseline.py"))
            theirs = [sys.executable, script, str(folder), str(port)]
            stack.enter_context(started(theirs, port, arguments.baseline_path))
        else:
            print("no FastAPI here: measuring without a baseline (see --baseline-path)")
        figures = measure(folder, ports, seconds=arguments.seconds)
    document = report(figures, arguments.model_dir.name if arguments.model_dir else "tiny")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
