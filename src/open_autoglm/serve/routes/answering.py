# SPDX-License-Identifier: Apache-2.0
"""What all routes that ask a model have in common: whole answers, streams, and clients that go away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from typing import Any, Final, Protocol, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from open_autoglm.engine.orders import ChatOrder, Order, Piece, Question, Reply
from open_autoglm.errors import OpenAutoGLMError
from open_autoglm.serve.error_shape import error_body
from open_autoglm.serve.guards.rate_limits import TokenMeter, meter_of
from open_autoglm.serve.models.model_client import Models
from open_autoglm.serve.watching.request_record import record_of
from open_autoglm.serve.watching.watched_models import WatchedModels, watched

STREAM_END: Final = b"data: [DONE]\n\n"
_STREAM_HEADERS: Final = (
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
    (b"content-type", b"text/event-stream; charset=utf-8"),
)
_Result = TypeVar("_Result")
_encode: Final = msgspec.json.Encoder().encode


class AnswerWriter(Protocol):
    """Pieces in the shape of one of OpenAI's responses. A writer writes one answer, whole or as a stream."""

    def add(self, piece: Piece) -> None:
        """Keep a piece for `whole`."""
        ...

    def whole(self) -> dict[str, Any]:
        """The body of an answer that is not streamed, from the pieces that were added."""
        ...

    def events(self, piece: Piece) -> bytes:
        """The events of a piece in a stream."""
        ...

    def closing_events(self) -> bytes:
        """What follows the end of the last choice."""
        ...


async def answer(
    request: Request, models: Models, name: str, order: Order, writer: AnswerWriter, *, stream: bool
) -> Response:
    """Ask a model and answer the client. Faults before the first token get a status of their own."""
    asked = watched(models, record_of(request.scope))
    if not stream:
        body = await unless_gone(request, _whole(asked, name, order, writer))
        return client_gone() if body is None else JSONResponse(body)
    return AnswerStream(_events(asked, name, order, writer, meter_of(request.scope)))


async def reply_to(request: Request, models: Models, name: str, question: Question) -> Reply | None:
    """The reply of a model to a question; nothing if the client goes away first."""
    return await unless_gone(request, _reply(watched(models, record_of(request.scope)), name, question))


async def unless_gone(request: Request, work: Awaitable[_Result]) -> _Result | None:
    """The result of `work`, or nothing if the client goes away first; `work` is cancelled then."""
    async with WhileThere(request.receive):
        return await work
    return None


def client_gone() -> Response:
    """What is written into the void; 499 is what others log for it."""
    return Response(status_code=499)


def event(value: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: %b\n\n" % _encode(value)


class EventStream(Response):
    """Server-sent events as they come. What makes them is closed when the client goes away.

    Starlette's own starts a group of tasks for each answer, which takes longer than all else here.
    """

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        # In place of Starlette's, which makes the same of its arguments each time.
        self.status_code, self.background, self.body = 200, None, b""
        self.raw_headers = list(_STREAM_HEADERS)
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        async with aclosing(self._events) as events, WhileThere(receive):
            await self._begin(send)
            async for data in events:
                await _send_event(send, data)
            await _end(send)

    async def _begin(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})


class AnswerStream(EventStream):
    """The events of an answer. Before the first of them nothing is sent: a fault until then has a status of its own."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them. Raises what keeps the answer from beginning."""
        has_begun = False
        async with aclosing(self._events) as events, WhileThere(receive):
            head = await anext(events)
            has_begun = True
            await self._begin(send)
            await _send_event(send, head)
            # The loop writes at the end of its round: the first token goes out before anything else is done about it,
            # which for a short answer is all that follows its end.
            await asyncio.sleep(0)
            try:
                async for data in events:
                    await _send_event(send, data)
            except OpenAutoGLMError as error:  # the status is long sent: say it in the stream, as OpenAI does
                await _send_event(send, event(error_body(error)[1]))
            await _end(send)
        if not has_begun:
            await client_gone()(scope, receive, send)


async def _send_event(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def _end(send: Send) -> None:
    await send({"type": "http.response.body", "body": b"", "more_body": False})


class WhileThere:
    """Cancels what is done within it when the client goes away, and goes on after it, as `asyncio.timeout` does."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._is_gone = self._is_over = False

    async def __aenter__(self) -> None:
        self._task = asyncio.current_task()
        self._before = 0 if self._task is None else self._task.cancelling()
        self._watcher = asyncio.ensure_future(self._watch())

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self._is_over = True
        self._watcher.cancel()
        if kind is asyncio.CancelledError and self._is_gone and self._task is not None:
            return self._task.uncancel() <= self._before  # else it is cancelled for another reason as well
        return False

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._is_over and self._task is not None:
            self._is_gone = True
            self._task.cancel()


async def _whole(models: WatchedModels, name: str, order: Order, writer: AnswerWriter) -> dict[str, Any]:
    async with models.use(name) as model:
        for piece in await model.answer(order):
            writer.add(piece)
    return writer.whole()


async def _reply(models: WatchedModels, name: str, question: Question) -> Reply:
    async with models.use(name) as model:
        return await model.ask(question)


async def _events(
    models: WatchedModels, name: str, order: Order, writer: AnswerWriter, meter: TokenMeter
) -> AsyncGenerator[bytes, None]:
    """All events of a stream; the first is ready when the engine has computed a token of some choice."""
    used = TokensUsed(order)
    async with models.use(name) as model, aclosing(model.stream(order)) as pieces:
        async for some in pieces:
            if meter.counts:
                used.add(some)
                meter.record(used.answer_tokens, used.prompt_tokens)
            if events := b"".join(map(writer.events, some)):
                yield events
    yield writer.closing_events()


class TokensUsed:
    """What the pieces of a stream have taken so far. prompt_tokens: once they are told for all prompts."""

    def __init__(self, order: Order) -> None:
        self._num_answers = order.n
        self._num_prompts = 1 if isinstance(order, ChatOrder) else len(order.prompts)
        self._prompts: dict[int, int] = {}
        self.answer_tokens = 0

    def add(self, pieces: Sequence[Piece]) -> None:
        """Count what is new."""
        for piece in pieces:
            self.answer_tokens += piece.num_tokens
            if piece.usage is not None:
                self._prompts[piece.choice // self._num_answers] = piece.usage.prompt_tokens

    @property
    def prompt_tokens(self) -> int | None:
        """Of all prompts; nothing while some are not known."""
        return sum(self._prompts.values()) if len(self._prompts) == self._num_prompts else None
