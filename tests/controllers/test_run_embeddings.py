# SPDX-License-Identifier: Apache-2.0
"""A run for an embedding model, whose gate is on the correlation with what people say."""

from __future__ import annotations

from collections.abc import Callable

from tests.planning import policy_spec
from tests.run_world import settled, succeed, succeeded

from kompakt.api.job import TaskResult, TaskSpec
from kompakt.api.measure import CosineFigures, PairedCorrelation
from kompakt.api.policy import CompressionPolicySpec

MODEL = {"uri": "pvc://models/x", "task": "SentenceEmbedding", "minCosineBasisPoints": 9500}
PAIRS = {"uri": "pvc://data/x.jsonl", "secondTextField": "other", "labelField": "score"}
RANKS = {"name": "ranks", "metric": "SpearmanCorrelation", "maxDropBasisPoints": 200}
DROPS = {"dynamic-int8": 50, "prune-int8": 300}
NEAR = CosineFigures(
    mean_basis_points=9900, fifth_percentile_basis_points=9700, least_basis_points=9000
)


def spec() -> CompressionPolicySpec:
    """Scored pairs, and one gate."""
    return policy_spec(model=MODEL, data={"evaluation": PAIRS}, gates=[RANKS])


def work(recipes: dict[str, str]) -> Callable[[TaskSpec], TaskResult]:
    """Jobs of which measurements have correlations; `recipes` are learnt by artifact."""

    def perform(task: TaskSpec) -> TaskResult:
        done = succeed(task)
        if done.imported is not None:
            return done.evolve(imported=done.imported.evolve(labels=["embedding"]))
        if task.compress is not None and done.compressed is not None:
            recipes[done.compressed.artifact_digest] = task.compress.recipe
        if done.measured is None:
            return done
        measurement = done.measured.measurement
        drop = DROPS[recipes[measurement.candidate_digest]]
        found = PairedCorrelation(
            pairs=1000,
            baseline_basis_points=8200,
            candidate_basis_points=8200 - drop,
            drop_micros=drop * 100,
            standard_error_micros=2000,
        )
        seen = measurement.evaluation.evolve(
            # Of so many texts that no gate on accuracy would be kept.
            confirmation=measurement.evaluation.confirmation.evolve(lost=900),
            slices=[],
            cosines=NEAR,
            confirmation_correlation=found,
            selection_correlation=found.evolve(drop_micros=0),
        )
        return done.evolve(
            measured=done.measured.evolve(measurement=measurement.evolve(evaluation=seen))
        )

    return perform


def test_the_correlation_decides() -> None:
    """What keeps it is chosen though many vectors moved; the other is refused with its figures; and
    the baseline's own figures are those of no change.
    """
    made = settled(spec(), work=work({}))
    assert succeeded(made.status) == ("True", "Chosen")
    [choice] = made.status.choices
    assert choice.trial is not None
    assert made.status.trials[choice.trial].recipe == "dynamic-int8"
    assert "Spearman's correlation 81.50, the source's 82.00" in choice.message
    refused = {rejection.trial: rejection for rejection in choice.rejections}
    [other] = [t.number for t in made.status.trials if t.recipe == "prune-int8"]
    assert refused[other].reason == "GateFailed"
    assert "Spearman's correlation may have dropped by" in refused[other].message
    [figures] = made.status.baseline_targets
    assert figures.evaluation is not None
    own = figures.evaluation.confirmation_correlation
    assert own is not None
    assert (own.candidate_basis_points, own.drop_micros, own.standard_error_micros) == (8200, 0, 0)
    assert figures.evaluation.cosines is None
    assert {(v.spec.task, *v.spec.labels) for v in made.variants.values()} == {
        ("SentenceEmbedding", "embedding")
    }
