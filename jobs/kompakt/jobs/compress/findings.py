# SPDX-License-Identifier: Apache-2.0
"""What was found out about a model on some texts, kept in the store, so that it is found once: by
the analysis of a baseline for the pruning of all trials, by one trial for those after it.

Findings go by what they follow from, the model's weights and the texts' tokens and labels, not by
how these came about: two recipes that begin differently share nothing by accident, and a baseline
that is imported again shares everything.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch

from kompakt.api.artifact import canonical_json
from kompakt.jobs.compress.gates import Units
from kompakt.jobs.compress.importance import fisher
from kompakt.jobs.compress.losses import Labels
from kompakt.jobs.compress.sensitivity import Curve, sensitivity
from kompakt.jobs.compress.training import Batch
from kompakt.jobs.errors import JobError
from kompakt.jobs.models.encoder import Encoder
from kompakt.jobs.progress import say

if TYPE_CHECKING:
    from kompakt.jobs.store import Store

VERSION = 1
"""Part of every key: raised when the same model and texts give other findings."""


class Findings:
    """Those in a store; without one, everything is found anew."""

    def __init__(self, store: Store | None = None) -> None:
        self._store = store

    def fisher(self, encoder: Encoder, batches: Sequence[Batch], *, labels: Labels) -> Units:
        """The Fisher information of each head and neuron, summed over texts (`importance`)."""
        known = self.known_fisher(encoder, batches, labels=labels)
        if known is not None:
            say("the scores of heads and neurons were in the store")
            return known
        found = fisher(encoder, batches, labels=labels)
        self.keep_fisher(encoder, batches, found, labels=labels)
        return found

    def known_fisher(
        self, encoder: Encoder, batches: Sequence[Batch], *, labels: Labels
    ) -> Units | None:
        """The same, if it was found before."""
        layers = encoder.encoder_layers()
        counts = [*(layer.heads for layer in layers), *(layer.ffn_size for layer in layers)]
        values = self._read(_fisher_key(encoder, batches, labels))
        if values is None or len(values) != sum(counts):
            return None
        parts = torch.from_numpy(values.astype(np.float32)).to(encoder.device).split(counts)
        return Units(heads=list(parts[: len(layers)]), neurons=list(parts[len(layers) :]))

    def keep_fisher(
        self, encoder: Encoder, batches: Sequence[Batch], units: Units, *, labels: Labels
    ) -> None:
        """Keeps what was found for these texts, in whatever batches."""
        values = np.concatenate([part.numpy(force=True).ravel() for part in units.all])
        self._write(_fisher_key(encoder, batches, labels), values)

    def sensitivity(
        self,
        encoder: Encoder,
        scores: Units,
        *,
        fit_on: Sequence[Batch],
        check_on: Sequence[Batch],
    ) -> list[Curve]:
        """What each half of a layer loses as it gets smaller (`sensitivity`)."""
        ranked = [part.numpy(force=True).tobytes() for part in scores.all]
        key = _key("sensitivity", encoder, _tokens(fit_on), _tokens(check_on), ranked)
        rows = self._read(key)
        halves = 2 * len(encoder.encoder_layers())
        if rows is not None and rows.ndim == 2 and rows.shape[1] == 3:  # noqa: PLR2004 as below
            say("the sensitivity of the layers' halves was in the store")
            mine = [rows[rows[:, 0] == half] for half in range(halves)]
            return [Curve({int(count): float(nats) for _, count, nats in some}) for some in mine]
        found = sensitivity(encoder, scores, fit_on=fit_on, check_on=check_on)
        table = [
            (half, count, nats) for half, c in enumerate(found) for count, nats in c.points.items()
        ]
        self._write(key, np.array(table, np.float64))
        return found

    def _read(self, key: str) -> np.ndarray | None:
        if self._store is None:
            return None
        try:
            raw = self._store.get_bytes(key)
            return None if raw is None else np.load(io.BytesIO(raw), allow_pickle=False)
        except (JobError, ValueError, EOFError):
            return None  # what cannot be read is found anew

    def _write(self, key: str, values: np.ndarray) -> None:
        if self._store is None:
            return
        stream = io.BytesIO()
        np.save(stream, values, allow_pickle=False)
        self._store.put_bytes(key, stream.getvalue())


def _fisher_key(encoder: Encoder, batches: Iterable[Batch], labels: Labels) -> str:
    return _key("fisher", encoder, _tokens(batches, labels))


def _key(kind: str, encoder: Encoder, *parts: Iterable[bytes]) -> str:
    windows = [layer.window for layer in encoder.encoder_layers()]
    digest = hashlib.sha256(f"{kind} {VERSION} {encoder.config} {windows}".encode())
    for name, value in encoder.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(np.ascontiguousarray(value.numpy(force=True)).data)
    for part in parts:
        for each in part:
            digest.update(len(each).to_bytes(8, "big") + each)
        digest.update(b"end")
    return f"findings/{kind}-{digest.hexdigest()}.npy"


def _tokens(batches: Iterable[Batch], labels: Labels | None = None) -> list[bytes]:
    """The texts, each for itself and in the order of what they are: in which batches they came does
    not matter.
    """
    return sorted(chain.from_iterable(_texts(batch, labels) for batch in batches))


def _texts(batch: Batch, labels: Labels | None) -> Iterable[bytes]:
    inputs = {name: value.numpy(force=True) for name, value in sorted(batch.inputs.items())}
    mask = batch.tokens.numpy(force=True)
    for row, index in enumerate(batch.indices):
        label = canonical_json(None if labels is None else labels[index])
        yield label + b"".join(value[row][mask[row]].tobytes() for value in inputs.values())
