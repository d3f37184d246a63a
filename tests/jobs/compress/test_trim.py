# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.jobs.compress.conftest import Bench, make_bench
from tests.jobs.conftest import PARTS, SPECIAL, WORDS, write_checkpoint

from kompakt.api.job import CompressTask, ImportTask
from kompakt.api.steps import TrimVocabulary
from kompakt.jobs.compress.chain import compress
from kompakt.jobs.compress.trim import TrimTokens, untruncated
from kompakt.jobs.data.examples import Dataset, Example
from kompakt.jobs.errors import StepInvalid
from kompakt.jobs.evaluate.classifier import Classifier
from kompakt.jobs.importing import import_model
from kompakt.jobs.models.checkpoint import inspect
from kompakt.jobs.models.load import load, save
from kompakt.jobs.models.text import open_tokenizer
from kompakt.jobs.store import Store
from kompakt.jobs.task import Workplace

pytestmark = pytest.mark.slow

UNUSED = {"bright", "clever", "enjoy", "strong"}
"""Words that the bench's texts do not have."""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A model whose tokenizer can write every word, whole or in parts."""
    return make_bench(write_checkpoint(tmp_path / "parts", extra=PARTS))


def logits(bench: Bench, texts: Sequence[str]) -> torch.Tensor:
    """What the model answers to each text."""
    rows = []
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([bench.data.tokenizer.encode(text).ids])
            rows.append(bench.encoder(ids, torch.ones_like(ids))[0])
    return torch.stack(rows)


def test_rows_follow_their_tokens(bench: Bench) -> None:
    """Texts of which each token stays get the very same answers; the others get known tokens."""
    texts = bench.data.dataset.texts
    strange = ["strong and clever", "an actingly enjoyable zebra"]
    before, before_strange = logits(bench, texts), logits(bench, strange)
    tokens = bench.data.tokenizer.encode(strange[0]).tokens
    note = TrimTokens(TrimVocabulary()).apply(bench.encoder, bench.data)
    assert torch.equal(logits(bench, texts), before)
    assert not torch.allclose(logits(bench, strange), before_strange)
    vocabulary = bench.data.tokenizer.get_vocab()
    assert UNUSED.isdisjoint(vocabulary)
    assert {*SPECIAL, "film", "##ing"} & {*vocabulary} == {*SPECIAL, "film"}
    found = bench.data.tokenizer.encode(strange[0]).tokens
    assert "[UNK]" not in found
    assert len(found) > len(tokens)
    details = bench.data.details["trimVocabulary"]
    assert details["tokensAfter"] == len(vocabulary) == bench.encoder.word.num_embeddings
    assert details["tokensBefore"] == bench.checkpoint.config["vocab_size"]
    assert note == (
        f"{len(vocabulary)} of {details['tokensBefore']} tokens kept, 0 of 9 held-out texts split"
        " otherwise"
    )


def test_what_happens_to_unseen_texts_is_measured(bench: Bench) -> None:
    """Held-out texts are not counted when it is said how many of them change."""
    order = bench.data.order()
    examples = list(bench.data.dataset.examples)
    for index in order[-9:-6]:
        examples[index] = Example(text="strong strong")
    bench = replace(bench, data=replace(bench.data, dataset=dataset_of([e.text for e in examples])))
    TrimTokens(TrimVocabulary()).apply(bench.encoder, bench.data)
    details = bench.data.details["trimVocabulary"]
    assert (details["textsHeldOut"], details["textsHeldOutChanged"]) == (9, 3)
    added = 3 * 2 * (len("strong") - 1)
    assert details["tokensInTextsHeldOutAfter"] - details["tokensInTextsHeldOutBefore"] == added
    assert "strong" in bench.data.tokenizer.get_vocab(), "the vocabulary itself is of all texts"


def dataset_of(texts: Sequence[str]) -> Dataset:
    """Texts without labels."""
    return Dataset(
        uri="file:///x",
        digest="sha256:" + "0" * 64,
        examples=tuple(Example(text=text) for text in texts),
    )


def test_protected_terms_are_split_as_before(bench: Bench) -> None:
    """Words that no text has, also longer than the model reads, keep their tokens."""
    terms = ["enjoying", "a " * 45 + "strong", "actor"]
    whole = untruncated(bench.data.tokenizer)
    before = [whole.encode(term).tokens for term in terms]
    parameters = TrimVocabulary(least_occurrences=1000, protected_terms=terms)
    TrimTokens(parameters).apply(bench.encoder, bench.data)
    after = untruncated(bench.data.tokenizer)
    assert [after.encode(term).tokens for term in terms] == before
    assert after.encode("film").tokens[1:-1] == ["f", "##i", "##l", "##m"]
    assert len(after.get_vocab()) < len(whole.get_vocab())


def test_the_cap_counts_all_tokens(bench: Bench) -> None:
    """`keepPermille` is a share of the tokenizer's tokens; the rarest go first."""
    before = len(bench.data.tokenizer.get_vocab())
    TrimTokens(TrimVocabulary(keep_permille=700)).apply(bench.encoder, bench.data)
    assert bench.encoder.word.num_embeddings == before * 700 // 1000


