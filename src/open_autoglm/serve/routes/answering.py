# SPDX-License-Identifier: Apache-2.0
"""What all routes that ask a model have in common: whole answers, streams, and clients that go away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from typing import Any, Final, Protocol, TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from open_autoglm.engine.orders import ChatOrder, Order, Piece, Question, Reply
from open_autoglm.errors import OpenAutoGLMError
from open_autoglm.serve.error_shape import error_body
from open_autoglm.serve.guards.rate_limits import TokenMeter, meter_of
from open_autoglm.serve.models.model_client import Models
from open_autoglm.serve.watching.request_record import record_of
from open_autoglm.serve.watching.watched_models import WatchedModels, watched

STREAM_END: Final = "data: [DONE]\n\n"
STREAM_HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_Result = TypeVar("_Result")


class AnswerWriter(Protocol):
    """Pieces in the shape of one of OpenAI's responses. A writer writes one answer, whole or as a stream."""

    def add(self, piece: Piece) -> None:
        """Keep a piece for `whole`."""
        ...

    def whole(self) -> dict[str, Any]:
        """The body of an answer that is not streamed, from the pieces that were added."""
        ...

    def events(self, piece: Piece) -> str:
        """The events of a piece in a stream."""
        ...

    def closing_events(self) -> str:
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
    events = _events(asked, name, order, writer, meter_of(request.scope))
    head = await unless_gone(request, anext(events))
    if head is None:
        return client_gone()
    return StreamingResponse(_with_head(head, events), media_type="text/event-stream", headers=STREAM_HEADERS)


async def reply_to(request: Request, models: Models, name: str, question: Question) -> Reply | None:
    """The reply of a model to a question; nothing if the client goes away first."""
    return await unless_gone(request, _reply(watched(models, record_of(request.scope)), name, question))


async def unless_gone(request: Request, work: Awaitable[_Result]) -> _Result | None:
    """The result of `work`, or nothing if the client goes away first; `work` is cancelled then."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for item in (task, watcher):
            item.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


def client_gone() -> Response:
    """What is written into the void; 499 is what others log for it."""
    return Response(status_code=499)


def event(value: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


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
) -> AsyncGenerator[str, None]:
    """All events of a stream; the first is ready when the engine has computed a token of some choice."""
    used = TokensUsed(order)
    async with models.use(name) as model, aclosing(model.stream(order)) as pieces:
        async for some in pieces:
            if meter.counts:
                used.add(some)
                meter.record(used.answer_tokens, used.prompt_tokens)
            if events := "".join(map(writer.events, some)):
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


async def _with_head(head: str, events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    async with aclosing(events):
        yield head
        try:
            async for item in events:
                yield item
        except OpenAutoGLMError as error:  # the status is long sent: say it in the stream, as OpenAI does
            yield event(error_body(error)[1])


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
