# SPDX-License-Identifier: Apache-2.0
"""The shape of a decision: `plan(observed) -> Plan`.

Invariants that everything after a crash, a lost write or a duplicate event rests on:

- `observed` is a frozen value with the time in it, so a plan is a function of it alone;
- actions are carried out in order, and the operator may die between any two of them: the next
plan, made from what
  is then observed, goes on where this one stopped;
- every action is idempotent. What must exist before something else is an earlier action (a
trial's parameters are in
  the status before its Job is created).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from kompakt.api.base import Model
from kompakt.api.job import TaskResult
from kompakt.api.policy import CompressionPolicySpec, CompressionPolicyStatus
from kompakt.api.profile import HardwareProfileSpec
from kompakt.api.recipe import CompressionRecipeSpec
from kompakt.api.rollout import VariantRolloutSpec, VariantRolloutStatus
from kompakt.api.run import CompressionRunSpec, CompressionRunStatus
from kompakt.api.variant import ModelVariantSpec, ModelVariantStatus

Manifest = dict[str, Any]
SpecT = TypeVar("SpecT", bound=Model)
StatusT = TypeVar("StatusT", bound=Model)


# --- what is observed
# --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Meta:
    """The metadata that decisions use."""

    name: str
    namespace: str
    uid: str
    generation: int = 1
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    finalizers: tuple[str, ...] = ()
    deleting: bool = False
    created_unix_seconds: int = 0


@dataclass(frozen=True)
class Resource(Generic[SpecT, StatusT]):
    """An object of one of our kinds, parsed."""

    meta: Meta
    spec: SpecT
    status: StatusT


Policy = Resource[CompressionPolicySpec, CompressionPolicyStatus]
Run = Resource[CompressionRunSpec, CompressionRunStatus]
Variant = Resource[ModelVariantSpec, ModelVariantStatus]
RolloutObject = Resource[VariantRolloutSpec, VariantRolloutStatus]


@dataclass(frozen=True)
class JobState:
    """A Job of ours, and the end of its last pod."""

    name: str
    labels: Mapping[str, str]
    finished: bool
    """Complete or Failed: nothing more will happen."""
    succeeded: bool
    suspended: bool = False
    """Kueue has not admitted it."""
    result: TaskResult | None = None
    """From the termination message of the newest terminated pod."""
    out_of_memory: bool = False
    """That pod's container was killed for memory."""
    message: str = ""
    """Why it waits or failed, as Kubernetes says it (unschedulable, image pull, deadline)."""


@dataclass(frozen=True)
class DeploymentState:
    """A Deployment or comparator of ours."""

    name: str
    labels: Mapping[str, str]
    desired: int
    ready: int
    """Ready pods of the current template."""
    message: str = ""
    """Why pods are not ready, where Kubernetes says so (crash loop, image pull, unschedulable)."""

    @property
    def available(self) -> bool:
        """Whether every replica that is wanted is ready."""
        return self.desired > 0 and self.ready >= self.desired


@dataclass(frozen=True)
class GatewayState:
    """The Gateway that a policy names."""

    name: str
    namespace: str
    programmed: bool
    address: str | None
    """`host:port` of the HTTP listener."""
    message: str = ""


@dataclass(frozen=True)
class RouteState:
    """The live HTTPRoute of a policy."""

    annotations: Mapping[str, str]
    stable_backend: str
    candidate_backend: str | None
    candidate_permille: int
    """Weight of the candidate, of 1000 in all."""
    mirror_backend: str | None
    mirror_percent: int
    generation: int
    accepted: bool
    """The gateway has taken this generation: Accepted and ResolvedRefs are True for it."""
    message: str = ""
    spec: Mapping[str, Any] = field(default_factory=dict)
    """The spec as it lives: traffic can be moved even when the policy is gone."""
    owners: tuple[Mapping[str, Any], ...] = ()
    """Owner references as they live."""


