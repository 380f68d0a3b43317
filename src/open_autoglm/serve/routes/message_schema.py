# SPDX-License-Identifier: Apache-2.0
"""How the messages of a conversation look, as a JSON schema for the documents; `engine.conversation` checks them."""

from __future__ import annotations

from typing import Any, Final

Schema = dict[str, Any]

_NULL: Final[Schema] = {"type": "null"}
_TEXT: Final[Schema] = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                "required": ["type", "text"],
                "additionalProperties": False,
            },
        },
    ]
}
_NO_TEXT: Final[Schema] = {"anyOf": [*_TEXT["anyOf"], _NULL]}
_CALL: Final[Schema] = {
    "type": "object",
    "properties": {
        "function": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "minLength": 1},
                "arguments": {"anyOf": [{"type": "string"}, {"type": "object"}, _NULL]},
            },
            "required": ["name"],
            "description": "Its arguments are a JSON object, as a text or as it is.",
        },
    },
    "required": ["function"],
    "description": "As it came in an answer, with the `id` that the tool's message names.",
}
_ABSENT: Final = dict.fromkeys(("annotations", "audio", "function_call", "name", "refusal"), _NULL)
"""Fields that clients send as null for what is not there."""


def _message(*roles: str, required: tuple[str, ...] = ("content",), description: str, **fields: Schema) -> Schema:
    """A message of some roles: its own fields, and null for those of other roles."""
    others = dict.fromkeys(("reasoning_content", "tool_calls", "tool_call_id"), _NULL)
    return {
        "type": "object",
        "properties": {
            "role": {"enum": list(roles)},
            "content": _TEXT,
            "metadata": _NO_TEXT,
            **_ABSENT,
            **others,
            **fields,
        },
        "required": ["role", *required],
        "additionalProperties": False,
        "description": description,
    }


MESSAGE_SCHEMA: Final[Schema] = {
    "anyOf": [
        _message("system", "developer", "user", description="What the model is told."),
        _message(
            "assistant",
            description="What the model said.",
            reasoning_content=_NO_TEXT,
            tool_calls={"anyOf": [_NULL, {"type": "array", "items": _CALL}]},
        ),
        _message(
            "assistant",
            required=("tool_calls",),
            description="What the model called.",
            content=_NO_TEXT,
            reasoning_content=_NO_TEXT,
            tool_calls={"type": "array", "items": _CALL, "minItems": 1},
        ),
        _message("tool", description="What a tool answered to the call of this id.", tool_call_id=_NO_TEXT),
    ],
    "description": "As OpenAI's API has it. Texts only; other kinds of parts are refused.",
}
"""A message."""
