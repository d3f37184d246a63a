# SPDX-License-Identifier: Apache-2.0
"""VariantRollout: one way of a candidate from shadow to production, or back."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kompakt.api.base import (
    BasisPoints,
    Cel,
    Conditions,
    Count,
    Digest,
    KindInfo,
    ListType,
    LocalRef,
    Message,
    Model,
    Name,
    ObjectName,
    Permille,
    PrinterColumn,
    Reason,
    ShortText,
)
from kompakt.api.strategy import Rollout

Stage = Literal[
    "Pending",
    "Shadow",
    "Canary",
    "Promoting",
    "Watching",
    "Succeeded",
    "RollingBack",
    "RolledBack",
    "Held",
]
Verdict = Literal["Pass", "Fail", "Undecided"]


class VariantRolloutSpec(Model):
    """Desired state. Everything else comes from the policy: gateway, host names, objectives,
    steps.
    """

    policy_ref: LocalRef
    """The policy whose traffic is moved."""
    candidate_ref: LocalRef
    """A ModelVariant of the policy. A change starts over with the new candidate."""
    strategy: Rollout | None = None
    """Instead of the policy's rollout."""
    action: Literal["None", "Abort", "Promote"] = "None"
    """Abort rolls back in any stage; Promote is a recorded human decision where the judge is
    undecided or a manual
    approval is waited for. The annotation kompakt.dev/action does the same without a change of
    the spec."""


class CounterPoint(Model):
    """Sums over the pods of one variant, for one objective: the state of the judge. Differences
    of two points are
    evidence. `bad` counts requests that missed the objective.
    """

    total: Count = 0
    """Requests."""
    bad: Count = 0
    """Those that missed the objective."""


class Evidence(Model):
    """What one objective has seen. Survives a restart of the operator."""

    slo: Name
    """Name of the objective."""
    stage: ShortText
    """Evidence starts anew with each: `Shadow`, `Canary/0`, `Watching`."""
    candidate: CounterPoint = CounterPoint()
    """Of the candidate, in this stage."""
    reference: CounterPoint = CounterPoint()
    """The stable variant over the same time."""
    pooled: CounterPoint = CounterPoint()
    """Of the candidate over all stages so far: what Certify looks at."""
    counted: ShortText = ""
    """What was counted as bad; an objective that counts something else begins anew."""


class SloVerdict(Model):
    """The judge's word on one objective, with its counts and bounds."""

    slo: Name
    """Name of the objective."""
    verdict: Verdict
    """The judge's word now."""
    certified: Literal["True", "False"] = "False"
    """A Certify objective has passed once."""
    total: Count = 0
    """Requests judged."""
    bad: Count = 0
    """Those that missed the objective."""
    low_basis_points: BasisPoints | None = None
    """Confidence sequence of the bad ratio, lower end."""
    high_basis_points: BasisPoints | None = None
    """Upper end."""
    limit_basis_points: BasisPoints | None = None
    """The largest bad ratio that keeps the objective."""
    message: Message = ""
    """The verdict in a sentence, with counts and bounds."""


class Decision(Model):
    """One transition: what was decided, when, why."""

    unix_milliseconds: Count
    """When."""
    from_stage: ShortText
    """Before."""
    to_stage: ShortText
    """After."""
    weight_permille: Permille
    """The candidate's weight after it."""
    reason: Reason
    """In one word."""
    message: Message = ""
    """With counts and bounds."""
    actor: ShortText = ""
    """Who decided, when it was a person."""


class PodCounters(Model):
    """Last counters of one pod that were folded into the evidence; a smaller value later is a
    restart.
    """

    pod: ObjectName
    """Name of the pod."""
    role: Literal["Candidate", "Stable", "Comparator"]
    """What the pod is to the rollout."""
    counters: Annotated[dict[str, Count], Field(max_length=64)] = {}
    """Series key → value."""


class VariantRolloutStatus(Model):
    """Observed state. `stage` informs; what serves follows from route and Deployments."""

    conditions: Conditions = []
    """Ready, Reconciling, Stalled; Promoted, RolledBack, Held, EnvironmentDegraded,
    GatewayReady."""
    observed_generation: Count | None = None
    """Generation of the spec that this status is about."""
    stage: Stage | None = None
    """Where the rollout is, for people."""
    step: Annotated[int, Field(ge=0, le=20)] | None = None
    """Index of the canary step."""
    weight_permille: Permille | None = None
    """Of the candidate, as last taken by the gateway."""
    stable_variant: ObjectName | None = None
    """Pinned when the rollout starts: a rollback returns to it."""
    stable_digest: Digest | None = None
    """Its digest."""
    candidate_variant: ObjectName | None = None
    """ModelVariant that is rolled out."""
    candidate_digest: Digest | None = None
    """Its digest."""
    started_unix_milliseconds: Count | None = None
    """When Shadow began."""
    stage_started_unix_milliseconds: Count | None = None
    """When the stage, or the canary step, began: its traffic was taken by the gateway, and its
    evidence starts. Absent before that. In Pending: when the preparation began."""
    stage_samples: Count | None = None
    """What minimumPairs and minimumRequests count: pairs compared in Shadow, answers of the
    candidate in other stages, since the stage began."""
    verdicts: Annotated[list[SloVerdict], Field(max_length=16), ListType("map", ("slo",))] = []
    """One for each objective."""
    evidence: Annotated[list[Evidence], Field(max_length=16), ListType("map", ("slo",))] = []
    """What the objectives have seen: a checkpoint."""
    pods: Annotated[list[PodCounters], Field(max_length=64), ListType("map", ("pod",))] = []
    """Counters that the evidence is counted from."""
    decisions: Annotated[list[Decision], Field(max_length=50), ListType("atomic")] = []
    """The newest 50."""
    held_stage: ShortText | None = None
    """Where a Held rollout was held."""
    held_reason: Reason | None = None
    """Why it was held: what heals by itself goes on by itself."""
    restarts: Count | None = None
    """How often the evidence of a stage was begun anew. Each time the judge grows stricter, so
    that its error budget holds over all of them."""
    obeyed_action: ShortText | None = None
    """Actions obeyed, with who asked for them: each is obeyed once."""
    checkpoint_unix_milliseconds: Count | None = None
    """When the evidence was last written."""


VARIANT_ROLLOUT = KindInfo(
    kind="VariantRollout",
    plural="variantrollouts",
    short_names=("vro",),
    spec=VariantRolloutSpec,
    status=VariantRolloutStatus,
    columns=(
        PrinterColumn("Policy", ".spec.policyRef.name"),
        PrinterColumn("Candidate", ".spec.candidateRef.name"),
        PrinterColumn("Stage", ".status.stage"),
        PrinterColumn("Weight", ".status.weightPermille", "integer"),
        PrinterColumn("Stable", ".status.stableVariant", priority=1),
        PrinterColumn("Reason", '.status.conditions[?(@.type=="Ready")].reason'),
        PrinterColumn("Message", '.status.conditions[?(@.type=="Ready")].message'),
        PrinterColumn("Age", ".metadata.creationTimestamp", "date"),
    ),
    description="Brings a variant to production by shadow and canary traffic, or back.",
    cel_rules=(
        Cel(
            "size(self.metadata.name) <= 50 &&"
            " self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
            "the name may have at most 50 characters, must begin with a letter, and be made of"
            " small letters, digits and hyphens: Services are named after it",
        ),
    ),
)
