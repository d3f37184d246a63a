# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from kompakt.api.recipe import Step
from kompakt.jobs.compress.stages import Check, Plan, Stage, without_gate

P: dict[str, Any] = {"prune": {"ffnKeepPermille": 500}}
G: dict[str, Any] = {"prune": {"ffnKeepPermille": 500, "minAgreementBasisPoints": 9700}}
D: dict[str, Any] = {"distill": {}}
A: dict[str, Any] = {"distill": {"quantizationAware": "Enabled"}}
L: dict[str, Any] = {"lowRank": {}}
S: dict[str, Any] = {"attentionScope": {}}
T: dict[str, Any] = {"trimVocabulary": {}}


@pytest.mark.parametrize(
    ("steps", "before", "stages", "after"),
    [
        ([P, D, P, D], (0, 1, 2, 3), [], ()),
        ([G, D, G, D], (), [(0, 1), (2, 3)], ()),
        ([T, P, D, G, D, D, P, D], (0, 1, 2), [(3, 4, 5), (6, 7)], ()),
        ([G, D, G, D, A], (), [(0, 1), (2, 3)], (4,)),
        ([G, G, L, D, A], (), [(0,), (1,)], (2, 3, 4)),
        ([G, D, S, D], (), [(0, 1)], (2, 3)),
        ([], (), [], ()),
    ],
    ids=["no gate", "two", "from the first gate on", "aware", "low rank", "scope", "nothing"],
)
def test_a_stage_is_a_prune_step_and_what_follows(
    steps: list[dict[str, Any]],
    before: tuple[int, ...],
    stages: list[tuple[int, ...]],
    after: tuple[int, ...],
) -> None:
    """What comes once, at the end, comes after the last stage that holds."""
    plan = Plan.of([Step.model_validate(step) for step in steps])
    assert plan.before == before
    assert [stage.positions for stage in plan.stages] == stages
    assert plan.after == after


CHECK = Check(texts=500, agreeing=480, labelled=200, right=150, original_right=153)


@pytest.mark.parametrize(
    ("min_agreement", "max_drop", "wrong"),
    [
        (None, None, None),
        (9600, None, None),
        (9601, None, "agreement 96 % < 96.01 %"),
        (9700, 0, "agreement 96 % < 97 %"),
        (None, 150, None),
        (None, 149, "accuracy fell by 1.5 > 1.49 points"),
        (9000, 0, "accuracy fell by 1.5 > 0 points"),
    ],
)
def test_a_gate_holds_up_to_its_limit(
    min_agreement: int | None, max_drop: int | None, wrong: str | None
) -> None:
    """Exactly, in whole numbers; and what is said has both sides."""
    assert Stage((), min_agreement, max_drop).wrong(CHECK) == wrong


def test_more_right_answers_than_the_original_are_no_drop() -> None:
    """And without labels none is seen."""
    for right, labelled in ((160, 200), (0, 0)):
        better = dataclasses.replace(
            CHECK, right=right, labelled=labelled, original_right=min(153, labelled)
        )
        assert Stage((), None, 0).wrong(better) is None


def test_a_check_comes_back_from_the_store() -> None:
    """Whatever else stands there is none."""
    assert Check.of_wire(CHECK.to_wire()) == CHECK
    others: list[Any] = [None, [], {}, {"texts": 3}, CHECK.to_wire() | {"texts": "many"}]
    for other in others:
        assert Check.of_wire(other) is None


def test_a_gate_changes_no_result() -> None:
    """So that results are found again under another gate."""
    assert without_gate(Step.model_validate(G)) == Step.model_validate(P)
    assert without_gate(Step.model_validate(D)) == Step.model_validate(D)
