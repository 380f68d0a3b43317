# SPDX-License-Identifier: Apache-2.0
"""The playground at `/`: the page's files, read once, served with their types, tags and a strict content policy."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from open_autoglm.serve.error_shape import HttpError

PLAYGROUND_PREFIX: Final = "/playground/"
"""Where the files that the page loads lie; the page itself is `/`."""
PLAYGROUND_FILES: Final = (
    *("index.html", "style.css", "conversation.css", "icon.svg", "early.js", "main.js"),
    *("announcer.js", "answer.js", "api.js", "chat.js", "classify.js", "clipboard.js", "code_examples.js"),
    *("code_panel.js", "composer.js", "conversation.js", "dom.js", "event_stream.js", "i18n.js", "json_check.js"),
    *("json_editor.js", "json_place.js", "json_view.js", "logprobs_view.js", "markdown.js", "markdown_view.js"),
    *("message_actions.js", "message_list.js", "message_view.js", "parameters.js", "presets.js", "request.js"),
    *("settings.js", "settings_panel.js", "side_panel.js", "storage.js", "strings.js", "tabs.js", "tool_cards.js"),
)
"""What is served, by name: nothing else of the package can be asked for."""
PLAYGROUND_PATHS: Final = ("/", *(PLAYGROUND_PREFIX + name for name in PLAYGROUND_FILES if name != "index.html"))
"""Paths that answer without a key: a page must load before its user can type one. They hold nothing of the model's."""

CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_HEADERS: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept by the browser, and asked after by its tag: never stale after an update
    "Vary": "Accept-Encoding",
}


@dataclass(frozen=True)
class _Representation:
    """The bytes of a file in one coding, and the strong tag of exactly these bytes."""

    body: bytes
    tag: str


class PlaygroundFile:
    """ASGI application that answers GET and HEAD with one file, plain or gzip, or 304 if the client has it."""

    def __init__(self, content: bytes, media_type: str) -> None:
        digest = hashlib.sha256(content).hexdigest()[:32]
        self._media_type = media_type
        self._plain = _Representation(content, f'"{digest}"')
        self._gzip = _Representation(gzip.compress(content, 9, mtime=0), f'"{digest}-gzip"')

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope)
        compressed = accepts_gzip(request.headers.get("accept-encoding", ""))
        chosen = self._gzip if compressed else self._plain
        headers: dict[str, str] = {**_HEADERS, "ETag": chosen.tag}
        if matches_tag(request.headers.get("if-none-match", ""), chosen.tag):
            await Response(status_code=304, headers=headers)(scope, receive, send)
            return
        if compressed:
            headers["Content-Encoding"] = "gzip"
        response = Response(chosen.body, headers=headers, media_type=self._media_type)
        await response(scope, receive, send)


class PlaygroundFolder:
    """ASGI application that answers with the file named by the route. Raises HttpError 404 for any other name."""

    def __init__(self, files: Mapping[str, PlaygroundFile]) -> None:
        self._files = files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        file = self._files.get(scope["path_params"]["name"])
        if file is None:
            raise HttpError(404, f"there is nothing at {scope['path']}")
        await file(scope, receive, send)


def mount_playground(app: Starlette) -> None:
    """Serve the playground at `/` and its files under `/playground/`. Raises OSError if the installation lacks one."""
    files = read_playground()
    page = files.pop("index.html")
    app.router.routes.append(Route("/", page, methods=["GET"], include_in_schema=False))
    folder = PlaygroundFolder(files)
    app.router.routes.append(Route(PLAYGROUND_PREFIX + "{name}", folder, methods=["GET"], include_in_schema=False))


def read_playground() -> dict[str, PlaygroundFile]:
    """The page's files by name, read from the package. Raises OSError if the installation lacks one."""
    return read_files(resources.files("open_autoglm.serve") / "playground", PLAYGROUND_FILES)


def read_files(folder: Traversable, names: Iterable[str]) -> dict[str, PlaygroundFile]:
    """Files of a page by name. Raises OSError if one is not there."""
    return {name: PlaygroundFile((folder / name).read_bytes(), _TYPES[name.rpartition(".")[2]]) for name in names}


def accepts_gzip(header: str) -> bool:
    """Whether an Accept-Encoding header takes gzip (RFC 9110, 12.5.3)."""
    weights: dict[str, float] = {}
    for item in header.lower().split(","):
        coding, _, parameters = item.partition(";")
        name, _, value = parameters.partition("=")
        try:
            weights[coding.strip()] = float(value) if name.strip() == "q" else 1.0
        except ValueError:
            weights[coding.strip()] = 0.0
    return weights.get("gzip", weights.get("*", 0.0)) > 0


def matches_tag(header: str, tag: str) -> bool:
    """Whether an If-None-Match header names a tag (RFC 9110, 13.1.2: weak comparison)."""
    return any(item.strip().removeprefix("W/") in ("*", tag) for item in header.split(","))
