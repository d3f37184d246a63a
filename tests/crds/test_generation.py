# SPDX-License-Identifier: Apache-2.0
"""The CustomResourceDefinitions: current, structural, and true to the house rules."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
import yaml
from pydantic import Field

from kompakt.api import KINDS
from kompakt.api.base import Cel, KindInfo, ListType, Model
from kompakt.api.crd import SchemaError, crd, structural
from kompakt.api.crd_cli import main, render

ROOT = Path(__file__).parents[2]
FORBIDDEN = {"$ref", "anyOf", "oneOf", "const", "title", "patternProperties", "propertyNames"}
EVERY_KIND = pytest.mark.parametrize("info", KINDS, ids=lambda info: info.kind)


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema node with its path."""
    yield path, schema
    for name, sub in schema.get("properties", {}).items():
        yield from nodes(sub, f"{path}.{name}")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from nodes(schema["additionalProperties"], f"{path}.*")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")


def root_schema(info: KindInfo) -> dict[str, Any]:
    """The schema of the whole object."""
    schema: dict[str, Any] = crd(info)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


@pytest.mark.parametrize("folder", ["crds", "charts/kompakt/files/crds"])
def test_the_committed_files_are_current(folder: str) -> None:
    """What stands in the repository is what the models generate."""
    committed = {p.name: p.read_text("utf-8") for p in (ROOT / folder).glob("*.yaml")}

    assert render() == committed


@EVERY_KIND
def test_no_field_is_unbounded_or_untyped(info: KindInfo) -> None:
    """Every node has a type; strings, lists, maps and integers have bounds; there are no floats."""
    for path, node in nodes(root_schema(info)):
        if path == ".metadata":
            continue
        assert node["type"] in {"object", "array", "string", "integer"}, path
        assert not node.keys() & FORBIDDEN, path
        if node["type"] == "array":
            assert {"maxItems", "x-kubernetes-list-type"} <= node.keys(), path
        if node["type"] == "string" and path not in {".apiVersion", ".kind"}:
            assert node.keys() & {"maxLength", "enum", "format"}, path
        if node["type"] == "object" and "additionalProperties" in node:
            assert "maxProperties" in node, path


@EVERY_KIND
def test_names_tell_the_unit(info: KindInfo) -> None:
    """There is no phase that could drive a decision, and no duration whose unit one must guess."""
    for path, node in nodes(root_schema(info)):
        name = path.rsplit(".", 1)[-1].lower()
        assert name != "phase", path
        if node["type"] == "integer":
            assert not name.endswith(("duration", "timeout", "latency", "interval")), path


@EVERY_KIND
def test_patterns_are_re2(info: KindInfo) -> None:
    """The API server's engine has no look-around and no back-references."""
    for path, node in nodes(root_schema(info)):
        pattern = node.get("pattern", "")
        assert not re.search(r"\(\?[=!<]|\\[1-9]", pattern), path


@EVERY_KIND
def test_every_field_is_explained(info: KindInfo) -> None:
    """`kubectl explain` has a sentence for every field."""
    silent = [
        path
        for path, node in nodes(root_schema(info))
        if not node.get("description") and path != ".metadata" and path[-1:] not in {"]", "*"}
    ]

    assert silent == []


@EVERY_KIND
def test_printer_columns_name_existing_fields(info: KindInfo) -> None:
    """A column never stays empty because of a typing error."""
    known = {path for path, _ in nodes(root_schema(info))}
    for column in info.columns:
        path = column.json_path.split("[?")[0]
        assert path.startswith(".metadata.") or path in known, column


@pytest.mark.slow
def test_check_says_which_file_is_stale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--check` fails with the name of the file and the command that mends it, and writes
    nothing.
    """
    assert main([str(tmp_path)]) == 0
    stale = tmp_path / "modelvariants.yaml"
    stale.write_text("old", encoding="utf-8")

    assert main([str(tmp_path), "--check"]) == 1
    assert "modelvariants.yaml" in (err := capsys.readouterr().err)
    assert "make crds" in err
    assert stale.read_text(encoding="utf-8") == "old"
    assert main([str(tmp_path)]) == 0
    assert yaml.safe_load(stale.read_text(encoding="utf-8"))["metadata"]["name"]


class Inner(Model):
    """Inner."""

    cel_rules: ClassVar[tuple[Cel, ...]] = (Cel("self.a > 1", "more than one", ".a"),)

    a: Annotated[int, Field(gt=0, le=9)] = 2
    """The first letter."""


class Outer(Model):
    """Outer."""

    inner: Inner | None = None
    """What is inside."""
    many: Annotated[list[Inner], Field(max_length=2), ListType("atomic")]


def test_a_reference_is_inlined_with_the_words_of_its_use() -> None:
    """An optional sub-object keeps the description of the field, its rules and its bounds."""
    schema = structural(Outer, path="Outer")

    inner = schema["properties"]["inner"]
    assert inner["description"] == "What is inside."
    assert "default" not in inner
    assert inner["x-kubernetes-validations"] == [
        {"rule": "self.a > 1", "message": "more than one", "fieldPath": ".a"}
    ]
    assert inner["properties"]["a"] == {
        "type": "integer",
        "format": "int32",
        "minimum": 0,
        "exclusiveMinimum": True,
        "maximum": 9,
        "default": 2,
        "description": "The first letter.",
    }


class Float(Model):
    """Breaks a rule."""

    x: float


class FreeText(Model):
    """Breaks a rule."""

    x: str


class FreeList(Model):
    """Breaks a rule."""

    x: list[Annotated[str, Field(max_length=3)]]


class FreeInteger(Model):
    """Breaks a rule."""

    x: int


class Union(Model):
    """Breaks a rule."""

    x: Annotated[int, Field(le=1)] | Annotated[str, Field(max_length=1)]


class Node(Model):
    """Breaks a rule."""

    next: Node | None = None


@pytest.mark.parametrize("model", [Float, FreeText, FreeList, FreeInteger, Union, Node])
def test_what_breaks_the_rules_is_an_error(model: type[Model]) -> None:
    """Generation stops with the path of the field, rather than losing something silently."""
    with pytest.raises(SchemaError, match=rf"{model.__name__}[.\w]*:"):
        structural(model, path=model.__name__)


def test_the_reference_is_current() -> None:
    """docs/api.md is what `make docs` writes."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    assert module.render() == (ROOT / "docs" / "api.md").read_text("utf-8")
