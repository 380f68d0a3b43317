# SPDX-License-Identifier: Apache-2.0
"""Texts in one spelling: composed characters, plain spaces and line ends, nothing invisible."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from open_autoglm.chat.messages import Message
from open_autoglm.data.example import Example
from open_autoglm.data.findings import FindingKind, FindingLog

_LINE_ENDS: Final = re.compile("\r\n?|[\u0085\u2028\u2029]")
_SPACES: Final = re.compile("[\x0b\x0c\u00a0\u1680\u2000-\u200a\u202f\u205f]")
# Joiners stay: emoji, Persian and Indian scripts need them. So do marks of direction.
_INVISIBLE: Final = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u2060\ufeff]")
_BROKEN: Final = re.compile("[\ud800-\udfff]")
_ODD_ASCII: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f]")
_ODD: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00a0\u00ad\u1680\u2000-\u200b\u2028\u2029\u202f\u205f\u2060\ufeff\ud800-\udfff]"
)
"""All of these."""

COMPOSED: Final = "letters with separate accents composed (NFC)"
SPACED: Final = "unusual spaces and line ends made plain"
REMOVED: Final = "invisible characters removed"
REPLACED: Final = "halves of characters replaced by \ufffd"


def normalise_text(text: str) -> tuple[str, list[str]]:
    """The text in one spelling, and what was done to it, if anything."""
    if is_spelled(text):
        return text, []
    done: list[str] = []
    for pattern, by, what in (
        (_BROKEN, "\ufffd", REPLACED),
        (_LINE_ENDS, "\n", SPACED),
        (_SPACES, " ", SPACED),
        (_INVISIBLE, "", REMOVED),
    ):
        changed = pattern.sub(by, text)
        if changed != text:
            text = changed
            done.append(what)
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
        done.append(COMPOSED)
    return text, list(dict.fromkeys(done))


def normalise_example(example: Example, log: FindingLog) -> Example:
    """The example with every message in one spelling, or itself if it is; each kind of change is noted."""
    if not example.rejected and all(map(_is_plain, example.messages)):
        return example
    reasons: dict[str, None] = {}

    def normalise(text: str) -> str:
        text, done = normalise_text(text)
        reasons.update(dict.fromkeys(done))
        return text

    changed = with_texts(example, normalise)
    for what in reasons:
        log.note_source(FindingKind.REPAIR, what, example.source)
    return changed


def _is_plain(message: Message) -> bool:
    return not message.reasoning and not message.tool_calls and is_spelled(message.content)


def is_spelled(text: str) -> bool:
    """Whether `normalise_text` finds nothing to do; such a text holds no NUL and is Unicode."""
    if text.isascii():
        return text.isprintable() or _ODD_ASCII.search(text) is None
    return (text.isprintable() or _ODD.search(text) is None) and unicodedata.is_normalized("NFC", text)


def with_texts(example: Example, change: Callable[[str], str]) -> Example:
    """The example with every text in it changed: contents, reasoning and the arguments of calls; itself if none is."""
    messages = tuple(_with_texts(message, change) for message in example.messages)
    rejected = tuple(_with_texts(message, change) for message in example.rejected)
    if (messages, rejected) == (example.messages, example.rejected):
        return example
    return replace(example, messages=messages, rejected=rejected)


def _with_texts(message: Message, change: Callable[[str], str]) -> Message:
    content = change(message.content)
    reasoning = change(message.reasoning) if message.reasoning else ""
    calls = tuple(replace(call, arguments=_with_values(call.arguments, change)) for call in message.tool_calls)
    if (content, reasoning, calls) == (message.content, message.reasoning, message.tool_calls):
        return message
    return replace(message, content=content, reasoning=reasoning, tool_calls=calls)


def _with_values(arguments: str, change: Callable[[str], str]) -> str:
    """JSON text changed as text where it stays a JSON object, else text by text inside it.

    A line end or a mark in place of a number would otherwise leave arguments that nobody can read.
    """
    changed = change(arguments)
    if changed == arguments or _is_object(changed):
        return changed
    return json.dumps(_with_leaves(json.loads(arguments), change), ensure_ascii=False)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _with_leaves(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _with_leaves(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_leaves(inner, change) for inner in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        text = json.dumps(value)
        changed = change(text)
        return value if changed == text else changed
    return value
