# SPDX-License-Identifier: Apache-2.0
"""A model as a pod with a CPU limit must open it, in the runtime that its manifest names.

The two runtimes' sessions look alike: a padded batch in, logits out. OpenVINO is imported for the
artifacts that ask for it, and for no others.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from kompakt.api.artifact import MODEL_FILES, ArtifactManifest, Precision, padded_length
from kompakt.api.base import Runtime
from kompakt.api.device import Device, accelerator, providers
from kompakt.jobs.errors import DeviceMissing, PackageMissing

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]
_OPENVINO_TYPES: dict[Precision, str] = {"Float32": "f32", "BFloat16": "bf16"}


class Session(Protocol):
    """An opened model."""

    input_names: tuple[str, ...]
    """What a batch must have, in the graph's order."""
    accelerator: str | None
    """The execution provider that it runs on, where that is not the CPU's."""

    def run(self, batch: Mapping[str, Ids]) -> Logits:
        """The logits, [batch, labels] or [batch, tokens, labels], of inputs [batch, tokens]."""


class OnnxSession(Session):
    """ONNX Runtime."""

    def __init__(self, model: Path | bytes, *, threads: int, device: Device = "Cpu") -> None:
        self._session = open_session(model, threads=threads, device=device)
        self.accelerator = _used(device, self._session.get_providers())
        self.input_names = tuple(entry.name for entry in self._session.get_inputs())

    @override
    def run(self, batch: Mapping[str, Ids]) -> Logits:
        logits: Logits = self._session.run(["logits"], dict(batch))[0]
        return logits


class OpenVinoSession(Session):
    """OpenVINO on a CPU. Batches are padded to `padded_length`."""

    def __init__(self, model: Any, *, precision: Precision, longest: int, threads: int) -> None:
        """`model` is the path of a file, or OpenVINO's own object."""
        settings = openvino_settings(precision, threads=threads)
        compiled = import_openvino().Core().compile_model(model, "CPU", settings)
        self.accelerator = None
        self.input_names = tuple(entry.get_any_name() for entry in compiled.inputs)
        self._longest = longest
        self._request = compiled.create_infer_request()

    @override
    def run(self, batch: Mapping[str, Ids]) -> Logits:
        tokens = batch["input_ids"].shape[1]
        width = padded_length(tokens, self._longest)
        padded = {name: _filled(array, width) for name, array in batch.items()}
        found = self._request.infer(padded, share_inputs=True, share_outputs=True)
        logits: Logits = found["logits"]
        if logits.ndim == 3:  # noqa: PLR2004 for each token, of which some are padding
            logits = logits[:, :tokens]
        return np.array(logits)  # a copy: the next call writes over the shared one


def _filled(ids: Ids, width: int) -> Ids:
    """With zeros up to a width: no id is looked at where the mask is zero. A call of np.pad takes
    a hundredth of a small model's time.
    """
    filled = np.zeros((len(ids), width), dtype=ids.dtype)
    filled[:, : ids.shape[1]] = ids
    return filled


def open_model(
    folder: Path, manifest: ArtifactManifest, *, threads: int, device: Device = "Cpu"
) -> Session:
    """The model of an artifact in a folder; OpenVINO's stay on the CPU."""
    return open_files(
        folder / MODEL_FILES[manifest.runtime][0],
        manifest.runtime,
        manifest.precision,
        longest=manifest.max_sequence_length,
        threads=threads,
        device=device,
    )


def open_files(
    path: Path,
    runtime: Runtime,
    precision: Precision,
    *,
    longest: int,
    threads: int,
    device: Device = "Cpu",
) -> Session:
    """A model by its first file, for texts of up to `longest` tokens."""
    if runtime == "OnnxRuntime":
        return OnnxSession(path, threads=threads, device=device)
    return OpenVinoSession(path, precision=precision, longest=longest, threads=threads)


def open_session(
    model: Path | bytes,
    *,
    threads: int,
    device: Device = "Cpu",
    optimized: Path | None = None,
    profile: Path | None = None,
) -> Any:
    """ONNX Runtime's own session; threads that wait do not spin, because spinning eats
    the quota that the others need.

    Args:
        model: A file, or what would be in it.
        threads: That one call may use.
        device: Where it runs.
        optimized: Where to write the graph that it really runs.
        profile: How the file begins that the operators' times are written to; `end_profiling` of
            the session gives its name.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; warnings are about fusions that a graph does not offer
    if device != "Cpu":
        require(device)
        onnxruntime.preload_dlls()  # those that came as packages of Python
    return onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model),
        sess_options=options,
        providers=providers(device),
    )


def require(device: Device) -> None:
    """Refuses a device for which ONNX Runtime was not built. Whether its libraries and the driver
    are there, only a session shows.

    Raises:
        DeviceMissing: One sentence with the mend.
    """
    import onnxruntime

    _used(device, onnxruntime.get_available_providers())


def _used(device: Device, names: Sequence[str]) -> str | None:
    try:
        return accelerator(device, names)
    except LookupError as error:
        raise DeviceMissing(str(error)) from None


def openvino_settings(precision: Precision, *, threads: int) -> dict[str, Any]:
    """How OpenVINO works on a share of a node: its own defaults are made for a whole machine."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        # Pinned threads of two pods would sit on the same cores.
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": _OPENVINO_TYPES[precision],
        # Activations are quantized where the graph says so, and nowhere else.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }


def import_openvino() -> Any:
    """OpenVINO, without the package by which it and NNCF report each import to their makers."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # "not installed"
    try:
        import openvino
    except ImportError as error:
        raise PackageMissing(
            f"OpenVINO is not installed here ({error}); install kompakt[openvino], or use the image"
            " of Kompakt's jobs"
        ) from error
    return openvino


def runtime_version(runtime: Runtime) -> str:
    """Name and version of what computes an artifact's answers."""
    if runtime == "OpenVino":
        return f"openvino {import_openvino().__version__}"
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"
