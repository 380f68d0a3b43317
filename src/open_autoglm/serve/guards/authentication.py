# SPDX-License-Identifier: Apache-2.0
"""One gate before every route: without a key only the public routes answer, with one those of its scopes."""

from __future__ import annotations

import hmac
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from starlette.types import ASGIApp, Receive, Scope, Send

from open_autoglm.errors import OpenAutoGLMError
from open_autoglm.serve.error_shape import HttpError, error_response
from open_autoglm.serve.guards.api_keys import SCOPES, ApiKey, KeyLimits, digest_of_key, read_keys
from open_autoglm.serve.pipelines.pipelines_page import PAGE_PATHS
from open_autoglm.serve.routes.playground_route import PLAYGROUND_PATHS

PUBLIC_ROUTES: Final = ("/health", "/ready", *PLAYGROUND_PATHS, *PAGE_PATHS)
"""What answers GET and HEAD without a key: the probes, and the files of our pages, which hold no secret."""
SCOPE_OF_ROUTE: Final = (
    ("/v1/chat", "chat"),
    ("/v1/completions", "chat"),
    ("/v1/embeddings", "embed"),
    ("/v1/classify", "classify"),
    ("/v1/models", "models"),
    ("/tokenize", "tokenize"),
    ("/detokenize", "tokenize"),
    ("/v1/pipelines", "pipelines"),
    ("/v1/runs", "pipelines"),
    ("/v1/schedules", "pipelines"),
    ("/metrics", "metrics"),
    ("/docs", "models"),
    ("/openapi.json", "models"),
)
"""The scope that a path and those below it need; any other needs `admin`."""
METRICS_ROUTE: Final = "/metrics"
"""Public too, where the operator says so."""
_PUBLIC: Final = frozenset(PUBLIC_ROUTES)
CHAT_ROUTE: Final = "/v1/chat/completions"
"""What requests of protocols need a key for: they ask models."""
_METRICS_PUBLIC: Final = "metrics_public"
_PROTOCOL: Final = "protocol"
_CALLER: Final = "caller"
_SIGNED: Final = "signed"
_CHECK_SECONDS: Final = 1.0
"""How often the key file is looked at."""

_log = logging.getLogger("open_autoglm.serve")


@dataclass(frozen=True)
class Caller:
    """Who makes a request. id: of the key; none without one. models: none means all."""

    id: str | None = None
    scopes: frozenset[str] = frozenset(SCOPES)
    models: frozenset[str] | None = None
    limits: KeyLimits = field(default_factory=KeyLimits)

    def check_model(self, model: str | None) -> None:
        """Raise HttpError 403 unless the caller may use the model of that name."""
        if self.models is not None and model not in self.models:
            wanted = "this server's default model" if model is None else f"the model {model[:100]!r}"
            raise HttpError(
                403,
                f"this API key may not use {wanted}; it is for {', '.join(sorted(self.models))}",
                "model",
                "model_not_allowed",
            )


ANONYMOUS: Final = Caller()


def caller_of(scope: Scope) -> Caller:
    """Who makes the request, for routes behind the gate."""
    return scope.get("state", {}).get(_CALLER, ANONYMOUS)


def let_in(scope: Scope, caller: Caller) -> None:
    """Say who makes the request."""
    state: dict[str, Any] = scope.setdefault("state", {})
    state[_CALLER] = caller


