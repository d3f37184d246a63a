# SPDX-License-Identifier: Apache-2.0
"""The encoder architectures that Kompakt understands, as tables of names. No torch here.

BERT, RoBERTa, DistilBERT and ELECTRA compute the same: embeddings, layers of attention and a
feed-forward network with the norm after each, and a head: two matrices on the first token, one on
every token, or none, where the states themselves make an embedding. They differ in what their
weights are called and in a few settings. One `Encoder` serves them all; an architecture is added by
a table here and its row in the test against transformers. DeBERTa (its second version, and the
third, which is of the same form) differs in what attention looks at: relative positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

FFN_SIZES_KEY = "kompakt_ffn_sizes"
"""Key in config.json with the FFN neurons of each layer, once they differ. For people: the sizes
that count are those of the weights."""
HEADS_KEY = "kompakt_heads"
"""Key in config.json with the attention heads of each layer, once some are gone. For people."""
HEAD_WIDTH_KEY = "kompakt_head_width"
"""Key in config.json with the width of a head, once some are gone: the weights do not tell."""
WINDOWS_KEY = "kompakt_attention_windows"
"""Key in config.json with how many tokens one looks at in each layer, 0 for all; absent where all
look at all."""

MATRICES = ("query", "key", "value", "attended", "up", "down")
"""The matrices of a layer."""
FACTORS = ("first", "second")
"""A matrix in two factors has two modules below its own name, applied in this order."""
HEAD_MODULES = ("head", "out")
_FACTORABLE = frozenset(f"layers.{{}}.{name}" for name in MATRICES)


@dataclass(frozen=True)
class Architecture:
    """What one family of checkpoints (`config.model_type`) calls things."""

    model_type: str
    class_name: str
    """Of the model with its head."""
    modules: MappingProxyType[str, str]
    """From the encoder's names to the checkpoint's; `{}` is the number of the layer."""
    head_activation: str
    layers_key: str = "num_hidden_layers"
    heads_key: str = "num_attention_heads"
    activation_key: str = "hidden_act"
    ffn_size_key: str = "intermediate_size"
    norm_epsilon: float = 1e-12
    """Where config.json has no `layer_norm_eps`."""
    token_type_ids: bool = False
    """Whether the graph may take them; `text.used_inputs` says whether it does."""
    first_position: int = 0
    """RoBERTa counts positions from behind its padding index."""
    relative: bool = False
    """Whether positions are relative, as in DeBERTa; `fixed` says of which kind."""
    fixed: MappingProxyType[str, tuple[Any, ...]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    """Settings of config.json of which only these values are known."""
    each_token: bool = False
    """Whether the head is one matrix on every token, rather than two on the first."""
    embeds: bool = False
    """Whether there is no head: the states of the last layer become an embedding."""

    def for_tokens(self) -> Architecture:
        """The same encoder as a token classifier."""
        modules = {ours: theirs for ours, theirs in self.modules.items() if ours != "head"}
        return replace(
            self,
            class_name=self.class_name.replace("Sequence", "Token"),
            modules=MappingProxyType(modules | {"out": "classifier"}),
            each_token=True,
        )

    def for_embeddings(self, names: Iterable[str] = ()) -> Architecture:
        """The encoder alone, as its weights are called: bare, or as a part of the model with a head
        that they were taken from.
        """
        prefix = f"{self.modules['word'].partition('.')[0]}."
        bare = not any(name.startswith(prefix) for name in names)
        return replace(
            self,
            class_name=self.class_name.replace("ForSequenceClassification", "Model"),
            modules=MappingProxyType(
                {
                    ours: theirs.removeprefix(prefix) if bare else theirs
                    for ours, theirs in self.modules.items()
                    if ours not in HEAD_MODULES
                }
            ),
            embeds=True,
        )

    @property
    def input_names(self) -> tuple[str, ...]:
        """Inputs that the exported graph may have, in the order of the encoder's forward."""
        names = ("input_ids", "attention_mask")
        return (*names, "token_type_ids") if self.token_type_ids else names

    def ours(self, names: Iterable[str]) -> dict[str, str]:
        """From a checkpoint's weights to the encoder's, for all that the encoder has."""
        known: dict[str, str] = {}
        patterns = {theirs: ours for ours, theirs in self.modules.items()}
        for name in names:
            pattern, number, kind = _parts(name)
            ours = patterns.get(pattern)
            factored = kind.startswith(FACTORS)
            if ours is not None and not (factored and ours not in _FACTORABLE):
                # Checkpoints of 2018 call a norm's numbers gamma and beta.
                kind = {"gamma": "weight", "beta": "bias"}.get(kind, kind)
                known[name] = f"{ours.format(number)}.{kind}"
        return known

    def theirs(self, name: str) -> str:
        """From one of the encoder's weights to what a checkpoint calls it."""
        pattern, number, kind = _parts(name)
        return f"{self.modules[pattern].format(number)}.{kind}"


