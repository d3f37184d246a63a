# SPDX-License-Identifier: Apache-2.0
"""What the original shows to the smaller model, and how far that is from it.

Answers alone come from the baseline artifact in ONNX Runtime: they are kept in the store, and every
trial after the first has them for nothing. As soon as a loss looks inside, the original runs in
torch beside the smaller model, batch by batch, and its answers come with that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from kompakt.api.steps import Distill
from kompakt.jobs.compress.objectives import (
    Hidden,
    Labels,
    Logits,
    NumberLabels,
    Numbers,
    Objective,
    Relations,
    Sample,
    TokenLogits,
    layer_distance,
    relation_heads,
)
from kompakt.jobs.compress.states import Alignment, States, Wanted, match_layers
from kompakt.jobs.compress.training import Batch, TrainingData
from kompakt.jobs.data.words import count_words, first_tokens
from kompakt.jobs.errors import StepInvalid
from kompakt.jobs.models.device import CPU
from kompakt.jobs.models.encoder import Encoder


class Teacher(Protocol):
    """Gives the original's states for a batch."""

    def sample(self, batch: Batch) -> Sample:
        """What belongs to the batch."""


class Answers(Teacher):
    """The baseline's logits, computed before."""

    def __init__(self, data: TrainingData, indices: Sequence[int]) -> None:
        self._data = data
        texts = [data.dataset.texts[index] for index in indices]
        logits = torch.from_numpy(data.teacher(texts))
        sizes = map(count_words, texts) if data.task == "TokenClassification" else [1] * len(texts)
        self._logits = dict(zip(indices, logits.split(list(sizes)), strict=True))

    @override
    def sample(self, batch: Batch) -> Sample:
        if self._data.task == "TokenClassification":
            return self._of_words(batch)
        logits = torch.cat([self._logits[index] for index in batch.indices]).to(self._data.device)
        alignment = Alignment.same(batch.inputs["attention_mask"])
        return Sample(batch.indices, States(logits=logits), alignment)

    def _of_words(self, batch: Batch) -> Sample:
        """The answer to a word belongs to its first token, whatever tokenizer cut it."""
        data = self._data
        logits = pad_sequence([self._logits[index] for index in batch.indices], batch_first=True)
        places = torch.zeros(logits.shape[:2], dtype=torch.int64, device=CPU)
        mask = torch.zeros(logits.shape[:2], dtype=torch.bool, device=CPU)
        for row, index in enumerate(batch.indices):
            found = first_tokens(data.encodings[index], data.dataset.texts[index])
            for word, place in enumerate(found):
                # Of a word behind the end of what the teacher reads, there is no answer.
                if place is not None and bool(logits[row, word].isfinite().all()):
                    places[row, word], mask[row, word] = place, True
        alignment = Alignment(mask=mask.to(data.device), student=places.to(data.device))
        return Sample(batch.indices, States(logits=logits.to(data.device)), alignment)


class Original(Teacher):
    """The source model, looked into."""

    def __init__(self, data: TrainingData, wanted: Wanted) -> None:
        self._data = data
        self._encoder = data.original().requires_grad_(requires_grad=False)
        self.wanted = wanted

    @override
    def sample(self, batch: Batch) -> Sample:
        data, inputs = self._data, batch.inputs
        alignment = Alignment.same(inputs["attention_mask"])
        if data.tokenizer is not data.original_tokenizer:
            inputs = data.original_batch(batch).inputs
            ours = [data.encodings[index] for index in batch.indices]
            theirs = [data.original_encodings[index] for index in batch.indices]
            alignment = Alignment.by_characters(ours, theirs, device=data.device)
        with torch.no_grad():
            return Sample(batch.indices, self.wanted.run(self._encoder, inputs), alignment)

    @property
    def layers(self) -> int:
        """How many there are."""
        return len(self._encoder.encoder_layers())

    def attention_size(self, layer: int) -> tuple[int, int]:
        """Size of a token's queries in a layer, and over how many heads."""
        found = self._encoder.encoder_layers()[layer]
        return found.query.out_features, found.heads


@dataclass(frozen=True)
class Lesson:
    """The losses of a recipe, with their weights."""

    teacher: Teacher
    wanted: Wanted
    """Of the student."""
    objectives: dict[str, tuple[float, Objective]]
    held_out: list[tuple[Batch, Sample]]
    mapping: tuple[int, ...] = ()
    """For each layer of the student the one of the teacher; empty where no loss looks inside."""

    def loss(self, student: States, sample: Sample) -> torch.Tensor:
        """The weighted sum."""
        total = student.logits.new_zeros(())
        for weight, objective in self.objectives.values():
            total = total + weight * objective.loss(student, sample)
        return total

    def held_out_losses(self, encoder: Encoder) -> dict[str, float]:
        """Each loss on the texts that are never trained on."""
        sums = dict.fromkeys(self.objectives, 0.0)
        with torch.no_grad():
            for batch, sample in self.held_out:
                states = self.wanted.run(encoder, batch.inputs)
                for name, (_, objective) in self.objectives.items():
                    sums[name] += float(objective.loss(states, sample)) * len(batch.indices)
        texts = sum(len(batch.indices) for batch, _ in self.held_out)
        return {name: value / texts for name, value in sums.items()}

    def total(self, losses: dict[str, float]) -> float:
        """The weighted sum of what `held_out_losses` gives."""
        return sum(weight * losses[name] for name, (weight, _) in self.objectives.items())

    def uninformed(self) -> float:
        """The weighted sum that a model without any knowledge would have on the held-out texts."""
        samples = [sample for _, sample in self.held_out]
        return sum(w * objective.uninformed(samples) for w, objective in self.objectives.values())


