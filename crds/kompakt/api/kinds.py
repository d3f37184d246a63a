# SPDX-License-Identifier: Apache-2.0
"""All kinds, in the order in which they are installed."""

from __future__ import annotations

from typing import Final

from kompakt.api.base import KindInfo
from kompakt.api.policy import COMPRESSION_POLICY
from kompakt.api.profile import HARDWARE_PROFILE
from kompakt.api.recipe import COMPRESSION_RECIPE
from kompakt.api.rollout import VARIANT_ROLLOUT
from kompakt.api.run import COMPRESSION_RUN
from kompakt.api.variant import MODEL_VARIANT

KINDS: Final[tuple[KindInfo, ...]] = (
    COMPRESSION_POLICY,
    COMPRESSION_RECIPE,
    HARDWARE_PROFILE,
    COMPRESSION_RUN,
    MODEL_VARIANT,
    VARIANT_ROLLOUT,
)
