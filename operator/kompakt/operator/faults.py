# SPDX-License-Identifier: Apache-2.0
"""Deaths at chosen moments, for tests of what a crash between any two writes leaves behind.

`KOMPAKT_FAULT=after:Apply:HTTPRoute:2` kills the process, as SIGKILL does, right after the second
HTTPRoute was applied; `before:WriteStatus:VariantRollout:1` right before the first status of a
rollout is written. Unset, and in production always, this is nothing.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

VARIABLE = "KOMPAKT_FAULT"
_FORM = re.compile(r"(before|after):([A-Za-z]+):([A-Za-z]+):([1-9][0-9]*)")


@dataclass
class Fault:
    """The moment to die at: the `count`-th time of `action` on `kind`."""

    side: str = ""
    action: str = ""
    kind: str = ""
    count: int = 0
    seen: int = field(default=0, init=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Fault:
        """What the environment asks for; nothing, by default."""
        text = environment.get(VARIABLE, "")
        if not text:
            return cls()
        match = _FORM.fullmatch(text)
        if match is None:
            raise SystemExit(
                f"kompakt-operator: {VARIABLE}={text!r} must look like after:Apply:HTTPRoute:2"
            )
        side, action, kind, count = match.groups()
        return cls(side, action, kind, int(count))

    def reached(self, side: Literal["before", "after"], action: str, kind: str) -> None:
        """Die here, if this is the moment."""
        if (side, action, kind) != (self.side, self.action, self.kind):
            return
        self.seen += 1
        if self.seen == self.count:
            os.kill(os.getpid(), signal.SIGKILL)