@dataclass(frozen=True)
class PodSample:
    """Counters of one pod at one time, as scraped.

    `series` maps a name with its labels in exposition form, such as
    `kompakt_requests_finished_total{outcome="ok"}` (the label `variant` left out), to its value.
    """

    pod: str
    role: str
    """A value of kompakt.dev/role."""
    digest: str
    """Value of kompakt.dev/digest."""
    unix_milliseconds: int
    series: Mapping[str, int]
    ready: bool = True
    gone: bool = False
    """Deleted or dead: these are its last counters."""


@dataclass(frozen=True)
class Settings:
    """What the installation says about the pods that the operator makes."""

    jobs_image: str
    serving_image: str
    image_pull_policy: str = "IfNotPresent"
    runtime_class_name: str | None = None
    operator_namespace: str = "kompakt-system"


@dataclass(frozen=True)
class PolicyObserved:
    """Everything that the plan of a policy depends on."""

    now: float
    """Unix time in seconds."""
    policy: Policy
    settings: Settings
    recipes: Mapping[str, CompressionRecipeSpec] = field(default_factory=dict)
    profiles: Mapping[str, HardwareProfileSpec] = field(default_factory=dict)
    runs: tuple[Run, ...] = ()
    variants: tuple[Variant, ...] = ()
    rollouts: tuple[RolloutObject, ...] = ()
    deployments: Mapping[str, DeploymentState] = field(default_factory=dict)
    gateway: GatewayState | None = None
    route: RouteState | None = None


@dataclass(frozen=True)
class RunObserved:
    """Everything that the plan of a run depends on."""

    now: float
    run: Run
    settings: Settings
    jobs: Mapping[str, JobState] = field(default_factory=dict)
    profiles: Mapping[str, HardwareProfileSpec] = field(default_factory=dict)
    variants: tuple[Variant, ...] = ()


@dataclass(frozen=True)
class RolloutObserved:
    """Everything that the plan of a rollout depends on."""

    now: float
    rollout: RolloutObject
    settings: Settings
    policy: Policy | None = None
    variants: Mapping[str, Variant] = field(default_factory=dict)
    profiles: Mapping[str, HardwareProfileSpec] = field(default_factory=dict)
    deployments: Mapping[str, DeploymentState] = field(default_factory=dict)
    gateway: GatewayState | None = None
    route: RouteState | None = None
    others: tuple[RolloutObject, ...] = ()
    """Other rollouts of the same policy."""
    samples: tuple[PodSample, ...] = ()
    """The newest sample of each pod of this policy's variants and of the comparator."""
    probe_ok: bool | None = None
    """A request through the gateway was answered (None: not tried yet)."""


@dataclass(frozen=True)
class VariantObserved:
    """Everything that the plan of a variant depends on."""

    now: float
    variant: Variant
    policy: Policy | None = None
    route: RouteState | None = None


# --- what is to be done
# ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Apply:
    """Server-side apply with our field manager; conflicts are forced, since we own the fields
    that we name.
    """

    manifest: Manifest


@dataclass(frozen=True)
class Create:
    """Create once; that it exists already is fine. For Jobs, whose template others may have
    changed since.
    """

    manifest: Manifest


@dataclass(frozen=True)
class Delete:
    """Delete, with dependents in the background; that it is gone already is fine."""

    api_version: str
    kind: str
    namespace: str
    name: str


@dataclass(frozen=True)
class WriteStatus:
    """Replace the status of the object that the plan is for. Left out when nothing changed."""

    status: Model


@dataclass(frozen=True)
class SetFinalizer:
    """Put our finalizer on the object that the plan is for, or take it off."""

    present: bool


@dataclass(frozen=True)
class Emit:
    """An Event on the object that the plan is for. Only on transitions."""

    reason: str
    message: str
    warning: bool = False


Action = Apply | Create | Delete | WriteStatus | SetFinalizer | Emit


@dataclass(frozen=True)
class Plan:
    """What to do now, in order, and when to look again at the latest."""

    actions: tuple[Action, ...] = ()
    requeue_after: float | None = None
    """Seconds; None waits for the next event."""
