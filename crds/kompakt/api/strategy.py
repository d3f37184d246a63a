# SPDX-License-Identifier: Apache-2.0
"""How a variant is brought to production: shadow, canary steps, objectives, deadlines, what to do
when unsure.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kompakt.api.base import BasisPoints, Cel, ListType, Model, Name, Percent, Seconds


class Shadow(Model):
    """Mirrored traffic: the candidate answers copies of user requests, users see none of its
    answers.
    """

    percent: Percent = 100
    """Share of user requests that is mirrored."""
    minimum_pairs: Annotated[int, Field(ge=1, le=10_000_000)] = 300
    """Compared answers before the canary may start."""


class CanaryStep(Model):
    """One weight of the candidate."""

    weight_permille: Annotated[int, Field(ge=1, le=1000)]
    """The candidate's share of user requests, in thousandths."""
    minimum_requests: Annotated[int, Field(ge=1, le=100_000_000)] = 100
    """Requests answered by the candidate at this weight before the next step."""


class Canary(Model):
    """Steps of growing weight."""

    steps: Annotated[list[CanaryStep], Field(min_length=1, max_length=20), ListType("atomic")] = [
        CanaryStep(weight_permille=50, minimum_requests=200),
        CanaryStep(weight_permille=250, minimum_requests=500),
        CanaryStep(weight_permille=500, minimum_requests=1000),
    ]
    """In the order in which they are taken."""

    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel(
            "self.steps.all(s,"
            " self.steps.filter(t, t.weightPermille == s.weightPermille).size() == 1)",
            "each weight may appear once",
            ".steps",
        ),
        Cel(
            # Ascending: the weights sorted are the weights as written.
            "self.steps.map(s, s.weightPermille).isSorted()",
            "weights must grow from step to step",
            ".steps",
        ),
    )


class Slo(Model):
    """A service level objective of the candidate: a ratio good/total judged by a confidence
    sequence.
    """

    name: Name
    """Unique among the objectives."""
    type: Literal["Latency", "Availability", "Disagreement", "Accuracy"]
    """Latency: share of answers within `thresholdMicroseconds`. Availability: share of requests
    answered.
    Disagreement: share of mirrored requests answered with another label than the stable variant's.
    Accuracy: paired accuracy drop on the golden set."""
    threshold_microseconds: Annotated[int, Field(ge=100, le=10_000_000)] | None = None
    """Latency: an answer that took longer is bad."""
    good_basis_points: Annotated[int, Field(ge=1, le=9999)] | None = None
    """The objective of Latency and Availability: at least this share is good."""
    margin_basis_points: BasisPoints = 0
    """The candidate fails only if it is also worse than the stable variant by more than this."""
    max_excess_basis_points: BasisPoints | None = None
    """Disagreement above what the variant showed offline."""
    max_drop_basis_points: BasisPoints | None = None
    """Accuracy: the largest drop on the golden set."""
    mode: Literal["Guard", "Certify"] = "Guard"
    """Guard: stops a rollout when it fails. Certify: must also pass once before promotion."""

    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel(
            "self.type != 'Latency'"
            " || (has(self.thresholdMicroseconds) && has(self.goodBasisPoints))",
            "an objective of type Latency needs thresholdMicroseconds and goodBasisPoints",
        ),
        Cel(
            "self.type != 'Availability' || has(self.goodBasisPoints)",
            "an objective of type Availability needs goodBasisPoints",
        ),
        Cel(
            "self.type != 'Disagreement' || has(self.maxExcessBasisPoints)",
            "an objective of type Disagreement needs maxExcessBasisPoints",
        ),
        Cel(
            "self.type != 'Accuracy' || has(self.maxDropBasisPoints)",
            "an objective of type Accuracy needs maxDropBasisPoints",
        ),
    )


class ErrorBudgets(Model):
    """How often the judge may be wrong, over a whole rollout."""

    wrong_rollback_basis_points: Annotated[int, Field(ge=1, le=5000)] = 100
    """Probability of rolling back a variant that keeps every objective; split over objectives and
    stages."""
    wrong_promotion_basis_points: Annotated[int, Field(ge=1, le=5000)] = 500
    """Probability that one Certify objective passes although it is broken."""


class Rollout(Model):
    """Shadow, canary, promotion, watch."""

    shadow: Shadow = Shadow()
    canary: Canary = Canary()
    slos: Annotated[list[Slo], Field(max_length=16), ListType("map", ("name",))] = []
    """What the candidate must keep."""
    error_budgets: ErrorBudgets = ErrorBudgets()
    deadline_seconds: Annotated[int, Field(ge=30, le=2_592_000)] = 7200
    """From the start of Shadow to the promotion; what is undecided then is handled as
    `onInconclusive` says."""
    on_inconclusive: Literal["Hold", "Rollback"] = "Hold"
    """Hold keeps the traffic as it is until a person decides, by the annotation
    kompakt.dev/action."""
    approval: Literal["Automatic", "Manual"] = "Automatic"
    """Manual: the promotion waits for the annotation kompakt.dev/action: promote."""
    watch_seconds: Seconds = 3600
    """How long the former stable variant stays warm, and a regression still rolls back, after the
    promotion."""
