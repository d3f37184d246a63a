# SPDX-License-Identifier: Apache-2.0
"""What a model in the making answers to texts that no step has seen, beside the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from kompakt.jobs.compress.agreement import Rule
from kompakt.jobs.compress.stages import Check
from kompakt.jobs.compress.training import TrainingData
from kompakt.jobs.data.examples import Dataset
from kompakt.jobs.models.encoder import Encoder

BATCH = 32


def look(
    encoder: Encoder,
    data: TrainingData,
    held_out: Dataset,
    labels: Sequence[int | None],
    rule: Rule,
) -> Check:
    """Asks both.

    Args:
        encoder: The model; it has one answer for a text.
        data: What it is made with: of this, its tokenizer and the original's answers.
        held_out: Other texts.
        labels: Of these, where they are known.
        rule: Which answers are the same.
    """
    others = replace(data, dataset=held_out, labels=labels)
    found = np.empty((len(labels), encoder.config.width), dtype=np.float32)
    with torch.no_grad():
        for batch in others.batches(range(len(labels)), BATCH):
            found[batch.indices] = encoder(**batch.inputs).numpy(force=True)
    original = others.teacher(held_out.texts)
    wanted = np.array([-1 if label is None else label for label in labels])
    return Check(
        texts=len(labels),
        agreeing=int(rule.same(found, original).sum()),
        labelled=int((wanted >= 0).sum()),
        right=int((found.argmax(axis=1) == wanted).sum()),
        original_right=int((original.argmax(axis=1) == wanted).sum()),
    )
