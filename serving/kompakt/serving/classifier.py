# SPDX-License-Identifier: Apache-2.0
"""Text in, label and scores out: the tokenizer and the ONNX session of one artifact.

Each text runs alone, also when a request brings many. On CPUs a batch takes about as long as its
items one by one (padding can only add to that), and in a dynamically quantized model the scale of
the activations spans the batch: an item's answer would depend on its neighbours. So the same text
always gets the same answer, and two variants can be compared request by request.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from kompakt.api.artifact import MODEL_NAME, TOKENIZER_NAME
from kompakt.serving.artifact import Artifact, ArtifactError

# Rust's thread pool would fight the session's thread for the pod's one core.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
from tokenizers import Tokenizer

_INPUTS: Final = ("input_ids", "attention_mask", "token_type_ids")
_OUTPUT: Final = "logits"
_WARM_UP_WORDS: Final = (1, 8, 16, 32, 64, 128, 256, 512)
_WARM_UP_ROUNDS: Final = 2


class NoTokensError(ValueError):
    """A text in which the tokenizer finds nothing; `index` is its place in the request."""

    def __init__(self, index: int) -> None:
        super().__init__(f"text {index} has no tokens")
        self.index = index


@dataclass(frozen=True, slots=True)
class Prediction:
    """Answers to the texts of one request, in their order."""

    labels: list[str]
    scores: NDArray[np.float32]
    """Softmax over the logits, [texts, labels]."""


class Classifier:
    """One artifact, ready to run. Safe to call from several threads: each call runs on its caller's
    thread.
    """

    def __init__(self, artifact: Artifact) -> None:
        manifest = artifact.manifest
        self.labels: Final = tuple(manifest.labels)
        self.max_length: Final = manifest.max_sequence_length
        try:
            self._tokenizer = Tokenizer.from_file(str(artifact.tokenizer_path))
        except Exception as error:  # the bindings raise Exception itself
            raise ArtifactError(
                f"{TOKENIZER_NAME} is no fast tokenizer ({error}): "
                "export it with tokenizer.save_pretrained"
            ) from error
        self._tokenizer.enable_truncation(self.max_length)
        # Checkpoints for sentence similarity come with padding to a fixed length: pure waste here.
        self._tokenizer.no_padding()
        options = ort.SessionOptions()
        # One thread a run, as many runs at a time as there are cores: no pool, hence no spinning
        # and no wake-ups.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Plans are kept per input shape: with free sequence lengths that is memory for nothing.
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(
                str(artifact.model_path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime's exceptions have no common base
            raise ArtifactError(
                f"{MODEL_NAME} cannot be run by ONNX Runtime {ort.__version__}: {error}"
            ) from error
        self._inputs = {node.name for node in self._session.get_inputs()}
        if unknown := self._inputs.difference(_INPUTS):
            raise ArtifactError(
                f"{MODEL_NAME} asks for the inputs {sorted(unknown)}; "
                f"a text classifier has only {list(_INPUTS)}"
            )
        if _OUTPUT not in {node.name for node in self._session.get_outputs()}:
            raise ArtifactError(f"{MODEL_NAME} has no output {_OUTPUT!r}: export it with that name")

    def classify(self, texts: Sequence[str]) -> Prediction:
        """Label and scores of each text.

        Raises NoTokensError for a text without tokens, ArithmeticError when the model's answer is
        not finite.
        """
        labels: list[str] = []
        scores = np.empty((len(texts), len(self.labels)), dtype=np.float32)
        for index, text in enumerate(texts):
            encoding = self._tokenizer.encode(text)
            ids = encoding.ids
            if not ids:
                raise NoTokensError(index)
            logits = self._run(ids, encoding.type_ids)
            best = int(logits.argmax())
            weights = np.exp(logits - logits[best])
            total = float(weights.sum())
            if not math.isfinite(total):
                raise ArithmeticError(f"the model's logits for text {index} are not finite")
            np.divide(weights, total, out=scores[index])
            labels.append(self.labels[best])
        return Prediction(labels, scores)

    def warm_up(self) -> None:
        """Run every length class a few times, so that the first caller pays for no allocation.

        Raises ArtifactError when the model does not run, or has another number of labels than the
        manifest.
        """
        for words in sorted({min(words, self.max_length) for words in _WARM_UP_WORDS}):
            encoding = self._tokenizer.encode("a " * words)
            if not encoding.ids:
                continue
            for _ in range(_WARM_UP_ROUNDS):
                try:
                    logits = self._run(encoding.ids, encoding.type_ids)
                except Exception as error:
                    raise ArtifactError(
                        f"{MODEL_NAME} fails on {len(encoding.ids)} tokens: {error}"
                    ) from error
                if logits.shape != (len(self.labels),):
                    raise ArtifactError(
                        f"{MODEL_NAME} answers with shape {list(logits.shape)} for a text, "
                        f"the manifest names {len(self.labels)} labels"
                    )

    def _run(self, ids: list[int], type_ids: list[int]) -> NDArray[np.float32]:
        feeds = {"input_ids": np.array([ids], dtype=np.int64)}
        if "attention_mask" in self._inputs:
            feeds["attention_mask"] = np.ones_like(feeds["input_ids"])
        if "token_type_ids" in self._inputs:
            feeds["token_type_ids"] = np.array([type_ids], dtype=np.int64)
        logits: NDArray[np.float32] = self._session.run([_OUTPUT], feeds)[0][0]
        return logits
