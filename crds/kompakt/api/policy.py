# SPDX-License-Identifier: Apache-2.0
"""CompressionPolicy: the model, its data, where it must run, what is good enough, and how to roll
it out.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kompakt.api.base import (
    BasisPoints,
    Cel,
    Conditions,
    Count,
    Digest,
    FieldName,
    Hostname,
    KindInfo,
    LatencyPercentile,
    ListType,
    LocalRef,
    Message,
    Microseconds,
    Model,
    Name,
    NamespacedRef,
    ObjectName,
    PrinterColumn,
    Reason,
    ShortText,
    SignedBasisPoints,
)
from kompakt.api.source import DataSource, ModelSource, Store
from kompakt.api.strategy import Rollout

Metric = Literal["Accuracy", "SpearmanCorrelation"]
Optimize = Literal["Cost", "Latency", "Size", "Energy", "Accuracy"]


class PolicyData(Model):
    """Data by role."""

    evaluation: DataSource
    """Labelled; every variant is measured on it, paired with the original. Of a SentenceEmbedding,
    texts, or pairs of texts with scores."""
    golden_set: DataSource | None = None
    """Labelled; replayed against serving variants during a rollout. Of a SentenceEmbedding, texts
    alone: what the stable variant answers is right."""
    calibration: DataSource | None = None
    """Unlabelled text is enough."""
    training: DataSource | None = None
    """For pruning and distillation; labels are optional."""

    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel(
            "[has(self.goldenSet) && has(self.goldenSet.secondTextField),"
            " has(self.calibration) && has(self.calibration.secondTextField),"
            " has(self.training) && has(self.training.secondTextField)].all(x, !x)",
            "pairs of texts are for evaluation: leave secondTextField of the others out",
        ),
    )

    def by_role(self) -> dict[str, DataSource]:
        """The declared sources under their wire names."""
        roles = {
            "evaluation": self.evaluation,
            "goldenSet": self.golden_set,
            "calibration": self.calibration,
            "training": self.training,
        }
        return {role: source for role, source in roles.items() if source is not None}


class Halving(Model):
    """Successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943), decided trial by trial as
    in Li et al. 2020 (arXiv:1810.05934): a trial of the search is looked at on a part of the
    selection split first, and only if it is promising there measured on all the data.

    The confirmation split, on which gates are decided, has no part in it.
    """

    selection_permille: Annotated[int, Field(ge=50, le=1000)] = 500
    """Share of the selection split that is looked at first, the same texts for every trial, labels
    in proportion."""
    keep_permille: Annotated[int, Field(ge=100, le=900)] = 500
    """Share of the trials so far that a trial must be among to go on. Those that already lose more
    than the gates allow, by a bound at the gates' confidence, never do."""


class Search(Model):
    """Trials beyond the recipes' own parameters, proposed one after the other."""

    recipes: Annotated[
        list[LocalRef], Field(min_length=1, max_length=16), ListType("map", ("name",))
    ]
    """Recipes whose ranges are searched."""
    sampler: Literal["TPE", "NSGAII", "GaussianProcess", "Grid", "Random"] = "TPE"
    """How parameters are proposed. TPE: tree-structured Parzen estimator, for the best by
    optimizeFor. NSGAII: an evolutionary algorithm, for the whole front of that and accuracy; it
    needs more trials. GaussianProcess: a model of speed, size and accuracy over the parameters of
    all recipes together, for the whole front of the three; it needs fewest trials. Grid: every
    combination, in an order that spreads them. Random: at random."""
    halving: Halving | None = None
    """Spares trials that are not promising the larger part of their measurement; absent: every
    trial is measured on all the data."""
    max_trials: Annotated[int, Field(ge=1, le=48)] = 12
    """How many trials the search may add."""
    max_parallel_trials: Annotated[int, Field(ge=1, le=16)] = 1
    """How many of a run's trials are compressed at a time."""
    max_duration_seconds: Annotated[int, Field(ge=60, le=604_800)] = 3600
    """After so long no new trial is started."""


class LatencyTarget(Model):
    """An upper bound on a percentile of the latency of one request, batch size 1."""

    percentile: LatencyPercentile = "P99"
    """Which percentile is bounded."""
    threshold_microseconds: Annotated[int, Field(ge=100, le=10_000_000)]
    """Its upper bound."""


class Target(Model):
    """Hardware where variants must run, and what they must keep there."""

    name: Name
    """Unique among the targets."""
    hardware_profile_ref: LocalRef
    latency: LatencyTarget | None = None
    max_size_mebibytes: Annotated[int, Field(ge=1, le=1_048_576)] | None = None
    """The largest artifact that fits."""


