# SPDX-License-Identifier: Apache-2.0
"""The outermost gate of the web application: every request has a record, and every answer its request's id."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from open_autoglm.serve.guards.authentication import caller_of
from open_autoglm.serve.watching.request_record import attach_record
from open_autoglm.serve.watching.watch import Watch

OTHER_ROUTE = "other"
"""Stands for all paths that no route has."""


class RouteNames:
    """From a path to the template of its route, so that there are few names however many paths are asked for."""

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        self._exact: set[str] = set()
        self._prefixes: list[tuple[str, str]] = []
        for route in routes:
            path = getattr(route, "path", None)
            if not isinstance(path, str) or not path:
                continue
            if "{" in path:
                self._prefixes.append((path[: path.index("{")], path.replace(":path}", "}")))
            else:
                self._exact.add(path)

    def of(self, path: str) -> str:
        """The template."""
        if path in self._exact:
            return path
        return next((name for prefix, name in self._prefixes if path.startswith(prefix)), OTHER_ROUTE)


class WatchGate:
    """ASGI middleware around all guards. routes: are read at the first request, when all are there."""

    def __init__(self, app: ASGIApp, watch: Watch, routes: Callable[[], Iterable[BaseRoute]]) -> None:
        self._app, self._watch, self._routes = app, watch, routes
        self._names: RouteNames | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and tell of it when it has ended, however it did."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._names is None:
            self._names = RouteNames(self._routes())
        record = self._watch.begin(
            method=scope["method"], route=self._names.of(scope["path"]), headers=scope["headers"]
        )
        attach_record(scope, record)
        own_header = (b"x-request-id", record.request_id.encode("ascii"))

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                headers = [*message.get("headers", ()), own_header]
                for name, value in headers:
                    if name == b"x-cache":
                        record.cache = "hit" if value == b"hit" else "miss"
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except asyncio.CancelledError:
            record.leave()
            raise
        except BaseException:
            record.status = record.status or 500
            record.fail(500)
            raise
        finally:
            self._watch.end(record, caller_of(scope).id)
