# SPDX-License-Identifier: Apache-2.0
"""Reading a request's JSON body within bounds on size, depth and numbers."""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

from starlette.requests import Request

from open_autoglm.errors import RequestError
from open_autoglm.serve.error_shape import HttpError

MAX_DEPTH: Final = 128
"""Objects and lists within each other."""


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

    def refuse_constant(name: str) -> NoReturn:
        raise RequestError(f"{what} has the number {name}, which is not JSON", parameter)

    try:
        value = json.loads(body.decode("utf-8"), parse_constant=refuse_constant)
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
    _check_depth(value, what, parameter)
    if b"\\u" in body:
        for name, inner in value.items():
            _check_surrogates(name if parameter is None else parameter, {name: inner})
    return value


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body. Raises HttpError 413 for one of more than `limit` bytes."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and len(announced) < 20 and int(announced) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
    return b"".join(parts)


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
