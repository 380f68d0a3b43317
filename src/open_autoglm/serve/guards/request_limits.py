# SPDX-License-Identifier: Apache-2.0
"""Bounds on one request: its header and URL, and the time that it may take."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from open_autoglm.serve.error_shape import HttpError, error_body, error_response
from open_autoglm.serve.guards.guard_settings import ConnectionSettings
from open_autoglm.serve.watching.request_record import record_of

_EVENT_STREAM: Final = b"text/event-stream"


def header_fault(headers: Iterable[tuple[bytes, bytes]], url: bytes, limits: ConnectionSettings) -> HttpError | None:
    """What is wrong with a request's header or URL, as 414, 431 or 400."""
    if len(url) > limits.max_url:
        return url_fault(limits)
    num_headers = size = num_hosts = 0
    framing: set[bytes] = set()
    for name, value in headers:
        num_headers += 1
        size += len(name) + len(value) + 4
        if name in (b"content-length", b"transfer-encoding"):
            framing.add(name)
        num_hosts += name == b"host"
    if size > limits.max_header_bytes or num_headers > limits.max_headers:
        return header_size_fault(limits)
    if len(framing) > 1:
        return HttpError(400, "a request has either Content-Length or Transfer-Encoding, not both")
    if num_hosts > 1:
        return HttpError(400, "a request has one Host header")
    return None


def _has_host(scope: Scope) -> bool:
    return any(name == b"host" for name, _ in scope["headers"])


def url_fault(limits: ConnectionSettings) -> HttpError:
    """For a URL that is too long."""
    return HttpError(414, f"the URL is longer than {limits.max_url} bytes, the most that this server takes")


def header_size_fault(limits: ConnectionSettings) -> HttpError:
    """For a header that is too long, or has too many lines."""
    return HttpError(
        431,
        f"the header is larger than {limits.max_header_bytes} bytes or {limits.max_headers} lines, the most that this "
        "server takes",
    )


class HeaderLimits:
    """ASGI middleware that refuses headers and URLs beyond the limits, and lengths that are said twice."""

    def __init__(self, app: ASGIApp, limits: ConnectionSettings) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 400, 414 or 431, or pass the request on."""
        if scope["type"] == "http":
            url = scope.get("raw_path", b"") + b"?" + scope.get("query_string", b"")
            fault = header_fault(scope["headers"], url, self._limits)
            if fault is None and scope["http_version"] == "1.1" and not _has_host(scope):
                fault = HttpError(400, "a request has a Host header")
            if fault is not None:
                fault.headers["Connection"] = "close"
                await error_response(fault)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class RequestTimeout:
    """ASGI middleware that ends a request which takes too long: by 504, or by an error event within a stream.

    What works on the request is cancelled, as when the client goes away.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app, self._seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, for a time."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seconds = self._seconds
        started = streaming = ended = False

        async def watched(message: Message) -> None:
            nonlocal started, streaming, ended
            await send(message)
            if message["type"] == "http.response.start":
                started = True
                streaming = any(
                    name.lower() == b"content-type" and value.startswith(_EVENT_STREAM)
                    for name, value in message.get("headers", ())
                )
            elif not message.get("more_body", False):
                ended = True

        deadline = asyncio.timeout(seconds)
        try:
            async with deadline:
                await self._app(scope, receive, watched)
        except TimeoutError:
            if not deadline.expired():
                raise
            if ended:
                return
            record_of(scope).fail(504)
            fault = HttpError(504, f"the request took longer than {seconds:g} s, the most that this server gives it")
            if not started:
                await error_response(fault)(scope, receive, send)
            elif streaming:
                event = f"data: {json.dumps(error_body(fault)[1], ensure_ascii=False)}\n\n"
                await send({"type": "http.response.body", "body": event.encode(), "more_body": False})
            else:
                raise  # half an answer is on its way: the connection is cut, so that nobody takes it for a whole one
