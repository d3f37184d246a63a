# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openvino
import pytest

from kompakt.api.artifact import ArtifactFile, ArtifactManifest, sha256_digest
from kompakt.api.device import PROVIDERS
from kompakt.api.names import CUDA, DEVICE_VARIABLE
from kompakt.serving.artifact import ArtifactError, load_artifact
from kompakt.serving.classifier import Classifier

TEXTS = ["good", "so bad", "an odd plain thing", "great " * 11, "awful so " * 30, "unheard"]
MakeArtifact = Callable[..., Path]


def to_openvino(folder: Path) -> Path:
    """The same artifact for the other runtime."""
    model = openvino.Core().read_model(folder / "model.onnx")
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    (folder / "model.onnx").unlink()
    manifest = ArtifactManifest.model_validate_json((folder / "variant.json").read_bytes())
    files = [
        ArtifactFile(path=name, digest=sha256_digest(data), size_bytes=len(data))
        for name in ("model.xml", "model.bin", "tokenizer.json")
        for data in [(folder / name).read_bytes()]
    ]
    changed = manifest.evolve(runtime="OpenVino", files=files)
    (folder / "variant.json").write_bytes(changed.canonical())
    return folder


@pytest.fixture
def folders(make_artifact: MakeArtifact) -> tuple[Path, Path]:
    """An artifact for each runtime."""
    return make_artifact("onnx"), to_openvino(make_artifact("ir"))


def test_both_runtimes_answer_the_same(folders: tuple[Path, Path]) -> None:
    """Each is opened as its manifest says; filled-up positions count for nothing."""
    first, second = (Classifier(load_artifact(folder)) for folder in folders)
    for classifier in (first, second):
        classifier.warm_up()
    expected, found = (classifier.answer(TEXTS) for classifier in (first, second))
    assert found.labels == expected.labels
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)


def test_callers_do_not_get_each_others_answers(folders: tuple[Path, Path]) -> None:
    """Several threads at a time, each with its own request, get what they asked for."""
    classifier = Classifier(load_artifact(folders[1]), threads=3)
    classifier.warm_up()
    alone = {text: classifier.answer([text]).scores for text in TEXTS}
    start = threading.Barrier(3)

    def ask(offset: int) -> bool:
        start.wait(30)
        return all(
            np.array_equal(classifier.answer([text]).scores, alone[text])
            for number in range(60)
            for text in [TEXTS[(number + offset) % len(TEXTS)]]
        )

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(ask, range(3))) == [True] * 3


@pytest.mark.slow
def test_a_server_imports_the_runtime_of_its_artifact_alone(folders: tuple[Path, Path]) -> None:
    """Memory and start-up time are paid for in imports; and nobody is told that one happened."""
    code = (
        "import sys; from pathlib import Path;"
        "from kompakt.serving.artifact import load_artifact;"
        "from kompakt.serving.classifier import Classifier;"
        "Classifier(load_artifact(Path(sys.argv[1]))).warm_up();"
        "names = ('onnxruntime', 'openvino', 'openvino_telemetry');"
        "print([n for n in names if sys.modules.get(n) is not None])"
    )
    imported = [
        subprocess.run(
            [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
        ).stdout.strip()
        for folder in folders
    ]
    assert imported == ["['onnxruntime']", "['openvino']"]


def test_a_server_without_openvino_says_so(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence with the mend, and only for artifacts that need it."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    Classifier(load_artifact(folders[0]))
    with pytest.raises(ArtifactError, match=r"runs in OpenVINO, .* install kompakt\[openvino\]"):
        Classifier(load_artifact(folders[1]))


def test_a_server_that_was_given_a_gpu_uses_it_or_says_so(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never answers on two cores as if nothing were amiss; OpenVINO's artifacts need none."""
    expected = Classifier(load_artifact(folders[0])).answer(TEXTS)
    monkeypatch.setenv(DEVICE_VARIABLE, CUDA)
    with pytest.raises(ArtifactError, match="cannot use its CUDAExecutionProvider here"):
        Classifier(load_artifact(folders[0]))
    Classifier(load_artifact(folders[1]))
    # Another provider that this build has stands in for CUDA's.
    monkeypatch.setitem(PROVIDERS, "Cuda", ("AzureExecutionProvider", "CPUExecutionProvider"))
    classifier = Classifier(load_artifact(folders[0]))
    assert classifier.facts.parameters["execution_provider"] == "AzureExecutionProvider"
    np.testing.assert_allclose(classifier.answer(TEXTS).scores, expected.scores, atol=1e-6)
    monkeypatch.delenv(DEVICE_VARIABLE)
    assert "execution_provider" not in Classifier(load_artifact(folders[0])).facts.parameters


def test_a_model_that_is_none_is_refused(folders: tuple[Path, Path]) -> None:
    """The runtime's own words, after the file's name."""
    (folders[1] / "model.xml").write_bytes(b"<net>")
    with pytest.raises(ArtifactError, match="is not the file that was measured"):
        load_artifact(folders[1])
    artifact = load_artifact(folders[0])
    (folders[0] / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(ArtifactError, match=r"model\.onnx cannot be run by ONNX Runtime"):
        Classifier(artifact)


@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
def test_both_files_of_a_model_are_needed(folders: tuple[Path, Path], name: str) -> None:
    """A manifest that leaves one out is refused before anything is opened."""
    path = folders[1] / "variant.json"
    manifest = ArtifactManifest.model_validate_json(path.read_bytes())
    kept = [file for file in manifest.files if file.path != name]
    path.write_bytes(manifest.evolve(files=kept).canonical())
    with pytest.raises(ArtifactError, match=rf"{name} is missing"):
        load_artifact(folders[1])


def test_scores_are_calibrated_and_labels_are_not(make_artifact: MakeArtifact) -> None:
    """The manifest's temperature divides the logits: scores are milder, in the same order."""
    plain, mild = make_artifact("plain"), make_artifact("mild")
    path = mild / "variant.json"
    manifest = ArtifactManifest.model_validate_json(path.read_bytes())
    path.write_bytes(manifest.evolve(temperature_micros=2_500_000).canonical())
    first, second = (Classifier(load_artifact(folder)).answer(TEXTS) for folder in (plain, mild))
    assert first.labels == second.labels
    powers = first.scores.astype(float) ** (1 / 2.5)
    expected = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(second.scores, expected, atol=1e-5)
