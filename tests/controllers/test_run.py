# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from tests.planning import BASELINE_DIGEST, PROFILES, policy_spec, profile
from tests.run_world import (
    RUN,
    SEARCH,
    TWO_POOLS,
    TWO_TARGETS,
    RunWorld,
    advance_to_trials,
    settled,
    succeeded,
    world,
)

from kompakt.api import names
from kompakt.controllers.conditions import is_true
from kompakt.controllers.cost import cost_micros_per_million


def test_the_whole_way() -> None:
    """Import, then for each recipe a compression and a measurement, then a choice."""
    made = settled()

    assert made.started == [
        f"{RUN}-import",
        f"{RUN}-compress-0",
        f"{RUN}-measure-0-0",
        f"{RUN}-compress-1",
        f"{RUN}-measure-1-0",
    ]
    assert succeeded(made.status) == ("True", "Chosen")
    assert [trial.state for trial in made.status.trials] == ["Complete", "Complete"]
    assert (made.status.trials_complete, made.status.trials_total) == (2, 2)
    assert made.status.choices[0].trial in {0, 1}
    assert made.status.current is None
    assert is_true(made.status.conditions, "Ready")
    assert is_true(made.status.conditions, "Imported")


def test_the_run_ends_once() -> None:
    """After its end a run does nothing, also when Jobs and variants are deleted."""
    made = settled()
    made.jobs.clear()
    made.variants.clear()

    assert made.plan().actions == ()


def test_variants_tell_their_lineage() -> None:
    """The source and each complete trial are ModelVariants, with figures and steps."""
    made = settled()
    specs = {v.spec.lineage.recipe: v.spec for v in made.variants.values()}

    assert set(specs) == {"Source", "dynamic-int8", "prune-int8"}
    assert specs["Source"].digest == BASELINE_DIGEST
    assert specs["prune-int8"].lineage.baseline_digest == BASELINE_DIGEST
    assert specs["prune-int8"].lineage.trial == 1
    assert specs["prune-int8"].lineage.steps == made.status.trials[1].steps
    assert (specs["Source"].runtime, specs["prune-int8"].runtime) == ("OnnxRuntime", "OpenVino")
    assert specs["prune-int8"].figures == made.status.trials[1].targets
    assert made.status.baseline_variant in made.variants
    assert {c.variant for c in made.status.choices} <= set(made.variants)


def test_the_source_can_serve_while_trials_run() -> None:
    """The source's variant is there as soon as the import is, before anything is compressed."""
    made = world()
    advance_to_trials(made)

    assert [v.spec.lineage.recipe for v in made.variants.values()] == ["Source"]


def test_the_baseline_has_figures_too() -> None:
    """The baseline's latency, accuracy and cost are its side of the first measurement."""
    made = settled()
    (figures,) = made.status.baseline_targets
    (measured,) = made.status.trials[0].targets

    assert measured.benchmark is not None
    assert figures.benchmark is not None
    assert figures.benchmark.candidate == measured.benchmark.baseline
    assert figures.benchmark.speedup_permille == 1000
    assert figures.evaluation is not None
    assert figures.evaluation.confirmation.lost == 0
    assert figures.cost_micros_per_million == cost_micros_per_million(
        measured.benchmark.baseline, PROFILES["edge-small"]
    )


def test_the_baseline_s_figures_stay() -> None:
    """They are those of the measurement that came first, though another trial comes before it."""
    made = world(policy_spec(search=SEARCH | {"maxParallelTrials": 2, "maxTrials": 1}))
    advance_to_trials(made)
    made.finish(f"{RUN}-compress-1")
    made.plan()
    made.finish(f"{RUN}-measure-1-0")
    made.plan()
    first = made.status.baseline_targets

    made.settle()

    assert first != []
    assert made.status.baseline_targets == first


def test_parameters_are_in_the_status_before_the_job() -> None:
    """Whenever a Job is created, the status already names its trial, steps and state."""
    made = settled(policy_spec(search=SEARCH))

    for name, status in made.at_creation.items():
        task = made.jobs[name].task
        number = made.jobs[name].labels.get(names.TRIAL_LABEL)
        if number is None:
            assert status.started_unix_seconds is not None
            continue
        trial = status.trials[int(number)]
        if task.compress is not None:
            assert trial.state == "Compressing"
            assert trial.steps == task.compress.steps
        else:
            assert trial.state == "Measuring"
            assert [t.state for t in trial.targets] == ["Measuring"]


def test_an_outcome_is_recorded_before_its_job_may_go() -> None:
    """Each Job is deleted as soon as its outcome is in the status: nothing runs again."""
    made = world()
    for _ in range(50):
        made.plan()
        for name in [n for n in made.jobs if n not in made.running()]:
            made.remove(name)
        if made.running():
            made.finish(made.running()[0])

    assert succeeded(made.status) == ("True", "Chosen")
    assert len(made.started) == len(set(made.started)) == 5


