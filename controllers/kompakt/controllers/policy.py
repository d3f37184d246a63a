# SPDX-License-Identifier: Apache-2.0
"""The plan of a CompressionPolicy: which run is due, what serves, which rollout is due.

Invariants:

- a run is named by what it depends on: the same inputs are the same run, however often one asks;
- one rollout at a time, and each choice of a run is rolled out once: what was rolled back stays so
  until a new run chooses;
- what serves is kept serving whatever is wrong with the rest;
- the status is written last: what it tells has been done.
"""

from __future__ import annotations

from typing import Any

from kompakt.api import API_VERSION, names
from kompakt.api.artifact import canonical_json, sha256_digest
from kompakt.api.base import LocalRef
from kompakt.api.recipe import CompressionRecipeSpec
from kompakt.api.rollout import VariantRolloutSpec
from kompakt.api.run import CompressionRunSpec, NamedRecipe, Prior
from kompakt.controllers import family, objects, policy_status, ranges, search, tasks
from kompakt.controllers.conditions import is_true
from kompakt.controllers.halving import lead_target
from kompakt.controllers.plan import (
    Action,
    Create,
    Delete,
    Manifest,
    Plan,
    PolicyObserved,
    Run,
)
from kompakt.controllers.policy_status import Problem
from kompakt.controllers.production import Production, production
from kompakt.controllers.render.pods import metadata, owner_reference
from kompakt.controllers.rollout_case import is_under_way
from kompakt.controllers.run import has_ended

LOOK_AGAIN_SECONDS = 60.0
LOOK_AGAIN_WHEN_BROKEN_SECONDS = 15.0


def plan_policy(observed: PolicyObserved) -> Plan:
    """What to do now for one policy."""
    policy = observed.policy
    if policy.meta.deleting:
        # Owner references do the rest; without them (deletionPolicy Retain) what serves stays.
        return Plan()
    problems = find_problems(observed)
    digest = None if problems else inputs_digest(observed)
    run_name = digest and f"{policy.meta.name}-{objects.short_digest(digest)}"
    run = next((r for r in observed.runs if r.meta.name == (run_name or policy.status.run)), None)
    served = production(observed, run)
    actions: list[Action] = list(served.applies)
    if digest is not None and run_name is not None and not policy.spec.suspended:
        if run is None and not policy_status.is_done(policy.status, digest):
            actions.append(Create(_run_manifest(observed, name=run_name, digest=digest)))
        if run is not None:
            actions += _superseded(observed, run)
    rollout = None
    if not problems and not policy.spec.suspended and run is not None:
        rollout = _due_rollout(observed, run, served)
    if rollout is not None:
        actions.append(Create(rollout))
    actions += policy_status.write(
        observed,
        problems=problems,
        run=run,
        run_name=run_name,
        inputs_digest=digest,
        served=served,
        new_rollout=None if rollout is None else rollout["metadata"]["name"],
    )
    wait = LOOK_AGAIN_WHEN_BROKEN_SECONDS if problems else LOOK_AGAIN_SECONDS
    return Plan(tuple(actions), requeue_after=wait)


def find_problems(observed: PolicyObserved) -> list[Problem]:
    """What the policy names and nobody has, or what cannot be: nothing new starts until it is
    mended.
    """
    spec, namespace = observed.policy.spec, observed.policy.meta.namespace
    mend = "create it, or name another"
    problems = []
    if spec.store.uri is not None and spec.store.uri.startswith("file://"):
        text = "spec.store.uri: a file:// path is lost with each pod; use persistentVolumeClaim"
        problems.append(Problem("StoreInvalid", text))
    searched = [ref.name for ref in spec.search.recipes] if spec.search else []
    for name in dict.fromkeys([ref.name for ref in spec.recipes] + searched):
        recipe = observed.recipes.get(name)
        if recipe is None:
            text = f"CompressionRecipe {name} not found in namespace {namespace}: {mend}"
            problems.append(Problem("RecipeNotFound", text))
        elif (wrong := family.problem(recipe)) is not None or (
            name in searched and (wrong := ranges.recipe_problem(recipe)) is not None
        ):
            problems.append(Problem("RecipeInvalid", f"CompressionRecipe {name}: {wrong}"))
    problems += [
        Problem("HardwareProfileNotFound", f"HardwareProfile {name} not found: {mend}")
        for name in tasks.profile_names(spec)
        if name not in observed.profiles
    ]
    if spec.serving is not None and observed.gateway is None:
        ref = spec.serving.gateway_ref
        text = f"Gateway {ref.name} not found in namespace {ref.namespace or namespace}: {mend}"
        problems.append(Problem("GatewayNotFound", text))
    return problems


