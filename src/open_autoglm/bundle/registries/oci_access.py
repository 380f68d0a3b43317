# SPDX-License-Identifier: Apache-2.0
"""Requests to an OCI registry with the credentials that it asks for, which go nowhere else and into no message.

Source: https://distribution.github.io/distribution/spec/auth/token/
"""

from __future__ import annotations

import base64
import ipaddress
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.request import parse_http_list, parse_keqv_list

from open_autoglm.errors import ConfigurationError, RegistryError

if TYPE_CHECKING:
    import httpx

USERNAME_VARIABLE: Final = "OPEN_AUTOGLM_REGISTRY_USERNAME"
PASSWORD_VARIABLE: Final = "OPEN_AUTOGLM_REGISTRY_PASSWORD"  # noqa: S105 - a name
TOKEN_VARIABLE: Final = "OPEN_AUTOGLM_REGISTRY_TOKEN"  # noqa: S105 - a name
_MAX_TOKEN_ANSWER: Final = 1024 * 1024
_CONNECT_SECONDS: Final = 10.0
_SILENCE_SECONDS: Final = 60.0


class OciAccess:
    """A client of one registry.

    environment: OPEN_AUTOGLM_REGISTRY_USERNAME and _PASSWORD, or _TOKEN. They are sent to the registry and to the token
    service that it names, and to either only over HTTPS or within this machine.
    Raises ConfigurationError for half of a pair, for credentials that would travel in the open, or without httpx.
    """

    def __init__(self, base: str, name: str, environment: Mapping[str, str]) -> None:
        try:
            import httpx
        except ImportError:
            raise ConfigurationError(
                "OCI registries need a package that is not here; install it with: pip install 'open-autoglm[oci]'"
            ) from None
        user, password = environment.get(USERNAME_VARIABLE), environment.get(PASSWORD_VARIABLE)
        if bool(user) != bool(password):
            raise ConfigurationError(f"{USERNAME_VARIABLE} and {PASSWORD_VARIABLE} go together; set both or none")
        self._basic = None
        if user and password:
            self._basic = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
        token = environment.get(TOKEN_VARIABLE)
        self._origin = _origin(httpx.URL(base))
        if (token or self._basic) and not _is_protected(httpx.URL(base)):
            raise ConfigurationError(f"credentials do not go to {base} in the open; use oci:// instead of oci+http://")
        self._authorization = f"Bearer {token}" if token else None
        self._scope = f"repository:{name}:pull,push"
        self._client = httpx.Client(timeout=httpx.Timeout(_SILENCE_SECONDS, connect=_CONNECT_SECONDS))

    @property
    def advice(self) -> str:
        """What to do about a refusal."""
        names = f"{USERNAME_VARIABLE} and {PASSWORD_VARIABLE}, or {TOKEN_VARIABLE}"
        return f"check {names}" if self._basic or self._authorization else f"set {names}"

    def send(self, method: str, url: str, **more: Any) -> httpx.Response:
        """Send a request; its body is not read yet. Raises httpx.RequestError, RegistryError."""
        response = self._send_once(method, url, **more)
        if response.status_code != 401 or _origin(response.request.url) != self._origin:
            return response
        challenge = response.headers.get("WWW-Authenticate", "")
        if not self._learn(challenge):
            return response
        response.close()
        return self._send_once(method, url, **more)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _send_once(self, method: str, url: str, **more: Any) -> httpx.Response:
        import httpx

        headers = dict(more.pop("headers", {}))
        if self._authorization is not None and _origin(httpx.URL(url)) == self._origin:
            headers["Authorization"] = self._authorization  # on a redirect to elsewhere the client leaves it out
        request = self._client.build_request(method, url, headers=headers, **more)
        return self._client.send(request, stream=True, follow_redirects=method in ("GET", "HEAD"))

    def _learn(self, challenge: str) -> bool:
        """Get what the registry asks for. Returns whether there is something new to try."""
        kind, _, rest = challenge.partition(" ")
        if kind.lower() == "basic":
            is_new = self._basic is not None and self._authorization != self._basic
            self._authorization = self._basic or self._authorization
            return is_new
        if kind.lower() != "bearer":
            return False
        try:
            fields = parse_keqv_list(parse_http_list(rest))
        except ValueError:
            return False
        token = self._fetch_token(fields)
        is_new = token is not None and self._authorization != f"Bearer {token}"
        if token is not None:
            self._authorization = f"Bearer {token}"
        return is_new

    def _fetch_token(self, fields: Mapping[str, str]) -> str | None:
        import httpx

        try:
            realm = httpx.URL(fields.get("realm", ""))
        except httpx.InvalidURL:
            return None
        if not _is_protected(realm):
            raise RegistryError(
                f"the registry sends us to {realm.scheme}://{realm.host} for a token, which is not safe"
            )
        parameters = {"scope": fields.get("scope") or self._scope}
        if "service" in fields:
            parameters["service"] = fields["service"]
        headers = {} if self._basic is None else {"Authorization": self._basic}
        with self._client.stream("GET", realm.copy_merge_params(parameters), headers=headers) as response:
            if response.status_code != 200:
                return None
            content = b""
            for block in response.iter_bytes():
                content += block
                if len(content) > _MAX_TOKEN_ANSWER:
                    return None
        try:
            values = json.loads(content)
            token = values.get("token") or values.get("access_token")
        except (ValueError, AttributeError, RecursionError):
            return None
        return token if isinstance(token, str) and token.isascii() and token.isprintable() else None


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _is_protected(url: httpx.URL) -> bool:
    """Whether what is sent cannot be read on the way."""
    if url.scheme == "https":
        return True
    if url.host == "localhost":
        return url.scheme == "http"
    try:
        return url.scheme == "http" and ipaddress.ip_address(url.host).is_loopback
    except ValueError:
        return False
