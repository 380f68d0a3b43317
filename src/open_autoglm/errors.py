# SPDX-License-Identifier: Apache-2.0
"""The one exception tree of Open-AutoGLM.

Every message says what was wrong, where, and what to do about it; the command line prints it without a traceback and
ends with `exit_code`, the server answers it with `http_status` in OpenAI's error shape.
"""

from __future__ import annotations

from typing import ClassVar


class OpenAutoGLMError(Exception):
    """The root: catch this to catch everything that Open-AutoGLM raises on purpose."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500


class DataError(OpenAutoGLMError):
    """A file, row or column of the user's data cannot be used."""

    exit_code = 3
    http_status = 400


class ConfigurationError(OpenAutoGLMError):
    """A flag, setting or YAML value is wrong."""

    exit_code = 2
    http_status = 400


class BudgetError(OpenAutoGLMError):
    """The time given is too short for what was asked."""

    exit_code = 4


class CheckpointError(OpenAutoGLMError):
    """A model folder or weight file cannot be loaded."""

    exit_code = 5


class BundleError(OpenAutoGLMError):
    """A folder is not a bundle, or is not the bundle that was written."""

    exit_code = 5


class StorageError(OpenAutoGLMError):
    """The disk refused: full, read-only, or not permitted."""

    exit_code = 6


class RunLockedError(OpenAutoGLMError):
    """Another process works on the same run folder."""

    exit_code = 7


class PipelineError(OpenAutoGLMError):
    """A pipeline's specification is wrong, or one of its stages failed for good."""

    exit_code = 8


class SpecificationError(PipelineError):
    """A pipeline's file is wrong.

    faults: each with its file, line and column; the message has them line by line.
    """

    exit_code = 2
    http_status = 400

    def __init__(self, message: str, faults: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.faults = faults or (message,)


class TrainingError(OpenAutoGLMError):
    """Training cannot go on: the loss is not a number, or no trial finished."""

    exit_code = 9


class RequestError(OpenAutoGLMError):
    """A request to the engine or the server is invalid.

    parameter: the field at fault, as the OpenAI error shape names it.
    """

    exit_code = 2
    http_status = 400

    def __init__(self, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter


class EngineError(OpenAutoGLMError):
    """The engine stopped or cannot start."""

    exit_code = 10
    http_status = 503


class UnsignedBundleError(BundleError):
    """A bundle must be signed, and is not."""

    exit_code = 20


class WrongKeyError(BundleError):
    """A bundle is signed, but not with the key that was asked for."""

    exit_code = 21


class SignatureMismatchError(BundleError):
    """A signature does not belong to the bundle that it lies in: one of the two was changed."""

    exit_code = 22


class RegistryError(OpenAutoGLMError):
    """A registry refused, cannot be reached, or gave something else than was asked for."""

    exit_code = 23
