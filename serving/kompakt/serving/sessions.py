# SPDX-License-Identifier: Apache-2.0
"""A model opened by the runtime that its manifest names: token ids in, logits out.

Only that runtime is imported: each takes tens of megabytes and a good part of a second.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from kompakt.api.artifact import Precision, padded_length, padded_lengths
from kompakt.api.device import Device, accelerator, given, providers
from kompakt.api.measure import ANSWER_THREADS
from kompakt.serving.artifact import Artifact, ArtifactError

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]
_INPUTS: Final = ("input_ids", "attention_mask", "token_type_ids")
_OUTPUT: Final = "logits"
_WARM_UP_TOKENS: Final = (1, 8, 16, 32, 64, 128, 256, 512)
_WARM_UP_ROUNDS: Final = 2
_OPENVINO_TYPES: Final[dict[Precision, str]] = {"Float32": "f32", "BFloat16": "bf16"}


class Session(Protocol):
    """An opened model. Safe to call from several threads: each call runs one text."""

    accelerator: str | None
    """The execution provider that it runs on, where that is not the CPU's."""

    def run(self, ids: list[int], type_ids: list[int]) -> Logits:
        """The logits of one text, [labels], or [tokens, labels]."""

    def warm_up(self) -> tuple[int, ...]:
        """Prepare for texts of every length; returns the shape of an answer.

        Raises ArtifactError when the model does not run.
        """


def open_session(artifact: Artifact, *, threads: int) -> Session:
    """The session of an artifact, for so many calls at a time, on the device that the pod was
    given; OpenVINO's stay on the CPU.

    Raises ArtifactError.
    """
    if artifact.manifest.runtime == "OpenVino":
        return OpenVinoSession(artifact, threads=threads)
    return OnnxSession(artifact, given())


class OnnxSession(Session):
    """ONNX Runtime: each call runs on its caller's thread."""

    def __init__(self, artifact: Artifact, device: Device = "Cpu") -> None:
        import onnxruntime as ort

        self._name = artifact.model_path.name
        self._longest = artifact.manifest.max_sequence_length
        options = ort.SessionOptions()
        # One thread a run, as many runs at a time as there are cores: no pool, hence no spinning
        # and no wake-ups.
        options.intra_op_num_threads = ANSWER_THREADS
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Plans are kept per input shape: with free sequence lengths that is memory for nothing.
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        _used(device, ort.get_available_providers())
        if device != "Cpu":
            ort.preload_dlls()  # those that came as packages of Python
        try:
            self._session = ort.InferenceSession(
                str(artifact.model_path), options, providers=providers(device)
            )
        except Exception as error:  # the runtime's exceptions have no common base
            raise ArtifactError(
                f"{self._name} cannot be run by ONNX Runtime {ort.__version__}: {error}"
            ) from error
        # What could not be started is left out without an error.
        self.accelerator = _used(device, self._session.get_providers())
        self._inputs = _known(self._name, [node.name for node in self._session.get_inputs()])
        _require_output(self._name, [node.name for node in self._session.get_outputs()])

    @override
    def run(self, ids: list[int], type_ids: list[int]) -> Logits:
        logits: Logits = self._session.run([_OUTPUT], _feed(self._inputs, ids, type_ids))[0][0]
        return logits

    @override
    def warm_up(self) -> tuple[int, ...]:
        lengths = sorted({min(tokens, self._longest) for tokens in _WARM_UP_TOKENS})
        return _warm_up(self, lengths * _WARM_UP_ROUNDS, self._name)