@pytest.mark.parametrize("model_type", ["roberta", "electra"])
def test_a_trimmed_checkpoint_is_one_like_any_other(model_type: str, tmp_path: Path) -> None:
    """Saved and loaded again it answers the same, and its config names the new ids."""
    folder = write_checkpoint(tmp_path / model_type, model_type, extra=[*PARTS, "[MASK]"])
    config = json.loads((folder / "config.json").read_text())
    mask = config["vocab_size"] - 1
    dropped = len(SPECIAL) + WORDS.index("strong")
    config |= {"mask_token_id": mask, "bos_token_id": dropped, "eos_token_id": 3}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("stale")
    decoder = {"3": {"content": "[SEP]"}, str(mask): {"content": "[MASK]"}}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": decoder, "model_max_length": 40})
    )
    bench = make_bench(folder)
    TrimTokens(TrimVocabulary(protected_terms=["[MASK]"])).apply(bench.encoder, bench.data)
    texts = bench.data.dataset.texts
    expected = logits(bench, texts)
    assert bench.data.new_ids is not None
    trimmed = (bench.data.tokenizer, bench.data.new_ids)
    names = save(bench.encoder, bench.checkpoint, tmp_path / "saved", trimmed=trimmed)
    assert "vocab.txt" not in names
    again = inspect(tmp_path / "saved", origin="test")
    tokenizer = open_tokenizer(tmp_path / "saved/tokenizer.json", max_sequence_length=40)
    back = replace(bench, encoder=load(again), data=replace(bench.data, tokenizer=tokenizer))
    assert torch.equal(logits(back, texts), expected)
    assert again.config["vocab_size"] == tokenizer.get_vocab_size() < config["vocab_size"]
    assert again.config["mask_token_id"] == tokenizer.token_to_id("[MASK]") != mask
    assert again.config["pad_token_id"] == config["pad_token_id"]
    assert again.config["eos_token_id"] == tokenizer.token_to_id("[SEP]")
    assert again.config["bos_token_id"] is None
    written = json.loads((tmp_path / "saved/tokenizer_config.json").read_text())
    assert written["added_tokens_decoder"][str(tokenizer.token_to_id("[SEP]"))] == decoder["3"]
    assert written["model_max_length"] == 40


def test_too_few_texts_are_refused(bench: Bench) -> None:
    """Tokens of a handful of texts say nothing about a task."""
    few = replace(bench.data, dataset=dataset_of(["a"] * 31))
    with pytest.raises(StepInvalid, match=r"at least 32 training texts .*; file:///x has 31"):
        TrimTokens(TrimVocabulary()).apply(bench.encoder, few)


