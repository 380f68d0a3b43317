# SPDX-License-Identifier: Apache-2.0
"""Many users of one server at once, over raw sockets in one thread: who asks, when each answer came, how it ended.

A process of its own (`python bench/load_client.py`), which reads a `Load` as JSON from its input and writes what it
saw as JSON. It parses next to nothing, so that it can outrun the server: its own processor time is in the record.

Closed loop: each user asks again as soon as the answer is there. Open loop: requests come at random moments at a mean
rate, whatever the server does, and their times count from the moment at which they should have been sent.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import random
import re
import resource
import select
import socket
import sys
import time
from collections import Counter, deque
from typing import Any, Final

_DONE: Final = b"data: [DONE]"
_EVENT: Final = b"data: {"
_END: Final = b"0\r\n\r\n"
_TOKENS: Final = re.compile(rb'"completion_tokens": ?(\d+)')
_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d+)")
_LENGTH: Final = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_BURST: Final = 200
"""Connections that are opened in one go."""
_PAUSE_AFTER_REFUSAL: Final = 1.0
_TAIL: Final = 4096


@dataclasses.dataclass(frozen=True)
class Load:
    """What to do. bodies: JSON texts that are asked in turn. users: connections. rate: of an open loop, a second.

    tokens: of an answer that does not say how many it has. warm_up: seconds at the beginning that are not counted: a
    closed loop of many users begins with a herd of requests that comes only once.
    """

    port: int
    path: str
    bodies: list[str]
    users: int
    seconds: float
    rate: float | None = None
    tokens: int = 1
    seed: int = 0
    warm_up: float = 0.0


class User:
    """A connection, and the request that is on it."""

    __slots__ = ("began", "connection", "ends_at", "first", "tail", "to_send")

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.to_send = b""
        self.tail = bytearray()
        self.began = self.first = 0.0
        self.ends_at = -1


class Run:
    """One load against one server."""

    def __init__(self, load: Load) -> None:
        self._load, self._random = load, random.Random(load.seed)
        self._poll = select.epoll()
        self._users: dict[int, User] = {}
        self._idle: deque[User] = deque()
        self._resting: deque[tuple[float, User]] = deque()
        self._number = 0
        self._ends: Counter[str] = Counter()
        self._firsts: list[float] = []
        self._per_token: list[float] = []
        self._totals: list[float] = []
        self._num_tokens = self._num_events = 0
        self._missed = 0
        self._requests = [self._request(body) for body in load.bodies]

    def run(self) -> dict[str, Any]:
        """Open all connections, ask for so many seconds, leave whatever is not answered by then."""
        load = self._load
        self._connect()
        cpu, began = time.process_time(), time.perf_counter()
        warm, due = began + load.warm_up, began
        end = warm + load.seconds
        if load.rate is None:
            while self._idle:
                self._ask(self._idle.popleft(), time.perf_counter())
        while (now := time.perf_counter()) < end:
            if warm and now >= warm:
                self._forget()
                cpu, began, warm = time.process_time(), now, 0.0
            if load.rate is not None:
                while due <= now:
                    if self._idle:
                        self._ask(self._idle.popleft(), due)
                    else:
                        self._missed += 1
                    due += self._random.expovariate(load.rate)
            while self._resting and self._resting[0][0] <= now:
                self._ask(self._resting.popleft()[1], now)
            wait = 0.01 if load.rate is None else max(0.0, min(0.01, due - now))
            for handle, event in self._poll.poll(wait):
                self._serve(self._users[handle], event)
        now = time.perf_counter()
        seconds, cpu = now - began, time.process_time() - cpu
        in_work = [user for user in self._users.values() if user.began]
        waited = [now - user.began for user in in_work if not user.first]
        for user in self._users.values():
            user.connection.close()
        return {
            "seconds": round(seconds, 2),
            "answered": self._ends["200"],
            "ends": dict(sorted(self._ends.items())),
            "in_work_at_the_end": len(in_work),
            "of_these_without_a_token": len(waited),
            "not_sent_for_want_of_connections": self._missed,
            "requests_per_s": round(self._ends["200"] / seconds, 2),
            "tokens_per_s": round(self._num_tokens / seconds, 1),
            "first_token_ms": _percentiles(self._firsts),
            "first_token_at_least_ms": _percentiles(self._firsts + waited),
            "per_token_ms": _percentiles(self._per_token),
            "whole_ms": _percentiles(self._totals),
            "client_cores": round(cpu / seconds, 3),
        }

    def _forget(self) -> None:
        """Count from now on. What was asked before and is answered later keeps the time at which it was asked."""
        self._ends.clear()
        for values in (self._firsts, self._per_token, self._totals):
            values.clear()
        self._num_tokens = self._num_events = self._missed = 0

    def _request(self, body: str) -> bytes:
        data = body.encode()
        lines = (
            f"POST {self._load.path} HTTP/1.1",
            "Host: localhost",
            "Content-Type: application/json",
            f"Content-Length: {len(data)}",
        )
        return "\r\n".join((*lines, "", "")).encode() + data

    def _connect(self) -> None:
        left = self._load.users
        while left:
            burst = min(_BURST, left)
            for _ in range(burst):
                connection = socket.create_connection(("127.0.0.1", self._load.port), 60)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setblocking(False)
                user = self._users[connection.fileno()] = User(connection)
                self._poll.register(connection.fileno(), select.EPOLLIN)
                self._idle.append(user)
            left -= burst

    def _reconnect(self, user: User) -> None:
        self._poll.unregister(user.connection.fileno())
        del self._users[user.connection.fileno()]
        user.connection.close()
        user.connection = socket.create_connection(("127.0.0.1", self._load.port), 60)
        user.connection.setblocking(False)
        self._users[user.connection.fileno()] = user
        self._poll.register(user.connection.fileno(), select.EPOLLIN)

    def _ask(self, user: User, due: float) -> None:
        user.began, user.first, user.ends_at = due, 0.0, -1
        user.tail.clear()
        user.to_send = self._requests[self._number % len(self._requests)]
        self._number += 1
        self._send(user)

    def _send(self, user: User) -> None:
        try:
            sent = user.connection.send(user.to_send)
        except BlockingIOError:
            sent = 0
        except OSError as error:  # a connection that was kept alive and is closed meanwhile
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise
            self._reconnect(user)
            sent = user.connection.send(user.to_send)
        user.to_send = user.to_send[sent:]
        self._poll.modify(user.connection.fileno(), select.EPOLLIN | (select.EPOLLOUT if user.to_send else 0))

    def _serve(self, user: User, event: int) -> None:
        if event & select.EPOLLOUT and user.to_send:
            self._send(user)
        if not event & ~select.EPOLLOUT:
            return
        try:
            data = user.connection.recv(262_144)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            if user.began:
                self._over(user, "cut off")
            self._reconnect(user)
            return
        if not user.began:
            return
        tail = user.tail
        tail += data
        if not user.first and _EVENT in tail:
            user.first = time.perf_counter()
            self._firsts.append(user.first - user.began)
        self._num_events += data.count(_EVENT)
        if user.first:
            if tail.endswith(_END) and _DONE in tail:
                self._finish(user)
            else:
                del tail[:-_TAIL]
        else:
            self._read_fault(user)

    def _read_fault(self, user: User) -> None:
        """An answer that is no stream, such as a fault: it ends where its header says."""
        head, found, _ = bytes(user.tail).partition(b"\r\n\r\n")
        length = _LENGTH.search(head) if found else None
        if length is None:
            return
        if len(user.tail) >= len(head) + 4 + int(length[1]):
            status = _STATUS.match(head)
            self._over(user, "?" if status is None else status[1].decode())

    def _finish(self, user: User) -> None:
        now = time.perf_counter()
        found = _TOKENS.findall(user.tail)
        count = int(found[-1]) if found else self._load.tokens
        self._num_tokens += count
        self._totals.append(now - user.began)
        if count > 1:
            self._per_token.append((now - user.first) / (count - 1))
        self._over(user, "error in the stream" if b'data: {"error"' in user.tail else "200")

    def _over(self, user: User, how: str) -> None:
        self._ends[how] += 1
        user.began = 0.0
        now = time.perf_counter()
        if self._load.rate is not None:
            self._idle.append(user)
        elif how == "200":
            self._ask(user, now)
        else:
            self._resting.append((now + _PAUSE_AFTER_REFUSAL, user))


def _percentiles(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    values = sorted(values)
    places = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    found = {name: values[min(len(values) - 1, int(share * len(values)))] for name, share in places.items()}
    return {name: round(1e3 * value, 3) for name, value in found.items()}


def open_many_files() -> None:
    """Raise this process's limit of open files as far as the system lets it; children inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    open_many_files()
    print(json.dumps(Run(Load(**json.load(sys.stdin))).run()))
