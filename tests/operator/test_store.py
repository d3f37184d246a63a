# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kompakt.api import names
from kompakt.operator.resources import Manifest, Ref
from kompakt.operator.store import POLICY_REF, Store, trim

POD = Ref("Pod", "team", "p")


def pod(version: int, **parts: Any) -> Manifest:
    """A pod named `p`."""
    labels = parts.pop("labels", {})
    uid = parts.pop("uid", "u1")
    return {
        "kind": "Pod",
        "metadata": {
            "name": "p",
            "namespace": "team",
            "uid": uid,
            "resourceVersion": str(version),
            "labels": labels,
        },
        **parts,
    }


@given(st.permutations(range(1, 7)))
def test_events_in_any_order_leave_the_newest(order: list[int]) -> None:
    """However events and the answers to our own writes interleave, the newest version stays."""
    store = Store()
    news = [store.put(pod(version)) for version in order]

    assert (store.get(POD) or {})["metadata"]["resourceVersion"] == "6"
    assert news == [v == max(order[: i + 1]) for i, v in enumerate(order)]


def test_the_deleted_do_not_come_back() -> None:
    """A late event of a deleted object is no news; a new object of the same name is."""
    store = Store()
    store.put(pod(5))
    store.remove(POD, "u1")

    assert not store.put(pod(6))
    assert store.get(POD) is None
    assert store.put(pod(7, uid="u2"))


def test_a_late_deletion_spares_the_successor() -> None:
    """The deletion of the old object does not remove the new one of the same name."""
    store = Store()
    store.put(pod(5, uid="u2"))

    assert store.remove(POD, "u1") is None
    assert store.get(POD) is not None


def test_a_list_removes_what_it_does_not_hold() -> None:
    """What was deleted while the watch was away goes with the next list; newer objects stay."""
    store = Store()
    store.put(pod(5))
    newer = pod(20, uid="u3")
    newer["metadata"]["name"] = "made-after-the-list"
    store.put(newer)

    news = store.replace("Pod", None, items=[], version="10")

    assert [obj["metadata"]["name"] for obj in news] == ["p"]
    assert store.get(POD) is None
    assert store.get(Ref("Pod", "team", "made-after-the-list")) is not None


def test_a_list_of_one_namespace_leaves_the_others() -> None:
    """Namespaced lists speak for their namespace only."""
    store = Store()
    store.put(pod(5))

    assert store.replace("Pod", "other", items=[], version="10") == []
    assert store.get(POD) is not None


def test_look_ups_follow_labels_as_they_change() -> None:
    """An object is found by its current labels and references, and no longer by former ones."""
    store = Store()
    store.put(pod(1, labels={names.POLICY_LABEL: "a"}))
    store.put(pod(2, labels={names.POLICY_LABEL: "b"}))

    assert store.where("Pod", "team", names.POLICY_LABEL, "a") == []
    assert len(store.where("Pod", "team", names.POLICY_LABEL, "b")) == 1
    store.put({**pod(3), "spec": {"policyRef": {"name": "c"}}, "kind": "ModelVariant"})
    assert len(store.where("ModelVariant", "team", POLICY_REF, "c")) == 1


def test_parsing_happens_once_a_version() -> None:
    """The value of an object is made when its version is new, not each time it is looked at."""
    store, calls = Store(), []

    def parse(obj: Manifest) -> str:
        calls.append(obj)
        return "value"

    store.put(pod(1))
    for _ in range(3):
        store.parsed(POD, parse)
    store.put(pod(2))
    store.parsed(POD, parse)

    assert len(calls) == 2


def test_what_no_decision_reads_is_not_kept() -> None:
    """A pod's spec and everybody's managed fields would be most of the operator's memory."""
    fat = pod(1, spec={"containers": [{"image": "x" * 1000}], "nodeName": "n"})
    fat["metadata"]["managedFields"] = [{"manager": "x"}]

    slim = trim(fat)

    assert slim["spec"] == {"nodeName": "n"}
    assert "managedFields" not in slim["metadata"]
    assert "managedFields" in fat["metadata"]
