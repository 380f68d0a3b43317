# SPDX-License-Identifier: Apache-2.0
"""HTTP for stages: every connection of every redirect is checked and pinned; size, time and kind are limited."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpcore
import httpx

from open_autoglm.errors import ConfigurationError, PipelineError
from open_autoglm.pipeline.stages.address_guard import AddressGuard

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_TRANSIENT: Final = frozenset({408, 425, 429})
_PORTS: Final = {"http": 80, "https": 443}
_CONNECT_SECONDS: Final = 10.0
_LONGEST_REASON: Final = 300

JSON_TYPE: Final = "application/json"


@dataclass(frozen=True)
class HttpLimits:
    """What an answer may be. seconds: for all of it, redirects included. most_bytes: of its body.

    content_types: such as `application/json` or `text/*`; an answer without a body needs none.
    """

    seconds: float = 30.0
    most_bytes: int = 1_000_000
    redirects: int = 3
    content_types: tuple[str, ...] = (JSON_TYPE, "text/*")


@dataclass(frozen=True)
class HttpAnswer:
    """The last answer, after redirects. content_type: lower case, without parameters."""

    status: int
    content_type: str
    body: bytes
    url: str

    def text(self) -> str:
        """The body as text; what is not UTF-8 is shown as such."""
        return self.body.decode("utf-8", errors="replace")

    def value(self) -> Any:
        """The body as JSON if it says that it is, else as text; None if there is none. Raises PipelineError."""
        if not self.body:
            return None
        if self.content_type == JSON_TYPE or self.content_type.endswith("+json"):
            try:
                return json.loads(self.body)
            except (ValueError, RecursionError):
                raise PipelineError(f"{self.url} says that its answer is JSON, and it is not") from None
        return self.text()

    def check(self) -> None:
        """Raises ConnectionError for a status that may pass, PipelineError for another that is no success."""
        if self.status in _TRANSIENT or self.status >= 500:
            raise ConnectionError(f"{self.url} answered {self.status}: {self.text()[:_LONGEST_REASON]}")
        if not 200 <= self.status < 300:
            raise PipelineError(f"{self.url} answered {self.status}: {self.text()[:_LONGEST_REASON]}")


class GuardedClient:
    """Asks servers for others, never for two at once. Takes no proxy from the environment and keeps no cookies.

    allow: addresses, networks and hosts that are not public and may be asked all the same. authorities: a file of
    certificates to trust in place of the usual ones. shows_paths: errors name the path of a URL, which of some hooks is
    the secret. Raises ConfigurationError when it cannot be read.
    """

    def __init__(
        self,
        limits: HttpLimits | None = None,
        *,
        allow: Iterable[str] = (),
        authorities: Path | None = None,
        shows_paths: bool = True,
    ) -> None:
        self._shows_paths = shows_paths
        self._limits = limits or HttpLimits()
        self._clock = _Clock()
        try:
            context = ssl.create_default_context(cafile=authorities) if authorities else httpx.create_ssl_context()
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"{authorities} holds no certificates to trust: {error}") from None
        self._pool = httpcore.ConnectionPool(
            ssl_context=context,
            max_connections=4,
            max_keepalive_connections=1,
            network_backend=_PinnedBackend(AddressGuard(tuple(allow)), self._clock),
        )

    def request(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> HttpAnswer:
        """The answer, whatever its status is.

        A redirect is followed to the same or an encrypted scheme; to another server without `headers` and never with
        a body.
        Raises PipelineError for what will not pass, such as an address that may not be asked; ConnectionError for what
        may, such as no answer in time.
        """
        self._clock.deadline = time.monotonic() + self._limits.seconds
        target, sent = _parsed(url), dict(headers or {})
        for left in range(self._limits.redirects, -1, -1):
            answer, location = self._hop(method, target, sent, body)
            if location is None:
                return answer
            if left == 0:
                raise PipelineError(f"{self._shown(target)} redirects further than {self._limits.redirects} times")
            following = _parsed(str(self._join(target, location)))
            if target.scheme == "https" and following.scheme != "https":
                raise PipelineError(
                    f"{self._shown(target)} redirects to {self._shown(following)}, which is not encrypted"
                )
            if answer.status == 303 or (answer.status in (301, 302) and method == "POST"):
                method, body = ("HEAD" if method == "HEAD" else "GET"), None
            if _origin(following) != _origin(target):
                if body is not None or method not in ("GET", "HEAD"):
                    raise PipelineError(
                        f"{self._shown(target)} redirects a {method} to another server, {self._shown(following)}"
                    )
                sent = {}
            target = following
        raise AssertionError("the loop returns or raises")

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def _hop(
        self, method: str, url: httpx.URL, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[HttpAnswer, str | None]:
        """One answer, and where it redirects to."""
        sent = {
            "Host": url.netloc.decode("ascii"),
            "Accept": ", ".join(self._limits.content_types) or "*/*",
            "Accept-Encoding": "identity",  # so that nothing can unpack to more than was allowed
            "User-Agent": "open-autoglm",
            **headers,
        }
        if body is not None:
            sent["Content-Length"] = str(len(body))
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        try:
            encoded = [(name.encode("ascii"), value.encode("ascii")) for name, value in sent.items()]
            with self._pool.stream(method, target, headers=encoded, content=body or b"") as response:
                found = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
                if response.status in _REDIRECTS and "location" in found:
                    return HttpAnswer(response.status, "", b"", self._shown(url)), found["location"]
                kind = found.get("content-type", "").partition(";")[0].strip().lower()
                content = self._read(response, found, url)
        except UnicodeEncodeError:
            raise ConfigurationError("a header holds a sign that is not ASCII") from None
        except httpcore.LocalProtocolError as error:
            raise ConfigurationError(f"the request to {self._shown(url)} is not HTTP: {error}") from None
        except httpcore.TimeoutException:
            raise ConnectionError(f"{self._shown(url)} did not answer in {self._limits.seconds:g} seconds") from None
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise ConnectionError(f"{self._shown(url)}: {type(error).__name__}: {error}") from None
        if content and 200 <= response.status < 300 and not self._takes(kind):
            raise PipelineError(
                f"{self._shown(url)} answered with {kind or 'no content type'}; "
                f"what is taken is {', '.join(self._limits.content_types)}"
            )
        return HttpAnswer(response.status, kind, content, self._shown(url)), None

    def _read(self, response: httpcore.Response, headers: Mapping[str, str], url: httpx.URL) -> bytes:
        limit, parts, size = self._limits.most_bytes, [], 0
        too_long = PipelineError(f"the answer of {self._shown(url)} is longer than {limit} bytes")
        if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            raise PipelineError(f"{self._shown(url)} answered compressed, though it was asked not to")
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            raise too_long
        for part in response.iter_stream():
            size += len(part)
            if size > limit:
                raise too_long
            parts.append(part)
        return b"".join(parts)

    def _takes(self, kind: str) -> bool:
        return any(
            allowed in ("*/*", kind) or (allowed.endswith("/*") and kind.startswith(allowed[:-1]))
            for allowed in self._limits.content_types
        )

    def _join(self, url: httpx.URL, location: str) -> httpx.URL:
        try:
            return url.join(location)
        except (httpx.InvalidURL, UnicodeError, ValueError):
            raise PipelineError(f"{self._shown(url)} redirects to something that is no URL") from None

    def _shown(self, url: httpx.URL) -> str:
        """The URL without its query, where keys are often kept."""
        path = url.raw_path.decode().partition("?")[0] if self._shows_paths else ""
        return f"{url.scheme}://{url.netloc.decode('ascii', errors='replace')}{path}"


class _Clock:
    """When the request in work must have ended."""

    def __init__(self) -> None:
        self.deadline = 0.0

    def left(self, seconds: float | None = None) -> float:
        """Seconds that a step may take. Raises httpcore.ReadTimeout when there are none left."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout("no time is left")
        return left if seconds is None else min(left, seconds)


