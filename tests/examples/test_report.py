# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from examples.demo.errors import DemoError
from examples.demo.page import Mark, Story, render
from examples.demo.records import Response, variant_tag
from examples.demo.report import (
    Kubernetes,
    Report,
    Requests,
    Seconds,
    baseline_and_promoted,
    regression,
    to_wire,
)
from typing_extensions import override

from .conftest import BROKEN, SMALL, START, MadeUp, the_run

SHAPE = {
    "kubernetes": {"version": str, "nodes": int},
    "baseline": {"accuracy": float, "sizeBytes": int, "latencyP50Milliseconds": float},
    "promoted": {
        "digest": str,
        "recipe": str,
        "speedup": {"value": float, "low": float, "high": float},
        "sizeRatio": float,
        "accuracyDropBasisPoints": int,
        "accuracyDropUpperBoundBasisPoints": int,
    },
    "requests": {"total": int, "failed": int},
    "regressions": [
        {
            "kind": str,
            "stage": str,
            "secondsToRollback": float,
            "userRequestsToCandidate": int,
            "reason": str,
        }
    ],
    "seconds": {"build": int, "cluster": int, "total": int},
}


def shape(value: Any) -> Any:
    """The keys and types of a JSON value; a list by its first item."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])]
    return type(value)


def report(demo: MadeUp) -> Report:
    """What the demo would report."""
    baseline, promoted = baseline_and_promoted(the_run(), target="edge", digest=SMALL)
    back = regression(
        "Latency",
        rollout="bad",
        started=demo.bad_started,
        first_bad=demo.bad_started + 2.0,
        history=demo.history,
        log=demo.log,
    )
    return Report(
        kubernetes=Kubernetes("v1.36.1", 2),
        baseline=baseline,
        promoted=promoted,
        requests=Requests(demo.log.total, demo.log.failed),
        regressions=(back,),
        seconds=Seconds(1, 2, 3),
    )


def story(demo: MadeUp) -> Story:
    """What the page would tell."""
    return Story(
        report=report(demo),
        history=demo.history,
        log=demo.log,
        run=the_run(),
        target="edge",
        threshold_ms=25.0,
        started=START,
        ended=demo.world.time,
        marks=(Mark(demo.bad_started + 2, "hog <starts>", css="bad"),),
    )


def test_the_report_has_the_promised_shape(demo: MadeUp) -> None:
    """report.json has exactly these keys, and numbers where numbers are promised."""
    wire = json.loads(json.dumps(to_wire(report(demo))))

    assert shape(wire) == SHAPE


def test_figures_are_those_of_all_sentences() -> None:
    """Accuracy is over both splits, and the bound lies above the drop that was seen."""
    baseline, promoted = baseline_and_promoted(the_run(), target="edge", digest=SMALL)

    assert baseline.accuracy == pytest.approx(5700 / 7500)
    assert promoted.accuracy_drop_basis_points == round(10_000 * 30 / 7500)
    assert promoted.accuracy_drop_upper_bound_basis_points > promoted.accuracy_drop_basis_points
    assert promoted.size_ratio == pytest.approx(4.5)


def test_a_variant_of_no_trial_is_an_error() -> None:
    """What was promoted must be what the run measured."""
    with pytest.raises(DemoError, match="no trial that made sha256:c"):
        baseline_and_promoted(the_run(), target="edge", digest=BROKEN)


def test_a_rollback_is_measured_to_its_last_user(demo: MadeUp) -> None:
    """An answer of the candidate that arrives after the route went back is still counted."""
    demo.log.add(Response(demo.bad_started + 5.0, 3.0, 200, variant_tag(BROKEN)))

    back = report(demo).regressions[0]

    assert back.seconds_to_rollback == pytest.approx(6.0)
    assert back.user_requests_to_candidate == 2
    assert back.stage == "Canary"
    assert back.reason == "Because: now RollingBack"


def test_a_rollout_that_did_not_go_back_is_an_error(demo: MadeUp) -> None:
    """The demo does not report a rollback that nobody saw."""
    with pytest.raises(DemoError, match="was to be rolled back, but it is Succeeded"):
        regression(
            "Latency",
            rollout="good",
            started=START,
            first_bad=START,
            history=demo.history,
            log=demo.log,
        )


def test_the_page_is_whole_and_alone(demo: MadeUp) -> None:
    """The page's tags close, and it fetches nothing from anywhere."""
    page = render(story(demo))
    depth: list[str] = []

    class Checker(HTMLParser):
        @override
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in {"meta", "br"}:
                depth.append(tag)

        @override
        def handle_startendtag(self, tag: str, attrs: object) -> None:
            """One of SVG's, which closes itself."""

        @override
        def handle_endtag(self, tag: str) -> None:
            assert depth.pop() == tag

    Checker().feed(page)

    assert depth == []
    assert not re.search(r"(src|href)=|url\(|@import|<script", page)
    assert "2.50×" in page


def test_the_pictures_are_well_formed_and_stay_inside(demo: MadeUp) -> None:
    """Each picture is valid XML, escapes what it is told, and draws within its frame."""
    pictures = re.findall(r"<svg.*?</svg>", render(story(demo)), re.DOTALL)

    assert len(pictures) == 2
    for picture in pictures:
        root = ET.fromstring(picture)  # noqa: S314 -- made by this program
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        for element in root.iter():
            assert 0 <= float(element.get("x", element.get("cx", "0"))) <= width
            assert 0 <= float(element.get("y", element.get("cy", "0"))) <= height
    assert "hog &lt;starts&gt;" in pictures[1]


def test_the_time_line_shows_the_verdicts(demo: MadeUp) -> None:
    """A failed objective is a red interval with its counts."""
    picture = re.findall(r"<svg.*?</svg>", render(story(demo)), re.DOTALL)[1]

    assert 'class="band verdict-fail"' in picture
    assert "latency Fail: 3 of 100 bad" in picture
