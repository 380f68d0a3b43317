# SPDX-License-Identifier: Apache-2.0
"""Bounds on one connection, below HTTP: how long a client may take to send or read, how large its header may grow.

uvicorn has none of these: a header that never ends, a body that trickles in and a client that does not read its answer
hold a connection for ever, and a header of any size is taken if it comes in few enough pieces.
"""

from __future__ import annotations

import asyncio
import json
import resource
from dataclasses import replace
from enum import Enum
from http import HTTPStatus
from typing import Any, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from open_autoglm.serve.error_shape import HttpError, error_body
from open_autoglm.serve.guards.guard_settings import ConnectionSettings
from open_autoglm.serve.guards.request_limits import header_size_fault, url_fault
from open_autoglm.serve.guards.transport_security import ServerContext
from open_autoglm.serve.settings import ServeSettings

_SLACK: Final = 1024
"""Bytes that a header may be larger here than where it is parsed."""
_LINGER_SECONDS: Final = 1.0
_MOST_AHEAD: Final = 100
"""Requests that a connection may send before the first of them is answered."""
_OTHER_FILES: Final = 256
"""Files that a server opens besides its connections."""


class _Phase(Enum):
    """What a connection waits for."""

    HEADER = 1
    BODY = 2
    ANSWER = 3


class _Transport:
    """A transport that takes what is written after its end, and drops it, on whatever event loop.

    uvloop raises an error for it, until the protocol is told of the end a moment later.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.write_now = transport.write
        self.is_closing = transport.is_closing
        self.get_extra_info = transport.get_extra_info
        self.close = transport.close
        self.abort = transport.abort

    def write(self, data: bytes) -> None:
        """Send bytes, while there is a client."""
        if not self.is_closing():
            self.write_now(data)

    def pause_reading(self) -> None:
        """Read no more for now."""
        if not self.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        if not self.is_closing():
            self._transport.resume_reading()


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's protocol on httptools with limits; `limited_protocol` gives a class of it with some."""

    limits: ConnectionSettings

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._timer: asyncio.TimerHandle | None = None
        self._timed: tuple[_Phase, object] | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._header_bytes = 0
        self._framing_bytes = 0
        self._has_first_line = self._in_body = self._has_body_news = False
        self._is_refused = False
        self._answering: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Refuse one connection too many; start the clock for the header."""
        super().connection_made(cast("asyncio.Transport", _Transport(transport)))
        if len(self.connections) > self.limits.max_connections:
            self._refuse(
                HttpError(503, "too many connections are open; try again later", headers={"Retry-After": "1"}), linger=0
            )
            return
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks, and tell the answer in work that nobody reads it, also when other requests follow it."""
        self._stop_timers()
        answering = self._answering
        if answering is not None and not answering.response_complete:
            answering.disconnected = True
            answering.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, within the limits."""
        if self._is_refused or self.transport.is_closing():
            return
        in_header, cycle = not self._in_body, self.cycle
        self._has_body_news = False
        if in_header:
            self._header_bytes += len(data)
            self._has_first_line = self._has_first_line or b"\n" in data
        super().data_received(data)
        if self._is_refused or self.parser is None:
            return
        if in_header and self.cycle is cycle and not self._in_body:
            if self._header_bytes > self.limits.max_header_bytes + self.limits.max_url + _SLACK:
                self._refuse(self._size_fault())
                return
        else:
            self._header_bytes, self._has_first_line = 0, False
        # A chunk's extension may be of any length to the parser.
        self._framing_bytes = 0 if self._has_body_news or not self._in_body else self._framing_bytes + len(data)
        if self._framing_bytes > self.limits.max_header_bytes + self.limits.max_url + _SLACK:
            self._refuse(HttpError(400, "the request is not valid HTTP"))
            return
        self._watch()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a line of the header; what follows a body in chunks is none."""
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The body begins. What raises an error here is refused as if it were no HTTP."""
        if len(self.pipeline) >= _MOST_AHEAD:
            raise ValueError("too many requests are sent ahead of their answers")
        super().on_headers_complete()
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        """Some of the body has come."""
        self._has_body_news = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The next header may begin."""
        self._in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The next request's clock starts when its first byte comes; until then the keep-alive time runs."""
        super().on_response_complete()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """What the parser refuses, in the shape of all our faults."""
        is_too_large = self._header_bytes > self.limits.max_header_bytes
        self._refuse(self._size_fault() if is_too_large else HttpError(400, "the request is not valid HTTP"))

    def shutdown(self) -> None:
        """Close when there is nothing left to answer."""
        if self._is_refused:
            self.transport.close()
        else:
            super().shutdown()

    def pause_writing(self) -> None:
        """The client reads slower than we write: give it some time."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _size_fault(self) -> HttpError:
        return header_size_fault(self.limits) if self._has_first_line else url_fault(self.limits)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: any client could fill the log with it."""

    def _phase(self) -> _Phase:
        if self._in_body:  # it goes on being read, and dropped, when its request is answered early
            return _Phase.BODY
        # A header that comes while a request is answered waits, and is not timed.
        is_answering = self._answering is not None and not self._answering.response_complete
        return _Phase.ANSWER if is_answering else _Phase.HEADER

    def _watch(self) -> None:
        """Keep a clock for what the connection waits for now. A clock that runs for the same thing runs on."""
        phase = self._phase()
        # Until the first byte of the next header the keep-alive time runs, which uvicorn looks after.
        waits_unused = phase is _Phase.HEADER and self._header_bytes == 0 and self.timeout_keep_alive_task is not None
        wanted = None if phase is _Phase.ANSWER or waits_unused else (phase, self.cycle)
        if wanted == self._timed and (wanted is None or self._timer is not None):
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timed = wanted
        if wanted is not None and not self.transport.is_closing():
            seconds = self.limits.header_seconds if phase is _Phase.HEADER else self.limits.body_seconds
            self._timer = self.loop.call_later(seconds, self._too_slow, phase)

    def _too_slow(self, phase: _Phase) -> None:
        self._timer = None
        if self._is_refused or self.transport.is_closing():
            return
        if phase is _Phase.HEADER and self._header_bytes == 0:
            self.transport.close()
        elif phase is _Phase.HEADER:
            self._refuse(HttpError(408, f"the header did not come within {self.limits.header_seconds:g} s"))
        elif self.cycle is not None and not self.cycle.response_started:
            self._refuse(HttpError(408, f"the body did not come within {self.limits.body_seconds:g} s"))
        else:
            self.transport.abort()

    def _refuse(self, fault: HttpError, *, linger: float = _LINGER_SECONDS) -> None:
        """Answer without the application, and close: a little later, since what still comes would undo the answer."""
        self._stop_timers()
        self._unset_keepalive_if_required()
        self._is_refused = True
        if self.transport.is_closing():
            return
        answering = self._answering
        if answering is not None and not answering.response_complete:
            if answering is not self.cycle or not self._in_body:  # it is a later request that is at fault
                answering.keep_alive = False
                self.pipeline.clear()
                return
            if answering.response_started:
                self.transport.abort()
                return
            answering.disconnected = True
            answering.message_event.set()
        status, body = error_body(fault)
        content = json.dumps(body, ensure_ascii=False).encode()
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "content-type: application/json",
            f"content-length: {len(content)}",
            "connection: close",
            *(f"{name}: {value}" for name, value in fault.headers.items()),
        ]
        self.transport.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + content)
        if linger:
            self.flow.resume_reading()
            self._timer = self.loop.call_later(linger, self.transport.close)
        else:
            self.transport.close()

    def _stop_timers(self) -> None:
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._write_timer = None


