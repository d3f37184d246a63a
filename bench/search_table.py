# SPDX-License-Identifier: Apache-2.0
"""The table of real trials that searches are replayed over: its space, its rows, its file.

The space is that of some recipes with ranges (`data/search-recipes.yaml`); a row is one of its
points, measured.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path

import yaml

from kompakt.api.artifact import canonical_json, sha256_digest
from kompakt.api.recipe import CompressionRecipeSpec, Step
from kompakt.api.run import Parameter
from kompakt.controllers.ranges import resolve

DATA = Path(__file__).parent / "data"
SPACE = DATA / "search-recipes.yaml"
TABLE = DATA / "search-trials.csv"

SOURCE = "source"
"""The recipe of the row that is the unchanged model, timed beside itself."""

Space = Mapping[str, CompressionRecipeSpec]


@dataclass(frozen=True)
class Point:
    """A recipe with a value for each of its ranges."""

    recipe: str
    values: tuple[tuple[str, int], ...]
    """By `step.parameter`, in the recipe's order."""

    def steps(self, space: Space) -> list[Step]:
        """The recipe's, with the values put in."""
        parameters = [
            Parameter(step=place.split(".")[0], name=place.split(".")[1], value=value)
            for place, value in self.values
        ]
        return resolve(space[self.recipe], parameters)


@dataclass(frozen=True)
class Figures:
    """What one trial gave. Keys of the file are these names in camel case."""

    seconds: int
    """Of the whole chain on one core: its prefix, export and quantization."""
    size_bytes: int
    speedup_permille: int
    """Over ONNX Runtime fp32, texts of 128 tokens, interleaved; with its 95 % interval."""
    speedup_low_permille: int
    speedup_high_permille: int
    selection_examples: int
    """The split that a search may look at. Counts are paired with the baseline's answers."""
    selection_baseline_correct: int
    selection_lost: int
    selection_gained: int
    confirmation_examples: int
    """The other texts."""
    confirmation_baseline_correct: int
    confirmation_lost: int
    confirmation_gained: int

    @property
    def drop_basis_points(self) -> float:
        """Of accuracy, on both splits together."""
        lost = self.selection_lost + self.confirmation_lost
        gained = self.selection_gained + self.confirmation_gained
        return 1e4 * (lost - gained) / (self.selection_examples + self.confirmation_examples)

    @property
    def accuracy_basis_points(self) -> float:
        """On both splits together."""
        right = self.selection_baseline_correct + self.confirmation_baseline_correct
        examples = self.selection_examples + self.confirmation_examples
        return 1e4 * right / examples - self.drop_basis_points


FIGURES = {
    # size_bytes is sizeBytes in the file, as it is in the API.
    field.name: "".join(
        part if number == 0 else part.capitalize()
        for number, part in enumerate(field.name.split("_"))
    )
    for field in fields(Figures)
}
STATE = "outcome"
"""Complete, or the reason why there are no figures."""
COMPLETE = "Complete"


def read_space(path: Path = SPACE) -> dict[str, CompressionRecipeSpec]:
    """The recipes of a file, by name."""
    return {
        manifest["metadata"]["name"]: CompressionRecipeSpec.model_validate(manifest["spec"])
        for manifest in yaml.safe_load_all(path.read_text())
    }


def points(space: Space) -> Iterator[Point]:
    """Every point of the space."""
    for name, recipe in space.items():
        places = [f"{r.step}.{r.parameter}" for r in recipe.ranges]
        grids = [range(r.minimum, r.maximum + 1, r.increment) for r in recipe.ranges]
        for values in product(*grids):
            yield Point(name, tuple(zip(places, values, strict=True)))


def key(steps: Sequence[Step]) -> str:
    """Names a chain by what its steps set otherwise than their defaults: a parameter that they get
    later changes no name. Where a default changes, what was made by it must be made again.
    """
    said = [step.model_dump(mode="json", by_alias=True, exclude_defaults=True) for step in steps]
    return sha256_digest(canonical_json(said)).split(":")[1][:20]


def write_table(
    path: Path, rows: Mapping[Point, Figures | str], *, comments: Sequence[str]
) -> None:
    """Writes measured points; what has no figures has a reason."""
    places = list(dict.fromkeys(place for point in rows for place, _ in point.values))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        file.writelines(f"# {comment}\n" for comment in comments)
        out = csv.DictWriter(
            file, ["recipe", *places, STATE, *FIGURES.values()], lineterminator="\n"
        )
        out.writeheader()
        for point, found in rows.items():
            row: dict[str, object] = {"recipe": point.recipe, **dict(point.values)}
            if isinstance(found, str):
                row[STATE] = found
            else:
                row[STATE] = COMPLETE
                row |= {wire: getattr(found, name) for name, wire in FIGURES.items()}
            out.writerow(row)


def read_table(path: Path = TABLE) -> dict[Point, Figures | None]:
    """The measured points, and the source; None for one that ended without figures."""
    with path.open(newline="") as file:
        reader = csv.DictReader(line for line in file if not line.startswith("#"))
        places = [name for name in reader.fieldnames or () if "." in name]
        return {
            Point(
                row["recipe"], tuple((place, int(row[place])) for place in places if row[place])
            ): (
                Figures(**{name: int(row[wire]) for name, wire in FIGURES.items()})
                if row[STATE] == COMPLETE
                else None
            )
            for row in reader
        }