class _PinnedBackend(httpcore.NetworkBackend):
    """Connects to addresses that were checked, and holds every step against the clock."""

    def __init__(self, guard: AddressGuard, clock: _Clock) -> None:
        self._guard, self._clock, self._sockets = guard, clock, httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """A connection to the first address of the host that takes one."""
        fault: Exception = ConnectionError(f"the host {host} has no address")
        for address in self._guard.addresses(host, port):
            try:
                stream = self._sockets.connect_tcp(
                    address, port, self._clock.left(_CONNECT_SECONDS), local_address, socket_options
                )
                return _TimedStream(stream, self._clock)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                fault = error
        raise fault


class _TimedStream(httpcore.NetworkStream):
    """A connection of which no step takes longer than the request has left: a server may answer byte by byte."""

    def __init__(self, stream: httpcore.NetworkStream, clock: _Clock) -> None:
        self._stream, self._clock = stream, clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """See `httpcore.NetworkStream`."""
        return self._stream.read(max_bytes, self._clock.left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """See `httpcore.NetworkStream`."""
        self._stream.write(buffer, self._clock.left(timeout))

    def close(self) -> None:
        """See `httpcore.NetworkStream`."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """The same connection, encrypted; the certificate must be of the name, not of the address."""
        stream = self._stream.start_tls(ssl_context, server_hostname, self._clock.left(timeout))
        return _TimedStream(stream, self._clock)

    def get_extra_info(self, info: str) -> Any:
        """See `httpcore.NetworkStream`."""
        return self._stream.get_extra_info(info)


def check_url(text: str) -> str:
    """The URL as it was given. Raises ValueError when it is none that a stage may ask."""
    try:
        _parsed(text)
    except PipelineError as error:
        raise ValueError(str(error)) from None
    return text


def _parsed(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError, ValueError, TypeError):
        raise PipelineError("this is not a URL; write it like https://host/path") from None
    if url.scheme not in _PORTS or not url.raw_host:
        raise PipelineError(f"{url.scheme or 'no scheme'}: only http:// and https:// URLs with a host are asked")
    if url.userinfo:
        raise PipelineError("a URL with a user or password is not taken; use headers")
    return url


def _origin(url: httpx.URL) -> tuple[str, bytes, int]:
    return url.scheme, url.raw_host.lower(), url.port or _PORTS[url.scheme]
