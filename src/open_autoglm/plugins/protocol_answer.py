# SPDX-License-Identifier: Apache-2.0
"""`ProtocolAnswer`: what a protocol plugin returned, checked, so that nothing odd is ever written on a connection."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

_KEYS: Final = ("status", "content_type", "headers", "body")
_DEFAULT_TYPE: Final = "application/json"
_OURS: Final = frozenset(
    (
        *("connection", "content-length", "content-type", "date", "keep-alive", "server", "te", "trailer"),
        *("transfer-encoding", "upgrade", "x-request-id"),
    )
)
"""Headers that the server writes, or that `content_type` says."""
_EMPTY: Final = (204, 205, 304)
"""Statuses of answers without a body."""
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


class AnswerShapeError(ValueError):
    """What a protocol plugin returned is no answer; the message says what is wrong with it."""


@dataclass(frozen=True)
class ProtocolAnswer:
    """An answer of a protocol plugin. headers: names in small letters. body: bytes, or an iterable of pieces."""

    status: int
    content_type: str
    headers: dict[str, str]
    body: bytes | Iterable[Any]

    @classmethod
    def of(cls, value: Any) -> Self:
        """Check what `ProtocolPlugin.answer` returned. Raises AnswerShapeError."""
        if not isinstance(value, Mapping):
            raise AnswerShapeError(f"answer gave a {type(value).__name__}, not a mapping with 'body'")
        if unknown := [str(key) for key in value if key not in _KEYS]:
            raise AnswerShapeError(f"answer gave '{unknown[0][:40]}', which is none of {', '.join(_KEYS)}")
        if "body" not in value:
            raise AnswerShapeError("answer gave no 'body'")
        status = value.get("status", 200)
        if not isinstance(status, int) or isinstance(status, bool) or not 200 <= status <= 599:
            raise AnswerShapeError(f"answer gave the status {status!r}, which is no number from 200 to 599")
        content_type = value.get("content_type", _DEFAULT_TYPE)
        if not isinstance(content_type, str) or not content_type or not _VALUE.fullmatch(content_type):
            raise AnswerShapeError(f"answer gave the content_type {content_type!r}, which is no text for a header")
        body = _body(value["body"])
        if status in _EMPTY and body != b"":
            raise AnswerShapeError(f"answer gave a body with the status {status}, which has none")
        return cls(status, content_type, _headers(value.get("headers")), body)

    def pieces(self) -> Generator[bytes, None, None]:
        """The body, piece by piece, without empty ones; its iterable is closed at the end, however that comes.

        Raises AnswerShapeError for a piece that is neither bytes nor a text, and whatever the iterable raises.
        """
        if isinstance(self.body, bytes):
            if self.body:
                yield self.body
            return
        iterator = iter(self.body)
        try:
            for piece in iterator:
                if data := _bytes(piece, "a piece of the body"):
                    yield data
        finally:
            for one in (iterator, self.body):
                close = getattr(one, "close", None)
                if callable(close):
                    close()
                    break


def _body(value: Any) -> bytes | Iterable[Any]:
    if isinstance(value, str | bytes | bytearray):
        return _bytes(value, "the body")
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
        hint = "; write it as JSON text" if isinstance(value, Mapping) else ""
        raise AnswerShapeError(
            f"answer gave a {type(value).__name__} as the body, which is neither bytes nor a text nor an iterable of "
            f"those{hint}"
        )
    return value


def _bytes(value: Any, what: str) -> bytes:
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if not isinstance(value, str):
        raise AnswerShapeError(f"{what} is a {type(value).__name__}, neither bytes nor a text")
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise AnswerShapeError(f"{what} has half of a surrogate pair, which is not text") from None


def _headers(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise AnswerShapeError(f"answer gave a {type(value).__name__} as headers, not texts by name")
    found: dict[str, str] = {}
    for name, text in value.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise AnswerShapeError(f"answer gave {name!r} as the name of a header")
        if not isinstance(text, str) or not _VALUE.fullmatch(text):
            raise AnswerShapeError(f"answer gave {text!r} as the header {name}")
        if name.lower() in _OURS:
            hint = "; say content_type" if name.lower() == "content-type" else ""
            raise AnswerShapeError(f"answer gave the header {name}, which the server writes{hint}")
        found[name.lower()] = text
    return found
