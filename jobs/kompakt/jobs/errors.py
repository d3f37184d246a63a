# SPDX-License-Identifier: Apache-2.0
"""Everything that ends a Job before its work is done.

    JobError
    ├── InvalidInput              exit 42: whoever wrote the policy must change something
    │   ├── TaskInvalid           the task is no valid TaskSpec
    │   ├── SourceUnreadable      a model or a data set cannot be read from where the policy says
    │   ├── DigestMismatch        it can, but its content is another than the policy demands
    │   ├── UnsafeFormat          weights as pickle, which could run code
    │   ├── ModelUnsupported      an architecture, a head or a size that Kompakt cannot work with
    │   ├── DataInvalid           a field is missing, a line is no JSON, nothing is left to read
    │   ├── LabelUnknown          the data has a label that the model does not have
    │   ├── StepInvalid           a recipe's step cannot be applied to this model and data
    │   ├── PackageMissing        the recipe or the artifact needs a package that is optional
    │   └── DeviceMissing         the profile asks for a device that cannot be used here
    └── Failed                    exit 1: it should have worked
        ├── StoreUnavailable      the artifact store cannot be read or written
        ├── ArtifactMissing       the store does not hold what the task names
        ├── ArtifactCorrupt       it does, but the bytes are not the ones that were stored
        ├── ExportMismatch        the exported graph answers otherwise than torch
        ├── TrainingDiverged      distillation made the model worse, or not a number
        └── QuantizationIncomplete  fewer matrices became int8 than the graph has

A class's name is the `reason` of the TaskResult, which becomes that of a condition and of an Event.
The message is one sentence: the field, what is wrong with it, and how to mend it.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from kompakt.api.names import EXIT_INVALID_INPUT


class JobError(Exception):
    """Base of all; `exit_code` and `outcome` say what the operator does next."""

    exit_code: ClassVar[int] = 1
    outcome: ClassVar[Literal["InvalidInput", "Failed"]] = "Failed"

    @property
    def reason(self) -> str:
        """CamelCase name of what went wrong."""
        return type(self).__name__


class InvalidInput(JobError):  # noqa: N818 the outcome in the API is called so
    """The input is wrong: never retried."""

    exit_code = EXIT_INVALID_INPUT
    outcome = "InvalidInput"


class TaskInvalid(InvalidInput):
    """The task is no valid TaskSpec."""


class SourceUnreadable(InvalidInput):
    """A model or a data set cannot be read."""


class DigestMismatch(InvalidInput):
    """A model or a data set has another content than the policy demands."""


class UnsafeFormat(InvalidInput):
    """Weights as pickle."""


class ModelUnsupported(InvalidInput):
    """An architecture, a head or a size that Kompakt cannot work with."""


class DataInvalid(InvalidInput):
    """The data cannot be understood as examples."""


class LabelUnknown(InvalidInput):
    """The data has a label that the model does not have."""


class StepInvalid(InvalidInput):
    """A recipe's step cannot be applied to this model and data."""


class PackageMissing(InvalidInput):
    """The recipe or the artifact needs an optional package that is not installed."""


class DeviceMissing(InvalidInput):
    """The profile asks for a device that what is installed here cannot use."""


class Failed(JobError):  # noqa: N818 the outcome in the API is called so
    """It should have worked."""


class StoreUnavailable(Failed):
    """The artifact store cannot be read or written."""


class ArtifactMissing(Failed):
    """The store does not hold what the task names."""


class ArtifactCorrupt(Failed):
    """The store's bytes are not the ones that were stored."""


class ExportMismatch(Failed):
    """The exported graph answers otherwise than torch."""


class TrainingDiverged(Failed):
    """Distillation made the model worse, or not a number."""


class QuantizationIncomplete(Failed):
    """Fewer matrices became int8 than the graph has."""
