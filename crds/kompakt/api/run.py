# SPDX-License-Identifier: Apache-2.0
"""CompressionRun: one list of recipes and one search, executed for one digest of one model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kompakt.api.base import (
    Cel,
    Conditions,
    Count,
    Digest,
    FieldName,
    KindInfo,
    ListType,
    LocalRef,
    Message,
    Model,
    Name,
    ObjectName,
    PrinterColumn,
    Reason,
    ShortText,
)
from kompakt.api.job import ImportResult
from kompakt.api.measure import Benchmark, Evaluation
from kompakt.api.policy import CompressionPolicySpec
from kompakt.api.recipe import CompressionRecipeSpec, Step


class NamedRecipe(Model):
    """A recipe as it was when the run was made."""

    name: Name
    spec: CompressionRecipeSpec


class CompressionRunSpec(Model):
    """Immutable: a changed policy makes a new run."""

    policy_ref: LocalRef
    inputs_digest: Digest
    trigger: ShortText = ""
    policy: CompressionPolicySpec
    """Snapshot of the policy."""
    recipes: Annotated[list[NamedRecipe], Field(min_length=1, max_length=32), ListType("map", ("name",))]
    """Snapshot of all recipes that the policy names."""


class Parameter(Model):
    """The value of a searched parameter."""

    step: FieldName
    name: FieldName
    value: Count


class TargetResult(Model):
    """A trial's figures on one target."""

    target: Name
    state: Literal["Pending", "Measured", "Failed"] = "Pending"
    evaluation: Evaluation | None = None
    benchmark: Benchmark | None = None
    cost_micros_per_million: Count | None = None
    reason: Reason | None = None
    message: Message = ""


class Trial(Model):
    """One candidate: written to the status before its first Job exists, its outcome before that Job may vanish."""

    number: Annotated[int, Field(ge=0, le=63)]
    recipe: Name
    origin: Literal["Recipe", "Search"]
    parameters: Annotated[list[Parameter], Field(max_length=16), ListType("atomic")] = []
    steps: Annotated[list[Step], Field(max_length=16), ListType("atomic")] = []
    """The recipe's steps with the trial's parameters put in."""
    state: Literal["Proposed", "Compressing", "Measuring", "Complete", "Infeasible", "Failed"]
    """Infeasible: it cannot be (killed for memory, diverged); Failed: it could not be tried (a bug, a lost node)."""
    digest: Digest | None = None
    size_bytes: Count | None = None
    parameters_count: Count | None = None
    compress_seconds: Count | None = None
    summary: ShortText = ""
    targets: Annotated[list[TargetResult], Field(max_length=8), ListType("map", ("target",))] = []
    reason: Reason | None = None
    message: Message = ""
    proposed_because: ShortText = ""


class Rejection(Model):
    """Why a trial was not chosen for a target."""

    trial: Count
    reason: Reason
    message: Message


class Choice(Model):
    """The choice for one target, with the reasons."""

    target: Name
    trial: Count | None = None
    variant: ObjectName | None = None
    reason: Reason
    message: Message
    pareto_front: Annotated[list[Count], Field(max_length=64), ListType("atomic")] = []
    rejections: Annotated[list[Rejection], Field(max_length=64), ListType("atomic")] = []


class CompressionRunStatus(Model):
    """Observed state."""

    conditions: Conditions = []
    """Ready (ended with a choice for every target), Reconciling, Stalled; Imported, Succeeded."""
    observed_generation: Count | None = None
    started_unix_seconds: Count | None = None
    baseline: ImportResult | None = None
    baseline_variant: ObjectName | None = None
    baseline_targets: Annotated[list[TargetResult], Field(max_length=8), ListType("map", ("target",))] = []
    trials: Annotated[list[Trial], Field(max_length=64), ListType("map", ("number",))] = []
    choices: Annotated[list[Choice], Field(max_length=8), ListType("map", ("target",))] = []
    trials_complete: Count | None = None
    trials_total: Count | None = None
    current: ShortText | None = None
    """What runs now, for people."""


COMPRESSION_RUN = KindInfo(
    kind="CompressionRun",
    plural="compressionruns",
    short_names=("crun",),
    spec=CompressionRunSpec,
    status=CompressionRunStatus,
    columns=(
        PrinterColumn("Policy", ".spec.policyRef.name"),
        PrinterColumn("Succeeded", '.status.conditions[?(@.type=="Succeeded")].status'),
        PrinterColumn("Trials", ".status.trialsComplete", "integer"),
        PrinterColumn("Of", ".status.trialsTotal", "integer"),
        PrinterColumn("Now", ".status.current"),
        PrinterColumn("Message", '.status.conditions[?(@.type=="Succeeded")].message'),
        PrinterColumn("Age", ".metadata.creationTimestamp", "date"),
    ),
    description="One execution of a policy's recipes and search.",
    cel_rules=(Cel("self.spec == oldSelf.spec", "a run's spec does not change: change the policy instead", ".spec"),),
)