def test_a_job_that_was_deleted_too_early_runs_again() -> None:
    """A Job whose outcome nobody has seen is created again under the same name."""
    made = world()
    advance_to_trials(made)
    made.remove(f"{RUN}-compress-0")

    made.settle()

    assert made.started.count(f"{RUN}-compress-0") == 2
    assert succeeded(made.status) == ("True", "Chosen")


# --- what runs beside what -----------------------------------------------------------------------


def test_compression_goes_on_beside_a_measurement() -> None:
    """While one trial is measured on its pool, the next is compressed on another."""
    made = world()
    advance_to_trials(made)
    made.finish(f"{RUN}-compress-0")
    made.plan()

    assert made.running() == [f"{RUN}-measure-0-0", f"{RUN}-compress-1"]
    assert made.status.current == (
        "measuring dynamic-int8 (trial 0) on edge; compressing prune-int8 (trial 1)"
    )


def test_a_benchmark_does_not_share_its_pool_with_a_compression() -> None:
    """Where models are compressed on the target's own pool, the two take turns."""
    spec = policy_spec(jobs={})
    made = settled(spec)

    assert made.started[1:] == [
        f"{RUN}-compress-0",
        f"{RUN}-measure-0-0",
        f"{RUN}-compress-1",
        f"{RUN}-measure-1-0",
    ]
    made = world(spec)
    advance_to_trials(made)
    for _ in range(20):
        assert len(made.running()) <= 1
        if made.running():
            made.finish(made.running()[0])
        made.plan()


def busy_pools(made: RunWorld, targets: dict[str, str]) -> list[str]:
    """The pools of the Measure Jobs that run."""
    running = [made.jobs[name].task.measure for name in made.running()]
    return [targets[m.target] for m in running if m is not None]


def test_a_benchmark_waits_for_the_last_compression_on_its_pool() -> None:
    """Two compressions run at once on the target's own pool: the first artifact is measured only
    when both are done.
    """
    made = world(policy_spec(jobs={}, search=SEARCH | {"maxParallelTrials": 2, "maxTrials": 1}))
    advance_to_trials(made)
    made.finish(f"{RUN}-compress-0")
    made.plan()

    assert [name for name in made.running() if "measure" in name] == []
    made.finish(f"{RUN}-compress-1")
    made.plan()
    assert made.running() == [f"{RUN}-measure-0-0"]


@pytest.mark.parametrize("same", [True, False])
def test_a_pool_measures_one_variant_at_a_time(*, same: bool) -> None:
    """Trials that are ready together are measured one after the other on each pool of nodes, and
    at once on different pools: what counts is the nodes, not the profile's name.
    """
    pools = TWO_POOLS | ({"cloud": profile("edge", cpuMillis=2000)} if same else {})
    search = SEARCH | {"maxParallelTrials": 2, "maxTrials": 1}
    made = world(policy_spec(targets=TWO_TARGETS, search=search), profiles=pools)
    where = {"edge": "edge", "cloud": "edge" if same else "cloud"}
    seen = set()
    for _ in range(40):
        made.plan()
        busy = busy_pools(made, where)
        seen.add(len(busy))
        assert len(busy) == len(set(busy))
        running = made.running()
        compressing = [name for name in running if "compress" in name]
        for name in (compressing or running)[:1]:
            made.finish(name)

    assert succeeded(made.status)[0] == "True"
    assert max(seen) == (1 if same else 2)
    assert {choice.target for choice in made.status.choices} == {"edge", "cloud"}


def test_recipes_compress_in_parallel_when_the_search_may() -> None:
    """MaxParallelTrials is how many Compress Jobs run at once; without a search it is one."""
    made = world(policy_spec(search=SEARCH | {"maxParallelTrials": 2}))
    advance_to_trials(made)

    assert made.running() == [f"{RUN}-compress-0", f"{RUN}-compress-1"]


# --- the search ----------------------------------------------------------------------------------


def test_a_search_follows_the_recipes() -> None:
    """After the recipes' own trials the search tries others, each measured before the next."""
    made = settled(policy_spec(search=SEARCH))
    origins = [trial.origin for trial in made.status.trials]

    assert origins == ["Recipe", "Recipe", "Search", "Search"]
    assert made.status.trials[3].proposed_because != ""
    assert len({str(trial.steps) for trial in made.status.trials}) == 4
    assert made.started.index(f"{RUN}-measure-2-0") < made.started.index(f"{RUN}-compress-3")


def test_a_search_ends_with_its_time() -> None:
    """When maxDurationSeconds are over, no new trial starts, and the run chooses among the rest."""
    made = world(policy_spec(search=SEARCH | {"maxDurationSeconds": 60}))
    advance_to_trials(made)
    made.now += 61
    made.settle()

    assert [trial.origin for trial in made.status.trials] == ["Recipe", "Recipe"]
    assert succeeded(made.status) == ("True", "Chosen")
    assert made.status.trials_total == 2


def test_a_search_without_recipes_of_its_own() -> None:
    """A policy may name recipes in its search only."""
    made = settled(policy_spec(recipes=[], search=SEARCH))

    assert [trial.origin for trial in made.status.trials] == ["Search", "Search"]
    assert succeeded(made.status) == ("True", "Chosen")
