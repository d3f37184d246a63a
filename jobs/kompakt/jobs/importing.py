# SPDX-License-Identifier: Apache-2.0
"""The Import task: the source model and its data, checked against each other; the model exported
unchanged, and analyzed.

Cheap checks come first: what is wrong with a policy is said within seconds, before torch is even
imported.
"""

from __future__ import annotations

from collections.abc import Sequence

from kompakt.api.artifact import MODEL_NAME, TOKENIZER_NAME
from kompakt.api.job import ImportResult, ImportTask
from kompakt.api.source import DataSource
from kompakt.jobs.artifact import describe_artifact
from kompakt.jobs.data.examples import Dataset
from kompakt.jobs.data.reader import read
from kompakt.jobs.data.targets import Targets
from kompakt.jobs.errors import DataInvalid, DigestMismatch
from kompakt.jobs.models.checkpoint import Checkpoint, check_length, file_names, inspect
from kompakt.jobs.models.source import fetch
from kompakt.jobs.models.tasks import check_task
from kompakt.jobs.models.text import pad_id, used_inputs, write_tokenizer
from kompakt.jobs.progress import say
from kompakt.jobs.store import CheckpointManifest, describe_files
from kompakt.jobs.task import Workplace

LABELLED_ROLES = ("evaluation", "goldenSet")
LABELS_IN_RESULT = 64


def import_model(task: ImportTask, place: Workplace) -> ImportResult:
    """Reads, checks, exports, stores, analyzes."""
    origin = task.model.uri
    folder = place.scratch / "checkpoint"
    with place.stage("fetch model"):
        revision = fetch(task.model, folder)
        checkpoint = inspect(folder, origin=origin)
        check_task(task.model, checkpoint.task)
        check_length(checkpoint, task.model.max_sequence_length, origin=origin)
        names = file_names(folder)
        source_digest = CheckpointManifest(files=describe_files(folder, names)).digest()
    if task.model.digest is not None and task.model.digest != source_digest:
        raise DigestMismatch(
            f"the model {origin} has the digest {source_digest}, but {task.model.digest} is asked"
            " for; correct"
            " model.digest, or leave it out to take whatever is there"
        )
    pooling = checkpoint.pooling
    if pooling is not None and not pooling.declared:
        say(f"{origin} has no modules.json, so its embedding is {pooling}")
    with place.stage("read data"):
        data = {role: _read_checked(task, role, checkpoint) for role in sorted(task.data)}
    artifact = place.scratch / "artifact"
    artifact.mkdir()
    tokenizer = write_tokenizer(
        checkpoint,
        artifact / TOKENIZER_NAME,
        max_sequence_length=task.model.max_sequence_length,
        origin=origin,
    )
    texts = _parity_texts(task, data, vocabulary=list(tokenizer.get_vocab()))

    with place.stage("import torch"):
        import torch

        from kompakt.jobs.models import device, export, load

        where = device.chosen()

        torch.set_num_threads(place.threads)
    with place.stage("load and export"):
        encoder = load.load(checkpoint)
        names_in = used_inputs(checkpoint.architecture.input_names, tokenizer)
        export.export(encoder, artifact / MODEL_NAME, input_names=names_in)
    with place.stage("parity"):
        largest = export.parity(
            encoder,
            artifact / MODEL_NAME,
            tokenizer.encode_batch(texts),
            input_names=names_in,
            pad_id=pad_id(checkpoint.config),
            threads=place.threads,
        )
    with place.stage("store"):
        place.store.put_checkpoint(folder, names)
        manifest = describe_artifact(
            artifact,
            task=checkpoint.task,
            labels=list(checkpoint.labels),
            tolerance_micros=task.model.tolerance_micros,
            min_cosine_basis_points=task.model.min_cosine_basis_points,
            embedding_width=None if pooling is None else checkpoint.hidden,
            max_sequence_length=task.model.max_sequence_length,
            source_digest=source_digest,
        )
        digest = place.store.put_artifact(artifact, manifest)
    if task.analysis_examples:
        with place.stage("analysis"):
            from kompakt.jobs.analysis.document import Subject, analyze

            subject = Subject(
                encoder=encoder.to(where),
                model=artifact / MODEL_NAME,
                tokenizer=tokenizer,
                labels=checkpoint.labels,
                input_names=names_in,
                pad_id=pad_id(checkpoint.config),
            )
            found = analyze(
                subject,
                texts,
                data,
                examples=task.analysis_examples,
                seed=task.seed,
                place=place,
            )
            place.store.put_json(f"analysis/{digest.replace(':', '-')}", found)
    place.details["model"] = {
        "uri": origin,
        "revision": revision,
        "architecture": checkpoint.architecture.class_name,
        "task": checkpoint.task,
        "heads": list(checkpoint.head_counts),
        "ffnSizes": list(checkpoint.ffn_sizes),
        "labels": list(checkpoint.labels),
    } | ({} if pooling is None else {"pooling": str(pooling), "declared": pooling.declared})
    return ImportResult(
        source_digest=source_digest,
        artifact_digest=digest,
        size_bytes=manifest.size_bytes,
        parameters=encoder.parameter_count,
        labels=list(checkpoint.labels)[:LABELS_IN_RESULT],
        data_digests={role: dataset.digest for role, dataset in data.items()},
        data_examples={role: len(dataset.examples) for role, dataset in data.items()},
        max_absolute_error_nanos=round(largest * 1e9),
    )


def _read_checked(task: ImportTask, role: str, checkpoint: Checkpoint) -> Dataset:
    source = task.data[role]
    if checkpoint.task == "SentenceEmbedding":
        _check_pairs(role, source)
    elif source.second_text_field is not None:
        raise DataInvalid(
            f"data.{role}.secondTextField is for the evaluation data of a SentenceEmbedding, and"
            f" model.task is {checkpoint.task}; leave it out"
        )
    elif role in LABELLED_ROLES and source.label_field is None:
        raise DataInvalid(
            f"data.{role} must be labelled: set data.{role}.labelField to the field of {source.uri}"
            " that holds the"
            " label"
        )
    dataset = read(source)
    targets = Targets(checkpoint.task, checkpoint.labels)
    if role in LABELLED_ROLES:
        targets.resolve(dataset)
    else:
        targets.known(dataset)
    return dataset


def _check_pairs(role: str, source: DataSource) -> None:
    """An embedding has no label; a pair of them has a score."""
    if role == "evaluation":
        if (source.label_field is None) != (source.second_text_field is None):
            raise DataInvalid(
                "scores of a SentenceEmbedding are of pairs of texts: set both"
                " data.evaluation.secondTextField and data.evaluation.labelField, or neither"
            )
    elif source.label_field is not None or source.second_text_field is not None:
        raise DataInvalid(
            f"data.{role} of a SentenceEmbedding is texts alone; leave its labelField and"
            " secondTextField out"
        )


def _parity_texts(
    task: ImportTask, data: dict[str, Dataset], *, vocabulary: Sequence[str]
) -> list[str]:
    """Texts of all lengths: evenly spaced over the data sorted by length, or tokens when there is
    no data.
    """
    count = task.parity_examples
    first = next((data[role] for role in (*LABELLED_ROLES, *sorted(data)) if role in data), None)
    if first is None:
        return [" ".join(sorted(vocabulary)[:: index + 1][:512]) for index in range(count)]
    texts = sorted(first.texts, key=len)
    return [texts[round(i * (len(texts) - 1) / max(1, count - 1))] for i in range(count)]
