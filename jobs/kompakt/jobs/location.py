# SPDX-License-Identifier: Apache-2.0
"""From a URI of the API to an fsspec file system and a path in it.

`file://`, `s3://`, `gs://`, `abfs://` and `https://` are fsspec's; `pvc://claim/path` is a volume
that the operator mounted. `hf://` is no location: `models.source` asks the hub for it. Credentials
come from the environment, which the operator fills from the source's Secret.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import Any

from kompakt.api.names import VOLUMES_MOUNT
from kompakt.jobs.errors import SourceUnreadable

CREDENTIALS_HINT = "check the address, and the keys of the Secret that secretRef names"


@dataclass(frozen=True)
class Location:
    """A path in a file system."""

    fs: Any
    """An `fsspec.AbstractFileSystem` (fsspec ships no types)."""
    path: str

    def child(self, name: str) -> Location:
        """A path below this one."""
        return Location(self.fs, posixpath.join(self.path, name))


def resolve(uri: str) -> Location:
    """The location that a URI names; a driver that is not installed is the user's to know."""
    import fsspec

    address = uri
    if uri.startswith("pvc://"):
        address = f"file://{VOLUMES_MOUNT}/{uri.removeprefix('pvc://')}"
    try:
        fs, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise SourceUnreadable(
            f"{uri} cannot be opened: {error}; use file, s3, https or pvc, or an image with that"
            " driver"
        ) from error
    return Location(fs, path)


def describe(error: Exception) -> str:
    """What an I/O error says, in one line; drivers differ in how much."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file or folder"
    text = " ".join(str(error).split()) or "no details"
    return f"{type(error).__name__}: {text}"[:300]
