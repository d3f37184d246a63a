# SPDX-License-Identifier: Apache-2.0
"""Labels, annotations and well-known names that Kompakt's objects carry.

What serves can be told from these alone, when every status was lost: the route names its stable
and candidate
variants in annotations, each Deployment its variant, digest and role in labels.
"""

from __future__ import annotations

from typing import Final

FIELD_MANAGER: Final = "kompakt"
FINALIZER: Final = "kompakt.dev/traffic"
"""On a VariantRollout: all traffic goes to the stable variant before the object is let go."""

MANAGED_BY_LABEL: Final = "app.kubernetes.io/managed-by"
MANAGED_BY: Final = "kompakt"
POLICY_LABEL: Final = "kompakt.dev/policy"
RUN_LABEL: Final = "kompakt.dev/run"
ROLLOUT_LABEL: Final = "kompakt.dev/rollout"
TASK_LABEL: Final = "kompakt.dev/task"
TRIAL_LABEL: Final = "kompakt.dev/trial"
TARGET_LABEL: Final = "kompakt.dev/target"
VARIANT_LABEL: Final = "kompakt.dev/variant"
"""Name of the ModelVariant that a serving pod runs."""
DIGEST_LABEL: Final = "kompakt.dev/digest"
"""First 40 hexadecimal digits of the variant's digest (a label value holds 63 characters at
most)."""
ROLE_LABEL: Final = "kompakt.dev/role"
ROLE_SERVING: Final = "serving"
"""A pod that answers users (of the stable or of the candidate variant: the route says which is
which)."""
ROLE_REFERENCE: Final = "reference"
"""A pod of the stable digest that only the comparator calls."""
ROLE_COMPARATOR: Final = "comparator"

STABLE_ANNOTATION: Final = "kompakt.dev/stable-variant"
CANDIDATE_ANNOTATION: Final = "kompakt.dev/candidate-variant"
FORMER_ANNOTATION: Final = "kompakt.dev/former-variant"
"""The stable variant before a promotion, while it is kept warm."""
ACTION_ANNOTATION: Final = "kompakt.dev/action"
"""On a VariantRollout: `abort`, or `promote` as a recorded human decision. The operator records
and obeys it."""
ACTOR_ANNOTATION: Final = "kompakt.dev/actor"
"""Who asked for the action, as they say."""
TRIGGER_ANNOTATION: Final = "kompakt.dev/trigger"
"""On a CompressionPolicy: any new value starts a new run."""

SERVING_PORT: Final = 8080
TERMINATION_LOG: Final = "/dev/termination-log"
TASK_SPEC_PATH: Final = "/etc/kompakt/task.json"
STORE_MOUNT: Final = "/var/lib/kompakt/store"
MODEL_MOUNT: Final = "/var/lib/kompakt/model"
GOLDEN_MOUNT: Final = "/var/lib/kompakt/golden"
VOLUMES_MOUNT: Final = "/var/lib/kompakt/volumes"
"""Where a Job finds the claims that `pvc://claim/path` names, one folder each."""
NODE_NAME_VARIABLE: Final = "NODE_NAME"
"""Environment variable of a Job with the name of its node (downward API), which a benchmark
reports."""
DEVICE_VARIABLE: Final = "KOMPAKT_DEVICE"
"""Environment variable of pods that were given a device: `cuda`; absent where there is none."""
CUDA: Final = "cuda"
EXIT_INVALID_INPUT: Final = 42
"""Exit code of a Job whose input is wrong: never retried."""
