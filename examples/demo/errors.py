# SPDX-License-Identifier: Apache-2.0
"""The one way in which the demo ends early."""

from __future__ import annotations


class DemoError(Exception):
    """The demo cannot go on, or did not end as promised. The message says why."""
