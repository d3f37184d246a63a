# SPDX-License-Identifier: Apache-2.0
"""CustomResourceDefinitions from the pydantic models: structural schemas, or an error, never a
lossy result.

What pydantic says in JSON Schema 2020-12 and Kubernetes wants otherwise:

- `$ref` is inlined; a recursive model is an error;
- `anyOf: [T, null]` becomes T; any other union is an error;
- `const` becomes an `enum` of one; `title` and `default: null` go;
- `exclusiveMinimum: n` becomes `minimum: n, exclusiveMinimum: true`;
- a `number`, an unbounded string or list, or a list without a list type is an error: the house
rules of the API.
"""

from __future__ import annotations

from typing import Any

from kompakt.api.base import GROUP, VERSION, KindInfo, Model

Schema = dict[str, Any]
_FORMATS = {"date-time"}
_INT32_MAX = 2**31 - 1


class SchemaError(ValueError):
    """A model that cannot be a structural schema by the rules of this API. The message names the
    place.
    """


def crd(info: KindInfo) -> dict[str, Any]:
    """The CustomResourceDefinition of a kind."""
    properties: Schema = {
        "apiVersion": {"type": "string", "description": "Version of the schema of this object."},
        "kind": {"type": "string", "description": "What this object is."},
        "metadata": {"type": "object"},
        "spec": structural(info.spec, path=f"{info.kind}.spec"),
    }
    if info.status is not None:
        properties["status"] = structural(info.status, path=f"{info.kind}.status")
    root: Schema = {
        "type": "object",
        "description": info.description,
        "required": ["spec"],
        "properties": properties,
    }
    if info.cel_rules:
        root["x-kubernetes-validations"] = [rule.to_schema() for rule in info.cel_rules]
    version: dict[str, Any] = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": root},
        "additionalPrinterColumns": [_column(c) for c in info.columns],
    }
    if info.status is not None:
        version["subresources"] = {"status": {}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": info.crd_name},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced" if info.namespaced else "Cluster",
            "names": {
                "kind": info.kind,
                "listKind": f"{info.kind}List",
                "plural": info.plural,
                "singular": info.kind.lower(),
                "shortNames": list(info.short_names),
                "categories": ["kompakt"],
            },
            "versions": [version],
        },
    }


def structural(model: type[Model], *, path: str) -> Schema:
    """The structural schema of a model. Raises SchemaError where the model breaks a rule of the
    API.
    """
    schema = model.model_json_schema(by_alias=True, mode="validation")
    definitions = schema.pop("$defs", {})
    return _convert(schema, definitions, path, ())


def _column(column: Any) -> dict[str, Any]:
    entry = {"name": column.name, "type": column.type, "jsonPath": column.json_path}
    if column.priority:
        entry["priority"] = column.priority
    if column.description:
        entry["description"] = column.description
    return entry


def _convert(schema: Schema, definitions: Schema, path: str, seen: tuple[str, ...]) -> Schema:
    if "$ref" in schema:
        schema = dict(schema)
        name = schema.pop("$ref").rsplit("/", 1)[-1]
        if name in seen:
            raise SchemaError(f"{path}: {name} contains itself")
        # What stands beside the reference (a description, a default) is said about this use of it.
        return _convert({**definitions[name], **schema}, definitions, path, (*seen, name))
    if "anyOf" in schema:
        schema = dict(schema)
        members = [m for m in schema.pop("anyOf") if m != {"type": "null"}]
        if len(members) != 1:
            raise SchemaError(
                f"{path}: a union of {len(members)} types; use optional members and a rule"
            )
        return _convert({**members[0], **schema}, definitions, path, seen)
    schema = _without_noise(schema)
    match schema.get("type"):
        case "object":
            return _object(schema, definitions, path, seen)
        case "array":
            return _array(schema, definitions, path, seen)
        case "string":
            return _string(schema, path)
        case "integer":
            return _integer(schema, path)
        case other:
            raise SchemaError(
                f"{path}: type {other!r} is not allowed: no floats, no booleans that may grow"
            )


def _without_noise(schema: Schema) -> Schema:
    """A copy without what Kubernetes has no use for."""
    kept = {k: v for k, v in schema.items() if k != "title" and (k, v) != ("default", None)}
    if "properties" in kept:
        kept.pop("additionalProperties", None)
    if "const" in kept:
        kept["enum"] = [kept.pop("const")]
    if "default" in kept:
        # Whole, and not `{}` for an object: rules are checked on a default before its own fields
        # are filled in.
        kept["default"] = _without_nulls(kept["default"])
    return kept


def _without_nulls(value: Any) -> Any:
    """A default as the API server takes it: what is absent is left out."""
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value


def _object(schema: Schema, definitions: Schema, path: str, seen: tuple[str, ...]) -> Schema:
    if "properties" in schema:
        schema["properties"] = {
            name: _convert(sub, definitions, f"{path}.{name}", seen)
            for name, sub in schema["properties"].items()
        }
        return schema
    patterns = schema.pop("patternProperties", {})
    if len(patterns) == 1:
        # A pattern for keys cannot be said; what their values are can.
        (schema["additionalProperties"],) = patterns.values()
    if isinstance(schema.get("additionalProperties"), dict):
        if "maxProperties" not in schema:
            raise SchemaError(f"{path}: an unbounded map")
        schema.pop("propertyNames", None)
        schema["additionalProperties"] = _convert(
            schema["additionalProperties"], definitions, f"{path}.*", seen
        )
    return schema


def _array(schema: Schema, definitions: Schema, path: str, seen: tuple[str, ...]) -> Schema:
    if "maxItems" not in schema or "x-kubernetes-list-type" not in schema:
        raise SchemaError(f"{path}: a list needs max_length and a ListType")
    schema["items"] = _convert(schema["items"], definitions, f"{path}[]", seen)
    return schema


def _string(schema: Schema, path: str) -> Schema:
    bounded = "maxLength" in schema or "enum" in schema or schema.get("format") in _FORMATS
    if not bounded:
        raise SchemaError(f"{path}: an unbounded string")
    return schema


def _integer(schema: Schema, path: str) -> Schema:
    if "maximum" not in schema and "enum" not in schema:
        raise SchemaError(f"{path}: an unbounded integer")
    for bound, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if bound in schema:
            schema[limit] = schema[bound]
            schema[bound] = True
    schema["format"] = "int32" if schema.get("maximum", 0) <= _INT32_MAX else "int64"
    return schema
