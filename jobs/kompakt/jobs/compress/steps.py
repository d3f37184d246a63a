# SPDX-License-Identifier: Apache-2.0
"""What a step is, and which there are. No torch here: a recipe without torch steps needs none.

A torch step changes the model in place; a graph step makes one `Graph` of another. Steps know
nothing of stores and tasks, only of models and of their data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic.alias_generators import to_snake

from kompakt.api.base import Task
from kompakt.api.recipe import Step
from kompakt.jobs.compress.agreement import TASKS as COMPARED
from kompakt.jobs.compress.stages import is_gated
from kompakt.jobs.errors import StepInvalid

if TYPE_CHECKING:
    from kompakt.jobs.compress.graph import Graph, GraphData
    from kompakt.jobs.compress.training import TrainingData
    from kompakt.jobs.models.encoder import Encoder


class TorchStep(Protocol):
    """Changes a model in torch."""

    def apply(self, encoder: Encoder, data: TrainingData) -> str:
        """Works on the model in place; returns what it did, for people."""


class GraphStep(Protocol):
    """Makes one graph out of another."""

    def apply(self, graph: Graph, target: Path, data: GraphData) -> tuple[Graph, str]:
        """Writes into the folder `target`; returns what is there, and what was done, for
        people.
        """


@dataclass(frozen=True)
class Entry:
    """Where a step's class is."""

    module: str
    name: str
    needs_torch: bool
    needs_texts: bool = True
    """Any texts; the labelled ones of `calibrate` are another matter."""

    def make(self, parameters: object) -> Any:
        """The step with its parameters."""
        return getattr(import_module(self.module), self.name)(parameters)


_OPENVINO = "kompakt.jobs.compress.quantize_openvino"
METHODS = {
    "DynamicInt8": Entry(
        "kompakt.jobs.compress.quantize", "DynamicInt8", needs_torch=False, needs_texts=False
    ),
    "StaticInt8": Entry("kompakt.jobs.compress.quantize_static", "StaticInt8", needs_torch=False),
    "OpenVinoInt8": Entry(_OPENVINO, "OpenVinoInt8", needs_torch=False),
    "BFloat16": Entry(_OPENVINO, "BFloat16", needs_torch=False, needs_texts=False),
    "Float16": Entry(
        "kompakt.jobs.compress.quantize_half", "Float16", needs_torch=False, needs_texts=False
    ),
    "WeightOnly": Entry(
        "kompakt.jobs.compress.quantize_weights", "WeightOnly", needs_torch=False, needs_texts=False
    ),
}
"""The step `quantize`, by its method."""
STEPS = {
    "trimVocabulary": Entry("kompakt.jobs.compress.trim", "TrimTokens", needs_torch=True),
    "prune": Entry("kompakt.jobs.compress.prune", "PruneUnits", needs_torch=True),
    "lowRank": Entry("kompakt.jobs.compress.low_rank", "FactorMatrices", needs_torch=True),
    "attentionScope": Entry("kompakt.jobs.compress.scope", "LimitAttention", needs_torch=True),
    "distill": Entry("kompakt.jobs.compress.distill", "Distillation", needs_torch=True),
    "quantize": METHODS["DynamicInt8"],
    "calibrate": Entry(
        "kompakt.jobs.compress.temperature", "Temperature", needs_torch=False, needs_texts=False
    ),
}
"""By what a recipe calls them (`kompakt.api.recipe.STEP_NAMES`)."""
TASKS: dict[str, tuple[Task, ...]] = {
    "calibrate": ("TextClassification",),
}
"""Models of which tasks a step can handle, where these are not all."""
ABSOLUTE = ("lowRank", "attentionScope")
"""Steps for models with absolute positions."""


def name_of(step: Step) -> str:
    """What a step is called in the recipe."""
    names = [name for name in STEPS if _parameters(step, name) is not None]
    if len(names) != 1:
        raise StepInvalid(
            f"a step is exactly one of {', '.join(STEPS)}; this one is"
            f" {' and '.join(names) or 'none'}"
        )
    return names[0]


