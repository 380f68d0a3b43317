# SPDX-License-Identifier: Apache-2.0
"""The gRPC server beside the HTTP server: same process, same event loop, same models, same guards."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

import grpc
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha.reflection_pb2_grpc import add_ServerReflectionServicer_to_server

from open_autoglm.errors import ConfigurationError
from open_autoglm.serve.grpc.call_guard import CallGuard
from open_autoglm.serve.grpc.health_service import HealthService, ReflectionService
from open_autoglm.serve.grpc.language_models import SERVICE, LanguageModels
from open_autoglm.serve.guards.guard_chain import Guards
from open_autoglm.serve.guards.transport_security import PemFiles, ServerContext
from open_autoglm.serve.models.model_client import Models
from open_autoglm.serve.settings import ServeSettings, listening_address
from open_autoglm.serve.watching.watch import Watch

_CLOSING_SECONDS: Final = 5.0
"""What calls get to take their last bytes once the models are done."""
_LAST_SECONDS: Final = 0.5
"""What those get that only watch, to hear of the end."""
_POLL_SECONDS: Final = 0.02
_HEALTH_SERVICE: Final = "grpc.health.v1.Health"
_MOST: Final = 2**31 - 1
"""gRPC's options are numbers of 32 bits."""
_SHORTEST_AGE: Final = 60.0


class GrpcServer:
    """Serves from `start` to `stop`, within one event loop.

    watch: is told of each call. tls: as `tls_context` made it; certificates that it reads again hold for new
    connections.
    """

    def __init__(self, models: Models, guards: Guards, watch: Watch, tls: ServerContext | None = None) -> None:
        self._models, self._guards, self._watch, self._tls = models, guards, watch, tls
        self._guard = CallGuard(guards)
        self._health = HealthService(models, self._guard, (SERVICE,))
        self._server: grpc.aio.Server | None = None
        self._following: asyncio.Task[None] | None = None
        self._port = 0

    @property
    def port(self) -> int:
        """The port, once it is bound."""
        return self._port

    @property
    def address(self) -> str:
        """Host and port, as gRPC's clients write them."""
        return _with_port(listening_address(self._guards.settings.host), self._port)

    def bind(self) -> None:
        """Take the port; clients that come before `start` wait. Does nothing the second time.

        Raises ConfigurationError when it is taken or not permitted. An event loop must be running.
        """
        if self._server is None:
            self._server = self._bound()

    def _bound(self) -> grpc.aio.Server:
        settings = self._guards.settings
        server = grpc.aio.server(options=list(channel_options(settings).items()))
        server.add_generic_rpc_handlers((LanguageModels(self._models, self._guard, self._watch).handler(),))
        add_HealthServicer_to_server(self._health, server)
        add_ServerReflectionServicer_to_server(ReflectionService(self._guard, (SERVICE, _HEALTH_SERVICE)), server)
        wanted = settings.grpc_port or 0
        address = _with_port(listening_address(settings.host), wanted)
        try:
            if self._tls is None:
                self._port = server.add_insecure_port(address)
            else:
                self._port = server.add_secure_port(address, _credentials(self._tls))
        except RuntimeError:
            raise ConfigurationError(
                f"cannot listen on {address}: the port is in use or not permitted; choose another with --grpc-port"
            ) from None
        return server

    async def start(self) -> None:
        """Answer calls. Raises as `bind` does."""
        server = self._server = self._server or self._bound()
        await self._health.refresh()
        await server.start()
        self._following = asyncio.create_task(self._health.follow())

    async def stop(self, seconds: float | None = None) -> None:
        """Take no more calls and let those in work end.

        seconds: after which they are cut off; if not given, as long as the models may take, and a little.
        """
        if self._server is None:
            return
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
            self._following = None
        await self._health.enter_graceful_shutdown()
        drain = self._guards.settings.drain_seconds + _CLOSING_SECONDS if seconds is None else seconds
        stopping = asyncio.create_task(self._server.stop(drain))  # from now on it takes no more
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain):
                while self._guard.num_working:  # noqa: ASYNC110 - calls end in many places
                    await asyncio.sleep(_POLL_SECONDS)
        await self._server.stop(min(drain, _LAST_SECONDS))  # who watches has no end of its own
        await stopping


def channel_options(settings: ServeSettings) -> dict[str, int]:
    """What gRPC's core is given so that the settings hold below the calls."""
    limits = settings.connections
    age = max(_SHORTEST_AGE, 2 * limits.request_timeout)
    options = {
        "grpc.max_receive_message_length": settings.max_body,
        "grpc.max_send_message_length": -1,
        # Equal, since between the two gRPC refuses at random.
        "grpc.max_metadata_size": limits.max_header_bytes,
        "grpc.absolute_max_metadata_size": limits.max_header_bytes,
        "grpc.max_allowed_incoming_connections": limits.max_connections,
        "grpc.max_concurrent_streams": settings.max_queued,
        "grpc.server_handshake_timeout_ms": round(limits.header_seconds * 1000),
        "grpc.max_connection_idle_ms": limits.keep_alive_seconds * 1000,
        # What holds a call open for ever, such as an answer that nobody reads, ends with its connection.
        "grpc.max_connection_age_ms": round(age * 1000),
        "grpc.max_connection_age_grace_ms": round(limits.request_timeout * 1000),
        # A dead client is noticed, although it has closed nothing.
        "grpc.keepalive_time_ms": round(limits.write_seconds * 1000),
        "grpc.keepalive_timeout_ms": round(limits.header_seconds * 1000),
        # No compressed requests, so that none unpacks to gigabytes; HTTP takes none either.
        "grpc.compression_enabled_algorithms_bitset": 1,
        # Two servers on one port would share its calls without a word.
        "grpc.so_reuseport": 0,
    }
    return {name: min(value, _MOST) for name, value in options.items()}


def _with_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _credentials(tls: ServerContext) -> grpc.ServerCredentials:
    """Those of the files, read anew for a connection if the files were."""
    given = tls.files

    def changed() -> Any:  # nothing for no change, which the types of grpc leave out
        nonlocal given
        if tls.files is given:
            return None
        given = tls.files
        return _certificates(given)

    return grpc.dynamic_ssl_server_credentials(_certificates(given), changed, bool(given.client_ca))


def _certificates(files: PemFiles) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(files.key, files.certificate)], files.client_ca or None)
