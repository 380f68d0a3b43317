# SPDX-License-Identifier: Apache-2.0
"""What protects people whose browsers reach the server: host names, foreign origins, headers of pages."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Final

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from open_autoglm.serve.error_shape import HttpError, error_response

_LOCAL_NAMES: Final = frozenset(("localhost", "127.0.0.1", "::1"))
_POLICY: Final = b"content-security-policy"
_DATA_POLICY: Final = b"default-src 'none'; frame-ancestors 'none'"
_ALWAYS: Final = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
_EXPOSED: Final = (
    "Retry-After",
    "X-Cache",
    "X-Request-Id",
    *(f"x-ratelimit-{part}-{kind}" for kind in ("requests", "tokens") for part in ("limit", "remaining", "reset")),
)
_MAX_PAGE: Final = 4 * 1024 * 1024
_NOTHING: Final = "'none'"


@dataclass(frozen=True)
class BrowserPolicy:
    """What browsers may do. hosts: by which names a server without a key is reached; none is any. origins: whose pages
    may call it. credentials: and send cookies."""

    hosts: frozenset[str] | None = None
    origins: tuple[str, ...] = ()
    credentials: bool = False


def local_hosts(also: tuple[str, ...]) -> frozenset[str]:
    """The names of this machine for itself, and others."""
    return _LOCAL_NAMES | {host.lower().rstrip(".") for host in also}


class HostGate:
    """ASGI middleware that refuses what foreign web pages send, where nothing else asks who is there.

    A page can have its own name resolve to 127.0.0.1 and then speak with a server there as if it were its own: the
    browser still sends that name as `Host`. It can also post to localhost without reading the answer: the browser then
    sends its `Origin`.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str], origins: tuple[str, ...]) -> None:
        self._app, self._hosts, self._origins = app, hosts, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403, or pass the request on."""
        if scope["type"] == "http":
            sent = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
            host = host_of(sent[0]) if len(sent) == 1 else None
            if host is None or host not in self._hosts:
                fault = HttpError(
                    403,
                    f"this server is not called {sent[0][:100] if sent else 'nothing'!r}: it takes no key, so it "
                    "answers to localhost only; its operator can name others with --allowed-host, or set --api-key",
                    code="host_not_allowed",
                )
                await error_response(fault)(scope, receive, send)
                return
            if not self._is_own(scope, sent[0]):
                fault = HttpError(
                    403,
                    "pages of other origins may not use this server; its operator can name yours with --cors-origin",
                    code="origin_not_allowed",
                )
                await error_response(fault)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_own(self, scope: Scope, host: str) -> bool:
        for name, value in scope["headers"]:
            if name == b"origin":
                origin = value.decode("latin-1")
                if origin.partition("://")[2].lower() != host.lower() and not {origin, "*"} & set(self._origins):
                    return False
        return True


def host_of(header: str) -> str | None:
    """The name in a `Host` header without port and brackets; none if it is not one."""
    matched = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:\s/@]+)(?::(\d{1,5})?)?", header)
    if matched is None:
        return None
    name = matched[1].strip("[]").lower().rstrip(".")
    if ":" in name:
        try:
            return str(ipaddress.ip_address(name))
        except ValueError:
            return None
    return name


class CorsGate:
    """ASGI middleware that lets pages of the origins named call the server, and no others.

    A preflight of such an origin is answered before any key is asked for, since browsers send none with it; any other
    OPTIONS request goes on, to the keys.
    """

    def __init__(self, app: ASGIApp, policy: BrowserPolicy) -> None:
        self._app = app
        self._cors = CORSMiddleware(
            app,
            allow_origins=policy.origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            allow_credentials=policy.credentials,
            expose_headers=_EXPOSED,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a preflight, or pass the request on and mark its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        origin = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"origin"), "")
        is_ours = self._cors.is_allowed_origin(origin)
        await (self._cors if is_ours else self._app)(scope, receive, send)


class SecurityHeaders:
    """ASGI middleware that adds the headers which keep browsers from taking an answer for something else.

    A page may run exactly the scripts and styles that are written in it: their hashes are in its
    Content-Security-Policy, unless the route sent a policy of its own. Data may do nothing.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._policies: dict[bytes, str] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; its answer gets the headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        waiting: Message | None = None
        page = bytearray()

        async def protected(message: Message) -> None:
            nonlocal waiting
            if message["type"] == "http.response.start":
                sent = {name.lower(): value for name, value in message.get("headers", ())}
                added = [item for item in _ALWAYS if item[0] not in sent]
                message = {**message, "headers": [*message.get("headers", ()), *added]}
                if _POLICY not in sent:
                    if sent.get(b"content-type", b"").startswith(b"text/html") and b"content-encoding" not in sent:
                        waiting = message
                        return
                    message["headers"].append((_POLICY, _DATA_POLICY))
            elif waiting is not None:
                page.extend(message.get("body", b""))
                if message.get("more_body", False) and len(page) <= _MAX_PAGE:
                    return
                waiting["headers"].append((_POLICY, self._policy_of(bytes(page)).encode()))
                start, waiting = waiting, None
                await send(start)
                message = {**message, "body": bytes(page)}
            await send(message)

        await self._app(scope, receive, protected)

    def _policy_of(self, page: bytes) -> str:
        digest = hashlib.sha256(page).digest()
        found = self._policies.get(digest)
        if found is None:
            found = page_policy(page.decode("utf-8", "replace"))
            if len(self._policies) >= 16:
                self._policies.clear()
            self._policies[digest] = found
        return found


class _InlineCode(HTMLParser):
    """Collects what inline scripts and styles of a page say, byte for byte."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.found: dict[str, list[str]] = {"script": [], "style": []}
        self._open: str | None = None
        self._text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.found and "src" not in dict(attrs):
            self._open, self._text = tag, []

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self._text.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == self._open:
            self.found[tag].append("".join(self._text))
            self._open = None


def page_policy(html: str) -> str:
    """The Content-Security-Policy of a page that brings all it needs and speaks with its own server only.

    Source: W3C Content Security Policy Level 3, hashes of inline elements. Attributes such as `onclick` and `style` do
    not run under it.
    """
    reader = _InlineCode()
    reader.feed(html.replace("\r\n", "\n").replace("\r", "\n"))
    reader.close()
    scripts, styles = (" ".join(_source(text) for text in reader.found[tag]) for tag in ("script", "style"))
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {scripts or _NOTHING}",
            f"style-src {styles or _NOTHING}",
            "img-src 'self' data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
