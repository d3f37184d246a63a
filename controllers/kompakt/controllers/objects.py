# SPDX-License-Identifier: Apache-2.0
"""Names of the objects that Kompakt makes: deterministic, so that a second creation is the same
object.
"""

from __future__ import annotations

import hashlib

from kompakt.api import names

_SHORT = 8


def short_digest(digest: str) -> str:
    """The first 8 hexadecimal digits of a digest, for names that people read."""
    return digest.removeprefix("sha256:")[:_SHORT]


def digest_label(digest: str) -> str:
    """A digest as a label value (at most 63 characters)."""
    return digest.removeprefix("sha256:")[:40]


def short_hash(*parts: str) -> str:
    """8 hexadecimal digits over some strings."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:_SHORT]


def variant_name(policy: str, digest: str) -> str:
    """ModelVariant of an artifact made for a policy."""
    return f"{policy}-{short_digest(digest)}"


def serving_name(policy: str, digest: str) -> str:
    """Deployment and Service of a variant that answers users."""
    return f"{policy}-{short_digest(digest)}"


def rollout_name(policy: str, run: str, digest: str) -> str:
    """VariantRollout of what a run chose: one for each run and candidate."""
    return f"{policy}-{short_hash(run, digest)}"


def reference_name(rollout: str) -> str:
    """Deployment and Service of the stable digest that only the comparator calls."""
    return f"{rollout}-reference"


def comparator_name(rollout: str) -> str:
    """Deployment and Service of the comparator."""
    return f"{rollout}-comparator"


def route_name(policy: str) -> str:
    """HTTPRoute of a policy."""
    return policy


def selector(policy: str, digest: str, role: str) -> dict[str, str]:
    """Labels that pick exactly the pods of one variant in one role for one policy."""
    return {
        names.MANAGED_BY_LABEL: names.MANAGED_BY,
        names.POLICY_LABEL: policy,
        names.DIGEST_LABEL: digest_label(digest),
        names.ROLE_LABEL: role,
    }
