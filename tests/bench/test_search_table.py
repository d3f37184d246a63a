# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
from pathlib import Path

from bench.search_table import Figures, Point, key, points, read_space, read_table, write_table

from kompakt.api.artifact import canonical_json
from kompakt.api.recipe import CompressionRecipeSpec, Step
from kompakt.api.steps import Distill, Prune, Quantize
from kompakt.controllers.ranges import recipe_problem

FIGURES = Figures(100, 12_345_678, 4100, 4000, 4200, 750, 570, 30, 15, 2250, 1706, 75, 60)


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Points with other parameters, what ended without figures, and comments."""
    rows: dict[Point, Figures | str] = {
        Point("a", (("prune.latencyKeepPermille", 250), ("quantize.samples", 16))): FIGURES,
        Point("a", (("prune.latencyKeepPermille", 400),)): "Diverged",
        Point("source", ()): FIGURES,
    }
    write_table(tmp_path / "t.csv", rows, comments=["made somewhere", "with something"])

    found = read_table(tmp_path / "t.csv")

    assert found == {p: f if isinstance(f, Figures) else None for p, f in rows.items()}


def test_accuracy_is_that_on_both_splits() -> None:
    """30 of 3,000 lost on balance are 100 basis points."""
    assert FIGURES.drop_basis_points == 100
    assert FIGURES.accuracy_basis_points == 1e4 * (570 + 1706 - 30) / 3000


def test_a_point_is_its_recipe_with_the_values_put_in() -> None:
    """Every point once, each with the steps that a search would run."""
    space = {
        "a": CompressionRecipeSpec.model_validate(
            {
                "steps": [{"prune": {"ffnKeepPermille": 500}}, {"quantize": {}}],
                "ranges": [
                    {"step": "prune", "parameter": "ffnKeepPermille", "minimum": 300}
                    | {"maximum": 700, "increment": 200}
                ],
            }
        )
    }
    shares = [
        step.prune.ffn_keep_permille
        for point in points(space)
        for step in point.steps(space)
        if step.prune is not None
    ]
    assert shares == [300, 500, 700]


def test_a_chain_is_named_by_what_differs_from_defaults() -> None:
    """So a parameter that a step gets later leaves the names of what was made before."""
    said = [{"prune": {"ffnKeepPermille": 500}}, {"distill": {}}]
    spelled = Prune(ffn_keep_permille=500, samples=Prune().samples)
    distill = Step(distill=Distill())
    name = key([Step(prune=spelled), distill])

    assert name == hashlib.sha256(canonical_json(said)).hexdigest()[:20]
    others = [
        [Step(prune=spelled)],
        [distill, Step(prune=spelled)],
        [Step(prune=spelled.evolve(samples=512)), distill],
        [Step(prune=spelled), Step(quantize=Quantize())],
    ]
    assert len({name, *map(key, others)}) == 5


def test_the_committed_space_can_be_searched() -> None:
    """At least 150 trials from at most 25 prefixes."""
    space = read_space()
    every = list(points(space))
    prefixes = {
        tuple(str(s.to_wire()) for s in p.steps(space) if not s.works_on_graph) for p in every
    }

    assert [recipe_problem(recipe) for recipe in space.values()] == [None] * len(space)
    assert len(every) >= 150
    assert len(prefixes) <= 25
