# SPDX-License-Identifier: Apache-2.0
"""Brings a checkpoint from where the policy says into a local folder. No torch here.

Only the files that make a checkpoint are copied (`checkpoint.FILE_PATTERNS`): never pickle, never
code.
"""

from __future__ import annotations

import posixpath
import shutil
from pathlib import Path

from kompakt.api.source import ModelSource
from kompakt.jobs.errors import JobError, SourceUnreadable, UnsafeFormat
from kompakt.jobs.location import CREDENTIALS_HINT, Location, describe, resolve
from kompakt.jobs.models.checkpoint import FILE_PATTERNS, PICKLE_SUFFIXES, UNSAFE_HINT, matches
from kompakt.jobs.models.pooling import pooling_files

HUB_SCHEME = "hf://"


def fetch(source: ModelSource, to: Path) -> str:
    """Copies a checkpoint's files to a folder; returns the revision that was read (of a hub: the
    commit).
    """
    to.mkdir(parents=True, exist_ok=True)
    if source.uri.startswith(HUB_SCHEME):
        return _fetch_from_hub(source, to)
    _fetch_from_location(source.uri, to)
    return ""


def _fetch_from_location(uri: str, to: Path) -> None:
    location = resolve(uri)
    try:
        names = [posixpath.basename(path) for path in location.fs.ls(location.path, detail=False)]
        wanted = [name for name in names if matches(name)]
        for name in wanted:
            child = location.child(name)
            _copy(child, to / name)
        for name in pooling_files(to):
            child = location.child(name)
            if child.fs.exists(child.path):
                _copy(child, to / name)
    except Exception as error:  # drivers raise what they like
        raise SourceUnreadable(
            f"the model {uri} cannot be read: {describe(error)}; {CREDENTIALS_HINT}"
        ) from error
    _refuse_pickle(names, uri=uri)


def _copy(source: Location, to: Path) -> None:
    to.parent.mkdir(exist_ok=True)
    with source.fs.open(source.path, "rb") as remote, to.open("wb") as local:
        shutil.copyfileobj(remote, local, 4 << 20)


def _fetch_from_hub(source: ModelSource, to: Path) -> str:
    import huggingface_hub
    from huggingface_hub import errors

    repository = source.uri.removeprefix(HUB_SCHEME)
    try:
        info = huggingface_hub.HfApi().model_info(repository, revision=source.revision)
        _refuse_pickle([s.rfilename for s in info.siblings or []], uri=source.uri)
        huggingface_hub.snapshot_download(
            repository,
            revision=info.sha,
            local_dir=to,
            allow_patterns=list(FILE_PATTERNS),
            # Names without a slash match in subfolders too; what is there belongs to other
            # runtimes.
            ignore_patterns=["*/*"],
        )
        names = {sibling.rfilename for sibling in info.siblings or []}
        for name in names.intersection(pooling_files(to)):
            huggingface_hub.hf_hub_download(repository, name, revision=info.sha, local_dir=to)
    except JobError:
        raise
    except errors.GatedRepoError as error:
        raise SourceUnreadable(
            f"the model {source.uri} is gated: accept its terms on the hub, and put HF_TOKEN into"
            " the Secret that"
            " model.secretRef names"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise SourceUnreadable(
            f"the hub has no model {repository}, or it is private: check the name, or put HF_TOKEN"
            " into the Secret"
            " that model.secretRef names"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SourceUnreadable(
            f"the model {source.uri} has no revision {source.revision!r}; set model.revision"
        ) from error
    except errors.HFValidationError as error:
        raise SourceUnreadable(
            f"{source.uri} names no hub repository; write hf://organisation/name"
        ) from error
    except Exception as error:  # no network shows as many types
        raise SourceUnreadable(
            f"no hub can be reached for {source.uri} ({describe(error)}); allow the Job's way out"
            " or set HF_ENDPOINT,"
            " or put the checkpoint on a volume or a bucket and name it by file://, pvc:// or s3://"
        ) from error
    return info.sha or source.revision


def _refuse_pickle(names: list[str], *, uri: str) -> None:
    if any(name.endswith(".safetensors") for name in names):
        return
    for name in names:
        if name.endswith(PICKLE_SUFFIXES):
            raise UnsafeFormat(f"{uri} has its weights as {name}: {UNSAFE_HINT}")
