# SPDX-License-Identifier: Apache-2.0
"""OpenAI's `response_format` as a guide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from open_autoglm.engine.guides import GuideSpec
from open_autoglm.errors import RequestError

_FIELD = "response_format"


def guide_of_response_format(value: Any) -> GuideSpec | None:
    """The guide that `{"type": "json_object"}` or `{"type": "json_schema", ...}` asks for; nothing for text.

    Raises RequestError, naming the field, for any other shape.
    """
    if not isinstance(value, Mapping):
        raise RequestError("response_format must be an object with a 'type'", _FIELD)
    match value.get("type"):
        case "text":
            _refuse_others(value, {"type"}, _FIELD)
            return None
        case "json_object":
            _refuse_others(value, {"type"}, _FIELD)
            return GuideSpec.of("json_object", None, _FIELD)
        case "json_schema":
            _refuse_others(value, {"type", "json_schema"}, _FIELD)
            wrapped = value.get("json_schema")
            place = f"{_FIELD}.json_schema"
            if not isinstance(wrapped, Mapping):
                raise RequestError(f"{place} must be an object with a 'schema'", place)
            _refuse_others(wrapped, {"name", "description", "schema", "strict"}, place)
            if "schema" not in wrapped:
                raise RequestError(f"{place}.schema is missing", f"{place}.schema")
            return GuideSpec.of("json_schema", wrapped["schema"], f"{place}.schema")
        case kind:
            raise RequestError(
                f"response_format.type must be text, json_object or json_schema, not {str(kind)[:40]!r}",
                f"{_FIELD}.type",
            )


def _refuse_others(value: Mapping[str, Any], known: set[str], place: str) -> None:
    if unknown := sorted(str(key) for key in value if key not in known):
        raise RequestError(f"{place}.{unknown[0]} is not supported", f"{place}.{unknown[0]}")
