# SPDX-License-Identifier: Apache-2.0
"""Events: what `kubectl describe` tells about transitions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from kompakt.api import API_VERSION
from kompakt.controllers.plan import Emit
from kompakt.operator.resources import Manifest, ref_of

COMPONENT: Final = "kompakt.dev/operator"
_NOTE_MAX: Final = 1024
_NAME_MAX: Final = 230


def manifest(about: Mapping[str, Any], event: Emit, *, unix_nanoseconds: int) -> Manifest:
    """An Event on an object of ours."""
    ref = ref_of(about)
    moment = datetime.fromtimestamp(unix_nanoseconds // 1000 / 1e6, tz=UTC)
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {
            "name": f"{ref.name[:_NAME_MAX]}.{unix_nanoseconds:x}",
            "namespace": ref.namespace or "default",
        },
        "eventTime": moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": COMPONENT,
        "reportingInstance": os.environ.get("POD_NAME") or "kompakt-operator",
        "action": event.reason,
        "reason": event.reason,
        "note": event.message[:_NOTE_MAX],
        "type": "Warning" if event.warning else "Normal",
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": ref.kind,
            "namespace": ref.namespace,
            "name": ref.name,
            "uid": about["metadata"].get("uid", ""),
            "resourceVersion": about["metadata"].get("resourceVersion", ""),
        },
    }
