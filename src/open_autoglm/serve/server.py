# SPDX-License-Identifier: Apache-2.0
"""Running a server: take the port, load the model, say when it is ready, stop without cutting answers off."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import TYPE_CHECKING, Final

import uvicorn

from open_autoglm.engine.garbage import look_seldom
from open_autoglm.serve.app import create_app_of
from open_autoglm.serve.guards.connection_limits import connection_options, with_open_files
from open_autoglm.serve.guards.reload import reload_on_hangup
from open_autoglm.serve.guards.transport_security import ServerContext
from open_autoglm.serve.models.model_client import Models
from open_autoglm.serve.pid_file import PidFile
from open_autoglm.serve.settings import ServeSettings
from open_autoglm.serve.watching.log_output import logging_to_stderr

if TYPE_CHECKING:
    from open_autoglm.serve.grpc.grpc_server import GrpcServer
    from open_autoglm.serve.protocols.protocol_plugins import Protocols

_CLOSING_SECONDS: Final = 5
"""What connections get to take their last bytes once the engine is done."""

_LAST_LOOKS: Final = 20
"""How often it is looked, before the door is shut, for what clients have sent already."""

_log = logging.getLogger("open_autoglm.serve.server")


class _DrainingServer(uvicorn.Server):
    """A uvicorn server that says once when it answers, and lets the models end their work before connections close."""

    def __init__(
        self, config: uvicorn.Config, models: Models, drain_seconds: float, announce: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._models, self._drain_seconds, self._announce = models, drain_seconds, announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start answering, then say so."""
        await super().startup(sockets)
        if self.started:
            self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new work, wait for the answers in work or end them with an error, then close."""
        draining = asyncio.ensure_future(self._models.stop(0.0 if self.force_exit else self._drain_seconds))
        hurrying = asyncio.ensure_future(self._hurry())
        try:
            # A connection that is closed before its request was read is reset: its client would never hear why. So
            # what has come is taken, and refused in words. Passes of the loop count: time says nothing under load.
            for _ in range(_LAST_LOOKS):
                await asyncio.sleep(0.005)
            await super().shutdown(sockets)
            await draining
        finally:
            hurrying.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal lets the answers in work end; the second ends them."""
        if self.should_exit:
            self.force_exit = True
        super().handle_exit(sig, frame)

    async def _hurry(self) -> None:
        while not self.force_exit:  # noqa: ASYNC110 - a signal handler sets it
            await asyncio.sleep(0.05)
        await self._models.stop()


def run_server(
    models: Models,
    settings: ServeSettings,
    listener: socket.socket,
    started: float,
    *,
    tls: ServerContext | None = None,
    reread: Callable[[], ServeSettings] | None = None,
    reload_models: Callable[[], Awaitable[str]] | None = None,
    pid_file: PidFile | None = None,
    protocols: Protocols | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; answers in work get `settings.drain_seconds` to end, a second signal ends them.

    listener: where to listen. started: the program's begin by `time.monotonic`. tls: as `tls_context` made it.
    reread: reads the settings again, on SIGHUP; reload_models: takes the models anew then. pid_file: written once
    SIGHUP does that. protocols: see `create_app_of`. The log goes to stderr; one line of it says the URL when the
    server is ready.
    Raises ConfigurationError or StorageError for a key file that cannot be used, and what loading the models raises.
    """
    settings = with_open_files(settings)
    app = create_app_of(models, settings, tls, protocols)
    config = uvicorn.Config(
        app,
        **connection_options(settings, tls),
        log_config=None,  # its loggers go where all go
        log_level="warning" if settings.watching.log_level != "debug" else "info",
        access_log=False,
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=int(settings.drain_seconds) + _CLOSING_SECONDS,
    )

    def announce() -> None:
        look_seldom()
        seconds = time.monotonic() - started
        if reread is not None:
            read = reread
            reload_on_hangup(app.state.guards, tls, lambda: with_open_files(read()), reload_models)
            if pid_file is not None:
                pid_file.write()
        url, names = _url(listener, is_encrypted=tls is not None), ", ".join(models.names())
        beside = "" if app.state.grpc is None else f", gRPC at {app.state.grpc.address}"
        _log.info("ready: %s serves %s%s (started in %.1f s)", url, names, beside, seconds)

    server = _DrainingServer(config, models, settings.drain_seconds, announce)
    with (
        logging_to_stderr(settings.watching),
        asyncio.Runner(loop_factory=config.get_loop_factory()) as runner,
    ):
        runner.run(_serve(server, models, listener, app.state.grpc))


async def _serve(
    server: uvicorn.Server, models: Models, listener: socket.socket, grpc_server: GrpcServer | None
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        if grpc_server is not None:
            grpc_server.bind()  # a port in use is told before the models have loaded
            stack.push_async_callback(grpc_server.stop, 0.0)  # uvicorn does not end its application when it is hurried
        await models.start()  # before the server does, so that what is wrong with a model can be told
        if threading.current_thread() is threading.main_thread():
            # uvicorn raises the signal that stopped it once more when it is done; the default would kill the process.
            signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            await server.serve(sockets=[listener])
        finally:
            await models.stop()


def _url(listener: socket.socket, *, is_encrypted: bool) -> str:
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        host = "127.0.0.1" if address.version == 4 else "::1"
    scheme = "https" if is_encrypted else "http"
    return f"{scheme}://[{host}]:{port}/v1" if ":" in host else f"{scheme}://{host}:{port}/v1"
