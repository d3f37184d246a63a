# SPDX-License-Identifier: Apache-2.0
"""ModelVariant: a durable artifact with its lineage and figures, made by a run or registered by
hand.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kompakt.api.base import (
    Cel,
    Conditions,
    Count,
    Digest,
    KindInfo,
    ListType,
    LocalRef,
    Model,
    Name,
    ObjectName,
    PrinterColumn,
    Runtime,
    ShortText,
    SignedBasisPoints,
    Task,
)
from kompakt.api.recipe import Step
from kompakt.api.run import TargetResult
from kompakt.api.source import Store


class Lineage(Model):
    """Where a variant comes from."""

    source_digest: Digest | None = None
    """Checkpoint that everything was derived from."""
    baseline_digest: Digest | None = None
    """Artifact of the unchanged model."""
    run: ObjectName | None = None
    """CompressionRun that made it."""
    trial: Count | None = None
    """Number of the trial in that run."""
    recipe: ShortText = ""
    """`Source` for the unchanged model; a recipe's name; anything for a variant registered by
    hand."""
    steps: Annotated[list[Step], Field(max_length=16), ListType("atomic")] = []
    """What was done, with all parameters."""


class ModelVariantSpec(Model):
    """Immutable: another artifact is another variant."""

    policy_ref: LocalRef | None = None
    """Policy whose model this is a variant of; needed for a rollout."""
    digest: Digest
    """Content address of the artifact."""
    store: Store
    """Where `artifacts/sha256-<hex>/` is."""
    task: Task = "TextClassification"
    """What the model answers to a text."""
    labels: Annotated[list[ShortText], Field(min_length=1, max_length=64), ListType("atomic")]
    """Label names in the order of the logits; of a Regression, what its one number is called; of a
    SentenceEmbedding `embedding`."""
    runtime: Runtime = "OnnxRuntime"
    """What runs it, as its manifest says."""
    size_bytes: Count
    """Of the artifact."""
    lineage: Lineage = Lineage()
    """Where it comes from."""
    figures: Annotated[list[TargetResult], Field(max_length=8), ListType("map", ("target",))] = []
    """Measured on each target, against the baseline."""


class ModelVariantStatus(Model):
    """Observed state."""

    conditions: Conditions = []
    """Ready (may be rolled out), Serving (answers users now)."""
    observed_generation: Count | None = None
    """Generation of the spec that this status is about."""
    speedup_permille: Count | None = None
    """Over the original, on the first target, in thousandths."""
    accuracy_drop_basis_points: SignedBasisPoints | None = None
    """On the first target, confirmation split."""
    gates_passed: Annotated[list[Name], Field(max_length=16), ListType("set")] = []
    """Names of the gates that it passed."""
    role: Literal["Stable", "Candidate", "None"] | None = None
    """What it is to its policy now."""


MODEL_VARIANT = KindInfo(
    kind="ModelVariant",
    plural="modelvariants",
    short_names=("mvar",),
    spec=ModelVariantSpec,
    status=ModelVariantStatus,
    columns=(
        PrinterColumn("Policy", ".spec.policyRef.name"),
        PrinterColumn("Recipe", ".spec.lineage.recipe"),
        PrinterColumn("Role", ".status.role"),
        PrinterColumn("Runtime", ".spec.runtime"),
        PrinterColumn("Bytes", ".spec.sizeBytes", "integer"),
        PrinterColumn("Speedup(permille)", ".status.speedupPermille", "integer"),
        PrinterColumn("Drop(bp)", ".status.accuracyDropBasisPoints", "integer"),
        PrinterColumn("Digest", ".spec.digest", priority=1),
        PrinterColumn("Age", ".metadata.creationTimestamp", "date"),
    ),
    description="A model artifact with its lineage and its figures on each target.",
    cel_rules=(
        Cel(
            "self.spec == oldSelf.spec",
            "a variant's spec does not change: register another variant",
            ".spec",
        ),
        Cel(
            "(self.spec.task in ['Regression', 'SentenceEmbedding'])"
            " == (size(self.spec.labels) == 1)",
            "a classification has two labels or more, a Regression one, a SentenceEmbedding one",
            ".spec.labels",
        ),
        Cel(
            "size(self.metadata.name) <= 63",
            "the name may have at most 63 characters: it is a label of pods",
        ),
    ),
)
