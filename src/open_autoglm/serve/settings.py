# SPDX-License-Identifier: Apache-2.0
"""What an operator decides about a server, checked before anything is loaded."""

from __future__ import annotations

import errno
import ipaddress
import socket
from dataclasses import dataclass, field
from typing import Any, Final

from open_autoglm.errors import ConfigurationError
from open_autoglm.serve.guards.guard_settings import (
    AccessSettings,
    CacheSettings,
    ConnectionSettings,
    RateSettings,
    TlsSettings,
)
from open_autoglm.serve.option_fields import option
from open_autoglm.serve.pipelines.pipeline_settings import PipelineSettings
from open_autoglm.serve.protocols.protocol_names import check_protocol_names
from open_autoglm.serve.watching.watch_settings import WatchSettings

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8000
API_KEY_VARIABLE: Final = "OPEN_AUTOGLM_API_KEY"
VARIABLE_PREFIX: Final = "OPEN_AUTOGLM_SERVE_"
"""Before a setting's name in capitals; the key alone is also OPEN_AUTOGLM_API_KEY."""

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_SocketArguments = tuple[Any, Any, int, str, Any]


@dataclass(frozen=True)
class ServeSettings:
    """How a server listens and what it takes. `serve.configuration` reads it from a file, the environment and flags.

    port: 0 takes any free one. grpc_port: of the gRPC twin, likewise; none for no twin. api_key: what clients must
    send; none asks for nothing, which is refused on an address that other machines reach unless
    `allow_unauthenticated`. served_model_name: the bundle's own name if not given.
    max_body: bytes of a request. max_choices: of `n`. max_generated: tokens of one request, `n` times `max_tokens`.
    max_queued: choices in work and waiting. drain_seconds: what running answers get after SIGTERM.
    protocol: plugins that answer below `/NAME`.
    Raises ConfigurationError for a setting that cannot be.
    """

    host: str = option(DEFAULT_HOST, "The address to listen on.")
    port: int = option(DEFAULT_PORT, "The port to listen on; 0 takes any free one.")
    grpc_port: int | None = option(None, "Speak gRPC too, on this port; 0 takes any free one.")
    api_key: str | None = option(None, "What clients must send as a bearer token.", secret=True, live=True)
    allow_unauthenticated: bool = option(False, "Listen on an address that others reach, without a key.")
    served_model_name: str | None = option(None, "What clients call the model.")
    max_body: int = option(4 * 1024 * 1024, "Bytes of a request's body.")
    max_choices: int = option(32, "Answers to one request, `n`.")
    max_generated: int = option(262_144, "Tokens generated for one request, `n` times `max_tokens`.")
    max_queued: int = option(1024, "Answers in work and waiting.")
    drain_seconds: float = option(30.0, "What running answers get to end after SIGTERM.")
    protocol: tuple[str, ...] = option(
        (), "A plugin of the kind `protocol`, whose clients find it at /NAME; again for more."
    )
    access: AccessSettings = field(default_factory=AccessSettings)
    rates: RateSettings = field(default_factory=RateSettings)
    connections: ConnectionSettings = field(default_factory=ConnectionSettings)
    tls: TlsSettings = field(default_factory=TlsSettings)
    cache: CacheSettings = field(default_factory=CacheSettings)
    watching: WatchSettings = field(default_factory=WatchSettings)
    pipelines: PipelineSettings = field(default_factory=PipelineSettings)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigurationError(f"--port {self.port} is not a port; give a number from 0 to 65535")
        if self.grpc_port is not None and not 0 <= self.grpc_port <= 65535:
            raise ConfigurationError(f"--grpc-port {self.grpc_port} is not a port; give a number from 0 to 65535")
        if self.grpc_port == self.port != 0:
            raise ConfigurationError(f"--grpc-port and --port are both {self.port}; give two")
        if self.api_key is not None and (not self.api_key or not self.api_key.isprintable() or " " in self.api_key):
            raise ConfigurationError("the API key must be printable characters without spaces, and not empty")
        if self.served_model_name is not None and not self.served_model_name.strip():
            raise ConfigurationError("--served-model-name must not be empty")
        if min(self.max_body, self.max_choices, self.max_generated, self.max_queued) < 1 or not (
            0 <= self.drain_seconds < float("inf")
        ):
            raise ConfigurationError("the limits of a server must be at least 1")
        check_protocol_names(self.protocol)

    @property
    def asks_for_a_key(self) -> bool:
        """Whether clients must show who they are: a key, or a certificate that we know."""
        return self.api_key is not None or self.access.api_keys is not None or self.tls.tls_client_ca is not None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address. Raises ConfigurationError for one that is not ours."""
    return all(address.is_loopback for address, _ in _addresses(host, 0))


def listening_address(host: str) -> str:
    """The one address that a host's name means here, as servers listen on it.

    Raises ConfigurationError for a name that is not ours.
    """
    return str(_addresses(host, 0)[0][1][4][0])


def _addresses(host: str, port: int) -> list[tuple[_Address, _SocketArguments]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise ConfigurationError(f"--host '{host}' is not an address of this machine; try {DEFAULT_HOST}") from None
    return [(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]), entry) for entry in found]


def open_socket(settings: ServeSettings) -> socket.socket:
    """Take the address to listen on, so that a port in use is known before a model is loaded.

    Raises ConfigurationError when it is taken, not permitted or not an address of this machine, or when others can
    reach it and no key is asked for.
    """
    host, port = settings.host, settings.port
    found = _addresses(host, port)
    is_open = not settings.asks_for_a_key and not settings.allow_unauthenticated
    if is_open and not all(address.is_loopback for address, _ in found):
        raise ConfigurationError(
            f"other machines can reach {host}, and no API key is set: give --api-key (or {API_KEY_VARIABLE}) or "
            f"--api-keys, listen on {DEFAULT_HOST}, or say --allow-unauthenticated if everybody may use the model"
        )
    is_local = all(address.is_loopback for address, _ in found)
    if settings.pipelines.pipelines is not None and not settings.asks_for_a_key and not is_local:
        # Who may start pipelines may run whatever their stages do, so this is never open to other machines.
        raise ConfigurationError(
            f"other machines can reach {host}, and --pipelines lets callers start work on this one: give --api-key "
            f"or --api-keys, or listen on {DEFAULT_HOST}"
        )
    family, kind, protocol, _, address = found[0][1]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if isinstance(error, PermissionError):
            reason = f"the system does not permit port {port} to this user; choose one above 1023 with --port"
        elif error.errno == errno.EADDRINUSE:
            reason = f"port {port} is in use by another program; stop it, or choose another port with --port"
        else:
            reason = f"{(error.strerror or str(error)).lower()}; choose an address of this machine with --host"
        raise ConfigurationError(f"cannot listen on {host}:{port}: {reason}") from None
    return listener
