# SPDX-License-Identifier: Apache-2.0
"""How an event becomes one line, JSON or text, that nobody can forge: nothing in it ends a line or moves a cursor."""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any, Final, Literal

import structlog
from structlog.typing import EventDict, WrappedLogger

LineFormat = Literal["json", "text"]

_FIRST: Final = ("timestamp", "level", "logger", "event")
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)  # controls, line ends, marks that turn the direction of text, halves of surrogate pairs
_PLAIN: Final = re.compile(r"[^\s\"=\\\x00-\x1f]+")
_CONTINUED: Final = "\n    | "


def line_formatter(kind: LineFormat) -> logging.Formatter:
    """Makes a line of each record of the standard library's logging, whoever made it."""
    return structlog.stdlib.ProcessorFormatter(
        processors=[
            _describe,
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            json_line if kind == "json" else text_line,
        ]
    )


def json_line(_: WrappedLogger, __: str, event: EventDict) -> str:
    """A JSON object."""
    ordered = {name: event[name] for name in _FIRST if name in event}
    text = json.dumps({**ordered, **event}, ensure_ascii=False, default=str)
    return _UNSAFE.sub(_escaped, text)


def text_line(_: WrappedLogger, __: str, event: EventDict) -> str:
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


def _describe(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    record: logging.LogRecord = event["_record"]
    moment = datetime.fromtimestamp(record.created, UTC)
    event["timestamp"] = moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
    event["level"] = record.levelname.lower()
    event["logger"] = record.name
    return event


def _word(value: Any) -> str:
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) else json.dumps(value, ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False, default=str, separators=(",", ":"))


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"