def split(steps: list[Step]) -> tuple[list[Step], list[Step]]:
    """The torch steps, and the graph steps that follow them."""
    torch_steps = [step for step in steps if STEPS[name_of(step)].needs_torch]
    quantize = [step for step in steps if step.quantize is not None]
    calibrate = [step for step in steps if step.calibrate is not None]
    if steps != torch_steps + quantize + calibrate:
        raise StepInvalid(
            "quantize works on the exported graph, so only calibrate may follow it; calibrate is"
            " about the finished model, so it must be the last step"
        )
    last_prune = max(
        (place for place, step in enumerate(steps) if step.prune is not None), default=-1
    )
    for step in steps[: last_prune + 1]:
        if step.low_rank is not None:
            raise StepInvalid("prune takes whole matrices apart, so lowRank must come after it")
        if step.attention_scope is not None:
            raise StepInvalid(
                "attentionScope chooses among the layers that prune leaves, so it must come after"
                " it"
            )
    for former, step in pairwise(torch_steps):
        aware_now = step.distill is not None and step.distill.quantization_aware == "Enabled"
        if is_gated(former) and aware_now:
            raise StepInvalid(
                "the gate of a prune step looks at the model before quantizationAware rounds it:"
                " put a distill step without quantizationAware between the two"
            )
    aware = [s for s in torch_steps if s.distill and s.distill.quantization_aware == "Enabled"]
    if aware and aware != torch_steps[-1:]:
        raise StepInvalid(
            "a distill step with quantizationAware trains for the quantize step, which must come"
            " next; only the last distill step may be one"
        )
    return torch_steps, quantize + calibrate


def check_task(steps: list[Step], task: Task) -> None:
    """Refuses, before any work, steps that cannot handle models of a task."""
    able = [name for name in STEPS if task in TASKS.get(name, (task,))]
    for name in map(name_of, steps):
        if name not in able:
            raise StepInvalid(
                f"the step {name} cannot handle a model of the task {task}; take it out of the"
                f" recipe: {', '.join(able)} can"
            )
    if any(is_gated(step) for step in steps) and task not in COMPARED:
        raise StepInvalid(
            "minAgreementBasisPoints and maxDropBasisPoints of prune count texts by their answer,"
            f" and a model of the task {task} has several for a text; leave them out"
        )
    drops = [s for s in steps if s.prune and s.prune.max_drop_basis_points is not None]
    if drops and task != "TextClassification":
        raise StepInvalid(
            "prune.maxDropBasisPoints counts texts with the right label, and a model of the task"
            f" {task} gives none to a text; take minAgreementBasisPoints, which needs none"
        )
    mixed = any(step.quantize is not None and step.quantize.mixed == "Enabled" for step in steps)
    if mixed and task not in COMPARED:
        raise StepInvalid(
            f"quantize.mixed counts texts that keep their answer, and a model of the task {task}"
            " has several for a text; leave mixed out"
        )
    if task == "SentenceEmbedding":
        _check_unlabelled(steps)


def _check_unlabelled(steps: list[Step]) -> None:
    """Refuses what trains towards labels."""
    if any(step.prune is not None and step.prune.importance == "Movement" for step in steps):
        raise StepInvalid(
            "prune.importance is Movement, which trains towards labels, and a SentenceEmbedding has"
            " none; take Fisher, which needs none"
        )
    if any(step.distill is not None and step.distill.label_weight_permille for step in steps):
        raise StepInvalid(
            "distill.labelWeightPermille is for models with labels, and a SentenceEmbedding has"
            " none; set it to 0"
        )


def check_length(steps: list[Step], longest: int) -> None:
    """Refuses, before any work, a latency of texts that are longer than any that is read."""
    for step in steps:
        tokens = step.prune.latency_tokens if step.prune is not None else None
        if tokens is not None and tokens > longest:
            raise StepInvalid(
                f"prune.latencyTokens is {tokens}, but model.maxSequenceLength is {longest}, and no"
                " text is read beyond that; lower it, or leave it out"
            )


def check_positions(steps: list[Step], *, relative: bool) -> None:
    """Refuses, before any work, what cannot handle relative positions: a table of them goes through
    the matrices too, which neither a budget of latency nor lower ranks take into account, and a
    local window would look up distances block by block.
    """
    if not relative:
        return
    for name in map(name_of, steps):
        if name in ABSOLUTE:
            able = ", ".join(other for other in STEPS if other not in ABSOLUTE)
            raise StepInvalid(
                f"the step {name} is for models with absolute positions, and those of this one are"
                f" relative; take it out of the recipe: {able} can"
            )
    if any(step.prune is not None and step.prune.latency_keep_permille for step in steps):
        raise StepInvalid(
            "prune.latencyKeepPermille is for models with absolute positions, and those of this one"
            " are relative; set ffnKeepPermille and headKeepPermille instead"
        )


def entry_of(step: Step) -> Entry:
    """Where the class of a step is."""
    if step.quantize is None:
        return STEPS[name_of(step)]
    entry = METHODS[step.quantize.method]
    looks = step.quantize.activation_aware_alpha_permille > 0
    return replace(entry, needs_texts=True) if looks else entry


def torch_step(step: Step) -> TorchStep:
    """The class at work for a torch step."""
    made: TorchStep = entry_of(step).make(_parameters(step, name_of(step)))
    return made


def graph_step(step: Step) -> GraphStep:
    """The class at work for a graph step."""
    made: GraphStep = entry_of(step).make(_parameters(step, name_of(step)))
    return made


def _parameters(step: Step, name: str) -> object:
    return getattr(step, to_snake(name))
