# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors
from tests.jobs.conftest import write_layout

from kompakt.api.source import ModelSource
from kompakt.jobs.errors import SourceUnreadable, UnsafeFormat
from kompakt.jobs.models.pooling import read_pooling
from kompakt.jobs.models.source import fetch

Checkpoints = Callable[[str], Path]


def test_only_the_files_of_a_checkpoint_are_copied(
    checkpoint_of: Checkpoints, tmp_path: Path
) -> None:
    """Code, pickle and everything else in the folder stay where they are."""
    folder = checkpoint_of("bert")
    (folder / "modeling_custom.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "onnx").mkdir()
    fetch(ModelSource(uri=f"file://{folder}"), tmp_path / "to")
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """The address is in the message, and what to check."""
    with pytest.raises(
        SourceUnreadable, match=r"the model file:///nowhere cannot be read: there is"
    ):
        fetch(ModelSource(uri="file:///nowhere"), tmp_path / "to")


def test_a_folder_of_pickle_is_refused(tmp_path: Path) -> None:
    """Weights as pickle alone are refused where they are found."""
    (tmp_path / "from").mkdir()
    (tmp_path / "from/pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnsafeFormat, match="reads safetensors only"):
        fetch(ModelSource(uri=f"file://{tmp_path / 'from'}"), tmp_path / "to")


def hub(monkeypatch: pytest.MonkeyPatch, answer: Callable[..., Any]) -> None:
    """Replaces the hub's first answer."""
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", answer)


def refuse(error: Exception) -> Callable[..., Any]:
    """A hub that answers with an error."""

    def answer(*_arguments: Any, **_named: Any) -> None:
        raise error

    return answer


RESPONSE: Any = types.SimpleNamespace(
    headers={}, status_code=404, request=types.SimpleNamespace(method="GET", url="http://hub")
)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("no route"), r"no hub can be reached .* no route.*file://, pvc://"),
        (errors.OfflineModeIsEnabled("offline"), r"no hub can be reached"),
        (errors.RepositoryNotFoundError("x", response=RESPONSE), r"the hub has no model org/name"),
        (errors.GatedRepoError("x", response=RESPONSE), r"is gated: accept its terms.*HF_TOKEN"),
        (errors.RevisionNotFoundError("x", response=RESPONSE), r"no revision 'main'; set model"),
        (errors.HFValidationError("x"), r"names no hub repository; write hf://organisation/name"),
    ],
    ids=["no network", "offline", "missing", "gated", "revision", "name"],
)
def test_what_the_hub_refuses_is_said_with_the_mend(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, message: str
) -> None:
    """Each way in which a hub fails has its sentence."""
    hub(monkeypatch, refuse(error))
    with pytest.raises(SourceUnreadable, match=message):
        fetch(ModelSource(uri="hf://org/name"), tmp_path / "to")


def test_a_hub_that_is_not_there_is_found_out_quickly(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A refused connection is an answer, not something to wait for."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceUnreadable, match="no hub can be reached for hf://org/name"):
        fetch(ModelSource(uri="hf://org/name"), tmp_path / "to")


def test_hub_models_without_safetensors_are_refused_before_a_download(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The list of files is enough to know."""
    names = ["config.json", "pytorch_model.bin"]
    info = types.SimpleNamespace(
        sha="abc", siblings=[types.SimpleNamespace(rfilename=name) for name in names]
    )
    hub(monkeypatch, lambda *_a, **_k: info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse(AssertionError("downloaded")))
    with pytest.raises(UnsafeFormat, match=r"pytorch_model\.bin"):
        fetch(ModelSource(uri="hf://org/name"), tmp_path / "to")


def test_the_commit_is_what_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A branch is resolved once; code and pickle are never asked for."""
    asked: dict[str, Any] = {}
    info = types.SimpleNamespace(
        sha="abc", siblings=[types.SimpleNamespace(rfilename="model.safetensors")]
    )
    hub(monkeypatch, lambda *_a, **_k: info)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **named: asked.update(named, name=name)
    )
    assert fetch(ModelSource(uri="hf://org/name"), tmp_path / "to") == "abc"
    assert (asked["name"], asked["revision"]) == ("org/name", "abc")
    assert "*.safetensors" in asked["allow_patterns"]
    assert not any(pattern.endswith((".py", ".bin", "*")) for pattern in asked["allow_patterns"])


def test_the_hub_is_asked_for_the_settings_of_a_pooling(
    checkpoint_of: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are in a folder below, of which no other file is fetched."""
    folder = write_layout(checkpoint_of("bert"))
    names = [*(path.name for path in folder.iterdir()), "1_Pooling/config.json", "onnx/config.json"]
    info = types.SimpleNamespace(
        sha="abc", siblings=[types.SimpleNamespace(rfilename=name) for name in names]
    )
    hub(monkeypatch, lambda *_arguments, **_named: info)

    def snapshot(_repository: str, *, local_dir: Path, **_named: Any) -> None:
        for path in folder.iterdir():
            if path.is_file():
                (local_dir / path.name).write_bytes(path.read_bytes())

    asked = []

    def download(_repository: str, name: str, *, revision: str, local_dir: Path) -> None:
        asked.append((name, revision))
        (local_dir / name).parent.mkdir()
        (local_dir / name).write_bytes((folder / name).read_bytes())

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert fetch(ModelSource(uri="hf://org/name"), tmp_path / "to") == "abc"
    assert asked == [("1_Pooling/config.json", "abc")]
    assert read_pooling(tmp_path / "to", origin="test").tokens == "Mean"
