# SPDX-License-Identifier: Apache-2.0
"""Tiny, seeded models of each architecture with a real tokenizer, made in milliseconds."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kompakt.jobs.store import Store
from kompakt.jobs.task import Workplace

WORDS = [
    "the",
    "a",
    "film",
    "was",
    "is",
    "good",
    "bad",
    "great",
    "awful",
    "plot",
    "actor",
    "scene",
    "very",
    "not",
    "quite",
    "really",
    "long",
    "short",
    "dull",
    "bright",
    "slow",
    "fast",
    "love",
    "hate",
    "like",
    "enjoy",
    "boring",
    "moving",
    "simple",
    "clever",
    "weak",
    "strong",
    "and",
    "or",
    "but",
    "with",
]
Places = Callable[[], Workplace]
"""Makes a fresh Workplace for each Job."""
LABELS = ("negative", "neutral", "positive")
HIDDEN, LAYERS, FFN, HEADS, POSITIONS, EMBEDDING = 64, 2, 128, 4, 48, 32
BUCKETS = 12
"""Far fewer than positions, so that most distances share one."""
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
LETTERS = "bcdefghijklmnopqrstuvwxyz"
PARTS = [*LETTERS, "##a", *(f"##{letter}" for letter in LETTERS), "##ing", "act", "##or", "##ly"]
"""Tokens that make every word of the alphabet known; the letter a is a word itself."""


def make_texts(count: int, *, seed: int = 0, longest: int = 20) -> list[str]:
    """Sentences of all lengths over a small vocabulary."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, longest))) for _ in range(count)]


