# SPDX-License-Identifier: Apache-2.0
"""The guards of the REST routes around a call: the same keys, limits and counts, met in the same order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

from open_autoglm.serve.error_shape import HttpError
from open_autoglm.serve.guards.authentication import ANONYMOUS, Caller, authorized
from open_autoglm.serve.guards.cache_gate import answer_key
from open_autoglm.serve.guards.client_address import client_address
from open_autoglm.serve.guards.guard_chain import Guards
from open_autoglm.serve.guards.guard_settings import ConnectionSettings
from open_autoglm.serve.guards.rate_gate import reserve
from open_autoglm.serve.guards.rate_limits import Admission, TokenMeter
from open_autoglm.serve.guards.request_limits import header_fault
from open_autoglm.serve.settings import ServeSettings

_ANSWER_KIND = "grpc:"
"""Before a route's path in the names of kept answers, which are other bytes here than there."""

Metadata = Sequence[tuple[str, str | bytes]]


class Admitted:
    """A call that was let in: who makes it, and what it uses. path: of the REST route that does the same."""

    def __init__(self, guards: Guards, caller: Caller, admission: Admission, path: str) -> None:
        self._guards, self._caller, self._admission, self._path = guards, caller, admission, path
        self.has_begun = False

    @property
    def caller_id(self) -> str | None:
        """Of the caller's key; none without one."""
        return self._caller.id

    @property
    def meter(self) -> TokenMeter:
        """The tokens of the call."""
        return self._admission.meter

    def reserve(self, body: Mapping[str, Any], num_bytes: int) -> None:
        """Reserve what the call may use. body: of the REST request. num_bytes: of the message.

        Raises HttpError 403 for a model that the key is not for, 429 for more tokens than it has.
        """
        if self.meter.counts or self._caller.models is not None:
            reserve(self._caller, self.meter, body, num_bytes)

    def answer_key(self, body: dict[str, Any]) -> str | None:
        """The name under which the answer is kept in the cache; none if it is not."""
        if self._guards.cache is None:
            return None
        return answer_key(self._caller.id or "", self._path, body, self._guards.identify, kind=_ANSWER_KIND)

    def trailers(self) -> tuple[tuple[str, str], ...]:
        """What HTTP tells a caller in headers: what is left of its limits."""
        return tuple(self._admission.headers().items())


class CallGuard:
    """Lets calls in, or refuses them with the fault that a REST request would get."""

    def __init__(self, guards: Guards) -> None:
        self._guards = guards
        self._num_open = self._num_working = 0

    @property
    def settings(self) -> ServeSettings:
        """The settings that hold now."""
        return self._guards.settings

    @property
    def limits(self) -> ConnectionSettings:
        """The limits on one call that hold now."""
        return self._guards.settings.connections

    @property
    def guards(self) -> Guards:
        """The guards of the REST routes."""
        return self._guards

    @property
    def num_working(self) -> int:
        """Calls that a server waits for before it ends."""
        return self._num_working

    @contextmanager
    def open_call(self, *, works: bool = True) -> Iterator[None]:
        """Count a call for as long as it is open. works: it has an end of its own, for which a server waits.

        Raises HttpError 503 for one too many.
        """
        if self._num_open >= self.limits.max_connections:
            raise HttpError(503, "too many calls are open; try again later", headers={"Retry-After": "1"})
        self._num_open += 1
        self._num_working += works
        try:
            yield
        finally:
            self._num_open -= 1
            self._num_working -= works

    def admit(self, path: str, metadata: Metadata, peer: str) -> Admitted:
        """Let a call in. path: of the REST route that does the same. peer: as gRPC writes it.

        Raises HttpError 401, 403, 429 or 431.
        """
        headers = as_headers(metadata)
        fault = header_fault(headers, b"", self.limits)
        if fault is not None:
            raise fault
        policy, limiter, ring = self._guards.rates, self._guards.limiter, self._guards.ring
        scope = {"client": _host_and_port(peer), "headers": headers}
        address = client_address(scope, policy.trusted)
        limiter.admit_address(address, policy.rates)
        caller = ANONYMOUS
        if not ring.is_open:
            caller = authorized(ring, [value for name, value in headers if name == b"authorization"], path)
        return Admitted(self._guards, caller, limiter.admit(caller, address, policy.rates), path)

    @contextmanager
    def charged(self, admitted: Admitted) -> Iterator[None]:
        """Charge what a call has used when it ends: nothing if it fails before its answer began."""
        failed = False
        try:
            yield
        except Exception:
            failed = not admitted.has_begun
            raise
        finally:  # a client that left pays for what was computed
            admitted.meter.close(failed=failed)
            self._guards.tick()


def as_headers(metadata: Metadata) -> list[tuple[bytes, bytes]]:
    """Metadata as ASGI has headers."""
    return [(name.encode(), value.encode() if isinstance(value, str) else value) for name, value in metadata]


def _host_and_port(peer: str) -> tuple[str, int] | None:
    """From `ipv4:127.0.0.1:50000` or `ipv6:%5B::1%5D:50000`; nothing for a connection without an address."""
    kind, _, rest = peer.partition(":")
    host, _, port = unquote(rest).rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        return None
    return host.strip("[]"), int(port)
