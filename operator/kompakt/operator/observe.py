# SPDX-License-Identifier: Apache-2.0
"""Puts together what a plan looks at: live objects parsed into the values of
`kompakt.controllers.plan`.

Everything comes from the store and the last measurements, but for what the store may not have: the
pods of a Job that has just ended (their termination messages), a Gateway that nobody has asked for
yet, and a route of somebody else's under the name of ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from kompakt.api import KINDS, KindInfo, names
from kompakt.api.base import Model
from kompakt.controllers.objects import route_name
from kompakt.controllers.plan import (
    DeploymentState,
    GatewayState,
    JobState,
    Meta,
    PolicyObserved,
    Resource,
    RolloutObserved,
    RouteState,
    RunObserved,
    Settings,
    VariantObserved,
)
from kompakt.controllers.render.route import parse_route
from kompakt.operator import owners, states
from kompakt.operator.client import Client
from kompakt.operator.errors import InvalidObject, NotFound
from kompakt.operator.gateways import Gateways
from kompakt.operator.meter import VariantMeter
from kompakt.operator.resources import (
    BY_NAME,
    POLICY,
    PROFILE,
    RECIPE,
    ROLLOUT,
    RUN,
    VARIANT,
    Manifest,
    Ref,
    ref_of,
)
from kompakt.operator.store import JOB_NAME_LABEL, POLICY_REF, Store

_INFO: Mapping[str, KindInfo] = {info.kind: info for info in KINDS}


def parse(obj: Manifest) -> Resource[Any, Any]:
    """An object of one of our kinds as a value. Raises InvalidObject with the field, the reason and
    the mend.
    """
    info = _INFO[obj["kind"]]
    status_type = info.status or Model
    try:
        return Resource(
            meta=meta(obj),
            spec=info.spec.model_validate(obj.get("spec") or {}),
            status=status_type.model_validate(obj.get("status") or {}),
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        # Which of the two it was: the fields of specs and statuses do not overlap but for names.
        part = "status" if error.title == status_type.__name__ else "spec"
        field = ".".join([part, *(str(step) for step in first["loc"])])
        name = obj["metadata"]["name"]
        message = (
            f"{obj['kind']} {name}: {field}: {first['msg']}; mend the field, and apply the CRDs "
            "of this release, whose validation would have refused it"
        )
        raise InvalidObject("InvalidObject", message) from error


def meta(obj: Manifest) -> Meta:
    """The metadata that decisions use."""
    metadata = obj["metadata"]
    return Meta(
        name=metadata["name"],
        namespace=metadata.get("namespace", ""),
        uid=metadata.get("uid", ""),
        generation=metadata.get("generation", 1),
        labels=metadata.get("labels") or {},
        annotations=metadata.get("annotations") or {},
        finalizers=tuple(metadata.get("finalizers") or ()),
        deleting=metadata.get("deletionTimestamp") is not None,
        created_unix_seconds=states.unix_seconds(metadata.get("creationTimestamp")),
    )


class Observer:
    """Gathers observations."""

    def __init__(
        self,
        store: Store,
        client: Client,
        *,
        gateways: Gateways,
        meter: VariantMeter,
        settings: Settings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._client = client
        self._gateways = gateways
        self._meter = meter
        self._settings = settings
        self._clock = clock

    async def policy(self, ref: Ref) -> PolicyObserved:
        """For the plan of a policy."""
        policy = self._store.parsed(ref, parse)
        namespace, name = ref.namespace, ref.name
        raw = self._store.get(ref) or {}
        spec = policy.spec
        recipes = {r.name for r in (*spec.recipes, *(spec.search.recipes if spec.search else ()))}
        return PolicyObserved(
            now=self._clock(),
            policy=policy,
            settings=self._settings,
            # A recipe of the policy's namespace hides one of the catalogue.
            recipes={
                **self._specs(RECIPE, self._settings.operator_namespace, recipes),
                **self._specs(RECIPE, namespace, recipes),
            },
            profiles=self._specs(PROFILE, "", owners.profiles(raw)),
            runs=self._of_policy(RUN, namespace, name),
            variants=self._of_policy(VARIANT, namespace, name),
            rollouts=self._of_policy(ROLLOUT, namespace, name),
            deployments=self._deployments(namespace, name),
            gateway=await self._gateway(raw),
            route=await self._route(namespace, name),
        )

    async def run(self, ref: Ref) -> RunObserved:
        """For the plan of a run."""
        run = self._store.parsed(ref, parse)
        raw = self._store.get(ref) or {}
        jobs = self._store.where("Job", ref.namespace, names.RUN_LABEL, ref.name)
        return RunObserved(
            now=self._clock(),
            run=run,
            settings=self._settings,
            jobs={job["metadata"]["name"]: await self._job(job) for job in jobs},
            profiles=self._specs(PROFILE, "", owners.profiles({"spec": raw["spec"]["policy"]})),
            variants=self._of_policy(VARIANT, ref.namespace, run.spec.policy_ref.name),
        )

    async def variant(self, ref: Ref) -> VariantObserved:
        """For the plan of a variant."""
        variant = self._store.parsed(ref, parse)
        reference = variant.spec.policy_ref
        policy = reference and self._optional(Ref(POLICY, ref.namespace, reference.name))
        return VariantObserved(
            now=self._clock(),
            variant=variant,
            policy=policy,
            route=await self._route(ref.namespace, reference.name) if reference else None,
        )

    async def rollout(self, ref: Ref) -> RolloutObserved:
        """For the plan of a rollout."""
        rollout = self._store.parsed(ref, parse)
        namespace, name = ref.namespace, rollout.spec.policy_ref.name
        policy_ref = Ref(POLICY, namespace, name)
        raw_policy = self._store.get(policy_ref) or {}
        rollouts = self._of_policy(ROLLOUT, namespace, name)
        return RolloutObserved(
            now=self._clock(),
            rollout=rollout,
            settings=self._settings,
            policy=self._optional(policy_ref),
            variants={v.meta.name: v for v in self._of_policy(VARIANT, namespace, name)},
            profiles=self._specs(PROFILE, "", owners.profiles(raw_policy)),
            deployments=self._deployments(namespace, name),
            gateway=await self._gateway(raw_policy),
            route=await self._route(namespace, name),
            others=tuple(other for other in rollouts if other.meta.name != ref.name),
            samples=self._meter.samples(ref),
            probe_ok=self._meter.probe_ok(ref),
        )

    # --- parts ------------------------------------------------------------------------------------

    def _optional(self, ref: Ref) -> Any:
        """An object, or None: also when it does not parse, which its own condition says."""
        try:
            return self._store.parsed(ref, parse)
        except InvalidObject:
            return None

    def _valid(self, objs: Iterable[Manifest]) -> tuple[Any, ...]:
        found = (self._optional(ref_of(obj)) for obj in objs)
        return tuple(resource for resource in found if resource is not None)

    def _of_policy(self, kind: str, namespace: str, policy: str) -> tuple[Any, ...]:
        return self._valid(self._store.where(kind, namespace, POLICY_REF, policy))

    def _specs(self, kind: str, namespace: str, wanted: Iterable[str]) -> dict[str, Any]:
        """The specs of those that exist. One that does not parse is the referrer's trouble:
        InvalidObject.
        """
        found = {name: self._store.parsed(Ref(kind, namespace, name), parse) for name in wanted}
        return {name: resource.spec for name, resource in sorted(found.items()) if resource}

    async def _route(self, namespace: str, policy: str) -> RouteState | None:
        name = route_name(policy)
        live = self._store.get(Ref("HTTPRoute", namespace, name))
        if live is None:
            # Only routes with our label are watched. Somebody else's of this name must be seen too,
            # lest it be taken for absent and written over.
            try:
                live = await self._client.get(BY_NAME["HTTPRoute"], namespace, name)
            except NotFound:
                return None
        return parse_route(live)

    async def _gateway(self, policy: Manifest) -> GatewayState | None:
        key = owners.gateway(policy)
        return await self._gateways.state(*key) if key else None

    def _deployments(self, namespace: str, policy: str) -> dict[str, DeploymentState]:
        pods = self._store.where("Pod", namespace, names.POLICY_LABEL, policy)
        return {
            obj["metadata"]["name"]: states.deployment_state(obj, _pods_of(obj, pods))
            for obj in self._store.where("Deployment", namespace, names.POLICY_LABEL, policy)
        }

    async def _job(self, job: Manifest) -> JobState:
        namespace, name = job["metadata"]["namespace"], job["metadata"]["name"]
        pods = self._store.where("Pod", namespace, JOB_NAME_LABEL, name)
        state = states.job_state(job, pods)
        if state.finished and states.newest_end(pods) is None:
            # The watch of Jobs may be ahead of that of pods: a result that is only late must not
            # look like none.
            pods, _ = await self._client.list(
                BY_NAME["Pod"], namespace, labels=f"{JOB_NAME_LABEL}={name}"
            )
            for pod in pods:
                self._store.put(pod)
            state = states.job_state(job, pods)
        return state


def _pods_of(deployment: Manifest, pods: Iterable[Manifest]) -> list[Manifest]:
    """Pods of a Deployment, by the names that the API server makes: ours differ before the last two
    parts.
    """
    name = deployment["metadata"]["name"]
    return [pod for pod in pods if pod["metadata"]["name"].rsplit("-", 2)[0] == name]
