# SPDX-License-Identifier: Apache-2.0
"""What serves for a policy, and what keeps it serving.

Invariants:

- the route tells what serves; the policy's status is only asked when there is no route;
- the first route is made when the pods behind it are ready, and only rollouts move its traffic: a
  plan of the policy repeats the shares that it finds, and not even these while a rollout is under
  way;
- the Deployment of the stable variant exists always, also after somebody deleted it;
- a route that is not ours is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from kompakt.api import names
from kompakt.api.policy import Serving
from kompakt.controllers import objects
from kompakt.controllers.plan import (
    Apply,
    DeploymentState,
    PolicyObserved,
    RouteState,
    Run,
    Variant,
)
from kompakt.controllers.render.route import TrafficPlan, route_manifest
from kompakt.controllers.render.serving import model_name, serving_manifests
from kompakt.controllers.rollout_case import is_under_way


@dataclass(frozen=True)
class Production:
    """What serves now, and what is to be applied so that it goes on."""

    applies: tuple[Apply, ...] = ()
    stable: Variant | None = None
    """The variant that answers users, or will first."""
    serves: bool = False
    """Users are answered."""
    reason: str = "NothingToServe"
    message: str = ""
    """Why, or why not."""
    url: str | None = None


def production(observed: PolicyObserved, run: Run | None) -> Production:
    """What serves, and what keeps it serving.

    Args:
        observed: The policy and what belongs to it.
        run: Its current run, whose source is the first to be served.
    """
    serving = observed.policy.spec.serving
    if serving is None:
        return Production(message="spec.serving is absent: variants are published, none is served")
    route = observed.route
    if route is not None and names.STABLE_ANNOTATION not in route.annotations:
        name = objects.route_name(observed.policy.meta.name)
        text = f"HTTPRoute {name} is not Kompakt's: delete it, or give the policy another name"
        return Production(reason="RouteExists", message=text)
    stable = _stable(observed, run)
    if stable is None:
        return _nothing(route)
    applies = _pods(observed, serving, stable)
    deployment = observed.deployments.get(
        objects.serving_name(observed.policy.meta.name, stable.spec.digest)
    )
    available = deployment is not None and deployment.available
    under_way = any(is_under_way(rollout) for rollout in observed.rollouts)
    if observed.gateway is not None and not under_way and (available or route is not None):
        applies.append(Apply(_route(observed, stable)))
    reason, message = _state(observed, stable, deployment)
    return Production(
        applies=tuple(applies),
        stable=stable,
        serves=reason == "Serving",
        reason=reason,
        message=message,
        url=_url(observed),
    )


def _nothing(route: RouteState | None) -> Production:
    if route is None:
        text = "nothing serves yet: the source model is not imported"
        return Production(reason="NotImported", message=text)
    name = route.annotations[names.STABLE_ANNOTATION]
    text = f"ModelVariant {name} serves, but is gone: register it again, or roll out another"
    return Production(reason="VariantNotFound", message=text)


def _stable(observed: PolicyObserved, run: Run | None) -> Variant | None:
    """The variant that serves, or that will be the first to."""
    variants = {variant.meta.name: variant for variant in observed.variants}
    if observed.route is not None:
        return variants.get(observed.route.annotations[names.STABLE_ANNOTATION])
    # Somebody deleted the route: what served last is still known, if not from the status then as
    # the source of the run.
    last = variants.get(observed.policy.status.serving_variant or "")
    return last or variants.get((run and run.status.baseline_variant) or "")


def _pods(observed: PolicyObserved, serving: Serving, stable: Variant) -> list[Apply]:
    """Deployment and Service of the stable variant; as they are, while their profile is missing."""
    targets = {t.name: t.hardware_profile_ref.name for t in observed.policy.spec.targets}
    profile = observed.profiles.get(targets.get(serving.target, ""))
    if profile is None:
        return []
    manifests = serving_manifests(
        policy=observed.policy, variant=stable, profile=profile, settings=observed.settings
    )
    return [Apply(manifest) for manifest in manifests]


def _route(observed: PolicyObserved, stable: Variant) -> dict[str, object]:
    """The route with the shares that it has, or all on the stable variant if there is none yet."""
    live = observed.route
    if live is None:
        traffic = TrafficPlan(objects.serving_name(observed.policy.meta.name, stable.spec.digest))
        return route_manifest(
            policy=observed.policy, traffic=traffic, stable_variant_name=stable.meta.name
        )
    weighted = live.candidate_backend is not None and live.candidate_permille > 0
    mirrored = live.mirror_backend is not None and not weighted
    return route_manifest(
        policy=observed.policy,
        traffic=TrafficPlan(
            live.stable_backend,
            candidate_service=live.candidate_backend if weighted else None,
            candidate_permille=live.candidate_permille if weighted else 0,
            mirror_service=live.mirror_backend if mirrored else None,
            mirror_percent=live.mirror_percent if mirrored else 0,
        ),
        stable_variant_name=live.annotations[names.STABLE_ANNOTATION],
        candidate_variant_name=live.annotations.get(names.CANDIDATE_ANNOTATION),
        former_variant_name=live.annotations.get(names.FORMER_ANNOTATION),
    )


def _state(
    observed: PolicyObserved, stable: Variant, deployment: DeploymentState | None
) -> tuple[str, str]:
    """Whether users are answered, in a word and in a sentence."""
    gateway, route = observed.gateway, observed.route
    name = stable.meta.name
    if deployment is None or not deployment.available:
        ready = "none" if deployment is None else f"{deployment.ready} of {deployment.desired}"
        why = f": {deployment.message}" if deployment is not None and deployment.message else ""
        return "PodsNotReady", f"{ready} of the pods of {name} ready{why}"
    if gateway is None or not gateway.programmed:
        why = gateway.message if gateway is not None else "it is gone"
        return "GatewayNotReady", f"the gateway does not work: {why}"
    if route is None or not route.accepted:
        why = f": {route.message}" if route is not None and route.message else ""
        return "RouteNotAccepted", f"the gateway has not taken the route to {name} yet{why}"
    return "Serving", f"{name} answers at {_url(observed) or 'an unknown address'}"


def _url(observed: PolicyObserved) -> str | None:
    if observed.gateway is None or observed.gateway.address is None:
        return None
    return f"http://{observed.gateway.address}/v2/models/{model_name(observed.policy)}"
