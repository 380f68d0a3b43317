# SPDX-License-Identifier: Apache-2.0
"""The packet: what one stage of a pipeline hands to the next, JSON values and references to files only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from open_autoglm.errors import PipelineError

_DEEPEST: Final = 100
"""Nesting allowed in a JSON value: far above honest use, far below Python's recursion limit."""


@dataclass(frozen=True)
class Packet:
    """What flows between stages. It outlives the process, so it holds JSON values only; large things are files.

    session_id: the run that it belongs to; the same in every packet of a run.
    payload: what the stages work on. Name files in it by their path, as a string.
    metadata: what goes along with it (where it came from, how it was made).
    Raises PipelineError when a value is not JSON. The values are copied: changing yours later changes nothing here.
    """

    session_id: str
    payload: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.session_id, str) or not self.session_id:
            raise PipelineError("a packet needs a session_id: a string that is not empty")
        object.__setattr__(self, "payload", json_object(self.payload, "payload"))
        object.__setattr__(self, "metadata", json_object(self.metadata, "metadata"))

    def with_payload(self, payload: Mapping[str, Any], **metadata: Any) -> Packet:
        """A packet of the same session with another payload; `metadata` is added to what is there."""
        return Packet(self.session_id, dict(payload), {**self.metadata, **metadata})

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return {"session_id": self.session_id, "payload": self.payload, "metadata": self.metadata}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Packet:
        """The inverse of `to_dict`. Raises PipelineError when `values` is not a packet."""
        try:
            return cls(values["session_id"], values["payload"], values["metadata"])
        except (KeyError, TypeError) as error:
            raise PipelineError(f"not a packet: {type(error).__name__} {error}") from None


def json_object(value: Any, name: str, *, null_for_nan: bool = False) -> dict[str, Any]:
    """A copy of the mapping `value` in plain JSON types (tuples become lists).

    name: what it is called in an error, such as `config`. null_for_nan: take NaN and infinity, and write null for them.
    Raises PipelineError naming the first part that is not JSON.
    """
    if not isinstance(value, Mapping):
        raise PipelineError(f"{name} must be a mapping of names to JSON values, not {type(value).__name__}")
    return _json_value(value, name, 0, null_for_nan)


def _json_value(value: Any, name: str, depth: int, null_for_nan: bool) -> Any:
    if depth > _DEEPEST:
        raise PipelineError(f"{name[:80]}... is nested deeper than {_DEEPEST} levels")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise PipelineError(f"{name} holds a lone surrogate, which is not text") from None
        return str(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            if null_for_nan:
                return None
            raise PipelineError(f"{name} is {value}, which JSON cannot hold; leave it out or use null")
        return float(value)
    if isinstance(value, list | tuple):
        return [_json_value(item, f"{name}[{index}]", depth + 1, null_for_nan) for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise PipelineError(f"{name} has the key {key!r}; JSON keys are strings")
        return {
            _json_value(key, name, depth, null_for_nan): _json_value(item, f"{name}.{key}", depth + 1, null_for_nan)
            for key, item in value.items()
        }
    raise PipelineError(
        f"{name} is a {type(value).__name__}, which JSON cannot hold; write it to a file and put its path here"
    )
