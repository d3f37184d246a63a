# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in the shell. An error knows its reason, and whether trying again may help.

OperatorError
├── ApiError            the API server refused or did not answer
│   ├── NotFound        404
│   ├── Conflict        409
│   ├── Invalid         400, 422
│   └── Forbidden       401, 403
├── InvalidObject       an object of our kinds that no validation of the API server has seen
└── NotLeader           another replica leads: nothing may be written
"""

from __future__ import annotations

from typing import ClassVar


class OperatorError(Exception):
    """Base: `reason` becomes the reason of conditions, Events and metrics."""

    retry: ClassVar[bool] = True

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class ApiError(OperatorError):
    """The API server refused or did not answer (`status` 0)."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(reason or "ApiError", message)
        self.status = status


class NotFound(ApiError):  # noqa: N818 -- named like the reason
    """There is no such object, or no such kind."""


class Conflict(ApiError):  # noqa: N818 -- named like the reason
    """It exists already, or it has changed since it was read."""


class Invalid(ApiError):  # noqa: N818 -- named like the reason
    """The API server's validation refused it; the same request fails again."""

    retry = False


class Forbidden(ApiError):  # noqa: N818 -- named like the reason
    """The ServiceAccount may not do this."""


class InvalidObject(OperatorError):  # noqa: N818 -- named like the reason
    """An object that does not parse: CRD validation was bypassed, or the CRD is newer than the
    operator.
    """

    retry = False


class NotLeader(OperatorError):  # noqa: N818 -- named like the reason
    """The Lease is lost, or could not be renewed in time."""

    retry = False

    def __init__(self) -> None:
        super().__init__("NotLeader", "this replica does not hold the Lease: nothing is written")


def from_status(status: int, reason: str, message: str) -> ApiError:
    """The error for an HTTP status."""
    match status:
        case 404:
            return NotFound(status, reason or "NotFound", message)
        case 409:
            return Conflict(status, reason or "Conflict", message)
        case 400 | 422:
            return Invalid(status, reason or "Invalid", message)
        case 401 | 403:
            return Forbidden(status, reason or "Forbidden", message)
        case _:
            return ApiError(status, reason, message)
