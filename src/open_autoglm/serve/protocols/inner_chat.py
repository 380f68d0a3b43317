# SPDX-License-Identifier: Apache-2.0
"""The chat route as a protocol's plugin asks it: behind the caller's limits and the cache, noted like any request."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from open_autoglm.errors import OpenAutoGLMError
from open_autoglm.serve.error_shape import HttpError, error_response, fault_in
from open_autoglm.serve.guards.authentication import CHAT_ROUTE, caller_of, let_in
from open_autoglm.serve.guards.guard_chain import Guards
from open_autoglm.serve.guards.rate_gate import give_admission, take_admission
from open_autoglm.serve.models.model_client import Models
from open_autoglm.serve.protocols.thread_link import RequestOver, ThreadLink
from open_autoglm.serve.routes.answering import STREAM_END
from open_autoglm.serve.routes.chat_route import ChatRoute
from open_autoglm.serve.watching.request_record import RequestRecord, attach_record, record_of
from open_autoglm.serve.watching.watch import Watch

_AHEAD: Final = 64
"""Parts of an answer that wait for the plugin's thread; then the answer waits too."""
_TOLD: Final = ("retry-after", "x-should-retry")
"""Headers of a refusal that a protocol's client may want; the limits' own are on its answer already."""
_OF_BODY: Final = (b"transfer-encoding", b"expect", b"trailer")


class InnerChat:
    """What the chats of all requests share: the guarded chat route, the models, and who is told of requests."""

    def __init__(self, models: Models, route: ChatRoute, guards: Guards, watch: Watch) -> None:
        async def chat(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                response = await route.answer(Request(scope, receive))
            except OpenAutoGLMError as error:
                response = error_response(error)
            await response(scope, receive, send)

        self._models, self._watch = models, watch
        self._app = guards.around_answers(chat)

    def names_for(self, scope: Scope) -> list[str]:
        """The names of models that the caller of a request may ask, aliases among them only where its key has them."""
        allowed = caller_of(scope).models
        names = list(self._models.names())
        if allowed is None:
            return names
        aliases = [alias for status in self._models.statuses() for alias in status.aliases]
        return [name for name in dict.fromkeys((*names, *aliases)) if name in allowed]

    async def ask(self, outer: Scope, data: bytes, link: ThreadLink, *, is_first: bool) -> Exchange:
        """Ask what a body asks, for the caller of a request; the answer has begun when this returns.

        is_first: of the request, so that one line of the log tells of both; others have lines of their own.
        Raises HttpError for what is refused.
        """
        outer_record = record_of(outer)
        record = outer_record if is_first else self._record_beside(outer, outer_record)
        scope = _inner_scope(outer, data, record)
        exchange = Exchange(data)

        async def work() -> None:
            try:
                await self._app(scope, exchange.receive, exchange.send)
            except asyncio.CancelledError:
                record.leave()
                raise
            finally:
                if exchange.is_cached is not None:
                    record.cache = "hit" if exchange.is_cached else "miss"
                if not is_first:
                    record.status = exchange.status
                    self._watch.end(record, caller_of(outer).id)

        return await exchange.begin(link.start(work()))

    def _record_beside(self, outer: Scope, record: RequestRecord) -> RequestRecord:
        headers = [item for item in outer["headers"] if item[0] in (b"traceparent", b"tracestate")]
        same_id = (b"x-request-id", record.request_id.encode("ascii"))
        return self._watch.begin(method="POST", route=record.route, headers=[same_id, *headers])


class Exchange:
    """One request to the inner application, whose answer is read at the pace of a thread.

    is_stream, is_cached, status: of the answer, once it has begun; is_cached is none where it could not be.
    """

    def __init__(self, data: bytes) -> None:
        self._data: bytes | None = data
        self._messages: deque[Message] = deque()
        self._news, self._room = asyncio.Event(), asyncio.Event()
        self._room.set()
        self._task: asyncio.Task[None] | None = None
        self.is_stream = False
        self.is_cached: bool | None = None
        self.status = 0

    async def receive(self) -> Message:
        """ASGI's `receive`: the body, and nothing more; an end of it all is a cancellation."""
        data, self._data = self._data, None
        if data is None:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": data or b"", "more_body": False}

    async def send(self, message: Message) -> None:
        """ASGI's `send`."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            cached = dict(message.get("headers", ())).get(b"x-cache")
            self.is_cached = None if cached is None else cached == b"hit"
        await self._room.wait()
        self._messages.append(message)
        self._news.set()
        if len(self._messages) >= _AHEAD:
            self._room.clear()

    async def begin(self, task: asyncio.Task[None]) -> Self:
        """Wait for the answer's beginning. task: sends the answer. Raises HttpError for a refusal."""
        self._task = task
        task.add_done_callback(lambda _: self._news.set())
        while not self._messages:
            if task.done():
                task.result()
                raise HttpError(500, "the model gave no answer")
            self._news.clear()
            await self._news.wait()
        start = self._messages.popleft()
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in start.get("headers", ())}
        self.is_stream = headers.get("content-type", "").startswith("text/event-stream")
        if start["status"] >= 400:
            told = {name: headers[name] for name in _TOLD if name in headers}
            raise fault_in(start["status"], json.loads(await self.read_all() or b"null"), told)
        return self

    async def read(self) -> bytes | None:
        """What has come of the answer since it was last asked, or none at its end. Raises what ended it early."""
        assert self._task is not None
        while not self._messages:
            if self._task.done():
                self._task.result()
                return None
            self._news.clear()
            await self._news.wait()
        data = b"".join(message.get("body", b"") for message in self._messages)
        self._messages.clear()
        self._room.set()
        return data

    async def read_all(self) -> bytes:
        """The whole rest of the answer."""
        parts: list[bytes] = []
        while (part := await self.read()) is not None:
            parts.append(part)
        return b"".join(parts)

    async def close(self) -> None:
        """Stop the answer, and wait until it has stopped."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


class RequestChat:
    """`plugins.interfaces.Chat` for one request. Used in the plugin's thread."""

    def __init__(self, inner: InnerChat, link: ThreadLink, scope: Scope) -> None:
        self._inner, self._link, self._scope = inner, link, scope
        self._has_asked = False

    def __call__(self, body: Mapping[str, Any]) -> Any:
        """See `Chat`. Raises TypeError or ValueError for a body that is no JSON."""
        data = json.dumps(dict(body)).encode()

        async def ask() -> tuple[Exchange, bytes]:
            is_first, self._has_asked = not self._has_asked, True
            exchange = await self._inner.ask(self._scope, data, self._link, is_first=is_first)
            return exchange, b"" if exchange.is_stream else await exchange.read_all()

        exchange, answer = self._link.call(ask)
        return ChunkStream(self._link, exchange) if exchange.is_stream else json.loads(answer)

    def models(self) -> Sequence[str]:
        """See `Chat`."""

        async def names() -> list[str]:
            return self._inner.names_for(self._scope)

        return self._link.call(names)


