# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from kompakt.localcluster.settings import Settings
from kompakt.localcluster.state import Owner


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of a machine on which nothing is started; the state's path is short enough to be
    one.
    """
    return Settings(
        state=Path("/nowhere/state"),
        run=tmp_path / "run",
        cache=tmp_path / "cache",
        checkout=tmp_path / "checkout",
        venv=tmp_path / "checkout/.venv",
        interpreter=Path("/opt/python"),
    )


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    """A checkout that exists."""
    return Owner(
        checkout=str(tmp_path),
        venv=str(tmp_path / ".venv"),
        interpreter="/opt/python",
        controlplane="aaaa",
        gateway="bbbb",
    )