def limited_protocol(limits: ConnectionSettings) -> type[LimitedProtocol]:
    """The protocol with these limits, as uvicorn wants it: a class."""
    return type("LimitedProtocol", (LimitedProtocol,), {"limits": limits})


def with_open_files(settings: ServeSettings) -> ServeSettings:
    """Let this process open as many files as its connections may need, or lower their number to what it may open.

    Otherwise the system would refuse connections, which their clients see as silence; we refuse them in words.
    """
    most = settings.connections.max_connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    num_servers = 1 if settings.grpc_port is None else 2
    wanted = most * num_servers + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        most = max(1, min(most, (soft - _OTHER_FILES) // num_servers))
    return replace(settings, connections=replace(settings.connections, max_connections=most))


def connection_options(settings: ServeSettings, tls: ServerContext | None = None) -> dict[str, Any]:
    """What `uvicorn.Config` is given so that the settings hold on its connections. tls: as `tls_context` made it."""
    limits = settings.connections
    return {
        "http": limited_protocol(limits),
        "timeout_keep_alive": limits.keep_alive_seconds,
        "ws": "none",
        # uvicorn would believe X-Forwarded-For from 127.0.0.1, so that any local client could take any address;
        # `client_address` reads it, from the proxies that the operator names.
        "proxy_headers": False,
        **({} if tls is None else {"ssl_context_factory": lambda _config, _default: tls.context}),
    }
