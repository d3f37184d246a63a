# SPDX-License-Identifier: Apache-2.0
"""The encoder architectures that Kompakt understands, and where their parts are. No torch here.

One entry serves the whole way: which inputs the graph has, which names the weights carry, where the
FFN's matrices are. An architecture is added by adding an entry and its tests.
"""

from __future__ import annotations

from dataclasses import dataclass

FFN_SIZES_KEY = "kompakt_ffn_sizes"
"""Key in config.json with the number of FFN neurons of each layer, once they differ."""


@dataclass(frozen=True)
class Architecture:
    """Names within one family of models (`config.model_type`)."""

    model_type: str
    class_name: str
    """The one head that is supported."""
    layers: str
    """Dotted path to the list of encoder layers."""
    ffn_up: str
    """Within a layer: the matrix that makes the neurons."""
    ffn_down: str
    """Within a layer: the matrix that reads them."""
    ffn_size_key: str
    """Key in config.json."""
    layer_count_key: str
    head_weight: str
    """The weight with one row for each label."""
    frozen: tuple[str, ...]
    """Embedding tables: too large to train on few texts, and most rows would never be seen."""
    token_type_ids: bool = False
    """Whether the graph takes them."""
    position_offset: int = 0
    """Positions that no token can have (RoBERTa counts from the padding index)."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """Inputs of the exported graph, in the order of the model's forward."""
        names = ("input_ids", "attention_mask")
        return (*names, "token_type_ids") if self.token_type_ids else names


_BERT = Architecture(
    model_type="bert",
    class_name="BertForSequenceClassification",
    layers="bert.encoder.layer",
    ffn_up="intermediate.dense",
    ffn_down="output.dense",
    ffn_size_key="intermediate_size",
    layer_count_key="num_hidden_layers",
    head_weight="classifier.weight",
    frozen=("bert.embeddings.word_embeddings", "bert.embeddings.position_embeddings"),
    token_type_ids=True,
)
_ROBERTA = Architecture(
    model_type="roberta",
    class_name="RobertaForSequenceClassification",
    layers="roberta.encoder.layer",
    ffn_up="intermediate.dense",
    ffn_down="output.dense",
    ffn_size_key="intermediate_size",
    layer_count_key="num_hidden_layers",
    head_weight="classifier.out_proj.weight",
    frozen=("roberta.embeddings.word_embeddings", "roberta.embeddings.position_embeddings"),
    position_offset=2,
)
_DISTILBERT = Architecture(
    model_type="distilbert",
    class_name="DistilBertForSequenceClassification",
    layers="distilbert.transformer.layer",
    ffn_up="ffn.lin1",
    ffn_down="ffn.lin2",
    ffn_size_key="hidden_dim",
    layer_count_key="n_layers",
    head_weight="classifier.weight",
    frozen=("distilbert.embeddings.word_embeddings", "distilbert.embeddings.position_embeddings"),
)
_ELECTRA = Architecture(
    model_type="electra",
    class_name="ElectraForSequenceClassification",
    layers="electra.encoder.layer",
    ffn_up="intermediate.dense",
    ffn_down="output.dense",
    ffn_size_key="intermediate_size",
    layer_count_key="num_hidden_layers",
    head_weight="classifier.out_proj.weight",
    frozen=("electra.embeddings.word_embeddings", "electra.embeddings.position_embeddings"),
    token_type_ids=True,
)

ARCHITECTURES = {a.model_type: a for a in (_BERT, _ROBERTA, _DISTILBERT, _ELECTRA)}
