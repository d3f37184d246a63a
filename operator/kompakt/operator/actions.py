# SPDX-License-Identifier: Apache-2.0
"""Carries out single actions of plans.

Invariants:

- the answer to each write is taken in before anything else happens, so no plan is made from a
  state that our own writes have changed;
- a status is written only when it differs from the one in the cluster, an object that we apply only
  when the last application was another, or somebody changed it since;
- carrying the same action out again changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from typing import Any, Final

from kompakt.api import API_VERSION, names
from kompakt.api.base import Model
from kompakt.controllers.plan import (
    Action,
    Apply,
    Create,
    Delete,
    Emit,
    SetFinalizer,
    WriteStatus,
)
from kompakt.operator import events, telemetry
from kompakt.operator.client import Client
from kompakt.operator.errors import ApiError, NotFound
from kompakt.operator.faults import Fault
from kompakt.operator.intake import Intake
from kompakt.operator.observe import parse
from kompakt.operator.outcomes import count
from kompakt.operator.resources import BY_NAME, WATCHED, Manifest, Ref, kind_of, ref_of
from kompakt.operator.store import Store, trim

log = logging.getLogger(__name__)
_ATTEMPTS: Final = 3


class Actor:
    """Writes to the cluster what plans say."""

    def __init__(self, *, store: Store, intake: Intake, client: Client, fault: Fault) -> None:
        self._store = store
        self._intake = intake
        self._client = client
        self._fault = fault
        self._applied: dict[Ref, tuple[str, str]] = {}
        """Object → hash of the manifest applied last, and mark of the object that came of it."""

    async def carry_out(self, ref: Ref, action: Action) -> None:
        """Carry out one action of the plan of an object."""
        name, kind = type(action).__name__, _kind_written(ref, action)
        self._fault.reached("before", name, kind)
        match action:
            case Apply(manifest):
                done = await self._apply(manifest)
            case Create(manifest):
                done = await self._create(manifest)
            case Delete():
                done = await self._delete(action)
            case WriteStatus(status):
                done = await self._write_status(ref, status)
            case SetFinalizer(present):
                done = await self._set_finalizer(ref, present=present)
            case Emit():
                done = await self._emit(ref, action)
        if done:
            telemetry.ACTIONS.labels(name, kind).inc()
            self._fault.reached("after", name, kind)

    async def put_status(self, ref: Ref, status: Mapping[str, Any]) -> None:
        """Replace the status of an object, whatever it is now."""
        live = self._store.get(ref)
        if live is None:
            return
        # The uid guards against an object of the same name that was made since.
        manifest: Manifest = {
            "apiVersion": API_VERSION,
            "kind": ref.kind,
            "metadata": {
                "name": ref.name,
                "namespace": ref.namespace,
                "uid": live["metadata"]["uid"],
            },
            "status": status,
        }
        try:
            self._take_in(await self._client.apply(manifest, subresource="status"))
        except NotFound:
            self._intake.gone(ref)

    async def _apply(self, manifest: Manifest) -> bool:
        ref = ref_of(manifest)
        digest = _hash(manifest)
        live = self._store.get(ref)
        if live is not None and self._applied.get(ref) == (digest, _mark(live)):
            return False
        self._applied.pop(ref, None)
        written = await self._client.apply(manifest)
        self._take_in(written)
        self._applied[ref] = (digest, _mark(written))
        log.info("applied", extra={"object": str(ref)})
        return True

    async def _create(self, manifest: Manifest) -> bool:
        ref = ref_of(manifest)
        if self._store.get(ref) is not None:
            return False
        written = await self._client.create(manifest)
        if written is not None:
            log.info("created", extra={"object": str(ref)})
            self._take_in(written)
        elif ref.kind in WATCHED:
            # It is there, and we did not know: its event is on the way.
            self._take_in(await self._client.get(kind_of(manifest), ref.namespace, ref.name))
        return written is not None

    async def _delete(self, action: Delete) -> bool:
        ref = Ref(action.kind, action.namespace, action.name)
        kind = BY_NAME[action.kind]
        self._applied.pop(ref, None)
        await self._client.delete(kind, action.namespace, action.name)
        try:
            # A finalizer, or the grace of a pod, may keep it for a while.
            self._take_in(await self._client.get(kind, action.namespace, action.name))
        except NotFound:
            self._intake.gone(ref)
        log.info("deleted", extra={"object": str(ref)})
        return True

    async def _write_status(self, ref: Ref, status: Model) -> bool:
        own = self._store.parsed(ref, parse)
        if own is None or own.status == status:
            return False
        await self.put_status(ref, status.to_wire())
        count(ref.kind, own.status, status)
        return True

    async def _set_finalizer(self, ref: Ref, *, present: bool) -> bool:
        kind = BY_NAME[ref.kind]
        for attempt in range(1, _ATTEMPTS + 1):
            live = await self._read_again(ref)
            if live is None:
                return False
            finalizers = list(live["metadata"].get("finalizers") or ())
            if (names.FINALIZER in finalizers) == present:
                return False
            if present:
                finalizers.append(names.FINALIZER)
            else:
                finalizers.remove(names.FINALIZER)
            patch = [
                _operation("test", "resourceVersion", live["metadata"]["resourceVersion"]),
                _operation("add", "finalizers", finalizers),
            ]
            try:
                written = await self._client.json_patch(kind, ref.namespace, ref.name, patch=patch)
            except NotFound:
                self._intake.gone(ref)
                return False
            except ApiError as error:
                # Somebody was faster; what they wrote is read with the next attempt.
                if attempt == _ATTEMPTS:
                    raise
                log.debug("finalizer not set yet", extra={"why": error.message})
                continue
            self._take_in(written)
            if not present and written["metadata"].get("deletionTimestamp"):
                await self._read_again(ref)  # gone, unless others hold it
            return True
        return False

    async def _emit(self, ref: Ref, event: Emit) -> bool:
        """Best effort: an Event tells people, and must not hold a rollout up."""
        live = self._store.get(ref)
        if live is None:
            return False
        level = logging.WARNING if event.warning else logging.INFO
        log.log(level, "%s: %s", event.reason, event.message)
        try:
            await self._client.create(events.manifest(live, event, unix_nanoseconds=time.time_ns()))
        except ApiError as error:
            log.warning("an Event was not written", extra={"why": error.message})
        return True

    def _take_in(self, written: Manifest) -> None:
        if written["kind"] in WATCHED:
            self._intake.put(written)

    async def _read_again(self, ref: Ref) -> Manifest | None:
        """The object as it is now, in the store too."""
        try:
            live = await self._client.get(BY_NAME[ref.kind], ref.namespace, ref.name)
        except NotFound:
            self._intake.gone(ref)
            return None
        self._intake.put(live)
        return live


def _kind_written(ref: Ref, action: Action) -> str:
    match action:
        case Apply(manifest) | Create(manifest):
            return str(manifest["kind"])
        case Delete():
            return action.kind
        case _:
            return ref.kind


def _operation(op: str, field: str, value: object) -> dict[str, Any]:
    return {"op": op, "path": f"/metadata/{field}", "value": value}


def _mark(obj: Manifest) -> str:
    """A hash that changes when anybody changes what can be applied, and not with a status."""
    slim = trim(obj)
    kept = ("uid", "generation", "labels", "annotations", "ownerReferences")
    return _hash([[slim["metadata"].get(key) for key in kept], slim.get("spec")])


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
