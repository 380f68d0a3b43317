# SPDX-License-Identifier: Apache-2.0
"""Rows that hold whole dialogues -> messages: OpenAI's `messages` and ShareGPT's `conversations`."""

from __future__ import annotations

import json
from typing import Any, Final

from open_autoglm.chat.messages import Message, Role
from open_autoglm.data.column_names import DIALOGUE_NAMES
from open_autoglm.data.columns import value_text
from open_autoglm.errors import DataError

_ROLE_KEYS: Final = ("role", "from", "speaker")
_TEXT_KEYS: Final = ("content", "value", "text")
_TOOLS_HEADER: Final = "# 可用工具"
_TOOL_ADVICE: Final = "在调用上述函数时，请使用 Json 格式表示调用的参数。"


def dialogue_column(values: dict[str, Any]) -> str | None:
    """The column of a row that holds a dialogue, if one does."""
    for column, value in values.items():
        if column.strip().casefold() in DIALOGUE_NAMES and _is_dialogue(_parsed(value)):
            return column
    return None


def read_dialogue(values: dict[str, Any], column: str, place: str) -> tuple[list[Message], bool]:
    """A row -> its messages up to the last answer, and whether turns after that answer were left off.

    A `system` column comes first, with the `tools` column below it as GLM-4 lists tools. `weight: 0` or
    `loss: false` on a message takes it out of the loss.
    Raises DataError, naming `place`, for an unknown role, a message without text, or when nobody answers.
    """
    turns = _parsed(values.get(column))
    if not _is_dialogue(turns):
        raise DataError(f"{place}: '{column}' is not an array of messages with a role and a text")
    messages: list[Message] = []
    for number, turn in enumerate(turns, start=1):
        messages.extend(_read_turn(turn, f"{place}, message {number}"))
    messages = _with_system(messages, value_text(values.get("system")), _parsed(values.get("tools")))
    last = max((index for index, message in enumerate(messages) if message.role is Role.ASSISTANT), default=None)
    if last is None:
        raise DataError(f"{place}: no message of the assistant, so there is nothing to learn")
    return messages[: last + 1], last + 1 < len(messages)


def _read_turn(turn: Any, place: str) -> list[Message]:
    if not isinstance(turn, dict):
        raise DataError(f"{place}: not an object with a role and a text")
    name = next((turn[key] for key in _ROLE_KEYS if key in turn), None)
    if not isinstance(name, str):
        raise DataError(f"{place}: has no role; give `role` (or `from`) with user, assistant or system")
    try:
        role = Role.of(name)
    except DataError as error:
        raise DataError(f"{place}: {error}") from None
    learn = bool(turn.get("weight", 1)) and turn.get("loss", True) is not False
    content = _content(next((turn[key] for key in _TEXT_KEYS if key in turn), None), place)
    if name.strip().lower() == "function_call":
        return _tool_calls(_parsed(content), learn, place)
    messages = [Message(role, content, learn=learn)] if content or not turn.get("tool_calls") else []
    if turn.get("tool_calls"):
        messages.extend(_tool_calls([call.get("function", call) for call in turn["tool_calls"]], learn, place))
    return messages


def _content(content: Any, place: str) -> str:
    """OpenAI's content may be a list of blocks; only text blocks can be learnt."""
    if not isinstance(content, list):
        return value_text(content)
    texts = []
    for block in content:
        if isinstance(block, str):
            texts.append(block)
        elif isinstance(block, dict) and isinstance(block.get("text"), str):
            texts.append(block["text"])
        else:
            kind = block.get("type", "unknown") if isinstance(block, dict) else type(block).__name__
            raise DataError(f"{place}: a block of type '{kind}'; only text is supported yet")
    return "\n".join(texts)


def _tool_calls(calls: Any, learn: bool, place: str) -> list[Message]:
    """Calls -> assistant turns as glm-4-9b-chat writes them: the name after the role, the arguments as JSON."""
    messages: list[Message] = []
    for call in calls if isinstance(calls, list) else [calls]:
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise DataError(f"{place}: a tool call is not JSON with `name` and `arguments`")
        arguments = call.get("arguments", call.get("parameters", {}))
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        messages.append(Message(Role.ASSISTANT, text, metadata=call["name"], learn=learn))
    return messages


def _with_system(messages: list[Message], system: str, tools: Any) -> list[Message]:
    parts = [system] if system else []
    if messages and messages[0].role is Role.SYSTEM:
        parts.append(messages[0].content)
        messages = messages[1:]
    if isinstance(tools, list) and tools:
        parts.append(_TOOLS_HEADER)
        for tool in tools:
            function = tool.get("function", tool) if isinstance(tool, dict) else tool
            name = function.get("name", "tool") if isinstance(function, dict) else "tool"
            parts.append(f"## {name}\n\n{json.dumps(function, ensure_ascii=False, indent=4)}\n{_TOOL_ADVICE}")
    text = "\n\n".join(part for part in parts if part.strip())
    return [Message(Role.SYSTEM, text), *messages] if text else messages


def _is_dialogue(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and any(key in turn for key in _ROLE_KEYS) for turn in value)
    )


def _parsed(value: Any) -> Any:
    """JSON in a cell of a table, or a value that is one already."""
    if isinstance(value, str) and value.strip().startswith(("[", "{")):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
