# SPDX-License-Identifier: Apache-2.0
"""What every kind is made of: the base model, bounded types, conditions, and marks for the CRD
generator.

Invariants of the API (checked over the generated CRDs by tests):

- no floats and no durations: ratios are basis points or permille, times are microseconds or
seconds, money is
  millionths of a currency unit;
- every string and list is bounded;
- fields are optional in every status, so that an older status still parses;
- an unknown field is ignored when read (a newer CRD, an older operator), and pruned by the API
server.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from typing_extensions import override

GROUP = "kompakt.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
VALIDATIONS = "x-kubernetes-validations"


@dataclass(frozen=True)
class Cel:
    """A validation rule that a schema cannot say, evaluated by the API server.

    Used as `Annotated[T, Cel(rule, message)]` on a field, or in `Model.cel_rules` for an object.
    """

    rule: str
    message: str
    field_path: str | None = None

    def to_schema(self) -> dict[str, str]:
        """An entry of `x-kubernetes-validations`."""
        entry = {"rule": self.rule, "message": self.message}
        return entry | ({"fieldPath": self.field_path} if self.field_path else {})

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Add the rule to the schema of an annotated field."""
        schema = handler(core_schema)
        return schema | {VALIDATIONS: [*schema.get(VALIDATIONS, ()), self.to_schema()]}


@dataclass(frozen=True)
class ListType:
    """How server-side apply merges a list: `atomic` (default), `set`, or `map` with its keys."""

    kind: Literal["atomic", "set", "map"]
    keys: tuple[str, ...] = ()

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Mark the schema of an annotated list."""
        keys = {"x-kubernetes-list-map-keys": list(self.keys)} if self.keys else {}
        return handler(core_schema) | {"x-kubernetes-list-type": self.kind} | keys


@dataclass(frozen=True)
class PrinterColumn:
    """A column of `kubectl get`. `priority` 1 shows it with `-o wide` only."""

    name: str
    json_path: str
    type: Literal["string", "integer", "date", "boolean"] = "string"
    priority: int = 0
    description: str = ""


class Model(BaseModel):
    """Base of every API type: camelCase on the wire, snake_case in code, docstrings become
    descriptions.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
        extra="ignore",
        frozen=True,
        # `model` is this domain's first noun: let fields start with it.
        protected_namespaces=(),
    )
    cel_rules: ClassVar[tuple[Cel, ...]] = ()
    """Rules over the whole object, evaluated by the API server."""

    @classmethod
    @override
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Add the class's rules to its schema."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        if cls.cel_rules:
            schema[VALIDATIONS] = [rule.to_schema() for rule in cls.cel_rules]
        return schema

    def to_wire(self) -> dict[str, Any]:
        """The JSON form that the API server stores: camelCase, absent fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def evolve(self, **changes: Any) -> Self:
        """A copy with some fields replaced (values are used as they are, already validated)."""
        return self.model_copy(update=changes)


@dataclass(frozen=True)
class KindInfo:
    """What a CustomResourceDefinition says about a kind besides its schema."""

    kind: str
    plural: str
    short_names: tuple[str, ...]
    spec: type[Model]
    status: type[Model] | None
    namespaced: bool = True
    columns: tuple[PrinterColumn, ...] = ()
    description: str = ""
    cel_rules: tuple[Cel, ...] = field(default=())
    """Rules over the whole object (only `metadata.name` and `metadata.generateName` of the
    metadata are visible)."""

    @property
    def crd_name(self) -> str:
        """Name of the CustomResourceDefinition object."""
        return f"{self.plural}.{GROUP}"


# --- bounded types
# -----------------------------------------------------------------------------------------------

_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
Name = Annotated[str, Field(min_length=1, max_length=63, pattern=_LABEL)]
"""The name of an object that Kompakt makes others from: a DNS label."""
ObjectName = Annotated[
    str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
]
Hostname = Annotated[
    str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9*]([-a-z0-9.]*[a-z0-9])?$")
]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$", max_length=71)]
"""Content address: `sha256:` and 64 hexadecimal digits."""
Uri = Annotated[
    str, Field(min_length=1, max_length=1024, pattern=r"^(file|hf|s3|gs|abfs|https|pvc)://.+$")
]
FieldName = Annotated[
    str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$")
]
ShortText = Annotated[str, Field(max_length=256)]
Message = Annotated[str, Field(max_length=1024)]
Reason = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Z][A-Za-z0-9]*$")]
BasisPoints = Annotated[int, Field(ge=0, le=10_000)]
SignedBasisPoints = Annotated[int, Field(ge=-10_000, le=10_000)]
Permille = Annotated[int, Field(ge=0, le=1000)]
Percent = Annotated[int, Field(ge=0, le=100)]
Count = Annotated[int, Field(ge=0, le=2**53)]
SignedMicros = Annotated[int, Field(ge=-(2**53), le=2**53)]
Microseconds = Annotated[int, Field(ge=0, le=2**53)]
Seconds = Annotated[int, Field(ge=0, le=31_536_000)]
Mebibytes = Annotated[int, Field(ge=0, le=2**31 - 1)]

LatencyPercentile = Literal["P50", "P90", "P95", "P99"]
Task = Literal["TextClassification", "Regression", "TokenClassification", "SentenceEmbedding"]
"""What a model answers to a text: one of several labels, one number, a label for each word, or a
vector."""
MinCosine = Annotated[int, Field(ge=1, le=9_999)]
"""Of a SentenceEmbedding, in ten-thousandths."""
Tolerance = Annotated[int, Field(ge=1, le=2**53)]
"""Of a Regression, in millionths of the label's unit."""
Runtime = Literal["OnnxRuntime", "OpenVino"]
"""What runs a model. It belongs to the variant: a graph that is fast in one is slow in another."""


class LocalRef(Model):
    """The name of an object in the same namespace (or of a cluster-scoped one)."""

    name: ObjectName
    """Name of the object."""


class NamespacedRef(Model):
    """The name of an object that may live in another namespace."""

    name: ObjectName
    """Name of the object."""
    namespace: Name | None = None
    """Defaults to the namespace of the referring object."""


class Condition(Model):
    """A standard Kubernetes condition (`metav1.Condition`)."""

    type: Annotated[str, Field(min_length=1, max_length=64)]
    """What the condition is about."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    observed_generation: Count | None = None
    """Generation of the spec that it was judged by."""
    last_transition_time: datetime
    """When the status last flipped."""
    reason: Reason
    """One word for programs."""
    message: Message = ""
    """One sentence for people."""


Conditions = Annotated[list[Condition], Field(max_length=16), ListType("map", ("type",))]
