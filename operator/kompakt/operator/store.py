# SPDX-License-Identifier: Apache-2.0
"""The live objects that the operator knows: filled by watch events, by lists, and by the answers to
its own writes.

Invariants:

- an object never goes back in time: of two versions with one uid the greater resource version stays
  (they are comparable integers: KEP-5504). So what we wrote is seen by our next plan, however late
  its watch event;
- an object that was seen deleted does not come back by a late event: uids are never used again;
- look-ups by owner are by index: their cost does not grow with the number of objects.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from kompakt.api import names
from kompakt.operator.resources import Manifest, Ref, ref_of

JOB_NAME_LABEL: Final = "batch.kubernetes.io/job-name"
POLICY_REF: Final = "spec.policyRef.name"
_LABELS: Final = (
    names.POLICY_LABEL,
    names.RUN_LABEL,
    names.ROLLOUT_LABEL,
    JOB_NAME_LABEL,
)
_TOMBSTONES: Final = 4096


@dataclass
class _Entry:
    obj: Manifest
    parsed: object | None = None


@dataclass
class _Shelf:
    """All objects of one kind in one namespace."""

    entries: dict[str, _Entry] = field(default_factory=dict)
    index: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))


class Store:
    """A cache of objects. All of it happens in one thread."""

    def __init__(self) -> None:
        self._shelves: dict[tuple[str, str], _Shelf] = defaultdict(_Shelf)
        self._tombstones: OrderedDict[str, None] = OrderedDict()

    # --- reading ----------------------------------------------------------------------------------

    def get(self, ref: Ref) -> Manifest | None:
        """An object, or None."""
        entry = self._shelves[ref.kind, ref.namespace].entries.get(ref.name)
        return None if entry is None else entry.obj

    def parsed(self, ref: Ref, parse: Callable[[Manifest], Any]) -> Any:
        """An object as a value: parsed once for each version of it. None when it is not there."""
        entry = self._shelves[ref.kind, ref.namespace].entries.get(ref.name)
        if entry is None:
            return None
        if entry.parsed is None:
            entry.parsed = parse(entry.obj)
        return entry.parsed

    def all(self, kind: str, namespace: str | None = None) -> Iterator[Manifest]:
        """All objects of a kind, in one namespace or in all."""
        for (shelf_kind, shelf_namespace), shelf in list(self._shelves.items()):
            if shelf_kind == kind and namespace in {None, shelf_namespace}:
                yield from [entry.obj for entry in shelf.entries.values()]

    def where(self, kind: str, namespace: str, field_or_label: str, value: str) -> list[Manifest]:
        """The objects with a value of an indexed label, or that refer to a policy (`POLICY_REF`);
        sorted by name.
        """
        shelf = self._shelves[kind, namespace]
        found = sorted(shelf.index.get((field_or_label, value), ()))
        return [shelf.entries[name].obj for name in found]

    # --- writing ----------------------------------------------------------------------------------

    def put(self, obj: Manifest) -> bool:
        """Take an object in. False when it is not news: this version, or a newer one, is here
        already.
        """
        ref, metadata = ref_of(obj), obj["metadata"]
        uid = metadata.get("uid", "")
        if uid in self._tombstones:
            return False
        shelf = self._shelves[ref.kind, ref.namespace]
        old = shelf.entries.get(ref.name)
        if old is not None and _version(obj) <= _version(old.obj):
            return False
        if old is not None:
            self._unindex(shelf, ref.name, old.obj)
        trimmed = trim(obj)
        shelf.entries[ref.name] = _Entry(trimmed)
        for key in _index_keys(trimmed):
            shelf.index[key].add(ref.name)
        return True

    def remove(self, ref: Ref, uid: str) -> Manifest | None:
        """Forget an object for ever. Returns what was known of it, if it was."""
        if uid:
            self._tombstones[uid] = None
            while len(self._tombstones) > _TOMBSTONES:
                self._tombstones.popitem(last=False)
        shelf = self._shelves[ref.kind, ref.namespace]
        old = shelf.entries.get(ref.name)
        if old is None or (uid and old.obj["metadata"].get("uid") != uid):
            return None
        self._unindex(shelf, ref.name, old.obj)
        del shelf.entries[ref.name]
        return old.obj

    def replace(
        self, kind: str, namespace: str | None, *, items: Iterable[Manifest], version: str
    ) -> list[Manifest]:
        """Take in a complete list. Returns the objects that are news, and those that turned out to
        be deleted.
        """
        listed, news = set(), []
        for obj in items:
            listed.add(ref_of(obj))
            if self.put(obj):
                news.append(obj)
        for obj in list(self.all(kind, namespace)):
            # What is newer than the list was made after it.
            if ref_of(obj) not in listed and _version(obj) <= _number(version):
                self.remove(ref_of(obj), obj["metadata"].get("uid", ""))
                news.append(obj)
        return news

    @staticmethod
    def _unindex(shelf: _Shelf, name: str, obj: Manifest) -> None:
        for key in _index_keys(obj):
            shelf.index[key].discard(name)
            if not shelf.index[key]:
                del shelf.index[key]


def trim(obj: Manifest) -> Manifest:
    """An object without what no decision reads: most of a pod or a Deployment is its spec."""
    metadata = {key: value for key, value in obj["metadata"].items() if key != "managedFields"}
    slim = {**obj, "metadata": metadata}
    spec = obj.get("spec") or {}
    match obj["kind"]:
        case "Pod":
            slim["spec"] = {"nodeName": spec.get("nodeName")}
        case "Deployment":
            slim["spec"] = {"replicas": spec.get("replicas", 1)}
        case "Job":
            slim["spec"] = {"suspend": spec.get("suspend", False)}
    return slim


def _index_keys(obj: Mapping[str, Any]) -> list[tuple[str, str]]:
    labels = obj["metadata"].get("labels") or {}
    keys = [(label, labels[label]) for label in _LABELS if label in labels]
    reference = (obj.get("spec") or {}).get("policyRef")
    if isinstance(reference, dict) and "name" in reference:
        keys.append((POLICY_REF, reference["name"]))
    return keys


def _version(obj: Mapping[str, Any]) -> int:
    return _number(obj["metadata"].get("resourceVersion", ""))


def _number(version: str) -> int:
    return int(version) if version.isdecimal() else 0
