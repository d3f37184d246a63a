# SPDX-License-Identifier: Apache-2.0
"""Writes docs/api.md, the reference of the API, from the CustomResourceDefinitions. Run by `make
docs`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kompakt.api import API_VERSION, KINDS, KindInfo
from kompakt.api.crd import crd

TARGET = Path(__file__).with_name("api.md")
# A run holds a snapshot of its policy: the reference says each thing once.
TOLD_ELSEWHERE = {"CompressionRun": ("policy.",)}
HEAD = f"""# API reference

Generated from the models in `crds/kompakt/api` by `make docs`; `kubectl explain` shows the same
sentences. Every kind is `{API_VERSION}`. A field in **bold** is required. Ratios are basis points
(hundredths of a percentage point) or permille, times are microseconds or seconds, money is
millionths of a currency unit.
"""


def kind_section(info: KindInfo) -> Iterator[str]:
    """One kind: what it is, its columns, its fields."""
    version = crd(info)["spec"]["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    scope = "in a namespace" if info.namespaced else "cluster-scoped"
    yield f"## {info.kind}\n"
    yield f"{info.description} Short name `{info.short_names[0]}`, {scope}.\n"
    columns = ", ".join(c["name"] for c in version["additionalPrinterColumns"])
    yield f"`kubectl get {info.short_names[0]}` shows {columns}.\n"
    yield from rules(schema)
    for part in ("spec", "status"):
        if part in schema["properties"]:
            yield f"### {info.kind} {part}\n"
            yield from table(schema["properties"][part], told=TOLD_ELSEWHERE.get(info.kind, ()))


def table(schema: dict[str, Any], *, told: tuple[str, ...] = ()) -> Iterator[str]:
    """The fields below a schema, one a row; what is told elsewhere is left out."""
    yield "| field | type | what |"
    yield "|---|---|---|"
    for path, node, required in fields(schema, ""):
        if path.startswith(told):
            continue
        name = f"**`{path}`**" if required else f"`{path}`"
        text = " ".join(str(node.get("description", "")).split()).replace("|", "\\|")
        checks = "".join(
            f" _{rule['message']}._" for rule in node.get("x-kubernetes-validations", ())
        )
        yield f"| {name} | {describe(node)} | {text}{checks} |"
    yield ""


def fields(schema: dict[str, Any], prefix: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Every field below a schema with its path, depth first."""
    required = schema.get("required", ())
    for name, node in schema.get("properties", {}).items():
        path = f"{prefix}{name}"
        yield path, node, name in required
        if node["type"] == "object":
            yield from fields(node, f"{path}.")
        elif node["type"] == "array":
            yield from fields(node["items"], f"{path}[].")


def describe(node: dict[str, Any]) -> str:
    """Type, bounds and default of a field in a few words."""
    kind = node["type"]
    if "enum" in node:
        words = " \\| ".join(f"`{value}`" for value in node["enum"])
    elif kind == "array":
        words = f"list of {node['items']['type']}s, at most {node['maxItems']}"
    elif kind == "integer":
        words = f"integer, {node.get('minimum', 0)} to {node['maximum']}"
    elif kind == "string" and "maxLength" in node:
        words = f"string, at most {node['maxLength']} characters"
    elif "format" in node:
        words = node["format"]
    else:
        words = kind
    plain = kind not in {"object", "array"} and node.get("default") not in {None, ""}
    return f"{words}; default `{node['default']}`" if plain else words


def rules(schema: dict[str, Any]) -> Iterator[str]:
    """Rules over the whole object."""
    for rule in schema.get("x-kubernetes-validations", ()):
        yield f"- {rule['message']}\n"


def render() -> str:
    """The whole page."""
    lines = [HEAD, *(line for info in KINDS for line in kind_section(info))]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Write the page."""
    TARGET.write_text(render(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