class KeyRing:
    """The keys that a server takes: one of its operator's, and those of a file, which is read again when it changes.

    Raises what `read_keys` raises, at first; later a file that is wrong is told in the log, and the keys stay as they
    were.
    """

    def __init__(self, api_key: str | None, path: Path | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._single = None if api_key is None else digest_of_key(api_key)
        self._keys: dict[str, ApiKey] = {}
        self._seen: tuple[int, ...] | None = None
        self._next_check = clock() + _CHECK_SECONDS
        if path is not None:
            seen = _stamp(path)
            self._take(read_keys(path))
            self._seen = seen

    @property
    def is_open(self) -> bool:
        """Whether no key is asked for."""
        return self._single is None and self._path is None

    @property
    def keys(self) -> tuple[ApiKey, ...]:
        """The keys of the file."""
        return tuple(self._keys.values())

    def find(self, authorization: Sequence[bytes]) -> Caller | None:
        """The caller who sent these `Authorization` headers, or none."""
        if self._clock() >= self._next_check:
            self.refresh()
        if len(authorization) != 1:
            return None
        scheme, _, token = authorization[0].partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        # What is looked up is a digest, which a sender cannot steer towards a stored one: how long the lookup takes
        # tells nothing about any key. The comparisons that follow always take the same time.
        sent = digest_of_key(token.decode("utf-8", "surrogateescape"))
        found = self._keys.get(sent)
        is_single = hmac.compare_digest(sent, self._single or "-" * len(sent)) and self._single is not None
        is_found = hmac.compare_digest(sent, "-" * len(sent) if found is None else found.sha256)
        if is_single:
            return Caller(f"api-key-{sent[:8]}")
        if not is_found or found is None or not found.is_valid_at(time.time()):
            return None
        models = None if found.models is None else frozenset(found.models)
        return Caller(found.id, frozenset(found.scopes), models, found.limits)

    def refresh(self) -> None:
        """Read the file again if it changed."""
        self._next_check = self._clock() + _CHECK_SECONDS
        if self._path is None:
            return
        try:
            seen = _stamp(self._path)
            if seen == self._seen:
                return
            self._seen = seen
            self._take(read_keys(self._path))
        except (OpenAutoGLMError, OSError) as error:
            _log.error("the API keys stay as they were: %s", error)

    def _take(self, keys: Sequence[ApiKey]) -> None:
        self._keys = {key.sha256: key for key in keys}


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - the path is one already, and this is on the way of requests
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_mode


def scope_of(path: str) -> str:
    """The scope that a path needs."""
    for prefix, scope in SCOPE_OF_ROUTE:
        if path == prefix or path.startswith(prefix + "/"):
            return scope
    return "admin"


def authorized(ring: KeyRing, authorization: Sequence[bytes], path: str) -> Caller:
    """The caller who sent these `Authorization` headers, if the key is for the path. Raises HttpError 401 or 403."""
    caller = ring.find(authorization)
    if caller is None:
        raise HttpError(
            401, "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'", code="invalid_api_key"
        )
    needed = scope_of(path)
    if needed not in caller.scopes:
        raise HttpError(403, f"this API key has no scope '{needed}', which is needed here", code="missing_scope")
    return caller


class KeyGate:
    """ASGI middleware that asks for `Authorization: Bearer KEY` and puts the caller into the request's state."""

    def __init__(self, app: ASGIApp, ring: KeyRing) -> None:
        self._app, self._ring = app, ring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 or 403, or pass the request on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if is_public(scope) or scope.get("state", {}).get(_SIGNED) is True:
            await self._app(scope, receive, send)
            return
        try:
            sent = [value for name, value in scope["headers"] if name == b"authorization"]
            caller = authorized(self._ring, sent, CHAT_ROUTE if is_of_protocol(scope) else scope["path"])
        except HttpError as fault:
            await error_response(fault)(scope, receive, send)
            return
        let_in(scope, caller)
        await self._app(scope, receive, send)


def is_public(scope: Scope) -> bool:
    """Whether a request needs no key."""
    if scope["method"] not in ("GET", "HEAD"):
        return False
    path = scope["path"]
    return path in _PUBLIC or (path == METRICS_ROUTE and scope.get("state", {}).get(_METRICS_PUBLIC) is True)


def let_metrics_be_read(scope: Scope) -> None:
    """Take a request for /metrics for a public one."""
    state: dict[str, Any] = scope.setdefault("state", {})
    state[_METRICS_PUBLIC] = True


def let_sender_sign(scope: Scope) -> None:
    """Ask for no key: the route looks at the sender's signature. The limits of its address hold."""
    state: dict[str, Any] = scope.setdefault("state", {})
    state[_SIGNED] = True


def note_protocol(scope: Scope) -> None:
    """Take a request for one of a protocol's: it needs a key as the chat route does, and asks models by itself."""
    state: dict[str, Any] = scope.setdefault("state", {})
    state[_PROTOCOL] = True


def is_of_protocol(scope: Scope) -> bool:
    """Whether a protocol's plugin answers the request."""
    return scope.get("state", {}).get(_PROTOCOL) is True