def write_tokenizer(path: Path, *, words: Sequence[str] = WORDS, extra: Sequence[str] = ()) -> None:
    """A WordPiece tokenizer that, as those of the hub do, pads everything to a fixed length."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *words, *extra])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=40)
    tokenizer.enable_truncation(max_length=40)
    tokenizer.save(str(path))


CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {
        "architectures": ["BertForSequenceClassification"],
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": FFN,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    },
    "roberta": {
        "architectures": ["RobertaForSequenceClassification"],
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": FFN,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 1,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
    },
    "distilbert": {
        "architectures": ["DistilBertForSequenceClassification"],
        "dim": HIDDEN,
        "n_layers": LAYERS,
        "n_heads": HEADS,
        "hidden_dim": FFN,
        "max_position_embeddings": POSITIONS,
        "activation": "gelu",
        "pad_token_id": 0,
    },
    "electra": {
        "architectures": ["ElectraForSequenceClassification"],
        "hidden_size": HIDDEN,
        "embedding_size": EMBEDDING,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": FFN,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    },
    "deberta-v2": {
        "architectures": ["DebertaV2ForSequenceClassification"],
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": FFN,
        "max_position_embeddings": POSITIONS,
        "max_relative_positions": -1,
        "type_vocab_size": 0,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-7,
        "pad_token_id": 0,
        "relative_attention": True,
        "share_att_key": True,
        "position_biased_input": False,
        "norm_rel_ebd": "layer_norm",
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": BUCKETS,
    },
}


def make_config(model_type: str, labels: tuple[str, ...] = LABELS) -> dict[str, Any]:
    """config.json as save_pretrained writes it."""
    return CONFIGS[model_type] | {
        "model_type": model_type,
        "vocab_size": len(SPECIAL) + len(WORDS),
        "id2label": {str(index): name for index, name in enumerate(labels)},
        "label2id": {name: index for index, name in enumerate(labels)},
    }


def write_checkpoint(
    folder: Path,
    model_type: str = "bert",
    *,
    seed: int = 0,
    extra: Sequence[str] = (),
    labels: tuple[str, ...] = LABELS,
    each_token: bool = False,
    embeds: bool = False,
) -> Path:
    """A checkpoint with random weights, large enough that answers differ between texts.

    `extra` are tokens beside the words. One label makes it a regression;
    with `each_token` it is a token classifier, with `embeds` an encoder alone.
    """
    import torch
    from safetensors.torch import save_file

    from kompakt.jobs.models.architectures import ARCHITECTURES
    from kompakt.jobs.models.encoder import Encoder, EncoderConfig
    from kompakt.jobs.models.pooling import Pooling

    folder.mkdir(parents=True, exist_ok=True)
    config = make_config(model_type, labels)
    config["vocab_size"] += len(extra)
    architecture = ARCHITECTURES[model_type]
    if each_token:
        architecture = architecture.for_tokens()
        config["architectures"] = [architecture.class_name]
    if embeds:
        architecture = architecture.for_embeddings()
        config |= {"architectures": [architecture.class_name], "id2label": {}, "label2id": {}}
    torch.manual_seed(seed)
    encoder = Encoder(
        EncoderConfig(
            vocabulary=config["vocab_size"],
            positions=0 if architecture.relative else POSITIONS,
            token_types=config.get("type_vocab_size", 0),
            embedding=config.get("embedding_size", HIDDEN),
            hidden=HIDDEN,
            head_width=HIDDEN // HEADS,
            head_counts=(HEADS,) * LAYERS,
            ffn_sizes=(FFN,) * LAYERS,
            labels=len(labels),
            activation="gelu",
            head_activation=architecture.head_activation,
            norm_epsilon=config.get("layer_norm_eps", 1e-12),
            first_position=architecture.first_position,
            task="TokenClassification" if each_token else "TextClassification",
            distances=2 * BUCKETS if architecture.relative else 0,
            longest=POSITIONS,
            pooling=Pooling() if embeds else None,
        )
    )
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.8, 1.2)
            else:
                parameter.normal_(
                    0.0, 0.3 if parameter.dim() == 1 else 2 * parameter.shape[1] ** -0.5
                )
        if not embeds:
            encoder.get_parameter("out.weight").mul_(4.0)
    state = {architecture.theirs(k): v.contiguous() for k, v in encoder.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder / "tokenizer.json", extra=extra)
    return folder


def write_layout(folder: Path, *, mode: str = "mean_tokens", normalize: bool = True) -> Path:
    """What sentence-transformers puts beside an encoder."""
    modules = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    rows = [
        {"idx": i, "name": str(i), "path": paths[i], "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    settings: dict[str, Any] = {
        f"pooling_mode_{name}": name == mode for name in ("cls_token", "mean_tokens")
    }
    settings |= {f"pooling_mode_{mode}": True, "word_embedding_dimension": HIDDEN}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 40, "do_lower_case": False})
    )
    return folder


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    """Writes JSON Lines and returns the file's URI."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"file://{path}"


@dataclass(frozen=True)
class Workshop:
    """A checkpoint, data and a store in a temporary folder."""

    root: Path

    @property
    def store(self) -> str:
        return f"file://{self.root / 'store'}"

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoint"

    def data(self, name: str, count: int, *, seed: int = 0) -> str:
        """Labelled sentences, the label a function of the words, with a slice field."""
        rows = [
            {
                "text": text,
                "label": LABELS[sum(map(len, text.split())) % len(LABELS)],
                "domain": "short" if len(text) < 40 else "long",
            }
            for text in make_texts(count, seed=seed)
        ]
        return write_jsonl(self.root / name, rows)


@pytest.fixture
def place(tmp_path: Path) -> Places:
    """A fresh scratch folder for each Job, one store for all: that of the workshop, if there is
    one.
    """
    count = iter(range(100))
    store = Workshop(tmp_path).store

    def make() -> Workplace:
        scratch = tmp_path / f"job-{next(count)}"
        scratch.mkdir()
        return Workplace(store=Store(store), scratch=scratch, threads=1)

    return make


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """A BERT checkpoint and an empty store."""
    write_checkpoint(tmp_path / "checkpoint")
    return Workshop(tmp_path)


@pytest.fixture
def checkpoint_of(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a checkpoint of an architecture."""
    return lambda model_type: write_checkpoint(tmp_path / model_type, model_type)
