# SPDX-License-Identifier: Apache-2.0
"""CompressionRecipe: named, ordered steps that turn a model into a smaller one, with ranges to
search.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kompakt.api.base import (
    Cel,
    FieldName,
    KindInfo,
    ListType,
    Model,
    Name,
    PrinterColumn,
    ShortText,
)
from kompakt.api.steps import (
    AttentionScope,
    Calibrate,
    Distill,
    LowRank,
    Prune,
    Quantize,
    TrimVocabulary,
)

STEP_NAMES = (
    "trimVocabulary",
    "prune",
    "lowRank",
    "attentionScope",
    "distill",
    "quantize",
    "calibrate",
)
"""What a recipe calls the members of a step."""
_ALL_STEPS = f"{', '.join(STEP_NAMES[:-1])} and {STEP_NAMES[-1]}"
_ONCE = ("trimVocabulary", "lowRank", "attentionScope", "quantize", "calibrate")
"""The others may be repeated: prune a little, distill, prune on."""


class Step(Model):
    """One step of a recipe: exactly one of its members."""

    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel(
            f"[{', '.join(f'has(self.{name})' for name in STEP_NAMES)}].filter(x, x).size() == 1",
            f"a step is exactly one of {_ALL_STEPS}",
        ),
    )

    trim_vocabulary: TrimVocabulary | None = None
    """Remove tokens."""
    prune: Prune | None = None
    """Remove heads, neurons and layers."""
    low_rank: LowRank | None = None
    """Split matrices into thinner ones."""
    attention_scope: AttentionScope | None = None
    """Let tokens look at those around them."""
    distill: Distill | None = None
    """Train the smaller model towards the original."""
    quantize: Quantize | None = None
    """Use fewer bits."""
    calibrate: Calibrate | None = None
    """Set the scores right."""

    @property
    def works_on_graph(self) -> bool:
        """Whether it works on the exported graph, and so comes after all that change weights."""
        return self.quantize is not None or self.calibrate is not None

    @property
    def ends_pruning(self) -> bool:
        """Whether prune must come before it."""
        return self.low_rank is not None or self.attention_scope is not None


class SearchRange(Model):
    """Values of one parameter that a search may try instead of the one in the step."""

    step: Literal[
        "trimVocabulary",
        "prune",
        "lowRank",
        "attentionScope",
        "distill",
        "quantize",
        "calibrate",
    ]
    """Step of the recipe that the parameter belongs to. Where the recipe has several of that name,
    all of them get the same value."""
    parameter: FieldName
    """Name of an integer parameter of that step, as written in the recipe."""
    minimum: Annotated[int, Field(ge=0, le=10_000_000)]
    """Smallest value."""
    maximum: Annotated[int, Field(ge=0, le=10_000_000)]
    """Largest value."""
    increment: Annotated[int, Field(ge=1, le=10_000_000)] = 1
    """Distance between values."""

    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel("self.minimum <= self.maximum", "minimum must not be above maximum"),
    )


_AWARE = "has({0}.distill) && {0}.distill.quantizationAware == 'Enabled'"
_GATED = (
    "has({0}.prune) && (has({0}.prune.minAgreementBasisPoints)"
    " || has({0}.prune.maxDropBasisPoints))"
)
_NO_AWARE = f"!self.steps.exists(s, {_AWARE.format('s')})"


class CompressionRecipeSpec(Model):
    """Ordered steps. The result is always exported to ONNX; a quantize step works on the exported
    graph.
    """

    description: ShortText = ""
    """What it does, in a sentence."""
    steps: Annotated[list[Step], Field(min_length=1, max_length=16), ListType("atomic")]
    """In the order in which they run."""
    ranges: Annotated[list[SearchRange], Field(max_length=16), ListType("atomic")] = []
    """Parameters that a search may vary."""
    family: Annotated[
        list[Annotated[int, Field(ge=20, le=999)]], Field(max_length=8), ListType("atomic")
    ] = []
    """Shares of the layers' latency in permille, the largest first: a run makes one variant for
    each, by repeating the prune step and what follows it. Each goes on from the one before. (A
    search leaves it out.)"""

    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel(
            "!has(self.family) || self.family.size() < 2 || self.family.map(f, -f).isSorted()",
            "family begins with the largest share",
            ".family",
        ),
        Cel(
            "self.steps.all(s, !has(s.quantize))"
            " || has(self.steps[self.steps.size() - 1].quantize)"
            " || (self.steps.size() > 1 && has(self.steps[self.steps.size() - 2].quantize)"
            " && has(self.steps[self.steps.size() - 1].calibrate))",
            "quantize works on the exported graph, so only calibrate may follow it",
            ".steps",
        ),
        Cel(
            "self.steps.all(s, !has(s.calibrate))"
            " || has(self.steps[self.steps.size() - 1].calibrate)",
            "calibrate is about the finished model, so it must be the last step",
            ".steps",
        ),
        Cel(
            " && ".join(f"self.steps.filter(s, has(s.{n})).size() <= 1" for n in _ONCE),
            f"each of {', '.join(_ONCE[:-1])} and {_ONCE[-1]} may appear once",
            ".steps",
        ),
        Cel(
            "self.steps.filter(s, has(s.prune) || has(s.lowRank))"
            ".map(s, has(s.lowRank) ? 1 : 0).isSorted()",
            "prune takes whole matrices apart, so lowRank must come after it",
            ".steps",
        ),
        Cel(
            "self.steps.filter(s, has(s.prune) || has(s.attentionScope))"
            ".map(s, has(s.attentionScope) ? 1 : 0).isSorted()",
            "attentionScope chooses among the layers that prune leaves, so it must come after it",
            ".steps",
        ),
        Cel(
            f"{_NO_AWARE} || (self.steps.exists_one(s, {_AWARE.format('s')})"
            " && ((self.steps.size() > 1 && has(self.steps[self.steps.size() - 1].quantize)"
            f" && {_AWARE.format('self.steps[self.steps.size() - 2]')})"
            " || (self.steps.size() > 2 && has(self.steps[self.steps.size() - 2].quantize)"
            f" && {_AWARE.format('self.steps[self.steps.size() - 3]')})))",
            "a distill step with quantizationAware trains for the quantize step, which must come"
            " next; only the last distill step may be one",
            ".steps",
        ),
        Cel(
            f"{_NO_AWARE} || self.steps.all(s, !has(s.quantize)"
            " || s.quantize.method in ['DynamicInt8', 'StaticInt8', 'WeightOnly'])",
            "quantizationAware can train for DynamicInt8, StaticInt8 and WeightOnly: quantize by"
            " one of these, or leave it out",
            ".steps",
        ),
        Cel(
            f"{_NO_AWARE} || self.steps.all(s, !has(s.quantize)"
            " || (s.quantize.zeroPoints == 'Disabled'"
            " && s.quantize.activationAwareAlphaPermille == 0 && (s.quantize.method != 'StaticInt8'"
            " || s.quantize.smoothQuantAlphaPermille == 0)))",
            "quantizationAware trains for weights as they are: set smoothQuantAlphaPermille to 0,"
            " and leave zeroPoints and activationAwareAlphaPermille out",
            ".steps",
        ),
        Cel(
            f"{_NO_AWARE} || !has(self.family) || self.family.size() == 0",
            "a family prunes on from one member to the next, and rounded weights are none to go on"
            " from: leave quantizationAware out, or the family",
            ".steps",
        ),
        Cel(
            f"!self.steps.exists(s, {_GATED.format('s')}) || !has(self.family)"
            " || self.family.size() == 0",
            "a family has a variant for each share, and the policy's gates judge them: leave"
            " minAgreementBasisPoints and maxDropBasisPoints of prune out, or the family",
            ".steps",
        ),
        Cel(
            " && ".join(
                f"(self.steps.size() < {place + 1}"
                f" || !({_AWARE.format(f'self.steps[self.steps.size() - {place}]')})"
                f" || !({_GATED.format(f'self.steps[self.steps.size() - {place + 1}]')}))"
                for place in (2, 3)
            ),
            "the gate of a prune step looks at the model before quantizationAware rounds it: put a"
            " distill step without quantizationAware between the two",
            ".steps",
        ),
        Cel(
            "self.steps.all(s, !has(s.prune) || s.prune.importance != 'L0' || !("
            "has(s.prune.latencyKeepPermille) || has(self.family) && self.family.size() > 0))",
            "importance L0 learns for shares of heads and neurons: set headKeepPermille and"
            " ffnKeepPermille instead of latencyKeepPermille or a family, or take Fisher",
            ".steps",
        ),
        # Of recipes, not of steps: a search may come to a step that keeps everything.
        Cel(
            "self.steps.all(s, !has(s.prune) || has(s.prune.latencyKeepPermille)"
            " || s.prune.ffnKeepPermille < 1000 || s.prune.headKeepPermille < 1000"
            " || s.prune.dropLayers > 0)",
            "prune removes nothing: set ffnKeepPermille, headKeepPermille, dropLayers or"
            " latencyKeepPermille",
            ".steps",
        ),
        Cel(
            "self.steps.all(s, !has(s.prune) || !has(s.prune.latencyKeepPermille)"
            " || (s.prune.ffnKeepPermille == 1000 && s.prune.headKeepPermille == 1000))",
            "latencyKeepPermille replaces ffnKeepPermille and headKeepPermille: leave those out",
            ".steps",
        ),
        Cel(
            "self.steps.all(s, !has(s.prune) || !has(s.prune.latencyTokens)"
            " || has(s.prune.latencyKeepPermille) || has(self.family) && self.family.size() > 0)",
            "latencyTokens is about what latencyKeepPermille or a family is a share of: set one of"
            " these, or leave latencyTokens out",
            ".steps",
        ),
    )


COMPRESSION_RECIPE = KindInfo(
    kind="CompressionRecipe",
    plural="compressionrecipes",
    short_names=("crec",),
    spec=CompressionRecipeSpec,
    status=None,
    columns=(
        PrinterColumn("Description", ".spec.description"),
        PrinterColumn("Age", ".metadata.creationTimestamp", "date"),
    ),
    description="Named, ordered compression steps with ranges to search.",
)

RecipeName = Name
