# SPDX-License-Identifier: Apache-2.0
"""The gates that count: each address before it shows a key, each caller after."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from open_autoglm.errors import OpenAutoGLMError
from open_autoglm.serve.error_shape import error_response
from open_autoglm.serve.guards.authentication import Caller, caller_of, is_of_protocol, is_public
from open_autoglm.serve.guards.body_ahead import body_ahead
from open_autoglm.serve.guards.client_address import client_address
from open_autoglm.serve.guards.guard_settings import RateSettings
from open_autoglm.serve.guards.rate_limits import Admission, RateLimiter, TokenMeter

_BYTES_PER_TOKEN: Final = 4
"""For the reservation of a prompt, whose tokens are counted later."""
_MOST: Final = 10**9
_MAX_REPORT: Final = 16 * 1024 * 1024
_ADMISSION: Final = "admission"


@dataclass(frozen=True)
class RatePolicy:
    """The limits of the moment. trusted: networks of proxies. max_body: bytes."""

    rates: RateSettings
    trusted: tuple[Any, ...]
    max_body: int


class AddressGate:
    """ASGI middleware that counts the requests of each address, also those that will be refused for their key."""

    def __init__(self, app: ASGIApp, limiter: RateLimiter, policy: RatePolicy) -> None:
        self._app, self._limiter, self._policy = app, limiter, policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 429, or pass the request on."""
        policy = self._policy
        if scope["type"] == "http" and not is_public(scope):
            try:
                self._limiter.admit_address(client_address(scope, policy.trusted), policy.rates)
            except OpenAutoGLMError as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class RateGate:
    """ASGI middleware behind the keys: limits of the caller, models that the key is for, tokens reserved.

    Bodies are looked into only where a limit on tokens or models holds. The `usage` of an answer that is not streamed
    corrects its reservation; a route that streams calls its meter.
    A request of a protocol is counted, and its admission kept for what it asks first (`take_admission`), which comes
    through a gate of its own with its tokens.
    """

    def __init__(self, app: ASGIApp, limiter: RateLimiter, policy: RatePolicy) -> None:
        self._app, self._limiter, self._policy = app, limiter, policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403 or 429, or pass the request on."""
        if scope["type"] != "http" or is_public(scope):
            await self._app(scope, receive, send)
            return
        policy, caller = self._policy, caller_of(scope)
        state: dict[str, Any] = scope.setdefault("state", {})
        try:
            admission = take_admission(scope) or self._admit(scope, caller, policy)
        except OpenAutoGLMError as error:
            await error_response(error)(scope, receive, send)
            return
        if admission.is_free and caller.models is None:
            await self._app(scope, receive, send)
            return
        if is_of_protocol(scope):
            state[_ADMISSION] = admission
            await self._app(scope, receive, _with_headers(send, admission.headers))
            return
        meter = admission.meter
        try:
            if scope["method"] == "POST" and (meter.counts or caller.models is not None):
                ahead = await body_ahead(scope, receive, policy.max_body)
                receive = ahead.receive
                if ahead.value is not None:
                    reserve(caller, meter, ahead.value, len(ahead.body))
        except OpenAutoGLMError as error:
            await error_response(error)(scope, receive, _with_headers(send, admission.headers))
            return
        state["token_meter"] = meter

        failed = False
        report = bytearray() if meter.counts else None
        is_json = False

        async def counted(message: Message) -> None:
            nonlocal failed, is_json, report
            if message["type"] == "http.response.start":
                is_json = message["status"] == 200 and _is_json(message)
                # 499 is a client that left while its answer was computed, which costs what it costs.
                failed = message["status"] >= 400 and message["status"] != 499
                added = [(name.encode(), value.encode()) for name, value in admission.headers().items()]
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            elif is_json and report is not None:
                report += message.get("body", b"")
                if len(report) > _MAX_REPORT:
                    report = None
                elif not message.get("more_body", False):
                    meter.record_total(_total_tokens(bytes(report)))
            await send(message)

        try:
            await self._app(scope, receive, counted)
        except Exception:
            failed = True
            raise
        finally:
            meter.close(failed=failed)

    def _admit(self, scope: Scope, caller: Caller, policy: RatePolicy) -> Admission:
        counts_address = policy.rates.address_tokens_per_minute is not None
        address = client_address(scope, policy.trusted) if counts_address else ""
        return self._limiter.admit(caller, address, policy.rates)


def take_admission(scope: Scope) -> Admission | None:
    """The admission that was kept with a request, once; none if there is none."""
    return scope.setdefault("state", {}).pop(_ADMISSION, None)


def give_admission(scope: Scope, admission: Admission | None) -> None:
    """Let a request in under an admission that was given already; nothing for none."""
    if admission is not None:
        state: dict[str, Any] = scope.setdefault("state", {})
        state[_ADMISSION] = admission


def reserve(caller: Caller, meter: TokenMeter, body: Mapping[str, Any], num_bytes: int) -> None:
    """Reserve what a request may use. body: the fields of a REST request. num_bytes: of it as it came.

    Raises HttpError 403 for a model that the caller may not use, 429 for more tokens than it has.
    """
    model = body.get("model")
    caller.check_model(model if isinstance(model, str) else None)
    meter.reserve(-(-num_bytes // _BYTES_PER_TOKEN), _answer_tokens(body))


def _is_json(message: Message) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(b"application/json")
        for name, value in message.get("headers", ())
    )


def _total_tokens(answer: bytes) -> int | None:
    """What an answer of OpenAI's shape says that it used."""
    try:
        total = json.loads(answer)["usage"]["total_tokens"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return total if isinstance(total, int) and total >= 0 else None


def _with_headers(send: Send, headers: Callable[[], Mapping[str, str]]) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = {name for name, _ in message.get("headers", ())}
            added = [
                (name.encode(), value.encode()) for name, value in headers().items() if name.encode() not in present
            ]
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await send(message)

    return wrapped


def _answer_tokens(body: Mapping[str, Any]) -> int | None:
    """The most that the answers may have, as the client says; what is no number is the route's to refuse."""
    limits = [body.get("max_completion_tokens"), body.get("max_tokens")]
    given = [item for item in limits if isinstance(item, int) and not isinstance(item, bool) and 0 < item <= _MOST]
    count = body.get("n")
    choices = count if isinstance(count, int) and not isinstance(count, bool) and 0 < count <= _MOST else 1
    return max(given) * choices if given else None
