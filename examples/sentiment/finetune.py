# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning of a small encoder to a text classifier on the CPU: one epoch, seeded, batches of
like length.

Invariant: nothing is random but what the seed decides, so the same machine gives the same
checkpoint.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Progress = Callable[[int, int, str], None]
"""Called with what is done, what there is to do, and a word about it."""
Example = tuple[str, int]
"""A text and the index of its label."""


@dataclass(frozen=True)
class Hyperparameters:
    """How the classifier is trained."""

    learning_rate: float = 1e-4
    """Peak; linear warm-up over the first share of the steps, then linear decay to zero."""
    warmup_share: float = 0.06
    weight_decay: float = 0.01
    batch_size: int = 32
    max_length: int = 128
    seed: int = 0


def finetune(
    base: Path,
    target: Path,
    *,
    labels: Sequence[str],
    examples: Sequence[Example],
    hyperparameters: Hyperparameters,
    progress: Progress,
) -> None:
    """Train the checkpoint in `base` on the examples and save it, as safetensors, in `target`."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    _hush()
    hp = hyperparameters
    torch.manual_seed(hp.seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(
        base,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        problem_type="single_label_classification",
    )
    batches = list(_batches(tokenizer, examples, hp))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=hp.learning_rate, weight_decay=hp.weight_decay, fused=True
    )
    warmup = max(1, round(hp.warmup_share * len(batches)))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, (len(batches) - step) / (len(batches) - warmup + 1)),
    )
    model.train()
    done, smooth = 0, None
    for inputs, answers in batches:
        loss = torch.nn.functional.cross_entropy(model(**inputs).logits, answers)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        smooth = loss.item() if smooth is None else 0.95 * smooth + 0.05 * loss.item()
        done += len(answers)
        progress(done, len(examples), f"loss {smooth:.3f}")
    model.eval()
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def predict(
    checkpoint: Path, texts: Sequence[str], *, max_length: int, progress: Progress
) -> list[int]:
    """The index of the likeliest label of each text."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    _hush()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    predictions = [0] * len(texts)
    size, done = 64, 0
    with torch.inference_mode():
        for start in range(0, len(texts), size):
            rows = by_length[start : start + size]
            inputs = _encode(tokenizer, [texts[i] for i in rows], max_length)
            answers: list[int] = model(**inputs).logits.argmax(dim=-1).tolist()
            for row, answer in zip(rows, answers, strict=True):
                predictions[row] = answer
            done += len(rows)
            progress(done, len(texts), "sentences")
    return predictions


def _hush() -> None:
    """Leave out what transformers says of each file that it loads: a new classifier is meant to be
    missing.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _batches(
    tokenizer: Any, examples: Sequence[Example], hp: Hyperparameters
) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """Shuffled batches whose texts are about equally long: little padding, hence twice the speed.

    Texts are sorted by length within pools of many batches, not overall, so that batches stay
    random.
    """
    import torch

    chance = random.Random(hp.seed)
    order = chance.sample(range(len(examples)), len(examples))
    pool = hp.batch_size * 40
    groups: list[list[int]] = []
    for start in range(0, len(order), pool):
        rows = sorted(order[start : start + pool], key=lambda i: len(examples[i][0]))
        groups += [rows[i : i + hp.batch_size] for i in range(0, len(rows), hp.batch_size)]
    chance.shuffle(groups)
    for rows in groups:
        inputs = _encode(tokenizer, [examples[i][0] for i in rows], hp.max_length)
        yield inputs, torch.tensor([examples[i][1] for i in rows])


def _encode(tokenizer: Any, texts: list[str], max_length: int) -> dict[str, torch.Tensor]:
    return dict(
        tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    )