@pytest.fixture
def run(tmp_path: Path, workshop: Any) -> Callable[..., tuple[Any, Workplace]]:
    """Imports a model with a rich tokenizer and compresses it; each call is a Job of its own."""
    write_checkpoint(workshop.checkpoint, extra=PARTS)
    training = workshop.data("training.jsonl", 80)
    count = iter(range(100))

    def place() -> Workplace:
        scratch = tmp_path / f"job-{next(count)}"
        scratch.mkdir()
        return Workplace(store=Store(workshop.store), scratch=scratch, threads=1)

    model = {"uri": f"file://{workshop.checkpoint}", "maxSequenceLength": 40}
    imported = import_model(ImportTask.model_validate({"model": model}), place())

    def compress_by(*steps: dict[str, Any]) -> tuple[Any, Workplace]:
        task = {
            "recipe": "test",
            "checkpointDigest": imported.source_digest,
            "baselineDigest": imported.artifact_digest,
            "steps": list(steps),
            "training": {"uri": training, "labelField": "label"},
        }
        at = place()
        return compress(CompressTask.model_validate(task), at), at

    return compress_by


def test_a_recipe_that_trims_first_goes_on_with_the_new_tokens(
    run: Callable[..., tuple[Any, Workplace]],
) -> None:
    """The artifact's tokenizer and table belong together, also when the Job resumed in between."""
    steps: list[dict[str, Any]] = [
        {"trimVocabulary": {"keepPermille": 800}},
        {"prune": {"ffnKeepPermille": 500, "samples": 16}},
        {"distill": {"examples": 64, "learningRateMicros": 50}},
        {"quantize": {}},
    ]
    whole, at = run(*steps)
    first, _ = run(*steps[:1])
    kept = at.details["trimVocabulary"]["tokensAfter"]
    for result in (whole, first):
        folder = at.scratch / result.artifact_digest.replace(":", "-")
        at.store.get_artifact(result.artifact_digest, folder)
        tokenizer = open_tokenizer(folder / "tokenizer.json", max_sequence_length=40)
        assert tokenizer.get_vocab_size() == kept
        classifier = Classifier(folder, threads=1)
        assert classifier.answer("strong actingly zebra").shape == (3,)
    assert whole.size_bytes < first.size_bytes

    resumed, again = run(*steps[:2])
    assert again.details["resumedAfterSteps"] == 2
    assert "trimVocabulary" not in again.details
    again.store.get_artifact(resumed.artifact_digest, again.scratch / "resumed")
    at.store.get_artifact(first.artifact_digest, again.scratch / "first")
    ours, theirs = (again.scratch / name / "tokenizer.json" for name in ("resumed", "first"))
    assert ours.read_bytes() == theirs.read_bytes()
    later, third = run(*steps[:2], {"distill": {"examples": 96, "learningRateMicros": 50}})
    assert third.details["resumedAfterSteps"] == 2
    assert third.details["parity"] < 1e-4
    assert later.artifact_digest != resumed.artifact_digest


def test_without_trimming_the_tokenizer_stays_as_it_is(
    run: Callable[..., tuple[Any, Workplace]],
) -> None:
    """Byte for byte the baseline's, so that nothing is stored twice."""
    prune = {"prune": {"ffnKeepPermille": 500, "samples": 16}}
    for _ in range(2):  # the second goes on from the first's checkpoint
        result, at = run(prune)
        at.store.get_artifact(result.artifact_digest, at.scratch / "check")
        baseline = at.scratch / "baseline/tokenizer.json"
        assert (at.scratch / "check/tokenizer.json").read_bytes() == baseline.read_bytes()


@pytest.mark.slow
def test_transformers_reads_the_trimmed_tokenizer(tmp_path: Path) -> None:
    """The reference implementation gives the same ids from the folder."""
    from transformers import AutoTokenizer

    folder = write_checkpoint(tmp_path / "bert", extra=PARTS)
    bench = make_bench(folder)
    TrimTokens(TrimVocabulary(keep_permille=800)).apply(bench.encoder, bench.data)
    assert bench.data.new_ids is not None
    trimmed = (bench.data.tokenizer, bench.data.new_ids)
    save(bench.encoder, bench.checkpoint, tmp_path / "saved", trimmed=trimmed)
    reference = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in ["a strong film", "acting was slow"]:
        assert reference(text)["input_ids"] == bench.data.tokenizer.encode(text).ids
