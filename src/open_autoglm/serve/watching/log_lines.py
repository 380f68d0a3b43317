# SPDX-License-Identifier: Apache-2.0
"""How an event becomes one line, JSON or text, that nobody can forge: nothing in it ends a line or moves a cursor."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, cast

LineFormat = Literal["json", "text"]

_FIRST: Final = ("timestamp", "level", "logger", "event")
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)  # controls, line ends, marks that turn the direction of text, halves of surrogate pairs
_PLAIN: Final = re.compile(r"[^\s\"=\\\x00-\x1f]+")
_CONTINUED: Final = "\n    | "
_OURS: Final = "open_autoglm"


def line_formatter(kind: LineFormat) -> logging.Formatter:
    """Makes a line of each record of the standard library's logging, whoever made it."""
    return _LineFormatter(kind)


class _LineFormatter(logging.Formatter):
    def __init__(self, kind: LineFormat) -> None:
        super().__init__()
        self._line = json_line if kind == "json" else text_line

    def format(self, record: logging.LogRecord) -> str:
        """One line, or several for a text with a traceback."""
        event = _described(record)
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return self._line(event)


def json_line(event: Mapping[str, Any]) -> str:
    """A JSON object."""
    ordered = {name: event[name] for name in _FIRST if name in event}
    text = json.dumps({**ordered, **event}, ensure_ascii=False, default=str)
    return _UNSAFE.sub(_escaped, text)


def text_line(event: Mapping[str, Any]) -> str:
    """Time, level, what happened, and `name=value` for the rest.

    A traceback follows, its lines marked, so that none looks like a line of its own.
    """
    rest = dict(event)
    head = [str(rest.pop(name, "")) for name in ("timestamp", "level", "event")]
    rest.pop("logger", None)
    trace = str(rest.pop("exception", ""))
    words = " ".join(f"{name}={_word(value)}" for name, value in rest.items())
    line = _UNSAFE.sub(_escaped, f"{head[0]} {head[1]:<7} {head[2]}{'  ' if words else ''}{words}")
    if trace:
        line += "".join(_CONTINUED + _UNSAFE.sub(_escaped, part) for part in trace.splitlines())
    return line


def _described(record: logging.LogRecord) -> dict[str, Any]:
    """What a record says. The message of ours may be fields, `event` among them; that of others is a text."""
    said: object = record.msg
    is_ours = record.name == _OURS or record.name.startswith(f"{_OURS}.")
    fields = cast("dict[str, Any]", said) if is_ours and isinstance(said, dict) else {"event": record.getMessage()}
    moment = datetime.fromtimestamp(record.created, UTC)
    return {
        **fields,
        "timestamp": moment.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": record.name,
    }


def _word(value: Any) -> str:
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) else json.dumps(value, ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False, default=str, separators=(",", ":"))


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"
