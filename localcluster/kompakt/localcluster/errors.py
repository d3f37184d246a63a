# SPDX-License-Identifier: Apache-2.0
"""The one error of this room: a sentence says what is wrong, and another what to do."""

OTHER_CLUSTER = "or use a cluster that is already there: make demo KUBECONTEXT=<its context>"


class LocalClusterError(Exception):
    """Something that the user has to know, and can mend.

    Attributes:
        reason: CamelCase, for machines and tests.
        message: what is wrong, in one sentence without a full stop.
        remedy: what to do, in one sentence without a full stop.
    """

    def __init__(self, reason: str, message: str, *, remedy: str) -> None:
        super().__init__(f"{message}; {remedy}")
        self.reason = reason
        self.message = message
        self.remedy = remedy
