# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
from tests.planning import PROFILES, RECIPES, SETTINGS, digest_of, policy_spec, profile, run_object
from tests.pod_security import violations

from kompakt.api import names
from kompakt.api.job import ImportResult, TaskSpec
from kompakt.api.policy import CompressionPolicySpec
from kompakt.api.profile import HardwareProfileSpec
from kompakt.api.run import Trial
from kompakt.api.source import DataSource, ModelSource, Store
from kompakt.controllers import tasks
from kompakt.controllers.plan import Run
from kompakt.controllers.render.pods import Volumes, secrets, store_root

IMPORTED = ImportResult(
    source_digest=digest_of("source"),
    artifact_digest=digest_of("baseline"),
    size_bytes=1,
    parameters=1,
    labels=["a", "b"],
    data_digests={"evaluation": digest_of("data")},
    max_absolute_error_nanos=0,
)
TRIAL = Trial(
    number=3,
    recipe="prune-int8",
    origin="Recipe",
    steps=RECIPES["prune-int8"].steps,
    state="Measuring",
    digest=digest_of("candidate"),
)


def works(run: Run) -> dict[str, tasks.Work]:
    """A Job of each kind."""
    return {
        "Import": tasks.import_work(run),
        "Compress": tasks.compress_work(run, TRIAL),
        "Measure": tasks.measure_work(run, TRIAL, run.spec.policy.targets[0]),
    }


def job(
    kind: str = "Import",
    *,
    spec: CompressionPolicySpec | None = None,
    on: HardwareProfileSpec | None = None,
) -> dict[str, Any]:
    """The manifest of a Job."""
    return manifests(kind, spec=spec, on=on)[1]


def manifests(
    kind: str = "Import",
    *,
    spec: CompressionPolicySpec | None = None,
    on: HardwareProfileSpec | None = None,
) -> list[dict[str, Any]]:
    """ConfigMap and Job."""
    run = run_object(spec)
    created = tasks.creations(
        works(run)[kind],
        run,
        baseline=IMPORTED,
        profile=on or PROFILES["edge-small"],
        settings=SETTINGS,
    )
    return [creation.manifest for creation in created]


def task(kind: str, *, spec: CompressionPolicySpec | None = None) -> TaskSpec:
    """What a Job reads."""
    (text,) = manifests(kind, spec=spec)[0]["data"].values()
    return TaskSpec.model_validate_json(text)


def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    """The pod of a Job."""
    found: dict[str, Any] = manifest["spec"]["template"]["spec"]
    return found


@pytest.mark.parametrize("kind", ["Import", "Compress", "Measure"])
def test_jobs_are_restricted_pods(kind: str) -> None:
    """No Job needs more than the Pod Security Standard `restricted` allows."""
    assert violations(pod(job(kind))) == []


def test_the_checker_sees_violations() -> None:
    """The checker of this test suite is no rubber stamp."""
    bare = {"containers": [{"name": "c", "securityContext": {"privileged": True}}]}

    assert {"automountServiceAccountToken", "c: privileged", "c: runAsNonRoot"} <= set(
        violations(bare)
    )


def test_the_task_is_there_before_its_job() -> None:
    """The ConfigMap comes first, is immutable, and is mounted where the Job looks for it."""
    config_map, made = manifests()
    container = pod(made)["containers"][0]
    (mount,) = [m for m in container["volumeMounts"] if m["name"] == "task"]
    (volume,) = [v for v in pod(made)["volumes"] if v["name"] == "task"]

    assert config_map["kind"] == "ConfigMap"
    assert config_map["immutable"] is True
    assert volume["configMap"]["name"] == config_map["metadata"]["name"]
    assert f"{mount['mountPath']}/{next(iter(config_map['data']))}" == names.TASK_SPEC_PATH


@pytest.mark.parametrize(("analysis", "examples"), [("Enabled", 256), ("Disabled", 0)])
def test_a_model_is_analyzed_where_a_policy_asks_for_it(analysis: str, examples: int) -> None:
    """It delays everything else, so nobody gets it unasked."""
    imported = task("Import", spec=policy_spec(analysis=analysis)).import_model

    assert imported is not None
    assert imported.analysis_examples == examples


