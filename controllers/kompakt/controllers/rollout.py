# SPDX-License-Identifier: Apache-2.0
"""The plan of a VariantRollout: from shadow to production, or back."""

from __future__ import annotations

from kompakt.controllers.plan import Plan, RolloutObserved


def plan_rollout(observed: RolloutObserved) -> Plan:
    """What to do now for one rollout."""
    raise NotImplementedError
