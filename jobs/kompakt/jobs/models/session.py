# SPDX-License-Identifier: Apache-2.0
"""An ONNX Runtime session as a pod with a CPU limit must open it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def open_session(path: Path, *, threads: int) -> Any:
    """A CPU session; threads that wait do not spin, because spinning eats the quota that the others
    need.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; warnings are about fusions that a graph does not offer
    return onnxruntime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )
