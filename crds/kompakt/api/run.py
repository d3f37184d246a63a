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
    Runtime,
    ShortText,
    SignedBasisPoints,
)
from kompakt.api.job import ImportResult
from kompakt.api.measure import Benchmark, Evaluation
from kompakt.api.policy import CompressionPolicySpec
from kompakt.api.recipe import CompressionRecipeSpec, Step


class NamedRecipe(Model):
    """A recipe as it was when the run was made."""

    name: Name
    """Of the CompressionRecipe."""
    spec: CompressionRecipeSpec
    """What it said."""


class Parameter(Model):
    """The value of a searched parameter."""

    step: FieldName
    """Step of the recipe; all of them, where there are several of that name."""
    name: FieldName
    """Parameter of the step."""
    value: Count
    """Its value."""


class TargetResult(Model):
    """A trial's figures on one target."""

    target: Name
    """Name of the target."""
    state: Literal["Pending", "Measuring", "Measured", "Stopped", "Failed"] = "Pending"
    """Whether the figures are there. Measuring is written before the Job exists. Stopped: its first
    look was not promising."""
    evaluation: Evaluation | None = None
    """Accuracy, paired with the baseline."""
    benchmark: Benchmark | None = None
    """Latency, interleaved with the baseline."""
    cost_micros_per_million: Count | None = None
    """Cost of a million inferences, in millionths of the currency unit."""
    reason: Reason | None = None
    """Why there are no figures, in one word."""
    message: Message = ""
    """Why there are no figures."""


class PriorTrial(Model):
    """What an earlier run found for some parameters of a recipe."""

    recipe: Name
    """The recipe that was tried."""
    parameters: Annotated[list[Parameter], Field(max_length=16), ListType("atomic")] = []
    """Values of all parameters that its ranges vary."""
    state: Literal["Complete", "Infeasible"]
    """How it ended."""
    size_bytes: Count | None = None
    """Of the artifact."""
    figures: TargetResult | None = None
    """On the target that led."""


class Prior(Model):
    """What an earlier run of the policy measured: where a search begins."""

    run: ObjectName
    """Name of that run."""
    model_parameters: Count
    """Weights of its model: a model of another size is another matter."""
    trials: Annotated[list[PriorTrial], Field(max_length=64), ListType("atomic")] = []
    """Those of the recipes that are searched."""


class CompressionRunSpec(Model):
    """Immutable: a changed policy makes a new run."""

    policy_ref: LocalRef
    """The policy that made this run."""
    inputs_digest: Digest
    """Digest of everything that the run depends on."""
    trigger: ShortText = ""
    """What started it."""
    policy: CompressionPolicySpec
    """Snapshot of the policy."""
    recipes: Annotated[
        list[NamedRecipe], Field(min_length=1, max_length=32), ListType("map", ("name",))
    ]
    """Snapshot of all recipes that the policy names."""
    prior: Prior | None = None
    """Figures of the run before it, which a search of a model of the same size starts from."""


class FirstLook(Model):
    """What a trial showed on a part of the selection split, and what followed from it."""

    evaluation: Evaluation
    """On that part, paired with the baseline; the confirmation split is empty."""
    benchmark: Benchmark
    """Latency, interleaved with the baseline."""
    decision: Literal["GoOn", "Stop"] | None = None
    """Whether the trial is measured on all the data."""
    reason: Reason | None = None
    """Why, in one word."""
    message: Message = ""
    """With the figures."""


