# SPDX-License-Identifier: Apache-2.0
"""The encoder in torch: plain, without dropout, every layer with sizes of its own.

Why not the classes of transformers: they give all layers one FFN size and all their heads, so a
pruned model is none of theirs; their import takes ten seconds and more memory than a small model's
training; and the graphs they export compute shapes at run time, which is a tenth of the latency of
a small int8 model. The tests prove for each architecture that both give the same logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from kompakt.api.base import Task
from kompakt.jobs.models import local
from kompakt.jobs.models.pooling import Pooling
from kompakt.jobs.models.relative import RelativePositions, position_scores

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": nn.functional.gelu,
    "gelu_new": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "relu": nn.functional.relu,
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
}

_SHORTEST = 1e-12
"""Of a vector that is normalized, as torch has it."""


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes and settings; the sizes are those of the weights."""

    vocabulary: int
    positions: int
    """0 where positions are relative."""
    token_types: int
    """0 where the architecture has no such table."""
    embedding: int
    hidden: int
    head_width: int
    head_counts: tuple[int, ...]
    """Attention heads of each layer."""
    ffn_sizes: tuple[int, ...]
    """Neurons of each layer's feed-forward network."""
    labels: int
    activation: str
    head_activation: str
    norm_epsilon: float
    first_position: int
    task: Task = "TextClassification"
    """What the outputs of the head mean."""
    distances: int = 0
    """Rows of the table of relative positions; 0 where positions are absolute."""
    longest: int = 0
    """Tokens that relative positions are told apart for."""
    pooling: Pooling | None = None
    """Of a SentenceEmbedding, what stands in place of a head."""
    windows: tuple[int, ...] = ()
    """Of each layer, how many tokens one looks at, 0 for all; empty where all look at all."""

    @property
    def each_token(self) -> bool:
        """Whether the head answers for every token, rather than for the text."""
        return self.task == "TokenClassification"

    @property
    def width(self) -> int:
        """How many numbers the answer has, to a text or to a token."""
        return self.hidden if self.pooling is not None else self.labels

    @property
    def reads_first_token(self) -> bool:
        """Whether an answer is made of the first token's state alone."""
        if self.pooling is not None:
            return self.pooling.tokens == "First"
        return not self.each_token


class Factored(nn.Module):
    """A matrix as the product of two thin ones; the second has the bias."""

    def __init__(
        self, inputs: int, rank: int, outputs: int, *, device: torch.device | None = None
    ) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, rank, bias=False, device=device)
        self.second = nn.Linear(rank, outputs, device=device)

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.second(self.first(x))
        return y

    @property
    def in_features(self) -> int:
        """What it reads."""
        return self.first.in_features

    @property
    def rank(self) -> int:
        """The size in between."""
        return self.first.out_features

    @property
    def out_features(self) -> int:
        """What it gives."""
        return self.second.out_features


