# SPDX-License-Identifier: Apache-2.0
"""What an operator decides about a server, checked before anything is loaded."""

from __future__ import annotations

import errno
import ipaddress
import socket
from dataclasses import dataclass
from typing import Final

from open_autoglm.errors import ConfigurationError

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8000
API_KEY_VARIABLE: Final = "OPEN_AUTOGLM_API_KEY"


@dataclass(frozen=True)
class ServeSettings:
    """How a server listens and what it takes.

    port: 0 takes any free one. api_key: what clients must send; none asks for nothing, which is refused on an address
    that other machines reach unless `allow_unauthenticated`. served_model_name: the bundle's own name if not given.
    max_body: bytes of a request. max_choices: of `n`. max_generated: tokens of one request, `n` times `max_tokens`.
    max_queued: choices in work and waiting. drain_seconds: what running answers get after SIGTERM.
    Raises ConfigurationError for a setting that cannot be.
    """

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    api_key: str | None = None
    allow_unauthenticated: bool = False
    served_model_name: str | None = None
    max_body: int = 4 * 1024 * 1024
    max_choices: int = 32
    max_generated: int = 262_144
    max_queued: int = 1024
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigurationError(f"--port {self.port} is not a port; give a number from 0 to 65535")
        if self.api_key is not None and (not self.api_key or not self.api_key.isprintable() or " " in self.api_key):
            raise ConfigurationError("the API key must be printable characters without spaces, and not empty")
        if self.served_model_name is not None and not self.served_model_name.strip():
            raise ConfigurationError("--served-model-name must not be empty")
        if min(self.max_body, self.max_choices, self.max_generated, self.max_queued) < 1 or self.drain_seconds < 0:
            raise ConfigurationError("the limits of a server must be at least 1")


def open_socket(settings: ServeSettings) -> socket.socket:
    """Take the address to listen on, so that a port in use is known before a model is loaded.

    Raises ConfigurationError when it is taken, not permitted or not an address of this machine, or when others can
    reach it and no key is asked for.
    """
    host, port = settings.host, settings.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise ConfigurationError(f"--host '{host}' is not an address of this machine; try {DEFAULT_HOST}") from None
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    is_open = settings.api_key is None and not settings.allow_unauthenticated
    if is_open and not all(address.is_loopback for address in addresses):
        raise ConfigurationError(
            f"other machines can reach {host}, and no API key is set: give --api-key (or {API_KEY_VARIABLE}), "
            f"listen on {DEFAULT_HOST}, or say --allow-unauthenticated if everybody may use the model"
        )
    family, kind, protocol, _, address = found[0]
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
