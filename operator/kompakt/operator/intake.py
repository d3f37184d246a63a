# SPDX-License-Identifier: Apache-2.0
"""The one way of live objects into the operator: into the store, and the keys that depend on them
into the queue.

Watch events, lists, and the answers to our own writes all come through here. What is no news stirs
nobody.
"""

from __future__ import annotations

from collections.abc import Iterable

from kompakt.operator import outcomes
from kompakt.operator.owners import dependents
from kompakt.operator.resources import Manifest, Ref, ref_of
from kompakt.operator.store import Store
from kompakt.operator.workqueue import WorkQueue


class Intake:
    """Takes objects in."""

    def __init__(self, store: Store, queue: WorkQueue[Ref]) -> None:
        self._store = store
        self._queue = queue

    def put(self, obj: Manifest) -> None:
        """An object as it is now, or was a moment ago."""
        before = self._store.get(ref_of(obj))
        if self._store.put(obj):
            if obj["kind"] == "Job":
                outcomes.time_job(before, obj)
            self._stir([obj])

    def deleted(self, obj: Manifest) -> None:
        """An object that is gone."""
        self._store.remove(ref_of(obj), obj["metadata"].get("uid", ""))
        self._stir([obj])

    def gone(self, ref: Ref) -> None:
        """An object that was looked for in vain."""
        known = self._store.get(ref)
        if known is not None:
            self.deleted(known)

    def replace(
        self, kind: str, namespace: str | None, *, items: Iterable[Manifest], version: str
    ) -> None:
        """A complete list."""
        self._stir(self._store.replace(kind, namespace, items=items, version=version))

    def _stir(self, news: Iterable[Manifest]) -> None:
        for obj in news:
            for key in dependents(self._store, obj):
                self._queue.add(key)
