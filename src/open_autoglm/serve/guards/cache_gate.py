# SPDX-License-Identifier: Apache-2.0
"""The gate before the routes whose answers may be kept: same key, same model, same request, same answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from open_autoglm.errors import OpenAutoGLMError
from open_autoglm.serve.error_shape import error_response
from open_autoglm.serve.guards.authentication import caller_of
from open_autoglm.serve.guards.body_ahead import body_ahead
from open_autoglm.serve.guards.rate_limits import meter_of
from open_autoglm.serve.guards.response_cache import ResponseCache, cache_key, is_deterministic

CACHED_ROUTES: Final = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/classify")
_ALWAYS_THE_SAME: Final = ("/v1/embeddings", "/v1/classify")
_MAX_ANSWER: Final = 4 * 1024 * 1024


@dataclass(frozen=True)
class ModelIdentity:
    """What a cache must know of a model. digest: of its weights and of how they are computed. greedy_by_default:
    whether a request without a temperature gets the likeliest tokens."""

    digest: str
    greedy_by_default: bool


IdentifyModel = Callable[[str | None], ModelIdentity | None]
"""From the name in a request, or none, to the model that would answer; none if there is no such model."""


class CacheGate:
    """ASGI middleware that answers from the cache, and keeps whole answers with status 200.

    `x-cache` says `hit` or `miss` where an answer could be kept. Streams pass by. An answer whose text was cut by a
    fault has another status, or no end, and is never kept.
    """

    def __init__(self, app: ASGIApp, cache: ResponseCache, identify: IdentifyModel, max_body: int) -> None:
        self._app, self._cache, self._identify, self._max_body = app, cache, identify, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer from the cache, or pass the request on."""
        cache = self._cache
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in CACHED_ROUTES:
            await self._app(scope, receive, send)
            return
        try:
            ahead = await body_ahead(scope, receive, self._max_body)
        except OpenAutoGLMError as error:
            await error_response(error)(scope, receive, send)
            return
        key = answer_key(caller_of(scope).id or "", scope["path"], ahead.value, self._identify)
        if key is None:
            await self._app(scope, ahead.receive, send)
            return
        found = await cache.get(key)
        if found is not None:
            meter_of(scope).record(0, 0)
            await Response(found, media_type="application/json", headers={"x-cache": "hit"})(scope, receive, send)
            return
        kept = _Kept(send)
        await self._app(scope, ahead.receive, kept.send)
        if kept.answer is not None:
            await cache.put(key, kept.answer)


def answer_key(
    caller: str, path: str, body: dict[str, object] | None, identify: IdentifyModel, *, kind: str = ""
) -> str | None:
    """The name under which the answer to a request is kept; none for one that is not kept.

    caller: the id of the key. path: the route. body: a JSON object, if it is one. kind: of the answer's bytes, where
    they are not the route's own.
    """
    if body is None or path not in CACHED_ROUTES:
        return None
    name = body.get("model")
    model = identify(name if isinstance(name, str) else None)
    if model is None:
        return None
    if path not in _ALWAYS_THE_SAME and not is_deterministic(body, greedy_by_default=model.greedy_by_default):
        return None
    try:
        return cache_key(caller, kind + path, model.digest, body)
    except RecursionError:  # nested so deep that the route will refuse it
        return None


class _Kept:
    """Passes an answer on and keeps a copy. answer: set when it has come to its end, whole."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._parts: list[bytes] | None = None
        self._size = 0
        self.answer: bytes | None = None

    async def send(self, message: Message) -> None:
        """ASGI's `send`."""
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            is_json = headers.get("content-type", "").startswith("application/json")
            if message["status"] == 200 and is_json:
                headers["x-cache"] = "miss"
                self._parts = []
        elif self._parts is not None:
            self._parts.append(message.get("body", b""))
            self._size += len(self._parts[-1])
            if self._size > _MAX_ANSWER:
                self._parts = None
            elif not message.get("more_body", False):
                self.answer = b"".join(self._parts)
        await self._send(message)
