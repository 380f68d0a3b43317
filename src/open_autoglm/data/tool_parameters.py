# SPDX-License-Identifier: Apache-2.0
"""The parameters of a tool, where a file describes them as Python does -> the JSON schema that OpenAI asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

_TYPES: Final = {
    "str": "string",
    "string": "string",
    "int": "integer",
    "integer": "integer",
    "float": "number",
    "number": "number",
    "double": "number",
    "bool": "boolean",
    "boolean": "boolean",
    "list": "array",
    "array": "array",
    "tuple": "array",
    "set": "array",
    "dict": "object",
    "object": "object",
}
_TYPE: Final = re.compile(r"\s*(?:typing\.)?([A-Za-z]+)\s*(?:\[(.*)\])?\s*", re.DOTALL)
_OPTIONAL: Final = re.compile(r",\s*optional\b.*$", re.IGNORECASE | re.DOTALL)


def with_schema(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The tool with its parameters as a JSON schema, where they are a description of each by its name.

    So they are in xLAM's files: `{"limit": {"type": "int, optional", "description": "…", "default": 10}}`. Without a
    default, and if not called optional, a parameter is required. A type that JSON has no word for is left out.
    """
    if isinstance(function := tool.get("function"), Mapping):
        return {**tool, "function": with_schema(function)}
    parameters = tool.get("parameters")
    if not isinstance(parameters, Mapping) or not parameters or not all(map(_is_description, parameters.values())):
        return dict(tool)
    read = {name: _read(description) for name, description in parameters.items()}
    schema: dict[str, Any] = {"type": "object", "properties": {name: inner for name, (inner, _) in read.items()}}
    if required := [name for name, (_, is_required) in read.items() if is_required]:
        schema["required"] = required
    return {**tool, "parameters": schema}


def _is_description(value: Any) -> bool:
    """Whether it says of one parameter what it is; in a JSON schema the object itself has a type, which is a text."""
    if not isinstance(value, Mapping) or not isinstance(value.get("type", ""), str):
        return False
    return isinstance(value.get("type"), str) or isinstance(value.get("description"), str)


def _read(description: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The schema of a parameter, and whether it must be given."""
    written = str(description.get("type", ""))
    bare = _OPTIONAL.sub("", written)
    match = _TYPE.fullmatch(bare)
    is_optional = bare != written or "default" in description
    if match is not None and match.group(1).casefold() == "optional" and match.group(2):
        is_optional = True
        bare = match.group(2)
    rest = {key: value for key, value in description.items() if key != "type"}
    return {**_schema_of(bare), **rest}, not is_optional


def _schema_of(text: str) -> dict[str, Any]:
    """`List[int]` -> an array of integers."""
    match = _TYPE.fullmatch(text)
    kind = _TYPES.get(match.group(1).casefold()) if match is not None else None
    if match is None or kind is None:
        return {}
    items = _schema_of(match.group(2)) if kind == "array" and match.group(2) else {}
    return {"type": kind, "items": items} if items else {"type": kind}