class ChunkStream:
    """`plugins.interfaces.Chunks`: the events of a streamed answer, taken apart. Used in the plugin's thread."""

    def __init__(self, link: ThreadLink, exchange: Exchange) -> None:
        self._link, self._exchange = link, exchange
        self._rest = b""
        self._events: deque[bytes] = deque()
        self._is_over = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, Any]:
        """The next chunk. Raises HttpError when the server cannot go on, RequestOver when the request is over."""
        while not self._events:
            if self._is_over:
                raise StopIteration
            data = self._link.call(self._exchange.read)
            if data is None:
                self._is_over = True
                raise HttpError(500, "the answer was cut off")
            *events, self._rest = (self._rest + data).split(b"\n\n")
            self._events.extend(events)
        event = self._events.popleft()
        if event == STREAM_END.strip():
            self._is_over = True
            self._events.clear()
            self._link.call(self._exchange.read_all)  # so that it has ended, and is told of, before its request
            raise StopIteration
        chunk: dict[str, Any] = json.loads(event.removeprefix(b"data: "))
        if "error" in chunk:
            self._is_over = True
            self._events.clear()
            raise fault_in(500, chunk)
        return chunk

    def close(self) -> None:
        """Stop the answer; nothing where it has ended."""
        if self._is_over:
            return
        self._is_over = True
        self._events.clear()
        try:
            self._link.call(self._exchange.close)
        except RequestOver:
            return  # it has been stopped already


def _inner_scope(outer: Scope, data: bytes, record: RequestRecord) -> Scope:
    """A request of the same caller to the chat route, with a body of its own."""
    headers = [(n, value) for n, value in outer["headers"] if not n.startswith(b"content-") and n not in _OF_BODY]
    own = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
    path = {"path": CHAT_ROUTE, "raw_path": CHAT_ROUTE.encode(), "query_string": b""}
    scope: Scope = {**outer, **path, "method": "POST", "headers": [*headers, *own], "state": {}}
    let_in(scope, caller_of(outer))
    attach_record(scope, record)
    give_admission(scope, take_admission(outer))
    return scope