def prepare(
    parameters: Distill,
    encoder: Encoder,
    data: TrainingData,
    *,
    shown: Sequence[int],
    held_out: Sequence[int],
) -> Lesson:
    """Brings teacher and losses together.

    Raises:
        StepInvalid: A loss is wanted for which the data or the model have nothing.
    """
    weights = {
        "logits": parameters.logits_weight_permille / 1000,
        "hidden": parameters.hidden_weight_permille / 1000,
        "relations": parameters.relation_weight_permille / 1000,
        "labels": parameters.label_weight_permille / 1000,
    }
    if not any(weights.values()):
        raise StepInvalid(
            "distill has nothing to learn from: set at least one of logitsWeightPermille,"
            " hiddenWeightPermille, relationWeightPermille and labelWeightPermille above 0"
        )
    if weights["labels"] and all(data.labels[index] is None for index in (*shown, *held_out)):
        raise StepInvalid(
            "distill.labelWeightPermille needs labelled texts: set data.training.labelField, or the"
            " weight to 0"
        )
    if weights["labels"] and data.task == "TokenClassification":
        raise StepInvalid(
            "distill.labelWeightPermille is for models that answer once a text, and this one"
            " answers for each word; set it to 0"
        )
    batches = list(data.batches(held_out, parameters.batch_size))
    objectives: dict[str, Objective] = {}
    if weights["hidden"] or weights["relations"]:
        lesson = _look_inside(
            encoder, data, batches, objectives, relations=bool(weights["relations"])
        )
    else:
        answers = Answers(data, [*dict.fromkeys(shown), *held_out])
        pairs = [(batch, answers.sample(batch)) for batch in batches]
        lesson = Lesson(teacher=answers, wanted=Wanted(), objectives={}, held_out=pairs)
    objectives |= _of_answers(parameters, data, [sample for _, sample in lesson.held_out])
    used = {name: (weight, objectives[name]) for name, weight in weights.items() if weight}
    return replace(lesson, objectives=used)


def _of_answers(
    parameters: Distill, data: TrainingData, held_out: Sequence[Sample]
) -> dict[str, Objective]:
    """The losses that look at what the models answer, by task."""
    temperature = parameters.temperature_permille / 1000
    if data.task == "TokenClassification":
        return {"logits": TokenLogits(temperature)}
    if data.task == "SentenceEmbedding":
        return {"logits": Numbers(held_out)}
    if data.task == "Regression":
        found: dict[str, Objective] = {"logits": Numbers(held_out)}
        if parameters.label_weight_permille:
            found["labels"] = NumberLabels(data.labels)
        return found
    return {"logits": Logits(temperature), "labels": Labels(data.labels)}


def _look_inside(
    encoder: Encoder,
    data: TrainingData,
    batches: Sequence[Batch],
    objectives: dict[str, Objective],
    *,
    relations: bool,
) -> Lesson:
    """Runs the original on the held-out texts, and matches its layers with the student's."""
    layers = encoder.encoder_layers()
    teacher = Original(data, Wanted())
    teacher.wanted = Wanted(hidden=tuple(range(teacher.layers)))
    ours = Wanted(hidden=tuple(range(len(layers))))
    samples = [teacher.sample(batch) for batch in batches]
    with torch.no_grad():
        states = [ours.run(encoder, batch.inputs) for batch in batches]

    def distance(layer: int, place: int) -> float:
        pairs = zip(states, samples, strict=True)
        return sum(float(layer_distance(found, sample, layer, place)) for found, sample in pairs)

    mapping = match_layers(distance, student=len(layers), teacher=teacher.layers)
    first = encoder.config.reads_first_token
    objectives["hidden"] = Hidden(mapping, samples, first_at_last=first)
    if relations:
        attending = [number for number, layer in enumerate(layers) if layer.heads]
        if not attending:
            raise StepInvalid(
                "distill.relationWeightPermille needs attention heads, and this model has none"
                " left; set it to 0, or keep more heads"
            )
        last = attending[-1]
        size, heads = teacher.attention_size(mapping[last])
        count = relation_heads(layers[last].query.out_features, size, most=heads)
        objectives["relations"] = Relations(count)
        ours = replace(ours, attention=last)
        teacher.wanted = replace(teacher.wanted, attention=mapping[last])
    teacher.wanted = replace(teacher.wanted, hidden=tuple(sorted(set(mapping))))
    return Lesson(
        teacher=teacher,
        wanted=ours,
        objectives={},
        held_out=[(batch, teacher.sample(batch)) for batch in batches],
        mapping=mapping,
    )
