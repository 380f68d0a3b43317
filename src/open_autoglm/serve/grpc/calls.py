# SPDX-License-Identifier: Apache-2.0
"""One call from its first byte to its status: let in, read within limits, answered within its time, and charged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import grpc
from google.protobuf.message import Message

from open_autoglm.errors import OpenAutoGLMError, RequestError
from open_autoglm.serve.error_shape import HttpError, error_body
from open_autoglm.serve.grpc.call_guard import Admitted, CallGuard, as_headers
from open_autoglm.serve.grpc.faults import Trailers, end
from open_autoglm.serve.grpc.request_body import body_of, parse_request
from open_autoglm.serve.guards.rate_limits import TokenMeter
from open_autoglm.serve.watching.request_record import RequestRecord
from open_autoglm.serve.watching.watch import Watch

Context = grpc.aio.ServicerContext[Any, Any]
_CLIENT_GONE: Final = 499
_HIT: Final[Trailers] = (("x-cache", "hit"),)
_MISS: Final[Trailers] = (("x-cache", "miss"),)

_log = logging.getLogger("open_autoglm.serve.grpc")


@dataclass(frozen=True)
class Asked:
    """What a call asks. body: as the REST route gets it. meter: of the tokens that it uses. record: tells of it."""

    body: dict[str, Any]
    meter: TokenMeter
    record: RequestRecord


WholeAnswer = Callable[[Asked], Awaitable[Message]]
StreamedAnswer = Callable[[Asked], AsyncGenerator[Message, None]]


@dataclass(frozen=True)
class WholeMethod:
    """A method with one answer. path: of the REST route that does the same, whose scope it needs."""

    name: str
    path: str
    request: type[Message]
    answer: WholeAnswer


@dataclass(frozen=True)
class StreamedMethod:
    """A method that answers in parts. path: as in `WholeMethod`."""

    name: str
    path: str
    request: type[Message]
    answer: StreamedAnswer


Method = WholeMethod | StreamedMethod


class CallHandler:
    """Answers the calls of one method, in the shapes that gRPC asks for.

    To gRPC all methods take a stream of requests, which looks the same on the wire: so the key is looked at before a
    message is taken, and a message that never comes does not hold the call for ever. service: whose method it is.
    """

    def __init__(self, service: str, method: Method, guard: CallGuard, watch: Watch) -> None:
        self._method, self._guard, self._watch = method, guard, watch
        self._route = f"{service}/{method.name}"

    def handler(self) -> grpc.RpcMethodHandler[Any, Any]:
        """For `grpc.method_handlers_generic_handler`."""
        method = self._method
        if isinstance(method, StreamedMethod):
            return grpc.stream_stream_rpc_method_handler(partial(self._answer_in_parts, method.answer))
        return grpc.stream_unary_rpc_method_handler(partial(self._answer_whole, method.answer))

    async def _answer_whole(self, answer: WholeAnswer, _: Any, context: Context) -> bytes:
        async with self._admitted(context) as (admitted, asked):
            cache = self._guard.guards.cache
            key = admitted.answer_key(asked.body)
            if cache is None or key is None:
                _tell(context, admitted, asked.record)
                return (await answer(asked)).SerializeToString()
            found = await cache.get(key)
            if found is not None:
                asked.meter.record(0, 0)
                asked.record.cache = "hit"
                _tell(context, admitted, asked.record, _HIT)
                return found
            asked.record.cache = "miss"
            data = (await answer(asked)).SerializeToString()
            await cache.put(key, data)
            _tell(context, admitted, asked.record, _MISS)
            return data

    async def _answer_in_parts(self, answer: StreamedAnswer, _: Any, context: Context) -> None:
        async with self._admitted(context) as (admitted, asked):
            _tell(context, admitted, asked.record)
            seconds = self._guard.limits.write_seconds
            async with aclosing(answer(asked)) as messages:
                async for message in messages:
                    admitted.has_begun = True
                    await _within(seconds, context.write(message.SerializeToString()), _NOT_READ)

    @asynccontextmanager
    async def _admitted(self, context: Context) -> AsyncIterator[tuple[Admitted, Asked]]:
        """The call, let in and read, for as long as it may take; faults inside end it with their status."""
        admitted: Admitted | None = None
        fault: OpenAutoGLMError
        metadata = tuple(context.invocation_metadata() or ())
        record = self._watch.begin(protocol="grpc", method="", route=self._route, headers=as_headers(metadata))
        try:
            with self._guard.open_call():
                async with _limited(self._guard.limits.request_timeout):
                    admitted = self._guard.admit(self._method.path, metadata, context.peer())
                    with self._guard.charged(admitted):
                        asked = await self._read(context, admitted, record)
                        yield admitted, asked
            record.status = 200
            return
        except OpenAutoGLMError as error:
            fault = error
            record.status = error_body(error)[0]
        except (grpc.aio.BaseError, asyncio.CancelledError, GeneratorExit):  # the call is over: its client is gone
            record.status = _CLIENT_GONE
            record.leave()
            raise
        except Exception:  # noqa: BLE001 - a caller must hear of it, and the log says what it was
            _log.exception("%s failed", self._method.name)
            fault = HttpError(500, "internal error; the server's log says more")
            record.status = fault.status
        finally:
            self._watch.end(record, None if admitted is None else admitted.caller_id)
        # Only now: while the call waits for its last word to be read, nothing else is held.
        await end(context, fault, _trailers(admitted, record))

    async def _read(self, context: Context, admitted: Admitted, record: RequestRecord) -> Asked:
        seconds = self._guard.limits.body_seconds
        data = await _within(seconds, context.read(), _NOT_SENT)
        if not isinstance(data, bytes):
            raise RequestError("the call has no message")
        body = body_of(parse_request(self._method.request, data))
        if isinstance(self._method, StreamedMethod):
            body["stream"] = True
        admitted.reserve(body, len(data))
        return Asked(body, admitted.meter, record)


_NOT_SENT: Final = "the message did not come within {:g} s"
_NOT_READ: Final = "nothing of the answer was read for {:g} s"
_TOO_LONG: Final = "the request took longer than {:g} s, the most that this server gives it"


async def _within(seconds: float, work: Awaitable[Any], words: str) -> Any:
    """What `work` gives. Raises HttpError 408 if it takes too long."""
    deadline = asyncio.timeout(seconds)
    try:
        async with deadline:
            return await work
    except TimeoutError:
        if not deadline.expired():
            raise
        raise HttpError(408, words.format(seconds)) from None


@asynccontextmanager
async def _limited(seconds: float) -> AsyncIterator[None]:
    """Raises HttpError 504 out of a block that takes too long."""
    deadline = asyncio.timeout(seconds)
    try:
        async with deadline:
            yield
    except TimeoutError:
        if not deadline.expired():
            raise
        raise HttpError(504, _TOO_LONG.format(seconds)) from None


def _tell(context: Context, admitted: Admitted, record: RequestRecord, added: Trailers = ()) -> None:
    context.set_trailing_metadata((*_trailers(admitted, record), *added))


def _trailers(admitted: Admitted | None, record: RequestRecord) -> Trailers:
    """What any answer tells besides: its request's id, as HTTP does, and what is left of the limits."""
    return (*(() if admitted is None else admitted.trailers()), ("x-request-id", record.request_id))