def test_a_disruption_is_no_failure() -> None:
    """The first rule that matches decides: a drained pod is replaced, whatever its exit code; wrong
    input and lack of memory end the Job at once; anything else is tried twice again.
    """
    spec = job()["spec"]
    rules = spec["podFailurePolicy"]["rules"]

    assert spec["backoffLimit"] == 2
    assert [rule["action"] for rule in rules] == ["Ignore", "FailJob", "FailJob"]
    assert rules[0]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert [rule["onExitCodes"]["values"] for rule in rules[1:]] == [
        [names.EXIT_INVALID_INPUT],
        [137],
    ]
    # A measurement has two containers: the rules are for any.
    assert all("containerName" not in rule["onExitCodes"] for rule in rules[1:])
    assert pod(job())["restartPolicy"] == "Never"


def test_limits_and_placement_come_from_the_profile() -> None:
    """Requests equal limits, threads fit them, and the pod goes to the pool despite its taint."""
    on = profile(
        "edge",
        cpuMillis=2500,
        jobMemoryMebibytes=2048,
        tolerations=[
            {"key": "edge", "value": "yes", "effect": "NoSchedule"},
            {"key": "any", "operator": "Exists"},
        ],
        runtimeClassName="sandbox",
    )
    made = pod(job("Measure", on=on))
    container = made["containers"][0]

    assert container["resources"] == {
        "requests": {"cpu": "2500m", "memory": "2048Mi"},
        "limits": {"cpu": "2500m", "memory": "2048Mi"},
    }
    assert {"name": "OMP_NUM_THREADS", "value": "2"} in container["env"]
    assert made["nodeSelector"] == {"pool": "edge"}
    assert made["tolerations"] == [
        {"key": "edge", "operator": "Equal", "value": "yes", "effect": "NoSchedule"},
        {"key": "any", "operator": "Exists"},
    ]
    assert made["runtimeClassName"] == "sandbox"


def test_a_benchmark_has_the_targets_limits_and_the_rest_a_jobs() -> None:
    """Answers are made with a Job's CPUs, then the benchmark runs under the limits of a server; a
    Job that measures nothing has its own.
    """
    on = profile("edge", cpuMillis=500, memoryMebibytes=512, jobCpuMillis=2000)
    measuring = pod(job("Measure", on=on))
    (ahead,), (work,) = measuring["initContainers"], measuring["containers"]
    (compress,) = pod(job("Compress", on=on))["containers"]

    assert ahead["command"] == ["python", "-m", "kompakt.jobs", "run", "--ahead"]
    assert ahead["resources"]["limits"] == {"cpu": "2000m", "memory": "512Mi"}
    assert {"name": "OMP_NUM_THREADS", "value": "2"} in ahead["env"]
    assert work["resources"]["limits"] == {"cpu": "500m", "memory": "512Mi"}
    assert {"name": "OMP_NUM_THREADS", "value": "1"} in work["env"]
    assert compress["resources"]["limits"]["cpu"] == "2000m"
    assert "initContainers" not in pod(job("Compress", on=on))


@pytest.mark.parametrize("kind", ["Import", "Compress", "Measure"])
def test_devices_of_the_profile_are_each_containers(kind: str) -> None:
    """Limits and requests are the same whole number, as Kubernetes wants it of extended resources;
    both stages of a measurement have the device, one after the other.
    """
    on = profile(
        "gpu",
        runtimeClassName="nvidia",
        extendedResources=[{"name": "nvidia.com/gpu"}, {"name": "example.com/nic", "count": 2}],
    )
    made = pod(job(kind, on=on))
    stages = [*made.get("initContainers", ()), *made["containers"]]

    assert len(stages) == (2 if kind == "Measure" else 1)
    for stage in stages:
        for amounts in (stage["resources"]["limits"], stage["resources"]["requests"]):
            assert (amounts["nvidia.com/gpu"], amounts["example.com/nic"]) == ("1", "2")
    assert made["runtimeClassName"] == "nvidia"
    assert violations(made) == []


@pytest.mark.parametrize(
    ("devices", "told"),
    [
        ([], False),
        (["example.com/nic"], False),
        (["nvidia.com/gpu"], True),
        (["example.com/nic", "nvidia.com/mig-1g.5gb"], True),
    ],
)
def test_a_job_is_told_of_its_gpu(devices: list[str], told: bool) -> None:  # noqa: FBT001
    """And of no other device; it may not guess, for a node's GPUs are others' too."""
    on = profile("gpu", extendedResources=[{"name": name} for name in devices])
    (container,) = pod(job("Compress", on=on))["containers"]

    assert ({"name": names.DEVICE_VARIABLE, "value": "cuda"} in container["env"]) is told


