# SPDX-License-Identifier: Apache-2.0
"""What one would write first: the same protocol on FastAPI and pydantic, for `serving.py` to beat.

Run by it as `python serving_baseline.py MODEL_DIR PORT`; same parser, same event loop, same model.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer


def load(folder: Path) -> Callable[[str], list[float]]:
    """Tokenizer and session with nothing around them: text → logits."""
    length = json.loads((folder / "variant.json").read_text())["maxSequenceLength"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.no_padding()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    names = {node.name for node in session.get_inputs()}

    def run(text: str) -> list[float]:
        encoding = tokenizer.encode(text)
        ids = np.array([encoding.ids], dtype=np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        if "token_type_ids" in names:
            feeds["token_type_ids"] = np.zeros_like(ids)
        logits: list[float] = session.run(["logits"], feeds)[0][0].tolist()
        return logits

    return run


def application(folder: Path) -> Any:
    """The FastAPI application."""
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Tensor(BaseModel):
        name: str
        shape: list[int]
        datatype: str
        data: list[Any]

    class Request(BaseModel):
        id: str | None = None
        inputs: list[Tensor]

    class Response(BaseModel):
        model_name: str
        model_version: str
        id: str | None = None
        outputs: list[Tensor]

    # Annotations are strings here; FastAPI looks them up in the module.
    globals().update(Request=Request, Response=Response)
    run = load(folder)
    labels = json.loads((folder / "variant.json").read_text())["labels"]
    app = FastAPI()

    @app.post("/v2/models/bench/infer")
    def infer(request: Request) -> Response:
        texts = request.inputs[0].data
        names, scores = [], []
        for text in texts:
            logits = run(text)
            weights = [math.exp(logit - max(logits)) for logit in logits]
            names.append(labels[logits.index(max(logits))])
            scores += [weight / sum(weights) for weight in weights]
        shape = [len(texts)]
        return Response(
            model_name="bench",
            model_version="1",
            id=request.id,
            outputs=[
                Tensor(name="label", shape=shape, datatype="BYTES", data=names),
                Tensor(name="scores", shape=[*shape, len(labels)], datatype="FP32", data=scores),
            ],
        )

    return app


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(
        application(Path(sys.argv[1])),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        http="httptools",
        loop="uvloop",
        log_config=None,
        access_log=False,
    )
