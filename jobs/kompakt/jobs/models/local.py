# SPDX-License-Identifier: Apache-2.0
"""Local attention (Longformer, Beltagy et al. 2020, arXiv:2004.05150, section 3.1): a token looks
at the tokens around it and at the first one, and only the first looks at all.

A window of W tokens: blocks of W/2 queries share their keys, which are the first token and the
W - 1 others of which the block is the middle; at the ends of a text the window is moved into it. So
every token sees at least W/4 - 1 others on each side, products stay dense, and no score is computed
only to be masked. A text of W tokens or less is read whole: it gets the answer of full attention.

Windows follow from a text's own length, never from the batch's, so padding changes no answer.
Padding must be behind the text.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from typing_extensions import override

from kompakt.jobs.models.local_graph import BLOCKS, DOMAIN, OPERATOR


def window_places(lengths: torch.Tensor, *, tokens: int, window: int) -> torch.Tensor:
    """The keys of each block of queries, [texts, blocks, window].

    Args:
        lengths: Tokens of each text that are not padding.
        tokens: Width of the batch, more than the window.
        window: In tokens.
    """
    device, block = lengths.device, window // BLOCKS
    blocks = -(-tokens // block)
    wished = (torch.arange(blocks, device=device) * block - (window - block) // 2).clamp_min(0)
    start = torch.minimum(wished, (lengths - window).clamp_min(0)[:, None])
    place = torch.arange(window, device=device)
    # The window's first place is the first token's, wherever the window begins.
    return start[..., None] * (place > 0) + place


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    *,
    heads: int,
    width: int,
    window: int,
) -> torch.Tensor:
    """What the heads read, side by side: [texts, tokens, heads * width].

    Args:
        query: [texts, tokens, heads * width], not scaled.
        key: The same.
        value: The same.
        mask: To be added to scores, 0 for tokens, [texts, 1, 1, tokens].
        heads: How many.
        width: Of a head.
        window: In tokens.
    """
    if torch.onnx.is_in_onnx_export():
        sizes = heads, width, window
        whole: torch.Tensor = _LocalAttention.apply(query, key, value, mask, *sizes)
        return whole
    texts, tokens, _ = query.shape
    # The first token's row, or that of every token: [texts, heads, queries, width].
    query, key, value = (
        x.view(texts, tokens, heads, width).transpose(1, 2) for x in (query, key, value)
    )
    query = query * width**-0.5
    alone = query if tokens <= window else query[:, :, :1]
    mixed = (alone @ key.transpose(-1, -2) + mask).softmax(dim=-1) @ value
    if tokens > window:
        places = window_places((mask == 0).sum(dim=(1, 2, 3)), tokens=tokens, window=window)
        block, blocks = window // BLOCKS, places.shape[1]
        text, head = (torch.arange(count, device=mask.device) for count in (texts, heads))
        text, head = text[:, None, None, None], head[:, None, None]
        near_key, near_value = (x[text, head, places[:, None]] for x in (key, value))
        near_mask = mask[text, 0, 0, places[:, None]][..., None, :]
        fill = blocks * block - tokens
        queries = nn.functional.pad(query, (0, 0, 0, fill)).unflatten(2, (blocks, block))
        scores = queries @ near_key.transpose(-1, -2) + near_mask
        near = (scores.softmax(dim=-1) @ near_value).flatten(2, 3)
        mixed = torch.cat([mixed, near[:, :, 1:tokens]], dim=2)
    return mixed.transpose(1, 2).flatten(2)


class _LocalAttention(torch.autograd.Function):
    """For the exporter: one operator, which `local_graph` writes out."""

    @staticmethod
    @override
    def forward(_context: Any, query: torch.Tensor, *_others: Any) -> torch.Tensor:
        return query.clone()  # of the right shape: nothing else is looked at

    @staticmethod
    def symbolic(graph: Any, *inputs: Any) -> Any:
        *tensors, heads, width, window = inputs
        sizes = {"heads_i": heads, "width_i": width, "window_i": window}
        mixed = graph.op(f"{DOMAIN}::{OPERATOR}", *tensors, **sizes)
        mixed.setType(tensors[0].type())
        return mixed
