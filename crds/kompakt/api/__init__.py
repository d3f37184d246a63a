# SPDX-License-Identifier: Apache-2.0
"""The API of Kompakt: the six kinds, the contracts of the Jobs, and the names that objects and
metrics carry.

Everything that crosses from one room to another is a type of this package. It imports pydantic
and nothing else.
"""

from kompakt.api.base import API_VERSION, GROUP, VERSION, KindInfo
from kompakt.api.policy import COMPRESSION_POLICY
from kompakt.api.profile import HARDWARE_PROFILE
from kompakt.api.recipe import COMPRESSION_RECIPE
from kompakt.api.rollout import VARIANT_ROLLOUT
from kompakt.api.run import COMPRESSION_RUN
from kompakt.api.variant import MODEL_VARIANT

KINDS: tuple[KindInfo, ...] = (
    COMPRESSION_POLICY,
    COMPRESSION_RECIPE,
    HARDWARE_PROFILE,
    COMPRESSION_RUN,
    MODEL_VARIANT,
    VARIANT_ROLLOUT,
)

__all__ = ["API_VERSION", "GROUP", "KINDS", "VERSION", "KindInfo"]
