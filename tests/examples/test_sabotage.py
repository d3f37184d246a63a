# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from examples.demo import inputs, sabotage
from examples.demo.cluster import PodImage
from examples.demo.errors import DemoError
from examples.demo.kube import Object

from kompakt.api import names
from kompakt.api.artifact import canonical_json
from kompakt.api.job import CompressResult, CompressTask, TaskSpec
from kompakt.api.policy import JobSettings
from kompakt.api.profile import HardwareProfileSpec
from kompakt.api.recipe import Step
from kompakt.api.source import Store
from kompakt.api.steps import Distill, Quantize
from kompakt.api.variant import ModelVariantSpec
from kompakt.controllers.plan import Settings
from kompakt.controllers.render.jobs import job_manifests

from .conftest import BASE, BROKEN, SOURCE


def good_job(task: TaskSpec) -> tuple[Object, Object]:
    """The ConfigMap and Job that the operator makes for a task."""
    return job_manifests(
        name="sentiment-1-compress-0",
        namespace="sentiment",
        labels={names.RUN_LABEL: "sentiment-1", names.TASK_LABEL: task.kind},
        owner={"kind": "CompressionRun", "name": "sentiment-1", "uid": "u"},
        task=task,
        store=Store.model_validate({"persistentVolumeClaim": {"name": "store"}}),
        profile=HardwareProfileSpec(),
        jobs=JobSettings(),
        settings=Settings(jobs_image="jobs:1", serving_image="serving:1"),
    )


def compress_task() -> TaskSpec:
    """A good recipe's."""
    return TaskSpec(
        kind="Compress",
        store="file:///store",
        report_name="good",
        compress=CompressTask(
            recipe="good",
            checkpoint_digest=SOURCE,
            baseline_digest=BASE,
            steps=[Step(distill=Distill()), Step(quantize=Quantize())],
        ),
    )


def test_the_bad_variant_is_made_like_the_good_ones() -> None:
    """Same image, mounts and security as the run's own Job; only the steps are others."""
    config_map, job = good_job(compress_task())

    task_map, task_job = sabotage.over_pruning(job, config_map)

    task = TaskSpec.model_validate_json(task_map["data"]["task.json"])
    assert task.compress is not None
    assert task.compress.steps == sabotage.STEPS
    assert task.compress.checkpoint_digest == SOURCE
    mine, theirs = (j["spec"]["template"]["spec"] for j in (task_job, job))
    assert mine["securityContext"] == theirs["securityContext"]
    assert mine["containers"][0]["volumeMounts"] == theirs["containers"][0]["volumeMounts"]
    assert {"name": "task", "configMap": {"name": "over-pruned"}} in mine["volumes"]


def test_the_operator_does_not_take_it_for_its_own() -> None:
    """No label of the run's, and no owner: it is a Job of the user's."""
    config_map, job = good_job(compress_task())

    for manifest in sabotage.over_pruning(job, config_map):
        labels = manifest["metadata"]["labels"]
        labels |= manifest["spec"]["template"]["metadata"]["labels"] if "spec" in manifest else {}
        assert not [label for label in labels if label.startswith("kompakt.dev/")]
        assert "ownerReferences" not in manifest["metadata"]


def test_only_a_job_that_compresses_is_copied() -> None:
    """Copying another Job is an error, not a variant."""
    task = TaskSpec(kind="Measure", store="file:///store", report_name="x")

    with pytest.raises(DemoError, match="compresses nothing"):
        sabotage.over_pruning(
            {"metadata": {"name": "j"}},
            {"data": {"task.json": canonical_json(task.to_wire()).decode()}},
        )


def test_the_registration_is_a_valid_variant() -> None:
    """What a person writes by hand is what the API takes."""
    compress = compress_task().compress
    assert compress is not None
    made = CompressResult(artifact_digest=BROKEN, size_bytes=7, parameters=1, seconds=1)

    manifest = sabotage.registration(
        "sentiment",
        task=compress,
        made=made,
        store={"persistentVolumeClaim": {"name": "store"}},
        labels=["negative", "positive"],
    )

    spec = ModelVariantSpec.model_validate(manifest["spec"])
    assert spec.digest == BROKEN
    assert spec.lineage.baseline_digest == BASE


def test_the_hog_may_run_in_a_restricted_namespace() -> None:
    """It has the image of the pod that it starves, and no more rights."""
    pod = {"spec": {"containers": [{"name": "server", "image": "serving:1"}]}}

    hog = sabotage.hog_container(pod, seconds=5)

    assert hog["image"] == "serving:1"
    assert hog["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert "resources" not in hog  # the API server refuses them for ephemeral containers


def test_the_hog_stops_by_itself() -> None:
    """However it is left behind, it burns no longer than it was told."""
    begin = time.monotonic()

    subprocess.run([sys.executable, "-c", sabotage.HOG, "0.3"], check=True, timeout=20)

    assert time.monotonic() - begin >= 0.3


def test_everybody_can_read_what_is_loaded(tmp_path: Path) -> None:
    """Files that only their owner could read are readable in the cluster, under their own names."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "model.safetensors").write_text("x")
    (folder / "model.safetensors").chmod(0o600)

    with tarfile.open(fileobj=io.BytesIO(inputs.pack([folder]))) as archive:
        found = {m.name: (m.mode, m.uid) for m in archive.getmembers()}

    assert found == {"checkpoint": (0o755, 0), "checkpoint/model.safetensors": (0o644, 0)}


def test_the_loader_may_run_in_a_restricted_namespace() -> None:
    """The loader keeps to the pod security standard, and ends by itself."""
    pod = inputs.loader("inputs", PodImage("jobs:1", "IfNotPresent", "sandbox"))["spec"]

    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["runtimeClassName"] == "sandbox"
    assert pod["activeDeadlineSeconds"] > 0
    assert pod["automountServiceAccountToken"] is False
