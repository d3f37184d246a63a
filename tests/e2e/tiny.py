# SPDX-License-Identifier: Apache-2.0
"""`tiny.py FOLDER`: a language model of a few thousand parameters, and data for it.

It knows its small world: which of a few words of praise and blame stand in a sentence. A program of
its own, so that the tests need no torch in their process.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

LABELS = ("negative", "neutral", "positive")
_WORDS = {
    "negative": ("awful", "broken", "sad", "slow", "ugly"),
    "neutral": ("round", "usual", "wooden", "small", "grey"),
    "positive": ("brilliant", "lovely", "happy", "fast", "pretty"),
}
_FILLERS = ("the", "table", "is", "a", "and", "very", "film", "it", "was", "so", "today", "seen")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_STEPS = 150


def sentences(count: int, *, seed: int) -> list[tuple[str, str]]:
    """Sentences with their labels."""
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        label = chance.choice(LABELS)
        words = [chance.choice(_FILLERS) for _ in range(chance.randint(3, 10))]
        words.insert(chance.randint(0, len(words)), chance.choice(_WORDS[label]))
        found.append((" ".join(words), label))
    return found


def make_checkpoint(folder: Path) -> None:
    """Train the model in a second or two and save it as a Hugging Face checkpoint."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    folder.mkdir(parents=True)
    vocabulary = [*_SPECIAL, *_FILLERS, *(word for words in _WORDS.values() for word in words)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizer(vocab=str(folder / "vocab.txt"))
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more would only wait for each other
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=40,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.1,
            id2label=dict(enumerate(LABELS)),
            label2id={label: index for index, label in enumerate(LABELS)},
        )
    )
    examples = sentences(1600, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(_STEPS):
        batch = examples[step * 25 % 1600 :][:25]
        texts = tokenizer([text for text, _ in batch], padding=True, return_tensors="pt")
        labels = torch.tensor([LABELS.index(label) for _, label in batch])
        loss = model(**texts, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(folder: Path) -> None:
    """Write the checkpoint, and data by role."""
    make_checkpoint(folder / "checkpoint")
    for name, count, seed in (("evaluation", 600, 1), ("training", 400, 2), ("golden", 60, 3)):
        lines = [
            json.dumps({"text": text, "label": label, "domain": "even" if number % 2 else "odd"})
            for number, (text, label) in enumerate(sentences(count, seed=seed))
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
