# SPDX-License-Identifier: Apache-2.0
"""TLS: certificates checked before anything is loaded, nothing older than TLS 1.2."""

from __future__ import annotations

import ssl
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path

from open_autoglm.errors import ConfigurationError
from open_autoglm.serve.guards.guard_settings import TlsSettings, existing_file
from open_autoglm.storage import explained


@dataclass(frozen=True)
class PemFiles:
    """What the files of `TlsSettings` hold, for servers that have TLS of their own. client_ca: empty without one."""

    certificate: bytes
    key: bytes = field(repr=False)
    client_ca: bytes


class ServerContext:
    """The server's side of TLS, as `tls_context` made it.

    context: for connections. files: what it was made from, a new object each time that they are read.
    """

    def __init__(self, context: ssl.SSLContext, settings: TlsSettings) -> None:
        self.context, self._settings = context, settings
        self.files = _files_of(settings)

    def load_again(self) -> None:
        """Read the certificate and its key again, for new connections.

        Raises as `tls_context` does; the old ones stay then.
        """
        _load_certificate(self.context, self._settings)
        self.files = replace(_files_of(self._settings), client_ca=self.files.client_ca)


def tls_context(settings: TlsSettings) -> ServerContext | None:
    """The server's side of TLS; none without a certificate.

    Raises ConfigurationError for files that are missing, readable by others (the key), not PEM, locked by a password,
    or that do not belong together.
    """
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    _load_certificate(context, settings)
    if settings.tls_client_ca is not None:
        path = existing_file(settings.tls_client_ca, "--tls-client-ca")
        try:
            context.load_verify_locations(cafile=path)
        except (ssl.SSLError, OSError) as error:
            raise ConfigurationError(
                f"--tls-client-ca: {path} holds no certificates in PEM form ({_reason(error)})"
            ) from None
        context.verify_mode = ssl.CERT_REQUIRED
    return ServerContext(context, settings)


def _load_certificate(context: ssl.SSLContext, settings: TlsSettings) -> None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return
    certificate = existing_file(settings.tls_certificate, "--tls-certificate")
    key = existing_file(settings.tls_key, "--tls-key")
    with explained(key, "read"):
        if stat.S_IMODE(key.stat().st_mode) & 0o007:
            raise ConfigurationError(f"--tls-key: everybody can read {key}; protect it with: chmod 600 {key}")

    def no_password() -> str:
        raise ConfigurationError(f"--tls-key: {key} has a password; give a key without one, readable by its owner only")

    # A context that refuses a pair may have taken half of it, so a new one tries first.
    for each in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), context):
        try:
            each.load_cert_chain(certificate, key, password=no_password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise ConfigurationError(f"--tls-key: {key} is not the key of {certificate}") from None
            raise ConfigurationError(
                f"--tls-certificate, --tls-key: {certificate} and {key} are not a certificate and its key in PEM form "
                f"({_reason(error)})"
            ) from None
        except OSError as error:
            raise ConfigurationError(
                f"--tls-certificate, --tls-key: cannot read {certificate} and {key}: {_reason(error)}"
            ) from None


def _files_of(settings: TlsSettings) -> PemFiles:
    def content(path: str | None) -> bytes:
        if path is None:
            return b""
        with explained(Path(path), "read"):
            return Path(path).expanduser().read_bytes()

    return PemFiles(content(settings.tls_certificate), content(settings.tls_key), content(settings.tls_client_ca))


def _reason(error: OSError) -> str:
    reason = getattr(error, "reason", None) or error.strerror or str(error)
    return str(reason).lower().replace("_", " ")
