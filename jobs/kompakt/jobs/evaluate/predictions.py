# SPDX-License-Identifier: Apache-2.0
"""Logits of an artifact over texts, computed once for each kind of hardware and kept in the store.

Every Measure Job of a run asks for the baseline's answers to the same texts, and distillation for
its answers to the training texts. int8 results depend on the CPU's features and on the kernels'
version, so both are part of the key.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kompakt.api.base import Digest, Runtime
from kompakt.api.device import Device
from kompakt.jobs import machine
from kompakt.jobs.data.examples import texts_digest
from kompakt.jobs.data.words import count_words
from kompakt.jobs.errors import JobError
from kompakt.jobs.evaluate.classifier import Classifier, Logits
from kompakt.jobs.models.session import runtime_version
from kompakt.jobs.progress import Progress, say
from kompakt.jobs.store import Store


def logits_of(
    artifact: Digest,
    texts: Sequence[str],
    *,
    folder: Path,
    store: Store,
    threads: int,
    name: str,
    device: Device = "Cpu",
) -> Logits:
    """The logits of each text, or of each word, as `Classifier.answer_all` gives them; `folder` is
    where the artifact is or will be.
    """
    manifest = store.manifest(artifact)
    key = prediction_key(artifact, texts, manifest.runtime, device)
    by_word = manifest.task == "TokenClassification"
    cached = _cached(store, key, count=sum(map(count_words, texts)) if by_word else len(texts))
    if cached is not None:
        say(f"{name}: {len(texts):,} answers were in the store")
        return cached
    store.get_artifact(artifact, folder)
    classifier = Classifier(folder, threads=threads, device=device)
    logits = classifier.answer_all(texts, progress=Progress(name, len(texts)))
    buffer = io.BytesIO()
    np.save(buffer, logits, allow_pickle=False)
    store.put_bytes(key, buffer.getvalue())
    return logits


def prediction_key(
    artifact: Digest, texts: Sequence[str], runtime: Runtime, device: Device = "Cpu"
) -> str:
    """Where the store keeps an artifact's answers to these texts on hardware like this."""
    import tokenizers

    versions = [runtime_version(runtime), tokenizers.__version__]
    if device != "Cpu" and runtime == "OnnxRuntime":
        versions += [device, machine.gpu_model()]
    features = machine.feature_key(versions)
    parts = (artifact.split(":")[1], texts_digest(texts).split(":")[1], features)
    return f"predictions/{'-'.join(parts)}.npy"


def _cached(store: Store, key: str, *, count: int) -> Logits | None:
    try:
        raw = store.get_bytes(key)
        if raw is None:
            return None
        logits: Logits = np.load(io.BytesIO(raw), allow_pickle=False)
    except (JobError, ValueError, EOFError):
        return None  # a cache that cannot be read is no cache
    return logits if logits.ndim == 2 and len(logits) == count else None  # noqa: PLR2004 a matrix