class Layer(nn.Module):
    """Attention, then a feed-forward network, each added to its input and normed.

    Without heads or without neurons, what is left of a half is its bias, and that is all it costs.
    """

    def __init__(
        self,
        config: EncoderConfig,
        *,
        heads: int,
        ffn_size: int,
        relative: RelativePositions | None = None,
        window: int = 0,
    ) -> None:
        super().__init__()
        self.relative = relative
        self.window = window
        """How many tokens one looks at; 0 for all."""
        self.known_distances: tuple[torch.Tensor, torch.Tensor] | None = None
        """What `distances` gives, while weights stay as they are."""
        hidden = config.hidden
        self.heads = heads
        self.width = config.head_width
        self.query = _linear(hidden, heads * self.width)
        self.key = _linear(hidden, heads * self.width)
        self.value = _linear(hidden, heads * self.width)
        self.attended = _linear(heads * self.width, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=config.norm_epsilon)
        self.up = _linear(hidden, ffn_size)
        self.down = _linear(ffn_size, hidden)
        self.norm = nn.LayerNorm(hidden, eps=config.norm_epsilon)
        self.activation = _ACTIVATIONS[config.activation]

    @override
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.feed(self.attend(x, mask))

    def attend(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The first half: what the feed-forward network reads."""
        change = self.attended(self.mix(x, mask)) if self.heads else self.attended.bias
        y: torch.Tensor = self.attention_norm(change + x)
        return y

    def mix(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What the heads read from all tokens, side by side: [batch, tokens, heads * width]."""
        if self.relative is not None:
            return self._mix_with_distances(x, mask, self.relative)
        if self.window:
            read = self.query(x), self.key(x), self.value(x), mask
            return local.attend(*read, heads=self.heads, width=self.width, window=self.window)
        query = _split_heads(self.query(x), self.heads, self.width)
        key = _split_heads(self.key(x), self.heads, self.width)
        value = _split_heads(self.value(x), self.heads, self.width)
        # Scaling the query, not the scores, is one pass over the smaller tensor.
        scores = (query * self.width**-0.5) @ key.transpose(-1, -2) + mask
        return _merge_heads(scores.softmax(dim=-1) @ value, self.heads * self.width)

    def _mix_with_distances(
        self, x: torch.Tensor, mask: torch.Tensor, relative: RelativePositions
    ) -> torch.Tensor:
        # The table first: who looks at what queries and keys give should see the tokens' last.
        position_query, position_key = self.known_distances or self.distances(relative)
        # Three sums of products of this width add up.
        query = _split_heads(self.query(x), self.heads, self.width) * (3 * self.width) ** -0.5
        key = _split_heads(self.key(x), self.heads, self.width)
        value = _split_heads(self.value(x), self.heads, self.width)
        scores = query @ key.transpose(-1, -2) + position_scores(
            query,
            key,
            position_query=position_query,
            position_key=position_key,
            index=relative.index(x.shape[1]),
        )
        return _merge_heads((scores + mask).softmax(dim=-1) @ value, self.heads * self.width)

    def distances(self, relative: RelativePositions) -> tuple[torch.Tensor, torch.Tensor]:
        """What its queries, scaled, and its keys make of the table: [1, heads, width, rows]."""
        values = relative.values()
        query = _split_heads(self.query(values), self.heads, self.width) * (3 * self.width) ** -0.5
        key = _split_heads(self.key(values), self.heads, self.width)
        return query.transpose(-1, -2), key.transpose(-1, -2)

    def feed(self, x: torch.Tensor) -> torch.Tensor:
        """The second half, from what the first gives."""
        change = self.down(self.neurons(x)) if self.ffn_size else self.down.bias
        y: torch.Tensor = self.norm(change + x)
        return y

    def neurons(self, x: torch.Tensor) -> torch.Tensor:
        """The values of the feed-forward network's neurons."""
        return self.activation(self.up(x))

    @property
    def ffn_size(self) -> int:
        """Neurons of the feed-forward network."""
        return self.up.out_features

    def matrix(self, name: str) -> nn.Linear | Factored:
        """One of `MATRICES`."""
        module: nn.Linear | Factored = getattr(self, name)
        return module

    def factor(self, name: str, rank: int) -> Factored:
        """Puts two factors, to be filled, in place of one of `MATRICES`."""
        whole = self.matrix(name)
        device = self.norm.weight.device
        factored = Factored(whole.in_features, rank, whole.out_features, device=device)
        setattr(self, name, factored)
        return factored

    def keep_heads(self, keep: torch.Tensor) -> None:
        """Takes all heads but these out of the matrices."""
        rows = (keep[:, None] * self.width + torch.arange(self.width, device=keep.device)).flatten()
        for linear in (self.query, self.key, self.value):
            _keep_outputs(linear, rows)
        _keep_inputs(self.attended, rows)
        self.heads = len(keep)

    def keep_neurons(self, keep: torch.Tensor) -> None:
        """Takes all neurons but these out of the matrices."""
        _keep_outputs(self.up, keep)
        _keep_inputs(self.down, keep)


class Encoder(nn.Module):
    """A text classifier: token ids in, logits out. Or token ids in, an embedding out."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.word = nn.Embedding(config.vocabulary, config.embedding)
        self.position = (
            nn.Embedding(config.positions, config.embedding) if config.positions else None
        )
        self.token_type = (
            nn.Embedding(config.token_types, config.embedding) if config.token_types else None
        )
        self.embedding_norm = nn.LayerNorm(config.embedding, eps=config.norm_epsilon)
        self.projection = (
            nn.Linear(config.embedding, config.hidden)
            if config.embedding != config.hidden
            else None
        )
        relative = None
        if config.distances:
            self.relative = nn.Embedding(config.distances, config.hidden)
            self.relative_norm = nn.LayerNorm(config.hidden, eps=config.norm_epsilon)
            relative = RelativePositions(self.relative, self.relative_norm, longest=config.longest)
        windows = config.windows or (0,) * len(config.head_counts)
        sizes = zip(config.head_counts, config.ffn_sizes, windows, strict=True)
        self.layers = nn.ModuleList(
            Layer(config, heads=heads, ffn_size=ffn_size, relative=relative, window=window)
            for heads, ffn_size, window in sizes
        )
        headless = config.pooling is not None
        self.head: nn.Module = (
            nn.Identity()
            if headless or config.each_token
            else nn.Linear(config.hidden, config.hidden)
        )
        self.out: nn.Module = nn.Identity() if headless else nn.Linear(config.hidden, config.labels)
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
        return self.classify(x, attention_mask)

    def embed(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the first layer reads, and the mask to be added to attention scores."""
        first = self.config.first_position
        x = self.word(input_ids)
        if self.position is not None:
            x = x + self.position.weight[first : first + input_ids.shape[1]]
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

    def replace_words(self, rows: torch.Tensor) -> None:
        """Puts another table of token embeddings in place."""
        self.word = nn.Embedding.from_pretrained(rows.contiguous(), freeze=False)
        self.config = replace(self.config, vocabulary=len(rows))

    def classify(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The logits, from what the last layer gives: [batch, labels], or for each token; or the
        embedding, [batch, hidden].

        `tokens` says which are not padding, [batch, tokens].
        """
        if self.config.pooling is not None:
            return _embedding(x, tokens, self.config.pooling)
        if self.config.each_token:
            return self.out(x)  # type: ignore[no-any-return]
        logits: torch.Tensor = self.out(self.head_activation(self.head(x[:, 0])))
        return logits

    def encoder_layers(self) -> list[Layer]:
        """The layers, typed."""
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def read_of(self, number: int, tokens: torch.Tensor) -> torch.Tensor:
        """Which of these tokens, [texts, tokens], anything reads of what a layer gives."""
        if not self.config.reads_first_token or number + 1 < len(self.layers):
            return tokens
        return tokens & (torch.arange(tokens.shape[1], device=tokens.device) == 0)

    @property
    def is_factored(self) -> bool:
        """Whether any matrix is the product of two."""
        return any(isinstance(module, Factored) for module in self.modules())

    def keep_layers(self, keep: Sequence[int]) -> None:
        """Takes all layers but these out."""
        self.layers = nn.ModuleList(self.layers[number] for number in keep)

    @property
    def tables(self) -> list[nn.Embedding]:
        """Embedding tables: half of a small model's numbers, of which a text touches few."""
        return [self.word] if self.position is None else [self.word, self.position]

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.word.weight.device

    @property
    def parameter_count(self) -> int:
        """How many numbers the model has."""
        return sum(parameter.numel() for parameter in self.parameters())


def _embedding(x: torch.Tensor, tokens: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    if pooling.tokens == "First":
        pooled = x[:, 0]
    else:
        weights = tokens.to(torch.float32)[..., None]
        # No product of matrices, which quantization would round; padding has no part in it.
        pooled = (x * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1.0)
    if not pooling.normalize:
        return pooled
    length: torch.Tensor = (pooled * pooled).sum(dim=1, keepdim=True).sqrt()
    return pooled / length.clamp_min(_SHORTEST)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """A matrix, which may be empty: torch warns of those only when it is to fill them."""
    linear = nn.Linear(max(1, inputs), max(1, outputs))
    if not inputs:
        _keep_inputs(linear, torch.arange(0))
    if not outputs:
        _keep_outputs(linear, torch.arange(0))
    return linear


def _keep_outputs(linear: nn.Linear, keep: torch.Tensor) -> None:
    linear.weight = nn.Parameter(linear.weight.detach()[keep])
    linear.bias = nn.Parameter(linear.bias.detach()[keep])
    linear.out_features = len(keep)


def _keep_inputs(linear: nn.Linear, keep: torch.Tensor) -> None:
    linear.weight = nn.Parameter(linear.weight.detach()[:, keep].contiguous())
    linear.in_features = len(keep)


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
    """[batch, heads, tokens, width] → [batch, tokens, heads * width], for the exporter."""

    @staticmethod
    @override
    def forward(_context: Any, x: torch.Tensor, _size: int) -> torch.Tensor:
        return x.transpose(1, 2).flatten(2)

    @staticmethod
    def symbolic(graph: Any, x: Any, size: int) -> Any:
        shape = graph.op("Constant", value_t=torch.tensor([0, -1, size]))
        return graph.op("Reshape", graph.op("Transpose", x, perm_i=[0, 2, 1, 3]), shape)


def _split_heads(x: torch.Tensor, heads: int, width: int) -> torch.Tensor:
    if torch.onnx.is_in_onnx_export():
        split: torch.Tensor = _SplitHeads.apply(x, heads, width)
        return split
    return x.view(*x.shape[:2], heads, width).transpose(1, 2)


def _merge_heads(x: torch.Tensor, size: int) -> torch.Tensor:
    if torch.onnx.is_in_onnx_export():
        merged: torch.Tensor = _MergeHeads.apply(x, size)
        return merged
    return x.transpose(1, 2).flatten(2)
