# SPDX-License-Identifier: Apache-2.0
"""The ways in which people write down a dialogue -> turns with `role` and `content` and what else was said of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from open_autoglm.chat.messages import Role
from open_autoglm.data.column_names import DIALOGUE_NAMES
from open_autoglm.data.json_text import load_json
from open_autoglm.data.transcripts import read_transcript
from open_autoglm.errors import DataError

_ROLE_KEYS: Final = ("role", "from", "speaker", "角色")
_TEXT_KEYS: Final = ("content", "value", "text", "utterance", "message", "内容")
_OTHER_ROLES: Final = {
    "model": "assistant",
    "agent": "assistant",
    "ai": "assistant",
    "chatbot": "assistant",
    "chatgpt": "assistant",
    "customer": "user",
    "client": "user",
    "prompter": "user",
    "tool_call": "function_call",
    "tool_calls": "function_call",
    "tool_response": "observation",
    "tool_result": "observation",
    "系统": "system",
    "用户": "user",
    "人类": "user",
    "问": "user",
    "客户": "user",
    "顾客": "user",
    "助手": "assistant",
    "助理": "assistant",
    "机器人": "assistant",
    "答": "assistant",
    "客服": "assistant",
    "工具": "observation",
}
"""Names of roles beyond those that programs use."""
_KNOWN: Final = frozenset(
    (
        "system",
        "developer",
        "user",
        "human",
        "assistant",
        "gpt",
        "bot",
        "function_call",
        "observation",
        "tool",
        "function",
    )
)


def role_name(name: str) -> str:
    """A role as `Role.of` knows it, or the name itself."""
    folded = name.strip().casefold()
    return _OTHER_ROLES.get(folded, folded)


def is_role(name: object) -> bool:
    """Whether a text is the name of a role."""
    return isinstance(name, str) and role_name(name) in _KNOWN


def as_turns(value: Any, *, named: bool = False) -> list[dict[str, Any]] | None:
    """A cell -> its turns with `role` and `content`, other keys kept; None if it holds no dialogue.

    * objects with a role and a text, under the usual keys, or any: the role is what only ever names roles;
    * objects whose keys are roles (`{"human": "…", "assistant": "…"}`);
    * only where the column is called a dialogue (`named`): texts, or pairs of texts, of user and assistant in turn;
    * one text with the roles written into it (`transcripts`).
    """
    value = parsed(value)
    if isinstance(value, str):
        return read_transcript(value)
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        value = value["messages"]
    if isinstance(value, dict) and "role" in value:
        value = [value]
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(turn, dict) and turn for turn in value):
        return _answered(_objects(value))
    if named and all(isinstance(turn, str) for turn in value) and len(value) > 1:
        return _in_turn(value)
    if named and all(isinstance(turn, list) and len(turn) == 2 and all(map(_is_text, turn)) for turn in value):
        if all(is_role(turn[0]) for turn in value):
            return [{"role": role_name(role), "content": text} for role, text in value]
        return _in_turn([text for turn in value for text in turn])
    return None


def dialogue_columns(values: dict[str, Any]) -> list[str]:
    """The columns of a row that hold a dialogue, those that are called so first."""
    found: list[str] = []
    for column, cell in values.items():
        value = parsed(cell)
        if value is None or isinstance(value, str | int | float):
            continue
        name = column.strip().casefold()
        if name in ("tools", "functions", "history"):
            continue
        if as_turns(value, named=name in DIALOGUE_NAMES) is not None:
            found.append(column)
    return sorted(found, key=lambda column: column.strip().casefold() not in DIALOGUE_NAMES)


def parsed(value: Any) -> Any:
    """JSON in a cell of a table, or a value that is one already."""
    if isinstance(value, str) and value.strip().startswith(("[", "{")):
        try:
            return load_json(value)
        except (ValueError, RecursionError):
            return value
    return value


def read_role(name: Any, place: str) -> Role:
    """The role that a turn names. Raises DataError, naming the place."""
    if not isinstance(name, str):
        raise DataError(f"{place}: has no role; give `role` (or `from`) with user, assistant or system")
    try:
        return Role.of(role_name(name))
    except DataError:
        # The error for the name as it stands in the file.
        try:
            return Role.of(name)
        except DataError as error:
            raise DataError(f"{place}: {error}") from None


def _objects(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]] | None:
    usual = [next((key for key in _ROLE_KEYS if key in turn), None) for turn in turns]
    if all(usual):
        texts = [next((key for key in _TEXT_KEYS if key in turn), None) for turn in turns]
        if not any(texts) and not any("tool_calls" in turn or "function_call" in turn for turn in turns):
            return None
        return [
            _renamed(turn, role, text) for turn, role, text in zip(turns, usual, texts, strict=True) if role is not None
        ]
    if all(all(map(is_role, turn)) for turn in turns):
        return [{"role": role_name(role), "content": text} for turn in turns for role, text in turn.items()]
    roles = [key for key in turns[0] if all(is_role(turn.get(key)) for turn in turns)]
    if len(roles) != 1:
        return None
    others = [key for key in turns[0] if key != roles[0] and all(_is_text(turn.get(key)) for turn in turns)]
    if not others:
        return None
    longest = max(others, key=lambda key: sum(len(turn[key]) for turn in turns))
    return [_renamed(turn, roles[0], longest) for turn in turns]


def _answered(turns: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Where a user speaks with a `system` that answers, as in task-oriented dialogues, it is the assistant."""
    if turns is None or not all(map(is_role, (turn["role"] for turn in turns))):
        return turns
    roles = [role_name(turn["role"]) for turn in turns]
    if "user" not in roles or set(roles) != {"user", "system"} or "system" not in roles[roles.index("user") :]:
        return turns
    return [
        {**turn, "role": "assistant"} if role == "system" and place > roles.index("user") else turn
        for place, (turn, role) in enumerate(zip(turns, roles, strict=True))
    ]


def _renamed(turn: dict[str, Any], role: str, text: str | None) -> dict[str, Any]:
    rest = {key: value for key, value in turn.items() if key not in (role, text)}
    return {**rest, "role": turn[role], "content": turn[text] if text is not None else None}


def _in_turn(texts: Sequence[str]) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


def _is_text(value: object) -> bool:
    return isinstance(value, str)
