# SPDX-License-Identifier: Apache-2.0
"""The route of a protocol: its plugin answers in a thread of its own, and what it answers is sent as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from contextlib import closing
from functools import partial
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from open_autoglm.errors import OpenAutoGLMError
from open_autoglm.plugins.interfaces import ProtocolPlugin
from open_autoglm.plugins.protocol_answer import AnswerShapeError, ProtocolAnswer
from open_autoglm.serve.error_shape import HttpError
from open_autoglm.serve.json_body import read_body
from open_autoglm.serve.protocols.inner_chat import InnerChat, RequestChat
from open_autoglm.serve.protocols.protocol_plugins import Protocols
from open_autoglm.serve.protocols.thread_link import RequestOver, ThreadLink
from open_autoglm.serve.routes.answering import WhileThere, client_gone
from open_autoglm.serve.settings import ServeSettings
from open_autoglm.serve.watching.request_record import record_of

MOST_THREADS: Final = 256
"""Requests of one protocol that are worked on at one time; more wait."""
_SECRET_HEADERS: Final = (b"authorization", b"proxy-authorization", b"cookie")

_log = logging.getLogger("open_autoglm.serve")


def mount_protocols(app: Starlette, protocols: Protocols, inner: InnerChat, settings: ServeSettings) -> None:
    """Add the routes of plugins, each below its name."""
    for name, plugin in protocols.items():
        route = ProtocolRoute(name, plugin, inner, settings)
        for path in (f"/{name}", f"/{name}/{{path:path}}"):
            app.router.routes.append(Route(path, route, include_in_schema=False))


class ProtocolRoute:
    """ASGI application that lets a plugin answer. Takes every method: which there are is the protocol's matter.

    Each request has a thread, which may wait for the model or for a slow reader as long as it must; so they are bounded
    for each protocol alone. Threads do not hold the server's end up. A thread whose request is over ends when it next
    asks or sends something; what it does beside that cannot be stopped, and keeps its place until it is done.
    """

    def __init__(self, name: str, plugin: ProtocolPlugin, inner: InnerChat, settings: ServeSettings) -> None:
        self._name, self._plugin, self._inner, self._max_body = name, plugin, inner, settings.max_body
        self._places = asyncio.Semaphore(min(settings.max_queued, MOST_THREADS))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        gone = client_gone()
        try:
            body = await read_body(Request(scope, receive), self._max_body)
        except ClientDisconnect:
            await gone(scope, receive, send)
            return
        sending = _Sending(send)
        response: Response | None = gone
        async with WhileThere(receive):
            response = await self._answer(scope, self._request(scope, body), sending)
        if response is not None and not sending.has_begun:
            await response(scope, receive, send)
        elif response is None:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _answer(self, scope: Scope, request: dict[str, Any], sending: _Sending) -> Response | None:
        """A whole answer to send, or nothing if it has been sent but for its end.

        Raises OpenAutoGLMError before anything was sent. What breaks off later, for which `client_gone` stands too, is
        left without an end, so that the connection is cut and nobody takes it for whole.
        """
        await self._places.acquire()
        link = ThreadLink()
        done: asyncio.Future[Response | None] = asyncio.get_running_loop().create_future()
        chat = RequestChat(self._inner, link, scope)
        try:
            threading.Thread(
                target=self._work, args=(request, chat, link, sending, done), name=f"protocol-{self._name}", daemon=True
            ).start()
        except RuntimeError:
            self._places.release()
            raise HttpError(503, "the server has no threads left; try again later") from None
        try:
            return await done
        except OpenAutoGLMError as error:
            if not sending.has_begun:
                raise
            record_of(scope).fail(error.status if isinstance(error, HttpError) else error.http_status)
            return client_gone()
        finally:
            await link.end()

    def _work(
        self,
        request: dict[str, Any],
        chat: RequestChat,
        link: ThreadLink,
        sending: _Sending,
        done: asyncio.Future[Response | None],
    ) -> None:
        """The thread: whatever happens in it is told to the loop, which gives its place to another."""
        response: Response | None = None
        fault: OpenAutoGLMError | None = None
        try:
            response = self._run(request, chat, link, sending)
        except RequestOver:
            response = client_gone()
        except AnswerShapeError as error:
            _log.error("the protocol '%s' did not answer as protocols do: %s", self._name, error)
            fault = _internal()
        except OpenAutoGLMError as error:
            if sending.has_begun:
                _log.warning("an answer of the protocol '%s' was cut off: %s", self._name, error)
            fault = error
        except BaseException as error:  # noqa: BLE001 - SystemExit in a plugin is a fault like any other
            _log.error("the protocol '%s' failed: %s", self._name, type(error).__name__, exc_info=error)
            fault = _internal()

        def finish() -> None:
            self._places.release()
            if done.done():
                return
            if fault is None:
                done.set_result(response)
            else:
                done.set_exception(fault)

        with contextlib.suppress(RuntimeError):  # the loop has ended before the plugin did
            done.get_loop().call_soon_threadsafe(finish)

    def _run(self, request: dict[str, Any], chat: RequestChat, link: ThreadLink, sending: _Sending) -> Response | None:
        answer = ProtocolAnswer.of(self._plugin.answer(request, chat))
        with closing(answer.pieces()) as pieces:
            # A plugin that asks the model while its answer is read can so still be refused with a status.
            first = next(pieces, b"")
            if isinstance(answer.body, bytes):
                return _response(answer, first)
            link.call(partial(sending.begin, answer))
            if first:
                link.call(partial(sending.piece, first))
            for piece in pieces:
                link.call(partial(sending.piece, piece))
        return None

    def _request(self, scope: Scope, body: bytes) -> dict[str, Any]:
        request = Request(scope)
        headers: dict[str, str] = {}
        for raw_name, value in scope["headers"]:
            if raw_name not in _SECRET_HEADERS:
                name, text = raw_name.decode("latin-1"), value.decode("latin-1")
                headers[name] = f"{headers[name]}, {text}" if name in headers else text
        return {
            "method": scope["method"],
            "path": scope["path"][len(self._name) + 1 :] or "/",
            "query": dict(request.query_params),
            "headers": headers,
            "body": body,
        }


class _Sending:
    """What has been sent of an answer that comes in pieces."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = False

    async def begin(self, answer: ProtocolAnswer) -> None:
        """Send the status and the headers."""
        response = _response(answer, b"")
        del response.headers["content-length"]
        start: Message = {"type": "http.response.start", "status": answer.status, "headers": response.raw_headers}
        self.has_begun = True
        await self._send(start)

    async def piece(self, data: bytes) -> None:
        """Send some of the body."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})


def _response(answer: ProtocolAnswer, body: bytes) -> Response:
    return Response(body, answer.status, {**answer.headers, "content-type": answer.content_type})


def _internal() -> HttpError:
    return HttpError(500, "internal error; the server's log says more")