def inputs_digest(observed: PolicyObserved) -> str:
    """Digest of everything that a run's results depend on: not how they are served, nor where Jobs
    queue, nor who may read the sources.
    """
    policy = observed.policy
    wire = policy.spec.to_wire()
    inputs = {
        key: wire.get(key)
        for key in (
            "model",
            "data",
            "store",
            "recipes",
            "search",
            "targets",
            "gates",
            "optimizeFor",
        )
    }
    recipes = {name: recipe.to_wire() for name, recipe in _recipes(observed).items()}
    inputs |= {
        "specsOfRecipes": recipes,
        "seed": policy.spec.jobs.seed,
        "trigger": policy.meta.annotations.get(names.TRIGGER_ANNOTATION, ""),
    }
    return sha256_digest(canonical_json(_without(inputs, "secretRef")))


# --- runs ----------------------------------------------------------------------------------------


def _recipes(observed: PolicyObserved) -> dict[str, CompressionRecipeSpec]:
    spec = observed.policy.spec
    refs = [*spec.recipes, *(spec.search.recipes if spec.search else ())]
    return {ref.name: observed.recipes[ref.name] for ref in refs}


def _without(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return {k: _without(v, key) for k, v in value.items() if k != key}
    return [_without(v, key) for v in value] if isinstance(value, list) else value


def _trigger(observed: PolicyObserved) -> str:
    status = observed.policy.status
    asked = observed.policy.meta.annotations.get(names.TRIGGER_ANNOTATION)
    if asked is not None and asked != status.last_trigger:
        return f"annotation {names.TRIGGER_ANNOTATION}: {asked}"[:256]
    return "the policy or a recipe changed" if status.run else "the policy is new"


def _run_manifest(observed: PolicyObserved, *, name: str, digest: str) -> Manifest:
    policy = observed.policy
    spec = CompressionRunSpec(
        policy_ref=LocalRef(name=policy.meta.name),
        inputs_digest=digest,
        trigger=_trigger(observed),
        policy=policy.spec,
        recipes=[NamedRecipe(name=n, spec=recipe) for n, recipe in _recipes(observed).items()],
        prior=_prior(observed),
    )
    return _child(observed, "CompressionRun", name=name, spec=spec.to_wire())


def _prior(observed: PolicyObserved) -> Prior | None:
    """What the last run that went well measured, for a search to start from."""
    spec = observed.policy.spec
    ended = [run for run in observed.runs if is_true(run.status.conditions, "Succeeded")]
    last = max(ended, key=lambda run: run.status.started_unix_seconds or 0, default=None)
    if spec.search is None or last is None or last.status.baseline is None:
        return None
    searched = {ref.name: observed.recipes[ref.name] for ref in spec.search.recipes}
    trials = search.remember(last.status.trials, searched, target=lead_target(spec).name)
    return Prior(
        run=last.meta.name, model_parameters=last.status.baseline.parameters, trials=trials
    )


def _child(observed: PolicyObserved, kind: str, *, name: str, spec: Any) -> Manifest:
    meta = observed.policy.meta
    labels = {names.POLICY_LABEL: meta.name}
    owner = owner_reference("CompressionPolicy", meta)
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": metadata(name, meta.namespace, labels, owner=owner),
        "spec": spec,
    }


def _superseded(observed: PolicyObserved, current: Run) -> list[Delete]:
    """Runs of ours for inputs that nobody asks for any more: their Jobs go with them."""
    return [
        Delete(API_VERSION, "CompressionRun", run.meta.namespace, run.meta.name)
        for run in observed.runs
        if run.meta.name != current.meta.name
        and not has_ended(run)
        and not run.meta.deleting
        and run.meta.labels.get(names.MANAGED_BY_LABEL) == names.MANAGED_BY
    ]


# --- rollouts ------------------------------------------------------------------------------------


def _due_rollout(observed: PolicyObserved, run: Run, served: Production) -> Manifest | None:
    """The rollout of what the run chose, unless it serves, was rolled out before, or must wait."""
    choice = policy_status.served_choice(observed, run)
    candidate = policy_status.chosen_variant(observed, choice)
    if candidate is None or served.stable is None or observed.route is None or not served.serves:
        return None
    if candidate.spec.digest == served.stable.spec.digest:
        return None
    if any(is_under_way(rollout) for rollout in observed.rollouts):
        return None
    policy = observed.policy.meta.name
    name = objects.rollout_name(policy, run.meta.name, candidate.spec.digest)
    if name == observed.policy.status.rollout or any(
        rollout.meta.name == name for rollout in observed.rollouts
    ):
        return None
    spec = VariantRolloutSpec(
        policy_ref=LocalRef(name=policy), candidate_ref=LocalRef(name=candidate.meta.name)
    )
    return _child(observed, "VariantRollout", name=name, spec=spec.to_wire())
