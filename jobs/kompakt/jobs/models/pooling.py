# SPDX-License-Identifier: Apache-2.0
"""How a text's tokens become its embedding, as a checkpoint says. No torch here.

sentence-transformers writes `modules.json` beside the encoder: its modules in order, and the folder
of each with its settings. The encoder, one pooling by the mean or the first token, and a
normalization are what the exported graph computes; whatever else would change the embeddings is
refused. A checkpoint without that file is pooled by the mean and normalized, which is what most of
them were trained for (Reimers & Gurevych 2019, arXiv:1908.10084, section 3).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from typing_extensions import override

from kompakt.jobs.errors import ModelUnsupported, SourceUnreadable

MODULES_NAME = "modules.json"
TEXTS_NAME = "sentence_bert_config.json"
PROMPTS_NAME = "config_sentence_transformers.json"
LAYOUT_FILES = (MODULES_NAME, TEXTS_NAME, PROMPTS_NAME)
"""What sentence-transformers puts beside the encoder's files."""
_SETTINGS = "config.json"
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_SUPPORTED = "a Transformer, a Pooling by the mean or the first token, and a Normalize"


@dataclass(frozen=True)
class Pooling:
    """From the tokens' states to the embedding."""

    tokens: Literal["Mean", "First"] = "Mean"
    """All that are not padding, or the first."""
    normalize: bool = True
    """Whether embeddings have length 1."""
    declared: bool = True
    """Whether the checkpoint says so."""

    @override
    def __str__(self) -> str:
        of = "the mean of all tokens" if self.tokens == "Mean" else "the first token"
        return f"{of}, {'normalized' if self.normalize else 'not normalized'}"


def is_layout(folder: Path) -> bool:
    """Whether sentence-transformers wrote a folder."""
    return (folder / MODULES_NAME).is_file()


def pooling_files(folder: Path) -> list[str]:
    """The files below a folder that its modules keep their settings in, relative to it."""
    try:
        modules = json.loads((folder / MODULES_NAME).read_text(encoding="utf-8"))
        kept = [module["path"] for module in modules if _kind(module) == "Pooling"]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # `read_pooling` says what is wrong
    return [f"{path}/{_SETTINGS}" for path in kept if _FOLDER.fullmatch(str(path))]


def read_pooling(folder: Path, *, origin: str) -> Pooling:
    """What the embedding is.

    Raises:
        ModelUnsupported: The embedding is none that the exported graph could give.
        SourceUnreadable: The files that say so are missing or broken.
    """
    if not is_layout(folder):
        return Pooling(declared=False)
    modules = _read(folder, MODULES_NAME, origin=origin, kind=list)
    kinds = [_kind(module) for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ModelUnsupported(
            f"{MODULES_NAME} of {origin} has the modules {', '.join(kinds) or 'none'}; supported"
            f" are {_SUPPORTED}"
        )
    if modules[0].get("path"):
        raise ModelUnsupported(
            f"{origin} keeps its encoder in the folder {modules[0]['path']}; save it again with a"
            " current sentence-transformers, which puts it at the top"
        )
    _check_texts(folder, origin=origin)
    files = pooling_files(folder)
    if len(files) != 1:
        raise SourceUnreadable(
            f"{MODULES_NAME} of {origin} names no folder for its Pooling; save the model again"
        )
    settings = _read(folder, files[0], origin=origin, kind=dict)
    return Pooling(
        tokens=_tokens(settings, file=files[0], origin=origin), normalize="Normalize" in kinds
    )


def _kind(module: Any) -> str:
    """The class of a module, which has moved between packages."""
    return str(module.get("type")).rpartition(".")[2] if isinstance(module, dict) else "?"


def _tokens(settings: dict[str, Any], *, file: str, origin: str) -> Literal["Mean", "First"]:
    chosen = _chosen(settings)
    if chosen == ["mean_tokens"]:
        return "Mean"
    if chosen == ["cls_token"]:
        return "First"
    raise ModelUnsupported(
        f"{file} of {origin} pools by {' and '.join(chosen) or 'nothing'}; supported is either"
        " mean_tokens or cls_token"
    )


def _chosen(settings: dict[str, Any]) -> list[str]:
    """By a flag for each, or as newer versions write it, by name."""
    named = settings.get("pooling_mode")
    if named is not None:
        names = named if isinstance(named, Sequence) and not isinstance(named, str) else [named]
        full = {"mean": "mean_tokens", "cls": "cls_token"}
        return [full.get(str(name), str(name)) for name in names]
    prefix = "pooling_mode_"
    return [
        key.removeprefix(prefix)
        for key, value in settings.items()
        if key.startswith(prefix) and value is True
    ]


def _check_texts(folder: Path, *, origin: str) -> None:
    """Settings by which sentence-transformers changes a text before the tokenizer sees it."""
    texts = _read(folder, TEXTS_NAME, origin=origin, kind=dict, optional=True)
    if texts.get("do_lower_case"):
        raise ModelUnsupported(
            f"{TEXTS_NAME} of {origin} has do_lower_case, which is done outside of the tokenizer;"
            " put a Lowercase normalizer into tokenizer.json, and set it to false"
        )
    prompts = _read(folder, PROMPTS_NAME, origin=origin, kind=dict, optional=True)
    default = prompts.get("default_prompt_name")
    if default is not None and (prompts.get("prompts") or {}).get(default):
        raise ModelUnsupported(
            f"{PROMPTS_NAME} of {origin} puts the prompt {default!r} before each text, which no"
            " server here does; set default_prompt_name to null, and send texts with the prompt"
        )


def _read(folder: Path, name: str, *, origin: str, kind: type, optional: bool = False) -> Any:
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if optional:
            return kind()
        raise SourceUnreadable(
            f"{origin} has no {name}, which {MODULES_NAME} names; copy it too, or save the model"
            " again"
        ) from None
    except ValueError as error:
        raise SourceUnreadable(f"{name} of {origin} is no JSON: {error}") from error
    if not isinstance(found, kind):
        raise SourceUnreadable(
            f"{name} of {origin} is no JSON {'list' if kind is list else 'object'}"
        )
    return found
