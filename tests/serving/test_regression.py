# SPDX-License-Identifier: Apache-2.0
"""A model that answers a number: served, and compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kompakt.serving.agreement import WithinTolerance, agreement_of
from kompakt.serving.artifact import ArtifactError, load_artifact

MODEL = "/v2/models/sentiment"
STABLE = {"good": 1.0, "great": 2.0, "bad": -1.0, "odd": 0.25}
CANDIDATE = {"good": 1.25, "great": 3.0, "bad": -1.5, "odd": 0.25}
"""The tolerance is 0.5: only `great` is farther apart."""


async def test_a_number_is_served_as_it_is(
    make_artifact: Any, serve_model: Any, infer_body: Any, parse_metrics: Any
) -> None:
    """One output, `score`, without any softmax; the metadata tells task and tolerance."""
    async with serve_model(make_artifact(numbers=STABLE)) as served:
        answer = await served.call("POST", f"{MODEL}/infer", infer_body("good great", "odd bad"))
        assert answer.status == 200
        [output] = answer.json()["outputs"]
        assert output == {"name": "score", "datatype": "FP32", "shape": [2], "data": [3.0, -0.75]}
        metadata = (await served.call("GET", MODEL)).json()
        assert metadata["outputs"] == [{"name": "score", "datatype": "FP32", "shape": [-1]}]
        assert metadata["labels"] == ["stars"]
        assert metadata["parameters"] == {
            "max_sequence_length": 16,
            "task": "Regression",
            "tolerance_micros": 500_000,
        }
        wrong = infer_body("good", outputs=[{"name": "label"}])
        answer = await served.call("POST", f"{MODEL}/infer", wrong)
        assert answer.status == 400
        assert "this model has ['score']" in answer.json()["error"]
        series = parse_metrics((await served.call("GET", "/metrics")).body)
        [counted] = [n for s, n in series.items() if s.startswith("kompakt_predictions_total{")]
        assert counted == 2


async def test_what_is_no_number_is_an_error(
    make_artifact: Any, serve_model: Any, infer_body: Any
) -> None:
    """Not a 200 with a null in it, as JSON would have it."""
    folder = make_artifact(numbers=STABLE | {"awful": float("nan")})
    async with serve_model(folder) as served:
        assert (await served.call("POST", f"{MODEL}/infer", infer_body("awful"))).status == 500
        assert (await served.call("POST", f"{MODEL}/infer", infer_body("good"))).status == 200


@pytest.mark.parametrize("changes", [{"toleranceMicros": None}, {"labels": ["a", "b"]}])
def test_a_manifest_says_how_numbers_are_compared(
    make_artifact: Any, changes: dict[str, Any]
) -> None:
    """Without, nobody could judge a candidate."""
    folder: Path = make_artifact(numbers=STABLE)
    path = folder / "variant.json"
    document = json.loads(path.read_bytes()) | changes
    path.write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match="labels of a Regression are one"):
        load_artifact(folder)


def artifacts(make_artifact: Any) -> list[Path]:
    """The stable one and the candidate."""
    both = (("stable", STABLE), ("candidate", CANDIDATE))
    return [make_artifact(name, numbers=numbers) for name, numbers in both]


@pytest.mark.slow
async def test_numbers_agree_within_the_tolerance(
    make_artifact: Any,
    comparing: Any,
    call_app: Any,
    infer_body: Any,
    parse_metrics: Any,
    wait_until: Any,
) -> None:
    """Counted under the number's name."""
    async with comparing(artifacts(make_artifact)) as comparator:
        call = call_app(comparator)

        def series() -> dict[str, float]:
            found: dict[str, float] = parse_metrics(comparator.registry.render())
            return found

        assert series()['kompakt_shadow_pairs_total{label="stars"}'] == 0
        for text in ("good", "bad", "odd", "great", "good good", "good good good"):
            assert (await call("POST", f"{MODEL}/infer", infer_body(text))).status == 202
        await wait_until(lambda: series()['kompakt_shadow_pairs_total{label="stars"}'] == 6)
        # `great` by 1.0, three times `good` by 0.75.
        assert series()['kompakt_shadow_disagreements_total{label="stars"}'] == 2
        assert series()['kompakt_shadow_errors_total{leg="candidate"}'] == 0


@pytest.mark.slow
async def test_the_golden_set_is_right_within_the_tolerance(
    make_artifact: Any,
    comparing: Any,
    parse_metrics: Any,
    wait_until: Any,
    tmp_path: Path,
) -> None:
    """Labels may be numbers, or written as such; one that is none is wrong for both."""
    rows = [("good", 1.0), ("great", 2), ("bad", "-1.75"), ("odd", 9.0), ("good", "none")]
    golden = tmp_path / "golden.jsonl"
    golden.write_text("".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in rows))
    options = {"golden": golden, "golden_rps": 10_000.0, "golden_interval_seconds": 1000.0}
    async with comparing(artifacts(make_artifact), **options) as comparator:

        def series(name: str) -> float:
            found: dict[str, float] = parse_metrics(comparator.registry.render())
            return found[f"kompakt_golden_{name}"]

        await wait_until(lambda: series("pass") == 1)
        assert series("pairs") == 5
        assert (series("lost"), series("gained")) == (1, 1)  # great; bad


def test_a_number_never_equals_a_label() -> None:
    """A leg that answers another task disagrees; it does not stop the comparison."""
    rule = WithinTolerance(("stars",), 0.5)
    assert rule.same(1.0, 1.5)
    assert not rule.same(1.0, 1.51)
    assert not rule.same(1.0, "1.0")
    assert agreement_of("TextClassification", ("no", "yes"), {}).truth(1, "x") == "yes"
    assert agreement_of("TextClassification", ("no", "yes"), {}).truth(1.0, "x") is None
    assert rule.truth("nothing", "x") is None