class Gate(Model):
    """What a variant may lose. Decided by a one-sided confidence bound on the paired difference."""

    name: Name
    """Unique among the gates."""
    metric: Metric = "Accuracy"
    """What may drop. Accuracy: the share of examples with the right label; of a Regression, with a
    number within model.toleranceMicros of the label; of a TokenClassification, with the right label
    for every word; of a SentenceEmbedding, with an embedding whose cosine with the original's is at
    least model.minCosineBasisPoints. SpearmanCorrelation: of a SentenceEmbedding with scored pairs,
    the correlation of cosines and scores."""
    slice: FieldName | None = None
    """Holds for each value of this slice field, rather than for the whole."""
    max_drop_basis_points: BasisPoints
    """The largest drop, in hundredths of a percentage point; of a correlation, in
    ten-thousandths."""
    confidence_percent: Annotated[int, Field(ge=50, le=99)] = 95
    """Confidence of the bound that decides."""


class Serving(Model):
    """Which target's choice is served, and where users reach it."""

    target: Name
    """Name of one of the targets."""
    replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    """Pods of each variant that serves."""
    model_name: Name | None = None
    """Name in the paths of the Open Inference Protocol; the policy's own name when absent."""
    gateway_ref: NamespacedRef
    hostnames: Annotated[list[Hostname], Field(max_length=16), ListType("set")] = []
    """Host names of the route; every host of the gateway when empty."""
    deletion_policy: Literal["Retain", "Delete"] = "Retain"
    """What happens to the serving objects when the policy is deleted."""


class JobSettings(Model):
    """How Jobs are run."""

    hardware_profile_ref: LocalRef | None = None
    """Where models are imported and compressed; the first target's when absent."""
    queue_name: Name | None = None
    """A Kueue LocalQueue."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=60, le=2_592_000)] = 3600
    """How long finished Jobs stay for people to look at."""
    deadline_seconds: Annotated[int, Field(ge=60, le=604_800)] = 14_400
    """The longest that one Job may run."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Of every random choice: sampling, initialization, the search."""


class CompressionPolicySpec(Model):
    """Desired state."""

    suspend: Literal["Enabled", "Disabled"] = "Disabled"
    """Enabled: no new run and no new rollout starts; what runs goes on."""
    model: ModelSource
    data: PolicyData
    store: Store
    recipes: Annotated[list[LocalRef], Field(max_length=16), ListType("map", ("name",))] = []
    """These always run, with their own parameters."""
    search: Search | None = None
    targets: Annotated[list[Target], Field(min_length=1, max_length=8), ListType("map", ("name",))]
    """Hardware that variants are measured on and chosen for, one by one."""
    gates: Annotated[list[Gate], Field(max_length=16), ListType("map", ("name",))] = []
    """What a variant must keep to be chosen, on every target."""
    optimize_for: Optimize = "Cost"
    """What the best of the variants that pass the gates is best at."""
    analysis: Literal["Enabled", "Disabled"] = "Disabled"
    """Whether a model is analyzed when it is imported: what each of its parts costs, and which the
    answers would miss most. It is stored beside the baseline, and delays all else by a minute."""
    ablation: Literal["Enabled", "Disabled"] = "Disabled"
    """Whether a run measures, after its choice, what each step of the chosen chain brought."""
    serving: Serving | None = None
    """Absent: variants are published, none is served."""
    rollout: Rollout = Rollout()
    """How the chosen variant is brought to production."""
    jobs: JobSettings = JobSettings()
    """How work is run."""

    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel(
            "size(self.recipes) > 0 || has(self.search)",
            "nothing to try: name at least one recipe in recipes or in search.recipes",
            ".recipes",
        ),
        Cel(
            "!has(self.serving) || self.targets.exists(t, t.name == self.serving.target)",
            "serving.target must be the name of one of targets",
            ".serving",
        ),
        Cel(
            "self.gates.all(g, !has(g.slice) || (has(self.data.evaluation.sliceFields) &&"
            " self.data.evaluation.sliceFields.exists(f, f == g.slice)))",
            "a gate's slice must be one of data.evaluation.sliceFields",
            ".gates",
        ),
        Cel(
            "self.model.task == 'SentenceEmbedding' || has(self.data.evaluation.labelField)",
            "accuracy needs labels: set labelField",
            ".data.evaluation",
        ),
        Cel(
            "self.model.task == 'SentenceEmbedding' || !has(self.data.goldenSet)"
            " || has(self.data.goldenSet.labelField)",
            "the golden set needs labels: set labelField",
            ".data.goldenSet",
        ),
        Cel(
            "has(self.data.evaluation.secondTextField) == (self.model.task == 'SentenceEmbedding'"
            " && has(self.data.evaluation.labelField))",
            "scores of a SentenceEmbedding are of pairs, and only its evaluation has pairs: set"
            " secondTextField and labelField of its evaluation, or neither",
            ".data.evaluation",
        ),
        Cel(
            "self.model.task != 'SentenceEmbedding'"
            " || [has(self.data.goldenSet) && has(self.data.goldenSet.labelField),"
            " has(self.data.calibration) && has(self.data.calibration.labelField),"
            " has(self.data.training) && has(self.data.training.labelField)].all(x, !x)",
            "a SentenceEmbedding has no labels: its golden set, calibration and training data are"
            " texts alone, so leave their labelField out",
            ".data",
        ),
        Cel(
            "self.gates.all(g, g.metric == 'Accuracy')"
            " || has(self.data.evaluation.secondTextField)",
            "SpearmanCorrelation needs pairs of texts with scores: set secondTextField and"
            " labelField of data.evaluation, or gate Accuracy",
            ".gates",
        ),
    )

    @property
    def suspended(self) -> bool:
        """Whether new work is held back."""
        return self.suspend == "Enabled"


