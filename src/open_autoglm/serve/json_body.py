# SPDX-License-Identifier: Apache-2.0
"""Reading a request's JSON body within bounds on size, depth and numbers."""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

from starlette.requests import ClientDisconnect, Request

from open_autoglm.errors import RequestError
from open_autoglm.serve.error_shape import HttpError

MAX_DEPTH: Final = 128
"""Objects and lists within each other."""


class _NotANumberError(Exception):
    """A name of JavaScript's that Python takes for a number."""


def _refuse_constant(name: str) -> NoReturn:
    raise _NotANumberError(name)


_decode: Final = json.JSONDecoder(parse_constant=_refuse_constant).decode  # `json.loads` would make one for each body


async def read_json_object(request: Request, max_body: int) -> dict[str, Any]:
    """The JSON object in a body of at most `max_body` bytes.

    Raises HttpError 413 for a longer body, RequestError for anything but a JSON object in UTF-8, for infinite and
    undefined numbers, for nesting deeper than 128, and for halves of surrogate pairs.
    """
    return json_object(await read_body(request, max_body))


def json_object(body: bytes, what: str = "the body", parameter: str | None = None) -> dict[str, Any]:
    """The JSON object in some bytes. what: how faults call them. parameter: the field that they came in.

    Raises RequestError as `read_json_object` does.
    """

    try:
        value = _decode(body.decode("utf-8"))
    except _NotANumberError as error:
        raise RequestError(f"{what} has the number {error}, which is not JSON", parameter) from None
    except UnicodeDecodeError as error:
        raise RequestError(f"{what} is not UTF-8 text (byte {error.start})", parameter) from None
    except RecursionError:
        raise RequestError(_too_deep(what), parameter) from None
    except json.JSONDecodeError as error:
        raise RequestError(
            f"{what} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}", parameter
        ) from None
    except ValueError:
        raise RequestError(f"{what} has a number with too many digits", parameter) from None
    if not isinstance(value, dict):
        raise RequestError(f"{what} must be a JSON object", parameter)
    if body.count(b"{") + body.count(b"[") >= MAX_DEPTH:  # else it cannot be nested so deep
        _check_depth(value, what, parameter)
    if b"\\u" in body:
        for name, inner in value.items():
            _check_surrogates(name if parameter is None else parameter, {name: inner})
    return value


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body. Raises HttpError 413 for one of more than `limit` bytes."""
    for name, announced in request.scope["headers"]:
        if name == b"content-length" and announced.isdigit() and len(announced) < 20 and int(announced) > limit:
            raise _too_large(limit)
    receive, body, more = request.receive, b"", True
    parts: list[bytes] = []
    size = 0
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body, more = message.get("body", b""), message.get("more_body", False)
        size += len(body)
        if size > limit:
            raise _too_large(limit)
        parts.append(body)
    return body if len(parts) == 1 else b"".join(parts)


def _too_large(limit: int) -> HttpError:
    return HttpError(413, f"the body is larger than {limit} bytes, the most that this server takes")


def _too_deep(what: str) -> str:
    return f"{what} is nested more than {MAX_DEPTH} deep"


def _check_depth(value: Any, what: str, parameter: str | None) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise RequestError(_too_deep(what), parameter)


def _check_surrogates(name: str, value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        shown = name.encode(errors="replace").decode()
        raise RequestError(f"{shown} has half of a surrogate pair, which is not text", shown) from None