class Trial(Model):
    """One candidate: written to the status before its first Job exists, its outcome before that
    Job may vanish.
    """

    number: Annotated[int, Field(ge=0, le=63)]
    """Unique in the run, counted from 0."""
    recipe: Name
    """The recipe that is tried."""
    origin: Literal["Recipe", "Search", "Ablation"]
    """The policy's recipes, its search, or the question what a step of the chosen chain brought."""
    parameters: Annotated[list[Parameter], Field(max_length=16), ListType("atomic")] = []
    """Searched parameters and their values."""
    steps: Annotated[list[Step], Field(max_length=16), ListType("atomic")] = []
    """The recipe's steps with the trial's parameters put in."""
    state: Literal[
        "Proposed", "Compressing", "Measuring", "Complete", "Stopped", "Infeasible", "Failed"
    ]
    """Stopped: not promising on a part of the data; Infeasible: it cannot be (killed for memory,
    diverged); Failed: it could not be tried (a bug, a lost node)."""
    digest: Digest | None = None
    """Of the artifact."""
    runtime: Runtime | None = None
    """What runs the artifact."""
    size_bytes: Count | None = None
    """Of the artifact."""
    parameters_count: Count | None = None
    """Weights of the model."""
    compress_seconds: Count | None = None
    """How long compression took."""
    summary: ShortText = ""
    """What compression did."""
    first_look: FirstLook | None = None
    """On a part of the selection split, on the target that leads; where the search asks for it."""
    targets: Annotated[list[TargetResult], Field(max_length=8), ListType("map", ("target",))] = []
    """Figures on each target."""
    reason: Reason | None = None
    """Why it ended without figures, in one word."""
    message: Message = ""
    """Why it ended without figures."""
    proposed_because: ShortText = ""
    """Why the search proposed it."""


class Rejection(Model):
    """Why a trial was not chosen for a target."""

    trial: Count
    """Number of the trial."""
    reason: Reason
    """In one word."""
    message: Message
    """With the figures."""


class Choice(Model):
    """The choice for one target, with the reasons."""

    target: Name
    """Name of the target."""
    trial: Count | None = None
    """Number of the chosen trial; absent for the source itself or for none."""
    variant: ObjectName | None = None
    """Name of the chosen ModelVariant; the source's when no trial passes the gates."""
    accuracy_drop_basis_points: SignedBasisPoints | None = None
    """On the confirmation split, which the choice did not see."""
    accuracy_drop_upper_bound_basis_points: SignedBasisPoints | None = None
    """One-sided bound on it, at the confidence of the strictest gate, shared among all tried."""
    reason: Reason
    """In one word."""
    message: Message
    """With the figures."""
    pareto_front: Annotated[list[Count], Field(max_length=64), ListType("atomic")] = []
    """Trials that no other beats in everything."""
    rejections: Annotated[list[Rejection], Field(max_length=64), ListType("atomic")] = []
    """Why the others were not chosen."""


class Contribution(Model):
    """What one step of the chosen chain brought: the chain up to it beside the chain before it."""

    step: FieldName
    """Name of the step."""
    trial: Count
    """Trial whose chain ends with this step."""
    speedup_permille: Count | None = None
    """Of the chain so far, over the baseline; absent when that trial gave no figures."""
    factor_permille: Count | None = None
    """What the step itself multiplies the speed by."""
    size_bytes: Count | None = None
    """Of the artifact after this step."""
    accuracy_drop_basis_points: SignedBasisPoints | None = None
    """Of the chain so far, on the confirmation split."""
    added_drop_basis_points: SignedBasisPoints | None = None
    """What the step itself adds to it; negative when it wins some back."""


class CompressionRunStatus(Model):
    """Observed state."""

    conditions: Conditions = []
    """Ready (ended with a choice for every target), Reconciling, Stalled; Imported, Succeeded."""
    observed_generation: Count | None = None
    """Generation of the spec that this status is about."""
    started_unix_seconds: Count | None = None
    """When the run began."""
    baseline: ImportResult | None = None
    """The imported model."""
    baseline_variant: ObjectName | None = None
    """ModelVariant of the source, exported unchanged."""
    baseline_targets: Annotated[
        list[TargetResult], Field(max_length=8), ListType("map", ("target",))
    ] = []
    """The baseline's figures on each target."""
    trials: Annotated[list[Trial], Field(max_length=64), ListType("map", ("number",))] = []
    """Every candidate."""
    choices: Annotated[list[Choice], Field(max_length=8), ListType("map", ("target",))] = []
    """One for each target, when the run has ended."""
    contributions: Annotated[list[Contribution], Field(max_length=16), ListType("atomic")] = []
    """What each step of the chain that is served brought, in their order; asked for by the policy's
    ablation."""
    trials_complete: Count | None = None
    """Trials that have ended."""
    trials_total: Count | None = None
    """Trials so far."""
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
    cel_rules=(
        Cel(
            "self.spec == oldSelf.spec",
            "a run's spec does not change: change the policy instead",
            ".spec",
        ),
        Cel(
            "size(self.metadata.name) <= 50",
            "the name may have at most 50 characters: its Jobs are named after it",
        ),
    ),
)
