# SPDX-License-Identifier: Apache-2.0
"""HardwareProfile: a pool of nodes, what a pod may use there, and what an hour of it costs. Cluster-scoped."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kompakt.api.base import KindInfo, ListType, Mebibytes, Model, PrinterColumn, ShortText


class NodeLabel(Model):
    """A label that nodes of the pool carry."""

    key: Annotated[str, Field(min_length=1, max_length=317)]
    value: Annotated[str, Field(max_length=63)]


class Toleration(Model):
    """A taint of the pool that pods tolerate."""

    key: Annotated[str, Field(min_length=1, max_length=317)]
    operator: Literal["Exists", "Equal"] = "Equal"
    value: Annotated[str, Field(max_length=63)] = ""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class Price(Model):
    """What one replica of this size costs for an hour."""

    micros_per_hour: Annotated[int, Field(ge=0, le=2**53)]
    """Millionths of the currency unit."""
    currency: Annotated[str, Field(min_length=3, max_length=3, pattern="^[A-Z]{3}$")] = "USD"


class HardwareProfileSpec(Model):
    """Where pods of this profile run and what they may use: the emulation limits are container limits."""

    description: ShortText = ""
    node_labels: Annotated[list[NodeLabel], Field(max_length=16), ListType("map", ("key",))] = []
    tolerations: Annotated[list[Toleration], Field(max_length=16), ListType("atomic")] = []
    cpu_millis: Annotated[int, Field(ge=50, le=1_024_000)] = 1000
    """CPU limit and request of a pod, in thousandths of a core; inference threads follow from it."""
    memory_mebibytes: Annotated[int, Field(ge=64, le=16_777_216)] = 1024
    runtime: Literal["OnnxRuntime"] = "OnnxRuntime"
    runtime_class_name: Annotated[str, Field(max_length=63)] | None = None
    price: Price | None = None
    watts_milli: Annotated[int, Field(ge=0, le=100_000_000)] | None = None
    """Power drawn by a replica under load, in thousandths of a watt; energy figures are estimates from it."""
    job_memory_mebibytes: Mebibytes | None = None
    """Memory limit of measuring Jobs on this pool when it must differ from a serving pod's."""


HARDWARE_PROFILE = KindInfo(
    kind="HardwareProfile",
    plural="hardwareprofiles",
    short_names=("hwp",),
    spec=HardwareProfileSpec,
    status=None,
    namespaced=False,
    columns=(
        PrinterColumn("CPU(m)", ".spec.cpuMillis", "integer"),
        PrinterColumn("Memory(Mi)", ".spec.memoryMebibytes", "integer"),
        PrinterColumn("Runtime", ".spec.runtime"),
        PrinterColumn("Micros/h", ".spec.price.microsPerHour", "integer"),
        PrinterColumn("Age", ".metadata.creationTimestamp", "date"),
    ),
    description="A pool of nodes: selector, limits, runtime, price.",
)
