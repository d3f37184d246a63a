# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kompakt.operator import rbac
from kompakt.operator.resources import BY_NAME, WATCHED

pytestmark = pytest.mark.slow

CHART = Path(__file__).resolve().parents[2] / "charts" / "kompakt"
Grant = tuple[str, str, str]


def grants(rules: Iterable[dict[str, Any]]) -> Iterator[Grant]:
    """Group, resource and verb of each right."""
    for rule in rules:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    yield group, resource, verb


def rendered(*values: str) -> dict[str, set[Grant]]:
    """The chart's roles: `Kind/name` → rights."""
    helm = Path(sys.executable).with_name("helm")
    settings = [part for value in values for part in ("--set", value)]
    output = subprocess.run(
        [helm, "template", "kompakt", CHART, *settings], capture_output=True, text=True, check=True
    ).stdout
    manifests = [manifest for manifest in yaml.safe_load_all(output) if manifest]
    roles = {
        f"{m['kind']}/{m['metadata']['name']}": set(grants(m["rules"]))
        for m in manifests
        if m["kind"] in {"Role", "ClusterRole"} and m.get("rules")
    }
    bound = {f"{m['roleRef']['kind']}/{m['roleRef']['name']}" for m in manifests if "roleRef" in m}
    return {name: rights for name, rights in roles.items() if name in bound}


@pytest.mark.parametrize("values", [(), ("operator.watchNamespaces={team-a,team-b}",)])
def test_the_chart_grants_what_the_operator_needs(values: tuple[str, ...]) -> None:
    """Each right that the code asks for is in a role that the chart binds."""
    needed = {
        *grants(rbac.NAMESPACED),
        *grants(rbac.CLUSTER),
        *grants(rbac.OWN),
    }

    granted = set().union(*rendered(*values).values())

    assert needed - granted == set()


def test_no_secret_is_ever_read() -> None:
    """Neither Secrets nor anything by a wildcard: Jobs mount what the user names."""
    for name, rights in rendered().items():
        assert not [right for right in rights if "*" in right], name
        assert not [right for right in rights if right[1] == "secrets"], name


def test_the_list_covers_everything_that_is_watched() -> None:
    """A kind that is watched without the right to would end the operator at its start."""
    rights = {*grants(rbac.NAMESPACED), *grants(rbac.CLUSTER)}

    for name in WATCHED:
        kind = BY_NAME[name]
        assert {(kind.group, kind.plural, verb) for verb in ("list", "watch")} <= rights, name
