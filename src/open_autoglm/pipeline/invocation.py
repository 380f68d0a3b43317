# SPDX-License-Identifier: Apache-2.0
"""Inside a stage's process: its log, its schemas, and its error as a value that can be sent."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from open_autoglm.errors import OpenAutoGLMError, PipelineError
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.secrets import Redactor

_LONGEST_REASON: Final = 300


class AttemptLog(logging.Logger):
    """The log of one attempt: a file that is made when there is something to write. Close it at the end."""

    def __init__(self, stage: str, path: Path, redactor: Redactor | None = None) -> None:
        super().__init__(f"open_autoglm.stage.{stage}")  # not getLogger: it belongs to this attempt alone
        self._file = _QuietFileHandler(path, encoding="utf-8", delay=True)
        self._file.setFormatter(_RedactedFormatter(redactor or Redactor()))
        self.addHandler(self._file)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _QuietFileHandler(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base class named it
        """A log that cannot be written must not disturb the terminal: what matters is reported as well."""


class _RedactedFormatter(logging.Formatter):
    def __init__(self, redactor: Redactor) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        """The line without secrets."""
        return self._redactor.text(super().format(record))


def restore_environment(values: Mapping[str, str | None]) -> None:
    """What the runner changed to start us is not meant for the programs that the stage starts."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def describe_error(error: BaseException) -> dict[str, Any]:
    """The error as JSON: `types` from its class up the tree, so that the runner can raise the nearest one it knows.

    permanent: an error of ours is a fault that the user has to mend, and is not tried again.
    """
    types = [kind.__name__ for kind in type(error).__mro__ if issubclass(kind, OpenAutoGLMError)]
    message = str(error)
    if not types:
        message = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return {"types": types, "message": message, "permanent": bool(types)}


class PayloadSchema:
    """A JSON Schema that payloads are held against. It may refer to nothing outside itself.

    Raises PipelineError if it is no schema.
    """

    def __init__(self, schema: Mapping[str, Any], owner: str) -> None:
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import SchemaError
        from referencing import Registry

        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise PipelineError(f"{owner} is no JSON Schema: {error.message[:_LONGEST_REASON]}") from None
        self._validator = Draft202012Validator(schema, registry=Registry())

    def check(self, packet: Packet, where: str) -> None:
        """Raises PipelineError that names the field if the payload does not fit. where: whose payload it is."""
        from jsonschema.exceptions import best_match

        fault = best_match(self._validator.iter_errors(packet.payload))
        if fault is None:
            return
        field = "payload"
        for part in fault.absolute_path:
            field += f"[{part}]" if isinstance(part, int) else f".{part}"
        reason = fault.message if len(fault.message) <= _LONGEST_REASON else fault.message[:_LONGEST_REASON] + "..."
        raise PipelineError(f"{where} does not fit: {field}: {reason}")