class OpenVinoSession(Session):
    """OpenVINO: a stream of one thread for each call that may run at a time."""

    def __init__(self, artifact: Artifact, *, threads: int) -> None:
        openvino = _import_openvino()
        self._name = artifact.model_path.name
        self._longest = artifact.manifest.max_sequence_length
        self._threads = threads
        self.accelerator = None
        settings = {
            "NUM_STREAMS": threads,
            "INFERENCE_NUM_THREADS": threads,
            # Its threads are the pod's share of a node's; pinned ones would sit on other pods'.
            "ENABLE_CPU_PINNING": False,
            # Left alone, it computes in bfloat16 where a CPU can, and answers differ by node.
            "INFERENCE_PRECISION_HINT": _OPENVINO_TYPES[artifact.manifest.precision],
            # Activations are quantized where the graph says so, and nowhere else.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }
        try:
            self._model = openvino.Core().compile_model(artifact.model_path, "CPU", settings)
        except Exception as error:
            raise ArtifactError(
                f"{self._name} cannot be run by OpenVINO {openvino.__version__}: {error}"
            ) from error
        self._inputs = _known(self._name, [node.get_any_name() for node in self._model.inputs])
        _require_output(self._name, [name for node in self._model.outputs for name in node.names])
        # A request is one caller's at a time.
        self._local = threading.local()

    @override
    def run(self, ids: list[int], type_ids: list[int]) -> Logits:
        feed = _feed(self._inputs, ids, type_ids)
        if "attention_mask" in feed:
            width = padded_length(len(ids), self._longest)
            feed = {name: _filled(array, width) for name, array in feed.items()}
        answers = self._request.infer(feed, share_inputs=True, share_outputs=True)
        logits: Logits = answers[_OUTPUT][0]
        if logits.ndim == 2:  # noqa: PLR2004 for each token, of which some fill up
            logits = logits[: len(ids)]
        return logits.copy()  # the next call writes over it

    @override
    def warm_up(self) -> tuple[int, ...]:
        lengths = padded_lengths(self._longest)
        # All at once, so that each stream gets its share: they prepare each for itself.
        with ThreadPoolExecutor(self._threads) as pool:
            shapes = pool.map(lambda _: _warm_up(self, lengths, self._name), range(self._threads))
            return next(iter(set(shapes)))

    @property
    def _request(self) -> Any:
        if not hasattr(self._local, "request"):
            self._local.request = self._model.create_infer_request()
        return self._local.request


def _used(device: Device, names: Sequence[str]) -> str | None:
    try:
        return accelerator(device, names)
    except LookupError as error:
        raise ArtifactError(str(error)) from None


def _filled(ids: Ids, width: int) -> Ids:
    """With zeros up to a width: nothing is read where the mask is zero. A call of np.pad takes a
    hundredth of a small model's time.
    """
    filled = np.zeros((len(ids), width), dtype=ids.dtype)
    filled[:, : ids.shape[1]] = ids
    return filled


def _warm_up(session: Session, lengths: list[int], name: str) -> tuple[int, ...]:
    shape: tuple[int, ...] = ()
    for tokens in lengths:
        try:
            shape = session.run([0] * tokens, [0] * tokens).shape
        except Exception as error:
            raise ArtifactError(f"{name} fails on {tokens} tokens: {error}") from error
    return shape


def _feed(inputs: frozenset[str], ids: list[int], type_ids: list[int]) -> dict[str, Ids]:
    feed = {"input_ids": np.array([ids], dtype=np.int64)}
    if "attention_mask" in inputs:
        feed["attention_mask"] = np.ones_like(feed["input_ids"])
    if "token_type_ids" in inputs:
        feed["token_type_ids"] = np.array([type_ids], dtype=np.int64)
    return feed


def _known(name: str, inputs: list[str]) -> frozenset[str]:
    if unknown := set(inputs).difference(_INPUTS):
        raise ArtifactError(
            f"{name} asks for the inputs {sorted(unknown)}; a text model has only {list(_INPUTS)}"
        )
    return frozenset(inputs)


def _require_output(name: str, outputs: list[str]) -> None:
    if _OUTPUT not in outputs:
        raise ArtifactError(f"{name} has no output {_OUTPUT!r}: export it with that name")


def _import_openvino() -> Any:
    """OpenVINO, without the package by which it reports each import to its makers."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # "not installed"
    try:
        import openvino
    except ImportError as error:
        raise ArtifactError(
            f"the artifact runs in OpenVINO, which is not installed here ({error}): "
            "install kompakt[openvino], or use Kompakt's serving image"
        ) from error
    return openvino