def _parts(name: str) -> tuple[str, str, str]:
    """Of a weight: its module with `{}` for the number of the layer, the number, and the rest."""
    *parts, kind = name.split(".")
    if parts and parts[-1] in FACTORS:
        kind = f"{parts.pop()}.{kind}"
    # The layer's number is the one part that is a number.
    number = next((part for part in parts if part.isdigit()), "")
    return ".".join("{}" if part.isdigit() else part for part in parts), number, kind


def _modules(
    *,
    embeddings: str,
    layer: str,
    inside: dict[str, str],
    head: tuple[str, str],
    tables: dict[str, str] | None = None,
) -> MappingProxyType[str, str]:
    names = {
        "word": f"{embeddings}.word_embeddings",
        **(tables or {"position": f"{embeddings}.position_embeddings"}),
        "token_type": f"{embeddings}.token_type_embeddings",
        "embedding_norm": f"{embeddings}.LayerNorm",
        "projection": f"{embeddings}_project",
        "head": head[0],
        "out": head[1],
    }
    return MappingProxyType(names | {f"layers.{{}}.{k}": f"{layer}.{v}" for k, v in inside.items()})


_BERT_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attended": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm": "output.LayerNorm",
}
_DISTILBERT_LAYER = {
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "attended": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "up": "ffn.lin1",
    "down": "ffn.lin2",
    "norm": "output_layer_norm",
}

BERT = Architecture(
    model_type="bert",
    class_name="BertForSequenceClassification",
    modules=_modules(
        embeddings="bert.embeddings",
        layer="bert.encoder.layer.{}",
        inside=_BERT_LAYER,
        head=("bert.pooler.dense", "classifier"),
    ),
    head_activation="tanh",
    token_type_ids=True,
)
ROBERTA = Architecture(
    model_type="roberta",
    class_name="RobertaForSequenceClassification",
    modules=_modules(
        embeddings="roberta.embeddings",
        layer="roberta.encoder.layer.{}",
        inside=_BERT_LAYER,
        head=("classifier.dense", "classifier.out_proj"),
    ),
    head_activation="tanh",
    first_position=2,
)
DISTILBERT = Architecture(
    model_type="distilbert",
    class_name="DistilBertForSequenceClassification",
    modules=_modules(
        embeddings="distilbert.embeddings",
        layer="distilbert.transformer.layer.{}",
        inside=_DISTILBERT_LAYER,
        head=("pre_classifier", "classifier"),
    ),
    head_activation="relu",
    layers_key="n_layers",
    heads_key="n_heads",
    activation_key="activation",
    ffn_size_key="hidden_dim",
)
ELECTRA = Architecture(
    model_type="electra",
    class_name="ElectraForSequenceClassification",
    modules=_modules(
        embeddings="electra.embeddings",
        layer="electra.encoder.layer.{}",
        inside=_BERT_LAYER,
        head=("classifier.dense", "classifier.out_proj"),
    ),
    head_activation="gelu",
    token_type_ids=True,
)
DEBERTA = Architecture(
    model_type="deberta-v2",
    class_name="DebertaV2ForSequenceClassification",
    modules=_modules(
        embeddings="deberta.embeddings",
        layer="deberta.encoder.layer.{}",
        inside=_BERT_LAYER
        | {name: f"attention.self.{name}_proj" for name in ("query", "key", "value")},
        head=("pooler.dense", "classifier"),
        tables={
            "relative": "deberta.encoder.rel_embeddings",
            "relative_norm": "deberta.encoder.LayerNorm",
        },
    ),
    head_activation="gelu",
    norm_epsilon=1e-7,
    relative=True,
    fixed=MappingProxyType(
        {
            "relative_attention": (True,),
            "share_att_key": (True,),
            "position_biased_input": (False,),
            "norm_rel_ebd": ("layer_norm",),
            "pos_att_type": ("p2c|c2p", "c2p|p2c", ["p2c", "c2p"], ["c2p", "p2c"]),
            "conv_kernel_size": (None, 0),
            "pooler_hidden_act": (None, "gelu"),
            "type_vocab_size": (None, 0),
        }
    ),
)

ARCHITECTURES = {a.model_type: a for a in (BERT, ROBERTA, DISTILBERT, ELECTRA, DEBERTA)}
CLASSES = {
    a.class_name: a
    for one in ARCHITECTURES.values()
    for a in (one, one.for_tokens(), one.for_embeddings())
}
"""By what config.json calls the model with its head, or without one."""
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "tanh")
"""Names in config.json that the encoder knows."""
UNUSED_WEIGHTS = (
    ".position_ids",
    ".token_type_ids",
    "cls.",
    "lm_head.",
    "qa_outputs.",
    "discriminator_predictions.",
    "roberta.pooler.",
    "vocab_",
)
"""Parts of names of weights that a classifier has no use for: buffers, and heads of pretraining."""