def test_claims_are_mounted_once() -> None:
    """Each claim is one volume; sources are read-only, and the store is not."""
    spec = policy_spec(model={"uri": "pvc://store/models/x"})
    made = pod(job(spec=spec))
    claims = [
        v["persistentVolumeClaim"]["claimName"]
        for v in made["volumes"]
        if "persistentVolumeClaim" in v
    ]
    mounts = {
        m["mountPath"]: m.get("readOnly", False) for m in made["containers"][0]["volumeMounts"]
    }

    assert sorted(claims) == ["data", "store"]
    assert mounts[names.STORE_MOUNT] is False
    assert mounts[f"{names.VOLUMES_MOUNT}/store"] is True
    assert mounts[f"{names.VOLUMES_MOUNT}/data"] is True
    assert mounts["/tmp"] is False


def test_secrets_are_environment_once_each() -> None:
    """The Secrets of store and sources become variables of exactly the Jobs that read them."""
    store = Store.model_validate({"uri": "s3://bucket/x", "secretRef": {"name": "s3"}})
    model = ModelSource.model_validate({"uri": "hf://a/b", "secretRef": {"name": "hub"}})
    data = DataSource.model_validate({"uri": "s3://d/e.csv", "secretRef": {"name": "s3"}})

    assert secrets(store, model, data, None) == [
        {"secretRef": {"name": "s3"}},
        {"secretRef": {"name": "hub"}},
    ]


@pytest.mark.parametrize(
    ("store", "root", "claims"),
    [
        ({"uri": "s3://bucket/x"}, "s3://bucket/x", []),
        ({"uri": "pvc://claim/a/b"}, "file:///var/lib/kompakt/store/a/b", ["claim"]),
        ({"persistentVolumeClaim": {"name": "c"}}, "file:///var/lib/kompakt/store", ["c"]),
    ],
)
def test_stores(store: dict[str, Any], root: str, claims: list[str]) -> None:
    """A store is an object store, or a claim that is mounted at one place."""
    volumes = Volumes()
    volumes.store(Store.model_validate(store), read_only=True)

    assert store_root(Store.model_validate(store)) == root
    assert [v["persistentVolumeClaim"]["claimName"] for v in volumes.to_list()] == claims


def test_kueue_admits_before_the_job_runs() -> None:
    """A Job for a queue is labelled and starts suspended; without a queue it starts at once."""
    queued = job(spec=policy_spec(jobs={"queueName": "team-a"}))

    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert queued["spec"]["suspend"] is True
    assert "suspend" not in job()["spec"]


@pytest.mark.parametrize("kind", ["Import", "Compress", "Measure"])
def test_jobs_belong_to_their_run(kind: str) -> None:
    """Both objects go with the run; labels tell run, task, trial and target."""
    config_map, made = manifests(kind)
    labels = made["metadata"]["labels"]

    for manifest in (config_map, made):
        (owner,) = manifest["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"]) == ("CompressionRun", "uid-sentiment-0a1b2c3d")
    assert labels[names.RUN_LABEL] == "sentiment-0a1b2c3d"
    assert labels[names.TASK_LABEL] == kind
    assert labels.get(names.TRIAL_LABEL) == (None if kind == "Import" else "3")
    assert labels.get(names.TARGET_LABEL) == ("edge" if kind == "Measure" else None)


def test_names_fit() -> None:
    """The longest names of run and trial still make the names of Jobs, which are labels of pods."""
    run = run_object(name="a" * 50)

    assert max(len(work.name) for work in works(run).values()) <= 63


def test_tasks_demand_the_imported_data() -> None:
    """What is measured is the data that was imported, even if the file has changed since."""
    measure, compress = task("Measure").measure, task("Compress").compress

    assert measure is not None
    assert measure.evaluation.digest == digest_of("data")
    assert (measure.baseline_digest, measure.candidate_digest) == (
        IMPORTED.artifact_digest,
        TRIAL.digest,
    )
    assert compress is not None
    assert compress.checkpoint_digest == IMPORTED.source_digest
    assert compress.steps == TRIAL.steps


def test_a_result_survives_a_crash() -> None:
    """The termination message is the result, or else the end of the log."""
    container = pod(job())["containers"][0]

    assert container["terminationMessagePath"] == names.TERMINATION_LOG
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert container["command"] == ["python", "-m", "kompakt.jobs", "run"]
