# SPDX-License-Identifier: Apache-2.0
"""The API of Kompakt: the six kinds, the contracts of the Jobs, and the names that objects and
metrics carry.

Everything that crosses from one room to another is a type of this package. It imports pydantic
and nothing else, and that only when a type is asked for: serving pods, which need little more than
names, would pay for the kinds with half a second of their start and 12 MiB.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kompakt.api.base import API_VERSION, GROUP, VERSION, KindInfo
    from kompakt.api.kinds import KINDS

__all__ = ["API_VERSION", "GROUP", "KINDS", "VERSION", "KindInfo"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    home = "kinds" if name == "KINDS" else "base"
    return getattr(import_module(f"{__name__}.{home}"), name)
