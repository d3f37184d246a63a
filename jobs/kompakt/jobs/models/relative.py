# SPDX-License-Identifier: Apache-2.0
"""Relative positions of DeBERTa (He et al. 2021, arXiv:2006.03654, section 3.1; buckets as in its
second version).

Beside what two tokens say to each other, attention looks at what each says to the distance between
them. One table of distances serves all layers; each reads it with its own queries and keys, so that
a head that goes takes its part of that along.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from typing_extensions import override


class RelativePositions:
    """The table of distances as the layers read it. No module of its own: the encoder has it."""

    def __init__(self, table: nn.Embedding, norm: nn.LayerNorm, *, longest: int) -> None:
        self.table = table
        self.norm = norm
        self.places = torch.arange(longest)
        self.rows = rows_by_distance(longest, span=table.num_embeddings // 2)

    def values(self) -> torch.Tensor:
        """What queries and keys are made of, [1, rows, hidden]."""
        values: torch.Tensor = self.norm(self.table.weight)
        return values[None]

    def index(self, tokens: int) -> torch.Tensor:
        """The row for each pair, [tokens that ask, tokens that are asked]."""
        device = self.table.weight.device
        if self.rows.device != device:  # the encoder was moved, and took no notice of this
            self.rows, self.places = self.rows.to(device), self.places.to(device)
        places = self.places[:tokens]
        return self.rows[places[:, None] - places[None, :] + (len(self.places) - 1)]


def rows_by_distance(longest: int, *, span: int) -> torch.Tensor:
    """The row of the table for each distance from `1 - longest` to `longest - 1`.

    Small distances have a row each; beyond half of the span they share rows, the more of them the
    farther they are, on a logarithmic scale.
    """
    rows = []
    half = span // 2
    for distance in range(1 - longest, longest):
        far = abs(distance)
        bucket = far
        if far > half:
            # In fp32, as the reference: which side of a whole number it falls on must be the same.
            scaled = torch.log(torch.tensor(far / half)) / torch.log(
                torch.tensor((longest - 1) / half)
            )
            bucket = math.ceil(float(scaled * (half - 1))) + half
        rows.append(min(max(span + int(math.copysign(bucket, distance)), 0), 2 * span - 1))
    return torch.tensor(rows)


def position_scores(
    query: torch.Tensor,
    key: torch.Tensor,
    *,
    position_query: torch.Tensor,
    position_key: torch.Tensor,
    index: torch.Tensor,
) -> torch.Tensor:
    """Content to position, and position to content, [batch, heads, tokens, tokens].

    Args:
        query: Of the tokens, [batch, heads, tokens, width].
        key: The same.
        position_query: Of the table, [1, heads, width, rows].
        position_key: The same.
        index: As `RelativePositions.index` gives it.
    """
    to_position = query @ position_key
    of_position = key @ position_query
    # Of the shape of the keys, since the graph's last layer needs all of these in any case.
    asked = _for_all(index, key)
    return to_position.gather(-1, asked) + of_position.gather(
        -1, asked.transpose(-1, -2)
    ).transpose(-1, -2)


class _ForAll(torch.autograd.Function):
    """One index for every text and head, for the exporter: of a plain `expand` it would write ten
    operators, and nobody could tell how many axes come out of them.
    """

    @staticmethod
    @override
    def forward(_context: Any, index: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return index.expand(*like.shape[:2], -1, -1)

    @staticmethod
    def symbolic(graph: Any, index: Any, like: Any) -> Any:
        outer = graph.op("Shape", like, start_i=0, end_i=2)
        ones = graph.op("Constant", value_t=torch.ones(2, dtype=torch.int64))
        return graph.op("Expand", index, graph.op("Concat", outer, ones, axis_i=0))


def _for_all(index: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if torch.onnx.is_in_onnx_export():
        spread: torch.Tensor = _ForAll.apply(index, like)
        return spread
    return index.expand(*like.shape[:2], -1, -1)
