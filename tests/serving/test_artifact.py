# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from kompakt.serving.artifact import ArtifactError, load_artifact
from kompakt.serving.classifier import Classifier
from kompakt.serving.cpu import usable_threads


def _rewrite(folder: Path, **changes: Any) -> None:
    document = orjson.loads((folder / "variant.json").read_bytes())
    (folder / "variant.json").write_bytes(orjson.dumps(document | changes))


def _flip_byte(folder: Path) -> None:
    data = bytearray((folder / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.onnx").write_bytes(data)


def _escape(folder: Path) -> None:
    outside = {"path": "a/../../secret", "digest": "sha256:" + "0" * 64, "sizeBytes": 1}
    _rewrite(folder, files=[outside])


def _forget_tokenizer(folder: Path) -> None:
    files = orjson.loads((folder / "variant.json").read_bytes())["files"]
    _rewrite(folder, files=[file for file in files if file["path"] != "tokenizer.json"])


SPOILED: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "no-manifest": (lambda f: (f / "variant.json").unlink(), ["variant.json", "--model-dir"]),
    "no-json": (lambda f: (f / "variant.json").write_bytes(b"{"), ["variant.json"]),
    "bad-field": (
        lambda f: _rewrite(f, labels=["one"]),
        ["variant.json: labels of a TextClassification", "at least 2"],
    ),
    "no-model": (lambda f: (f / "model.onnx").unlink(), ["model.onnx cannot be read"]),
    "flipped": (_flip_byte, ["model.onnx is not the file that was measured", "fetch"]),
    "escape": (_escape, ["a/../../secret leads out of the artifact"]),
    "incomplete": (_forget_tokenizer, ["tokenizer.json is missing"]),
}


@pytest.mark.parametrize(("spoil", "said"), SPOILED.values(), ids=SPOILED.keys())
def test_a_folder_that_is_not_what_its_manifest_says_is_refused(
    make_artifact: Any, spoil: Callable[[Path], Any], said: list[str]
) -> None:
    """One sentence that names the file, before anything of it is parsed as a model."""
    folder = make_artifact()
    spoil(folder)
    with pytest.raises(ArtifactError) as caught:
        load_artifact(folder)
    for words in said:
        assert words in str(caught.value)


def test_another_variant_than_the_one_asked_for_is_refused(make_artifact: Any) -> None:
    """`--digest` guards against a volume that holds something else."""
    folder = make_artifact()
    digest = load_artifact(folder).digest
    assert load_artifact(folder, digest).digest == digest
    with pytest.raises(ArtifactError, match="--digest"):
        load_artifact(folder, "sha256:" + "0" * 64)


def test_labels_that_the_model_does_not_have_are_found_while_warming_up(
    make_artifact: Any,
) -> None:
    """Two labels in the manifest, three logits: better no pod than wrong names."""
    folder = make_artifact()
    _rewrite(folder, labels=["no", "yes"])
    with pytest.raises(ArtifactError, match="names 2 labels"):
        Classifier(load_artifact(folder)).warm_up()


@pytest.mark.parametrize(
    ("files", "threads"),
    [
        ({"cpu.max": "max 100000"}, 4),
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "900000 100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({}, 4),
    ],
)
def test_threads_follow_the_cpu_limit_of_either_cgroup_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], threads: int
) -> None:
    """Whole cores within the quota, never more than the affinity mask allows."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0, 1, 2, 3})
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + "\n")
    assert usable_threads(tmp_path) == threads
