# SPDX-License-Identifier: Apache-2.0
"""The encoder in torch: plain, without dropout, every layer with sizes of its own.

Why not the classes of transformers: they give all layers one FFN size, so a pruned model is none of
theirs; their import takes ten seconds and more memory than a small model's training; and the graphs
they export compute shapes at run time, which is a tenth of the latency of a small int8 model. The
tests prove for each architecture that both give the same logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from typing_extensions import override

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": nn.functional.gelu,
    "gelu_new": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "relu": nn.functional.relu,
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes and settings; the sizes are those of the weights."""

    vocabulary: int
    positions: int
    token_types: int
    """0 where the architecture has no such table."""
    embedding: int
    hidden: int
    heads: int
    ffn_sizes: tuple[int, ...]
    labels: int
    activation: str
    head_activation: str
    norm_epsilon: float
    first_position: int


class Layer(nn.Module):
    """Attention, then a feed-forward network, each added to its input and normed."""

    def __init__(self, config: EncoderConfig, ffn_size: int) -> None:
        super().__init__()
        hidden = config.hidden
        self.heads = config.heads
        self.width = hidden // config.heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.attended = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=config.norm_epsilon)
        self.up = nn.Linear(hidden, ffn_size)
        self.down = nn.Linear(ffn_size, hidden)
        self.norm = nn.LayerNorm(hidden, eps=config.norm_epsilon)
        self.activation = _ACTIVATIONS[config.activation]

    @override
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.attend(x, mask)
        return self.combine(x, self.neurons(x))

    def attend(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The first half: what the feed-forward network reads."""
        query = _split_heads(self.query(x), self.heads, self.width)
        key = _split_heads(self.key(x), self.heads, self.width)
        value = _split_heads(self.value(x), self.heads, self.width)
        # Scaling the query, not the scores, is one pass over the smaller tensor.
        scores = (query * self.width**-0.5) @ key.transpose(-1, -2) + mask
        attended = _merge_heads(scores.softmax(dim=-1) @ value, self.heads * self.width)
        y: torch.Tensor = self.attention_norm(self.attended(attended) + x)
        return y

    def neurons(self, x: torch.Tensor) -> torch.Tensor:
        """The values of the feed-forward network's neurons."""
        return self.activation(self.up(x))

    def combine(self, x: torch.Tensor, neurons: torch.Tensor) -> torch.Tensor:
        """The second half, once the neurons are known."""
        y: torch.Tensor = self.norm(self.down(neurons) + x)
        return y

    @property
    def ffn_size(self) -> int:
        """Neurons of the feed-forward network."""
        return self.up.out_features

    def replace_neurons(
        self, *, up: torch.Tensor, up_bias: torch.Tensor, down: torch.Tensor
    ) -> None:
        """Puts other weights, of another number of neurons, into the feed-forward network."""
        self.up.weight = nn.Parameter(up.contiguous())
        self.up.bias = nn.Parameter(up_bias.contiguous())
        self.up.out_features = up.shape[0]
        self.down.weight = nn.Parameter(down.contiguous())
        self.down.in_features = down.shape[1]


class Encoder(nn.Module):
    """A text classifier: token ids in, logits out."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.word = nn.Embedding(config.vocabulary, config.embedding)
        self.position = nn.Embedding(config.positions, config.embedding)
        self.token_type = (
            nn.Embedding(config.token_types, config.embedding) if config.token_types else None
        )
        self.embedding_norm = nn.LayerNorm(config.embedding, eps=config.norm_epsilon)
        self.projection = (
            nn.Linear(config.embedding, config.hidden)
            if config.embedding != config.hidden
            else None
        )
        self.layers = nn.ModuleList(Layer(config, size) for size in config.ffn_sizes)
        self.head = nn.Linear(config.hidden, config.hidden)
        self.out = nn.Linear(config.hidden, config.labels)
        self.head_activation = _ACTIVATIONS[config.head_activation]

    @override
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        x, mask = self.embed(input_ids, attention_mask, token_type_ids)
        for layer in self.layers:
            x = layer(x, mask)
        logits: torch.Tensor = self.out(self.head_activation(self.head(x[:, 0])))
        return logits

    def embed(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the first layer reads, and the mask to be added to attention scores."""
        first = self.config.first_position
        x = self.word(input_ids) + self.position.weight[first : first + input_ids.shape[1]]
        if self.token_type is not None:
            x = x + (
                self.token_type.weight[0]
                if token_type_ids is None
                else self.token_type(token_type_ids)
            )
        x = self.embedding_norm(x)
        if self.projection is not None:
            x = self.projection(x)
        padding = 1.0 - attention_mask[:, None, None, :].to(x.dtype)
        return x, padding * torch.finfo(x.dtype).min

    def encoder_layers(self) -> list[Layer]:
        """The layers, typed."""
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    @property
    def tables(self) -> list[nn.Embedding]:
        """Embedding tables: half of a small model's numbers, of which a text touches few."""
        return [self.word, self.position]

    @property
    def parameter_count(self) -> int:
        """How many numbers the model has."""
        return sum(parameter.numel() for parameter in self.parameters())


class _SplitHeads(torch.autograd.Function):
    """[batch, tokens, hidden] → [batch, heads, tokens, width], for the exporter.

    It would write a plain `view` as six operators that compute the shape; in ONNX, 0 means "as it
    is" and -1 "what is left", so one constant is enough.
    """

    @staticmethod
    @override
    def forward(_context: Any, x: torch.Tensor, heads: int, width: int) -> torch.Tensor:
        return x.view(*x.shape[:2], heads, width).transpose(1, 2)

    @staticmethod
    def symbolic(graph: Any, x: Any, heads: int, width: int) -> Any:
        shape = graph.op("Constant", value_t=torch.tensor([0, -1, heads, width]))
        return graph.op("Transpose", graph.op("Reshape", x, shape), perm_i=[0, 2, 1, 3])


class _MergeHeads(torch.autograd.Function):
    """[batch, heads, tokens, width] → [batch, tokens, hidden], for the exporter."""

    @staticmethod
    @override
    def forward(_context: Any, x: torch.Tensor, _hidden: int) -> torch.Tensor:
        return x.transpose(1, 2).flatten(2)

    @staticmethod
    def symbolic(graph: Any, x: Any, hidden: int) -> Any:
        shape = graph.op("Constant", value_t=torch.tensor([0, -1, hidden]))
        return graph.op("Reshape", graph.op("Transpose", x, perm_i=[0, 2, 1, 3]), shape)


def _split_heads(x: torch.Tensor, heads: int, width: int) -> torch.Tensor:
    if torch.onnx.is_in_onnx_export():
        split: torch.Tensor = _SplitHeads.apply(x, heads, width)
        return split
    return x.view(*x.shape[:2], heads, width).transpose(1, 2)


def _merge_heads(x: torch.Tensor, hidden: int) -> torch.Tensor:
    if torch.onnx.is_in_onnx_export():
        merged: torch.Tensor = _MergeHeads.apply(x, hidden)
        return merged
    return x.transpose(1, 2).flatten(2)
