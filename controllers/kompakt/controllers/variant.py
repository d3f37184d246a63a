# SPDX-License-Identifier: Apache-2.0
"""The plan of a ModelVariant: may it be rolled out, does it serve, and its figures in short.

    conditions: [Ready=True Measured "…", Serving=True]; role: Stable; speedupPermille: 3120

The spec is all there is: a variant changes nothing but its own status.
"""

from __future__ import annotations

from kompakt.api import names
from kompakt.api.base import Condition
from kompakt.api.policy import CompressionPolicySpec
from kompakt.api.run import TargetResult
from kompakt.controllers.bounds import drop_basis_points
from kompakt.controllers.conditions import ConditionStatus, condition, merge
from kompakt.controllers.gates import gates_failed
from kompakt.controllers.plan import Plan, VariantObserved, WriteStatus
from kompakt.controllers.select import evidence


def plan_variant(observed: VariantObserved) -> Plan:
    """What to do now for one variant."""
    variant = observed.variant
    if variant.meta.deleting:
        return Plan()
    policy = observed.policy.spec if observed.policy is not None else None
    figures = _figures(observed, policy)
    role = _role(observed)
    seen = figures.benchmark if figures is not None else None
    status = variant.status.evolve(
        conditions=merge(variant.status.conditions, _conditions(observed, figures, role=role)),
        observed_generation=variant.meta.generation,
        speedup_permille=seen.speedup_permille if seen is not None else None,
        accuracy_drop_basis_points=drop_basis_points(figures.evaluation.confirmation)
        if figures is not None and figures.evaluation is not None
        else None,
        gates_passed=_gates_passed(observed, figures, policy),
        role=role,
    )
    return Plan(() if status == variant.status else (WriteStatus(status),))


def _figures(
    observed: VariantObserved, policy: CompressionPolicySpec | None
) -> TargetResult | None:
    """On the target that is served, or on the first that was measured."""
    measured = [f for f in observed.variant.spec.figures if f.state == "Measured"]
    served = policy.serving.target if policy is not None and policy.serving is not None else None
    return next((f for f in measured if f.target == served), next(iter(measured), None))


def _role(observed: VariantObserved) -> str:
    told = observed.route.annotations if observed.route is not None else {}
    name = observed.variant.meta.name
    if told.get(names.STABLE_ANNOTATION) == name:
        return "Stable"
    return "Candidate" if told.get(names.CANDIDATE_ANNOTATION) == name else "None"


def _gates_passed(
    observed: VariantObserved, figures: TargetResult | None, policy: CompressionPolicySpec | None
) -> list[str]:
    """The policy's gates that this variant passes, looked at alone: where one of many is chosen,
    the run asks for more.
    """
    found = evidence(figures, size_bytes=observed.variant.spec.size_bytes)
    if found is None or policy is None:
        return []
    return [gate.name for gate in policy.gates if not gates_failed(found.evaluation, [gate])]


def _conditions(
    observed: VariantObserved, figures: TargetResult | None, *, role: str
) -> list[Condition]:
    def said(type_: str, status: ConditionStatus, *, reason: str, message: str) -> Condition:
        return condition(
            type_,
            status,
            reason=reason,
            message=message,
            generation=observed.variant.meta.generation,
            now=observed.now,
        )

    reference = observed.variant.spec.policy_ref
    if reference is None:
        text = "spec.policyRef is absent: a rollout needs the policy whose model this is"
        ready = said("Ready", "False", reason="NoPolicy", message=text)
    elif observed.policy is None:
        text = f"CompressionPolicy {reference.name} not found: create it"
        ready = said("Ready", "False", reason="PolicyNotFound", message=text)
    elif figures is not None:
        text = f"measured on {', '.join(f.target for f in observed.variant.spec.figures)}"
        ready = said("Ready", "True", reason="Measured", message=text)
    elif observed.variant.spec.lineage.run is not None:
        ready = said("Ready", "True", reason="Imported", message="the source, unchanged")
    else:
        text = "registered by hand: nothing is known of it but what a rollout shows"
        ready = said("Ready", "True", reason="Registered", message=text)
    serving = {
        "Stable": said("Serving", "True", reason="Stable", message="it answers users"),
        "Candidate": said("Serving", "False", reason="Candidate", message="a rollout tries it"),
        "None": said("Serving", "False", reason="NotRouted", message="no route leads to it"),
    }
    return [ready, serving[role]]
