# SPDX-License-Identifier: Apache-2.0
"""The guards around a few plain routes, behind a real uvicorn: what they do with any route, without a model."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

from open_autoglm.serve.error_shape import install_error_handlers
from open_autoglm.serve.guards.cache_gate import IdentifyModel
from open_autoglm.serve.guards.connection_limits import connection_options
from open_autoglm.serve.guards.guard_chain import Guards, install_guards
from open_autoglm.serve.guards.rate_limits import meter_of
from open_autoglm.serve.guards.transport_security import tls_context
from open_autoglm.serve.settings import ServeSettings, open_socket

PAGE = "<!doctype html><title>x</title><style>p { color: red }</style><p>hello</p><script>document.title = 'y'</script>"


@dataclass
class Guarded:
    """A server of plain routes."""

    client: httpx.Client
    url: str
    port: int
    guards: Guards
    answered: list[dict[str, Any]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.client.get(path, **options)

    def chat(self, body: dict[str, Any] | None = None, *, key: str | None = None, **options: Any) -> httpx.Response:
        headers = {**({} if key is None else {"Authorization": f"Bearer {key}"}), **options.pop("headers", {})}
        value = {"model": "m", "messages": [{"role": "user", "content": "hello"}], **(body or {})}
        return self.client.post("/v1/chat/completions", json=value, headers=headers, **options)

    def raw(self, *parts: bytes, pause: float = 0.0, timeout: float = 10.0) -> bytes:
        """Send bytes, then read until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout) as connection:
            with contextlib.suppress(OSError):
                for part in parts:
                    connection.sendall(part)
                    time.sleep(pause)
            return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(65_536):
            found += data
    return found


@contextlib.contextmanager
def guarded(settings: ServeSettings | None = None, identify: IdentifyModel | None = None) -> Iterator[Guarded]:
    """Serve until the block ends."""
    settings = settings or ServeSettings(port=0)
    app = Starlette()
    install_error_handlers(app)
    guards = install_guards(app, settings, identify)
    with open_socket(settings) as listener:
        port = listener.getsockname()[1]
        tls = tls_context(settings.tls)
        url = f"http{'s' if tls else ''}://127.0.0.1:{port}"
        limits = httpx.Limits(max_keepalive_connections=0)
        client = httpx.Client(base_url=url, timeout=20, limits=limits, verify=tls is None)
        running = Guarded(client, url, port, guards)
        _add_routes(app, running)
        options = connection_options(settings, tls)
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="on", **options))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.005)
            yield running
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
            client.close()


def _add_routes(app: Starlette, running: Guarded) -> None:
    async def chat(request: Request) -> Response:
        """Echoes; `used` says how many tokens, `seconds` how long, `fail` that it fails, `stream` that it streams."""
        body = json.loads(await request.body())
        running.answered.append(body)
        try:
            if body.get("stream"):
                return StreamingResponse(_events(request, body, running), media_type="text/event-stream")
            await asyncio.sleep(body.get("seconds", 0))
        except asyncio.CancelledError:
            running.cancelled.append("whole")
            raise
        if body.get("fail"):
            return JSONResponse({"error": {}}, body["fail"])
        value: dict[str, Any] = {"choices": [], "number": len(running.answered)}
        if "used" in body:
            value["usage"] = {"total_tokens": body["used"]}
        return JSONResponse(value)

    async def hello(_: Request) -> Response:
        return JSONResponse({"data": []})

    async def page(_: Request) -> Response:
        return HTMLResponse(PAGE)

    app.add_route("/v1/chat/completions", chat, methods=["POST"])
    app.add_route("/v1/models", hello, methods=["GET"])
    app.add_route("/metrics", hello, methods=["GET"])
    app.add_route("/health", hello, methods=["GET"])
    app.add_route("/", page, methods=["GET"])


async def _events(request: Request, body: dict[str, Any], running: Guarded) -> AsyncIterator[str]:
    meter = meter_of(request.scope)
    try:
        for index in range(body.get("num_events", 3)):
            meter.record(10 * (index + 1), 0)
            yield f'data: {{"index": {index}, "filling": "{"x" * body.get("filling", 0)}"}}\n\n'
            await asyncio.sleep(body.get("seconds", 0))
        yield "data: [DONE]\n\n"
    except (asyncio.CancelledError, GeneratorExit):
        running.cancelled.append("stream")
        raise
