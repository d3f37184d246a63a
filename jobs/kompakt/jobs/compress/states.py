# SPDX-License-Identifier: Apache-2.0
"""What happens inside of a model while it answers, and which of it belongs together in two models.

Student and teacher may differ in layers, heads and tokens. Layers are matched by how close their
states are, tokens by the characters that they stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kompakt.jobs.models.device import CPU
from kompakt.jobs.models.encoder import Encoder

if TYPE_CHECKING:
    from tokenizers import Encoding


@dataclass
class States:
    """Of one batch."""

    logits: torch.Tensor
    """[texts, labels]"""
    hidden: dict[int, torch.Tensor] = field(default_factory=dict)
    """By layer, what it gives to the next: [texts, tokens, hidden]."""
    attention: tuple[torch.Tensor, ...] = ()
    """Queries, keys and values of one layer: [texts, tokens, heads * width]."""


@dataclass(frozen=True)
class Wanted:
    """Which states to keep."""

    hidden: tuple[int, ...] = ()
    """Layers."""
    attention: int | None = None
    """A layer."""

    def run(self, encoder: Encoder, inputs: dict[str, torch.Tensor]) -> States:
        """Answers a batch and keeps its states."""
        hidden: dict[int, torch.Tensor] = {}
        attention: dict[int, torch.Tensor] = {}
        layers = encoder.encoder_layers()
        with ExitStack() as stack:
            for number in self.hidden:
                stack.enter_context(_keep_output(layers[number], hidden, number))
            if self.attention is not None:
                layer = layers[self.attention]
                for place, module in enumerate((layer.query, layer.key, layer.value)):
                    stack.enter_context(_keep_output(module, attention, place))
            logits = encoder(**inputs)
        return States(
            logits=logits.float(),
            hidden={number: state.float() for number, state in hidden.items()},
            attention=tuple(attention[place].float() for place in sorted(attention)),
        )


@contextmanager
def _keep_output(module: nn.Module, where: dict[int, torch.Tensor], key: int) -> Iterator[None]:
    def keep(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        where[key] = output

    handle = module.register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class Alignment:
    """Where the tokens of some texts stand that student and teacher both have."""

    mask: torch.Tensor
    """[texts, places]: false where a text has no more of them."""
    student: torch.Tensor | None = None
    """[texts, places]: positions among the student's tokens; as they are where it is absent."""
    teacher: torch.Tensor | None = None
    """The same among the teacher's."""

    @classmethod
    def same(cls, mask: torch.Tensor) -> Alignment:
        """Both have the same tokens, those of the attention mask."""
        return cls(mask=mask.bool())

    @classmethod
    def by_characters(
        cls,
        student: Sequence[Encoding],
        teacher: Sequence[Encoding],
        *,
        device: torch.device = CPU,
    ) -> Alignment:
        """The tokens that are the same and stand for the same characters of the same text."""
        pairs = [
            sorted(_common(ours, theirs)) for ours, theirs in zip(student, teacher, strict=True)
        ]
        width = max(len(some) for some in pairs)
        table = torch.zeros(len(pairs), width, 2, dtype=torch.int64, device=CPU)
        mask = torch.zeros(len(pairs), width, dtype=torch.bool, device=CPU)
        for row, some in enumerate(pairs):
            table[row, : len(some)] = torch.tensor(some, device=CPU)
            mask[row, : len(some)] = True
        table, mask = table.to(device), mask.to(device)
        return cls(mask=mask, student=table[..., 0], teacher=table[..., 1])

    def of_student(self, states: torch.Tensor) -> torch.Tensor:
        """The common tokens' states: [texts, places, size]."""
        return _at(states, self.student)

    def of_teacher(self, states: torch.Tensor) -> torch.Tensor:
        """The common tokens' states: [texts, places, size]."""
        return _at(states, self.teacher)


def _at(states: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
    if places is None:
        return states
    return states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))


def _common(ours: Encoding, theirs: Encoding) -> list[tuple[int, int]]:
    places = {key: place for place, key in enumerate(_keys(theirs))}
    return [(place, places[key]) for place, key in enumerate(_keys(ours)) if key in places]


def _keys(encoding: Encoding) -> Iterator[tuple[tuple[int, int], str]]:
    """What a token stands for: bytes of one character have its place in common."""
    return zip(encoding.offsets, encoding.tokens, strict=True)


def match_layers(
    distance: Callable[[int, int], float], *, student: int, teacher: int
) -> tuple[int, ...]:
    """For each of the student's layers the teacher's whose states it is to have.

    They keep their order, the last belongs to the last (both heads read it), and the distances
    between the rest are the least in all.
    """
    if student == teacher:
        return tuple(range(teacher))
    # best[t]: the least sum of distances with the current layer at t, and the layers up to it.
    best: dict[int, tuple[float, tuple[int, ...]]] = {-1: (0.0, ())}
    for layer in range(student):
        left = student - layer - 1
        places = [teacher - 1] if not left else range(layer, teacher - left)
        best = {
            place: min(
                (total + distance(layer, place), (*chosen, place))
                for before, (total, chosen) in best.items()
                if before < place
            )
            for place in places
        }
    return best[teacher - 1][1]
