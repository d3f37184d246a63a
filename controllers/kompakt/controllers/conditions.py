# SPDX-License-Identifier: Apache-2.0
"""Conditions by the conventions of Kubernetes and kstatus.

Ready is always there. Reconciling and Stalled are there only while True. `lastTransitionTime`
moves only when the
status of a condition flips, so that an unchanged object is not written again and again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Literal

from kompakt.api.base import Condition

ConditionStatus = Literal["True", "False", "Unknown"]
_MESSAGE_MAX = 1024


def condition(
    type_: str,
    status: ConditionStatus | bool,  # noqa: FBT001 -- the value itself
    *,
    reason: str,
    message: str = "",
    generation: int,
    now: float,
) -> Condition:
    """A condition as of now; a message too long for the API is cut."""
    word: ConditionStatus = status if isinstance(status, str) else ("True" if status else "False")
    text = message if len(message) <= _MESSAGE_MAX else message[: _MESSAGE_MAX - 1] + "…"
    moment = datetime.fromtimestamp(int(now), tz=UTC)
    return Condition(
        type=type_,
        status=word,
        observed_generation=generation,
        last_transition_time=moment,
        reason=reason,
        message=text,
    )


def merge(old: Sequence[Condition], new: Iterable[Condition]) -> list[Condition]:
    """The new conditions, each with the old transition time where its status did not flip. What
    is not among the
    new is gone.
    """
    before = {c.type: c for c in old}
    merged = []
    for c in new:
        previous = before.get(c.type)
        if previous is not None and previous.status == c.status:
            merged.append(c.evolve(last_transition_time=previous.last_transition_time))
        else:
            merged.append(c)
    return merged


def find(conditions: Sequence[Condition], type_: str) -> Condition | None:
    """The condition of a type."""
    return next((c for c in conditions if c.type == type_), None)


def is_true(conditions: Sequence[Condition], type_: str) -> bool:
    """Whether a condition is there and True."""
    found = find(conditions, type_)
    return found is not None and found.status == "True"
