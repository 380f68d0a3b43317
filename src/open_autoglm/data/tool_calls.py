# SPDX-License-Identifier: Apache-2.0
"""Tools and their calls, however a file writes them down: as OpenAI's, ShareGPT's and GLM's own files do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from open_autoglm.chat.messages import Message, Role, ToolCall
from open_autoglm.data.column_names import TOOLS_NAMES
from open_autoglm.data.columns import find_named, value_text
from open_autoglm.data.example import Example
from open_autoglm.data.tool_parameters import with_schema
from open_autoglm.data.turns import parsed
from open_autoglm.errors import DataError

_CALL_ROLES: Final = ("function_call", "tool_call", "tool_calls")
_ROLE_MARKS: Final = frozenset(("role", "from", "content", "value"))
_NAME: Final = re.compile(r"[\w.\-]{1,64}")


class UnreadableCallError(DataError):
    """A call whose arguments are no JSON object: nothing to learn from, but no reason to refuse the file."""


class TurnReader:
    """The calls of one turn as the file has it, with `role` and `content`. place: where it stands, for errors."""

    def __init__(self, turn: Mapping[str, Any], place: str) -> None:
        self._turn = turn
        self._place = place
        self.is_call = str(turn["role"]).strip().casefold() in _CALL_ROLES
        """Whether the role says that the content is a call."""

    def call_with_result(self, *, learn: bool) -> list[Message] | None:
        """A tool's turn of ChatGLM3's files, which holds the call and what came of it; nothing for any other turn."""
        turn = self._turn
        if not isinstance(turn.get("name"), str) or "parameters" not in turn or "observation" not in turn:
            return None
        call = self._call({"name": turn["name"], "arguments": turn["parameters"]})
        result = Message(Role.OBSERVATION, value_text(turn["observation"]))
        return [Message(Role.ASSISTANT, "", learn=learn, tool_calls=(call,)), result]

    def calls(self, content: str) -> tuple[tuple[ToolCall, ...], bool]:
        """The calls of an assistant's turn, and whether they stand in its content.

        Raises DataError for what is no call, UnreadableCallError for arguments that are no JSON object.
        """
        turn = self._turn
        if self.is_call:
            written = turn["content"] if isinstance(turn["content"], list) else parsed(content)
            return self._all(written if isinstance(written, list) else [written]), True
        given = parsed(turn.get("tool_calls"))
        legacy = parsed(turn.get("function_call"))
        if not given and isinstance(legacy, dict):
            given = [legacy]
        if given:
            if not isinstance(given, list):
                raise DataError(f"{self._place}: `tool_calls` is not an array")
            return self._all(given), False
        if (name := self.metadata) and isinstance(parsed(content), dict):
            return (ToolCall(name, content.strip()),), True
        return (), False

    @property
    def metadata(self) -> str:
        """The word behind the role in GLM's own files: a tool's name. What others keep under this key is none."""
        value = self._turn.get("metadata")
        return value.strip() if isinstance(value, str) and _NAME.fullmatch(value.strip()) else ""

    def _all(self, calls: Sequence[Any]) -> tuple[ToolCall, ...]:
        return tuple(self._call(call) for call in calls)

    def _call(self, call: Any) -> ToolCall:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise DataError(f"{self._place}: a tool call is not JSON with `name` and `arguments`")
        try:
            return ToolCall.of(call)
        except DataError as error:
            raise UnreadableCallError(f"{self._place}: {error}") from None


def join_calls(messages: Sequence[Message]) -> list[Message]:
    """Calls that follow one another, or follow what is said before them, are one turn: no result stands between."""
    joined: list[Message] = []
    for message in messages:
        last = joined[-1] if joined else None
        only_calls = message.tool_calls and not message.content and not message.reasoning
        same = last is not None and last.role is Role.ASSISTANT and last.learn == message.learn and not last.metadata
        if last is not None and same and only_calls:
            joined[-1] = replace(last, tool_calls=last.tool_calls + message.tool_calls)
        else:
            joined.append(message)
    return joined


def calls_in_texts(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Texts of the assistant that a tool answers, and that are a tool's name and a JSON object below it, as calls."""
    names = tool_names(tools)
    read: list[Message] = []
    for message, following in zip(messages, [*messages[1:], None], strict=True):
        name, _, arguments = message.content.partition("\n")
        answered = following is not None and following.role is Role.OBSERVATION
        is_call = answered and message.role is Role.ASSISTANT and not message.calls and name.strip() in names
        if is_call and isinstance(parsed(arguments), dict):
            calls = (ToolCall(name.strip(), arguments.strip()),)
            read.append(replace(message, content="", tool_calls=calls))
        else:
            read.append(message)
    return join_calls(read)


def calls_in_answer(message: Message, tools: Sequence[Mapping[str, Any]]) -> Message:
    """An answer that is nothing but JSON of calls of the tools offered, as the calls that it stands for."""
    written = parsed(message.content)
    calls = written if isinstance(written, list) else [written]
    names = tool_names(tools)
    if not calls or not all(isinstance(call, dict) and call.get("name") in names for call in calls):
        return message
    try:
        return replace(message, content="", tool_calls=tuple(ToolCall.of(call) for call in calls))
    except DataError:
        return message


def read_tools(values: Mapping[str, Any], *, named: bool = False) -> tuple[dict[str, Any], ...]:
    """The functions that a row offers, as OpenAI describes them: by the column's name, or by what is in it.

    Also where a message of the row lists them, as in GLM's own files. named: only a column of a usual name counts.
    """
    column = find_named(TOOLS_NAMES, list(values))
    cells = [values[column]] if column is not None else [] if named else list(values.values())
    for cell in cells:
        tools = parsed(cell)
        if isinstance(tools, dict) and column is not None:
            tools = [tools]
        if found := _as_tools(tools):
            return found
    if named:
        return ()
    for cell in values.values():
        for turn in _objects(cell):
            if "tools" in turn and (found := _as_tools(parsed(turn["tools"]))):
                return found
    return ()


def tool_names(tools: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """The names of the functions."""
    return frozenset(tool.get("function", tool).get("name", "") for tool in tools)


def shared_tools(examples: Sequence[Example]) -> tuple[dict[str, Any], ...]:
    """The tools that every example offers, if they all offer the same; else nothing."""
    if not examples or not examples[0].tools:
        return ()
    first = examples[0].tools
    return first if all(example.tools == first for example in examples) else ()


def tools_key(example: Example) -> str:
    """What makes the tools of two examples the same."""
    return json.dumps(example.tools, ensure_ascii=False, sort_keys=True) if example.tools else ""


def _objects(cell: Any) -> list[dict[str, Any]]:
    """A cell that is an object or holds a list of some, and those."""
    if isinstance(cell, dict):
        return [cell, *_objects(cell.get("messages"))]
    return [item for item in cell if isinstance(item, dict)] if isinstance(cell, list) else []


def _as_tools(value: Any) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list) or not value or not all(map(_is_tool, value)):
        return ()
    schemas = map(with_schema, value)
    return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in schemas)


def _is_tool(value: Any) -> bool:
    """A name, and what describes a function."""
    function = value.get("function", value) if isinstance(value, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str) and not _ROLE_MARKS & value.keys()
