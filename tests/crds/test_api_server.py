# SPDX-License-Identifier: Apache-2.0
"""The kinds as the real API server sees them: it takes what is right and says what is wrong."""

from __future__ import annotations

import copy
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kompakt.api import KINDS

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
DIGEST = "sha256:" + "a" * 64
Dry = Callable[[dict[str, Any]], "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def kinds(cluster: Any) -> Any:
    """The cluster with the kinds of this checkout."""
    names = [f"crd/{info.crd_name}" for info in KINDS]
    apply = ["apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds")]
    done = run(cluster, *apply)
    assert done.returncode == 0, done.stderr
    # A kind made this moment has no conditions, and `kubectl wait` takes that for an error.
    for _ in range(30):
        done = run(cluster, "wait", "--for=condition=Established", "--timeout=30s", *names)
        if done.returncode == 0:
            return cluster
        time.sleep(0.5)
    pytest.fail(done.stderr)


def run(cluster: Any, *args: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """One kubectl command against the test cluster."""
    return subprocess.run(
        [str(cluster.kubectl), "--kubeconfig", str(cluster.kubeconfig), *args],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def dry(kinds: Any, namespace: str) -> Dry:
    """Creates an object, checked by the API server but not stored."""

    def create(manifest: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        command = ["create", "--validate=strict", "--dry-run=server", "-n", namespace, "-f", "-"]
        return run(kinds, *command, text=json.dumps(manifest))

    return create


def manifest(kind: str, spec: dict[str, Any], name: str = "example") -> dict[str, Any]:
    """An object of one of our kinds."""
    api_version = "kompakt.dev/v1alpha1"
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, "spec": spec}


POLICY: dict[str, Any] = {
    "model": {"uri": "pvc://input/model"},
    "data": {
        "evaluation": {
            "uri": "pvc://input/evaluation.jsonl",
            "labelField": "label",
            "sliceFields": ["domain"],
        }
    },
    "store": {"persistentVolumeClaim": {"name": "store"}},
    "recipes": [{"name": "dynamic-int8"}],
    "targets": [{"name": "edge", "hardwareProfileRef": {"name": "edge-small"}}],
    "gates": [{"name": "quality", "maxDropBasisPoints": 150}],
    "serving": {"target": "edge", "gatewayRef": {"name": "public", "namespace": "gateways"}},
}
PRUNE = {"prune": {"ffnKeepPermille": 350}}
GATED = {"prune": {"ffnKeepPermille": 350, "minAgreementBasisPoints": 9700}}
RECIPE: dict[str, Any] = {"steps": [PRUNE, {"distill": {}}, {"quantize": {}}]}
STAGED: dict[str, Any] = {"steps": [*RECIPE["steps"][:2] * 2, {"quantize": {}}]}
VARIANT: dict[str, Any] = {
    "digest": DIGEST,
    "store": {"uri": "s3://models/kompakt"},
    "labels": ["negative", "positive"],
    "sizeBytes": 1,
}


def changed(spec: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of a spec with one field set, or removed when the value is `...`."""
    result = copy.deepcopy(spec)
    *parents, last = path.split(".")
    node: Any = result
    for key in parents:
        node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return result


NUMBER = {"uri": "pvc://input/model", "task": "Regression", "toleranceMicros": 250_000}
VECTOR = {"uri": "pvc://input/model", "task": "SentenceEmbedding", "minCosineBasisPoints": 9500}
TEXTS = {"uri": "pvc://input/texts.jsonl"}
PAIRS = TEXTS | {"secondTextField": "other", "labelField": "score"}
EMBEDDING = changed(changed(POLICY, "model", VECTOR), "data", {"evaluation": TEXTS})
SCORED = changed(
    changed(EMBEDDING, "data", {"evaluation": PAIRS, "goldenSet": TEXTS, "training": TEXTS}),
    "gates.0.metric",
    "SpearmanCorrelation",
)
GOOD = [
    manifest("CompressionPolicy", POLICY),
    manifest("CompressionPolicy", EMBEDDING, "embedding"),
    manifest("CompressionPolicy", SCORED, "scored"),
    manifest("ModelVariant", VARIANT | {"task": "SentenceEmbedding", "labels": ["x"]}, "vector"),
    manifest("CompressionPolicy", changed(POLICY, "model", NUMBER), "regression"),
    manifest("CompressionRecipe", RECIPE),
    manifest("CompressionRecipe", STAGED, "staged"),
    manifest("CompressionRecipe", changed(STAGED, "steps.2.prune", GATED["prune"]), "gated"),
    manifest("HardwareProfile", {"nodeLabels": [{"key": "pool", "value": "edge"}]}),
    manifest("HardwareProfile", {"extendedResources": [{"name": "nvidia.com/gpu"}]}, "gpu"),
    manifest("ModelVariant", VARIANT),
    manifest(
        "VariantRollout", {"policyRef": {"name": "example"}, "candidateRef": {"name": "example"}}
    ),
]


def documents(folder: str) -> list[dict[str, Any]]:
    """Every object of our kinds in the YAML files below a folder."""
    return [
        document
        for path in sorted((ROOT / folder).rglob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text("utf-8"))
        if document and str(document.get("apiVersion", "")).startswith("kompakt.dev/")
    ]


@pytest.mark.parametrize("document", GOOD, ids=lambda d: f"{d['kind']}-{d['metadata']['name']}")
def test_what_is_right_is_taken(dry: Dry, document: dict[str, Any]) -> None:
    """A minimal object of each kind that people write is accepted."""
    done = dry(document)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "document",
    [*documents("examples"), *documents("charts/kompakt/files/catalogue")],
    ids=lambda d: f"{d['kind']}-{d['metadata']['name']}",
)
def test_the_examples_are_taken(dry: Dry, document: dict[str, Any]) -> None:
    """Everything that ships as an example is accepted, with no unknown field."""
    document["metadata"].pop("namespace", None)
    # Under a name of its own: a demo may have made those that belong to no namespace.
    document["metadata"]["name"] = f"dry-{document['metadata']['name']}"

    done = dry(document)

    assert done.returncode == 0, done.stderr


SLO = "rollout.slos"
STEPS = "rollout.canary.steps"
BAD_POLICIES = [
    ("recipes", ..., "nothing to try"),
    ("serving.target", "cloud", "serving.target must be the name of one of targets"),
    ("data.evaluation.labelField", ..., "accuracy needs labels: set labelField"),
    ("data.goldenSet", {"uri": "s3://x/y.jsonl"}, "the golden set needs labels"),
    (
        "data.evaluation.sliceWeights",
        [{"field": "colour", "value": "red", "weightPermille": 2000}],
        "the field of a slice weight must be one of sliceFields",
    ),
    ("gates.0.metric", "SpearmanCorrelation", "SpearmanCorrelation needs pairs of texts"),
    ("data.evaluation.secondTextField", "other", "only its evaluation has pairs"),
    ("model.minCosineBasisPoints", 9500, "set it for that task, and for no other"),
    ("gates.0.slice", "colour", "slice must be one of data.evaluation.sliceFields"),
    ("store", {}, "exactly one of uri and persistentVolumeClaim"),
    ("store.uri", "s3://models", "exactly one of uri and persistentVolumeClaim"),
    ("model.uri", "http://plain", "spec.model.uri"),
    ("model", ..., "spec.model: Required value"),
    ("model.task", "Regression", "a Regression is right within toleranceMicros"),
    ("model.toleranceMicros", 1, "a Regression is right within toleranceMicros"),
    ("targets", [], "spec.targets"),
    ("optimizeFor", "Beauty", 'supported values: "Cost"'),
    (SLO, [{"name": "latency", "type": "Latency"}], "needs thresholdMicroseconds and goodBasis"),
    (SLO, [{"name": "errors", "type": "Availability"}], "needs goodBasisPoints"),
    (SLO, [{"name": "same", "type": "Disagreement"}], "needs maxExcessBasisPoints"),
    (SLO, [{"name": "golden", "type": "Accuracy"}], "needs maxDropBasisPoints"),
    (STEPS, [{"weightPermille": 500}, {"weightPermille": 50}], "weights must grow"),
    (STEPS, [{"weightPermille": 50}, {"weightPermille": 50}], "each weight may appear once"),
    (STEPS, [{"weightPermille": 1001}], "less than or equal to 1000"),
    ("gates.0.maxDropBasisPoints", 1.5, "gates[0].maxDropBasisPoints"),
    ("modle", {}, 'unknown field "spec.modle"'),
]
BAD_EMBEDDINGS = [
    ("model.minCosineBasisPoints", ..., "a SentenceEmbedding is kept where its cosine"),
    ("model.task", "TextClassification", "a SentenceEmbedding is kept where its cosine"),
    ("data.evaluation.labelField", ..., "a second text needs a score of how similar the two are"),
    ("data.evaluation.secondTextField", ..., "scores of a SentenceEmbedding are of pairs"),
    ("data.evaluation", TEXTS, "SpearmanCorrelation needs pairs of texts with scores"),
    ("data.goldenSet.labelField", "label", "a SentenceEmbedding has no labels: its golden set"),
    ("data.training.labelField", "label", "a SentenceEmbedding has no labels: its golden set"),
    ("data.training", PAIRS, "pairs of texts are for evaluation"),
    ("gates.0.metric", "Beauty", 'supported values: "Accuracy", "SpearmanCorrelation"'),
]
AWARE = {"distill": {"quantizationAware": "Enabled"}}
ZEROS = {"zeroPoints": "Enabled"}
BAD_OTHERS = [
    ("CompressionRecipe", {"steps": [{}]}, "a step is exactly one of"),
    (
        "CompressionRecipe",
        {"steps": [{"quantize": {}}, PRUNE]},
        "quantize works on the exported graph, so only calibrate may follow it",
    ),
    (
        "CompressionRecipe",
        {"steps": [{"quantize": {}}, {"quantize": {}}]},
        "each of trimVocabulary, lowRank, attentionScope, quantize and calibrate may appear once",
    ),
    (
        "CompressionRecipe",
        {"steps": [{"lowRank": {}}, PRUNE]},
        "prune takes whole matrices apart, so lowRank must come after it",
    ),
    (
        "CompressionRecipe",
        {"steps": [{"attentionScope": {}}, PRUNE]},
        "attentionScope chooses among the layers that prune leaves, so it must come after it",
    ),
    ("CompressionRecipe", {"steps": [{"prune": {}}]}, "prune removes nothing: set ffnKeepPerm"),
    (
        "CompressionRecipe",
        {"steps": [{"prune": {"latencyKeepPermille": 500, "headKeepPermille": 500}}]},
        "latencyKeepPermille replaces ffnKeepPermille and headKeepPermille",
    ),
    (
        "CompressionRecipe",
        {"steps": [{"prune": {"headKeepPermille": 500, "latencyTokens": 128}}]},
        "set one of these, or leave latencyTokens out",
    ),
    (
        "CompressionRecipe",
        {"steps": [{"prune": {"latencyKeepPermille": 500, "latencyTokens": 7}}]},
        "latencyTokens in body should be greater than or equal to 8",
    ),
    (
        "CompressionRecipe",
        changed(
            RECIPE, "ranges", [{"step": "prune", "parameter": "x", "minimum": 2, "maximum": 1}]
        ),
        "minimum must not be above maximum",
    ),
    (
        "CompressionRecipe",
        changed(RECIPE, "family", [300, 500]),
        "family begins with the largest share",
    ),
    (
        "CompressionRecipe",
        {"steps": [{"quantize": {"method": "DynamicInt8", "mixed": "Enabled"}}]},
        "mixed is for StaticInt8 and OpenVinoInt8",
    ),
    (
        "CompressionRecipe",
        {"steps": [{"quantize": {"method": "WeightOnly", "weightBits": 1, **ZEROS}}]},
        "zeroPoints are for the method WeightOnly with 2 bits or more",
    ),
    (
        "CompressionRecipe",
        {"steps": [{"quantize": {"weightBits": 2}}]},
        "weightBits, blockSize and activations are for the method WeightOnly",
    ),
    (
        "CompressionRecipe",
        {"steps": [{"quantize": {"tableBits": 4}}]},
        "tableBits are for the methods WeightOnly and OpenVinoInt8",
    ),
    (
        "CompressionRecipe",
        {"steps": [{"quantize": {"method": "WeightOnly", "weightBits": 3}}]},
        "weightBits: Unsupported value: 3",
    ),
    (
        "CompressionRecipe",
        {"steps": [AWARE, PRUNE, {"quantize": {}}]},
        "trains for the quantize step, which must come next",
    ),
    (
        "CompressionRecipe",
        {"steps": [AWARE]},
        "must come next; only the last distill step may be one",
    ),
    (
        "CompressionRecipe",
        {"steps": [AWARE, AWARE, {"quantize": {}}]},
        "only the last distill step may be one",
    ),
    (
        "CompressionRecipe",
        {"steps": [AWARE, {"quantize": {"method": "OpenVinoInt8"}}]},
        "can train for DynamicInt8, StaticInt8 and WeightOnly",
    ),
    (
        "CompressionRecipe",
        {"steps": [AWARE, {"quantize": {"method": "StaticInt8"}}]},
        "set smoothQuantAlphaPermille to 0",
    ),
    (
        "CompressionRecipe",
        {
            "steps": [{"prune": {"latencyKeepPermille": 500}}, AWARE, {"quantize": {}}],
            "family": [500],
        },
        "rounded weights are none to go on from",
    ),
    (
        "CompressionRecipe",
        {"steps": [{"prune": {"latencyKeepPermille": 500, "importance": "L0"}}]},
        "importance L0 learns for shares of heads and neurons",
    ),
    (
        "CompressionRecipe",
        {"steps": [GATED, {"distill": {}}], "family": [500]},
        "a family has a variant for each share, and the policy's gates judge them",
    ),
    (
        "CompressionRecipe",
        {"steps": [GATED, AWARE, {"quantize": {}}]},
        "the gate of a prune step looks at the model before quantizationAware rounds it",
    ),
    (
        "CompressionRecipe",
        {"steps": [GATED, AWARE, {"quantize": {}}, {"calibrate": {}}]},
        "put a distill step without quantizationAware between the two",
    ),
    ("ModelVariant", changed(VARIANT, "digest", "latest"), "spec.digest"),
    ("ModelVariant", changed(VARIANT, "labels", ["one"]), "has two labels or more"),
    ("ModelVariant", changed(VARIANT, "task", "Regression"), "a Regression one"),
    ("VariantRollout", {"policyRef": {"name": "x"}}, "spec.candidateRef: Required value"),
    ("HardwareProfile", {"cpuMillis": 1}, "greater than or equal to 50"),
    ("HardwareProfile", {"extendedResources": [{"name": "cpu"}]}, "extendedResources[0].name"),
    (
        "HardwareProfile",
        {"extendedResources": [{"name": "kubernetes.io/batch-cpu"}]},
        "an extended resource is a device plugin's",
    ),
    (
        "HardwareProfile",
        {"extendedResources": [{"name": "nvidia.com/gpu", "count": 0}]},
        "greater than or equal to 1",
    ),
    (
        "HardwareProfile",
        {"extendedResources": [{"name": "nvidia.com/gpu"}, {"name": "nvidia.com/gpu"}]},
        "Duplicate value",
    ),
]


@pytest.mark.parametrize(
    ("kind", "spec", "words"),
    [
        *(("CompressionPolicy", changed(POLICY, p, v), words) for p, v, words in BAD_POLICIES),
        *(("CompressionPolicy", changed(SCORED, p, v), words) for p, v, words in BAD_EMBEDDINGS),
        *BAD_OTHERS,
    ],
    ids=[f"{n}-{w[:30]}" for n, _, w in (*BAD_POLICIES, *BAD_EMBEDDINGS, *BAD_OTHERS)],
)
def test_what_is_wrong_is_refused_in_plain_words(
    dry: Dry, kind: str, spec: dict[str, Any], words: str
) -> None:
    """Each mistake is refused with a sentence that names the field or the mend."""
    done = dry(manifest(kind, spec))

    assert done.returncode != 0
    assert words in done.stderr


def test_a_long_policy_name_is_refused(dry: Dry) -> None:
    """Names of other objects are made from it, and they must fit."""
    done = dry(manifest("CompressionPolicy", POLICY, name="x" * 41))

    assert "at most 40 characters" in done.stderr


def test_a_variant_cannot_be_changed(kinds: Any, namespace: str) -> None:
    """Another artifact is another variant."""
    variant = json.dumps(manifest("ModelVariant", VARIANT))
    made = run(kinds, "create", "-n", namespace, "-f", "-", text=variant)
    assert made.returncode == 0, made.stderr

    patch = ["patch", "mvar", "example", "--type=merge", "-p", '{"spec":{"sizeBytes":2}}']
    done = run(kinds, *patch, "-n", namespace)

    assert "a variant's spec does not change" in done.stderr


def test_explain_describes_the_fields(kinds: Any) -> None:
    """`kubectl explain` shows our words."""
    done = run(kinds, "explain", "cpol.spec.gates.maxDropBasisPoints")

    assert "largest drop" in done.stdout, done.stderr
