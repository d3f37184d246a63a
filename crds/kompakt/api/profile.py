# SPDX-License-Identifier: Apache-2.0
"""HardwareProfile: a pool of nodes, what a pod may use there, and what an hour of it costs.
Cluster-scoped.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kompakt.api.base import Cel, KindInfo, ListType, Mebibytes, Model, PrinterColumn, ShortText


class NodeLabel(Model):
    """A label that nodes of the pool carry."""

    key: Annotated[str, Field(min_length=1, max_length=317)]
    """Label key."""
    value: Annotated[str, Field(max_length=63)]
    """Label value."""


class Toleration(Model):
    """A taint of the pool that pods tolerate."""

    key: Annotated[str, Field(min_length=1, max_length=317)]
    """Taint key."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """How the value is compared."""
    value: Annotated[str, Field(max_length=63)] = ""
    """Taint value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; every effect when absent."""


class ExtendedResource(Model):
    """Devices that nodes of the pool offer by a device plugin, and each pod gets for itself."""

    name: Annotated[
        str,
        Field(
            min_length=3,
            max_length=317,
            pattern=(
                r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
                r"/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
            ),
        ),
        Cel(
            "!self.contains('kubernetes.io/') && !self.startsWith('requests.')",
            "an extended resource is a device plugin's, such as nvidia.com/gpu: CPU and memory are"
            " cpuMillis and memoryMebibytes",
        ),
    ]
    """Resource name as in the node's capacity, for example nvidia.com/gpu."""
    count: Annotated[int, Field(ge=1, le=1024)] = 1
    """How many; a device is never shared, so that requests equal limits."""


class Price(Model):
    """What one replica of this size costs for an hour."""

    micros_per_hour: Annotated[int, Field(ge=0, le=2**53)]
    """Millionths of the currency unit."""
    currency: Annotated[str, Field(min_length=3, max_length=3, pattern="^[A-Z]{3}$")] = "USD"
    """ISO 4217 code."""


class HardwareProfileSpec(Model):
    """Where pods of this profile run and what they may use: the emulation limits are container
    limits.
    """

    description: ShortText = ""
    """What the pool is, in a sentence."""
    node_labels: Annotated[list[NodeLabel], Field(max_length=16), ListType("map", ("key",))] = []
    """Labels of the nodes."""
    tolerations: Annotated[list[Toleration], Field(max_length=16), ListType("atomic")] = []
    """Taints of the nodes that pods tolerate."""
    cpu_millis: Annotated[int, Field(ge=50, le=1_024_000)] = 1000
    """CPU limit and request of a pod, in thousandths of a core; inference threads follow from
    it."""
    memory_mebibytes: Annotated[int, Field(ge=64, le=16_777_216)] = 1024
    """Memory limit and request of a pod."""
    extended_resources: Annotated[
        list[ExtendedResource], Field(max_length=8), ListType("map", ("name",))
    ] = []
    """Devices that a pod gets beside CPU and memory: each Job, and each server. With one of
    nvidia.com, such as nvidia.com/gpu, Jobs train on it, and ONNX Runtime answers on it, in Jobs
    that measure and in servers; their images must have what CUDA needs."""
    runtime_class_name: Annotated[str, Field(max_length=63)] | None = None
    """RuntimeClass of pods on this pool; the installation's when absent."""
    price: Price | None = None
    """What a replica costs."""
    watts_milli: Annotated[int, Field(ge=0, le=100_000_000)] | None = None
    """Power drawn by a replica under load, in thousandths of a watt; energy figures are estimates
    from it."""
    job_cpu_millis: Annotated[int, Field(ge=50, le=1_024_000)] | None = None
    """CPU limit of Jobs on this pool when it must differ from a serving pod's. Benchmarks always
    run under cpuMillis."""
    job_memory_mebibytes: Mebibytes | None = None
    """Memory limit of Jobs on this pool when it must differ from a serving pod's."""

    @property
    def has_cuda(self) -> bool:
        """Whether pods are given an NVIDIA GPU, or a part of one."""
        return any(device.name.startswith("nvidia.com/") for device in self.extended_resources)


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
        PrinterColumn("Micros/h", ".spec.price.microsPerHour", "integer"),
        PrinterColumn("Age", ".metadata.creationTimestamp", "date"),
    ),
    description="A pool of nodes: selector, limits, price.",
)