class ChosenVariant(Model):
    """The choice for one target."""

    target: Name
    """Name of the target."""
    variant: ObjectName | None = None
    """Name of the ModelVariant; absent when no variant passes the gates."""
    digest: Digest | None = None
    """Of its artifact."""
    recipe: ShortText = ""
    """That made it."""
    speedup_permille: Count | None = None
    """Median speed-up over the original on this target, in thousandths."""
    accuracy_drop_basis_points: SignedBasisPoints | None = None
    """Measured drop on the confirmation split; negative for a gain."""
    accuracy_drop_upper_bound_basis_points: SignedBasisPoints | None = None
    """Upper confidence bound of the drop."""
    p99_microseconds: Microseconds | None = None
    """Measured 99th percentile of the latency."""
    cost_micros_per_million: Count | None = None
    """Cost of a million inferences, in millionths of the currency unit."""
    size_bytes: Count | None = None
    """Of its artifact."""
    reason: Reason | None = None
    """Why this one, or why none, in one word."""
    message: Message = ""
    """Why this one, or why none."""


class CompressionPolicyStatus(Model):
    """Observed state."""

    conditions: Conditions = []
    """Ready, Reconciling, Stalled; VariantChosen (a run ended with a choice), Serving (the route
    answers)."""
    observed_generation: Count | None = None
    """Generation of the spec that this status is about."""
    source_digest: Digest | None = None
    """Content of the model that was imported last."""
    data_digests: Annotated[dict[FieldName, Digest], Field(max_length=8)] | None = None
    """Content of the data that was read last, by role."""
    run: ObjectName | None = None
    """The current or last CompressionRun."""
    run_inputs_digest: Digest | None = None
    """Digest of everything that the run depends on; a new one is a new run."""
    last_trigger: ShortText | None = None
    """The trigger annotation that the last run answered."""
    chosen: Annotated[list[ChosenVariant], Field(max_length=8), ListType("map", ("target",))] = []
    """The choice for each target."""
    rollout: ObjectName | None = None
    """The current or last VariantRollout made by this policy."""
    serving_variant: ObjectName | None = None
    """ModelVariant that answers users."""
    serving_digest: Digest | None = None
    """Its digest."""
    url: ShortText | None = None
    """Where users reach the model, as `http://<gateway address>/v2/models/<name>`."""


COMPRESSION_POLICY = KindInfo(
    kind="CompressionPolicy",
    plural="compressionpolicies",
    short_names=("cpol",),
    spec=CompressionPolicySpec,
    status=CompressionPolicyStatus,
    columns=(
        PrinterColumn("Ready", '.status.conditions[?(@.type=="Ready")].status'),
        PrinterColumn("Reason", '.status.conditions[?(@.type=="Ready")].reason'),
        PrinterColumn("Serving", ".status.servingVariant"),
        PrinterColumn("Run", ".status.run", priority=1),
        PrinterColumn("Rollout", ".status.rollout", priority=1),
        PrinterColumn("Message", '.status.conditions[?(@.type=="Ready")].message'),
        PrinterColumn("Age", ".metadata.creationTimestamp", "date"),
    ),
    description="Keeps the best compressed variant of a model in production.",
    cel_rules=(
        Cel(
            "size(self.metadata.name) <= 40",
            "the name may have at most 40 characters: others are made from it",
        ),
        Cel(
            "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
            "the name must begin with a letter, and be made of small letters, digits and hyphens:"
            " Services are named after it",
        ),
    ),
)
