# SPDX-License-Identifier: Apache-2.0
"""What a model in the making answers to texts that no step has seen, beside the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from kompakt.jobs.compress.stages import Check
from kompakt.jobs.compress.training import TrainingData
from kompakt.jobs.data.examples import Dataset
from kompakt.jobs.models.encoder import Encoder

BATCH = 32


def look(
    encoder: Encoder, data: TrainingData, held_out: Dataset, labels: Sequence[int | None]
) -> Check:
    """Asks both.

    Args:
        encoder: A text classifier.
        data: What it is made with: of this, its tokenizer and the original's answers.
        held_out: Other texts.
        labels: Of these, where they are known.
    """
    others = replace(data, dataset=held_out, labels=labels)
    found = np.empty(len(labels), dtype=np.int64)
    with torch.no_grad():
        for batch in others.batches(range(len(labels)), BATCH):
            found[batch.indices] = encoder(**batch.inputs).argmax(dim=1).numpy()
    original = others.teacher(held_out.texts).argmax(axis=1)
    wanted = np.array([-1 if label is None else label for label in labels])
    return Check(
        texts=len(labels),
        agreeing=int((found == original).sum()),
        labelled=int((wanted >= 0).sum()),
        right=int((found == wanted).sum()),
        original_right=int((original == wanted).sum()),
    )
