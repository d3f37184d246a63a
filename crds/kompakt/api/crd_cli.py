# SPDX-License-Identifier: Apache-2.0
"""`kompakt-crds DIRECTORY…`: writes one CustomResourceDefinition a file.

`--check` only says whether they are current.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from kompakt.api import KINDS
from kompakt.api.crd import crd

_HEADER = "# Generated from crds/kompakt/api by `make crds`. Do not edit.\n"


def render() -> dict[str, str]:
    """File name → content, for every kind."""
    return {
        f"{info.plural}.yaml": _HEADER + yaml.safe_dump(crd(info), sort_keys=False, width=100)
        for info in KINDS
    }


def main(argv: list[str] | None = None) -> int:
    """Write or check the files. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="kompakt-crds", description=__doc__)
    parser.add_argument("directories", type=Path, nargs="+")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(argv)
    files = {
        folder / name: text for folder in options.directories for name, text in render().items()
    }
    stale = [p for p, text in files.items() if not p.exists() or p.read_text("utf-8") != text]
    for path in stale if not options.check else ():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path], encoding="utf-8")
    if options.check and stale:
        sys.stderr.write(f"not current: {', '.join(map(str, stale))}; run `make crds`\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
