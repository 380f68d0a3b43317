# SPDX-License-Identifier: Apache-2.0
"""Real servers with queues for the tests: Debian's redis-server, and nats-server with JetStream."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[None]:
    if shutil.which(command[0]) is None and not Path("/usr/sbin", command[0]).exists():
        pytest.skip(f"there is no {command[0]} here: apt-get install {command[0]}")
    program = shutil.which(command[0]) or f"/usr/sbin/{command[0]}"
    process = subprocess.Popen([program, *command[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None and time.monotonic() < deadline, f"{command[0]} does not start"
            time.sleep(0.02)
        yield
    finally:
        process.kill()
        process.wait()


class RedisQueue:
    """The stream `tickets` of a server of our own."""

    def __init__(self, port: int) -> None:
        redis = pytest.importorskip("redis", reason="pip install 'open-autoglm[redis]'")
        self.client: Any = redis.Redis(port=port)
        self.address = f"redis://127.0.0.1:{port}/tickets"

    def publish(self, message: Mapping[str, Any] | bytes) -> None:
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        self.client.xadd("tickets", {"payload": body})

    def open_messages(self) -> int:
        """Delivered and not acknowledged, or not delivered."""
        [group] = self.client.xinfo_groups("tickets")
        return int(group["pending"]) + int(group["lag"])

    def dead(self) -> list[bytes]:
        return [fields[b"payload"] for _, fields in self.client.xrange("tickets.dead")]


class NatsQueue:
    """The stream `tickets` of a server of our own."""

    def __init__(self, port: int) -> None:
        pytest.importorskip("nats", reason="pip install 'open-autoglm[nats]'")
        self.server = f"nats://127.0.0.1:{port}"
        self.address = f"{self.server}/tickets"
        self._do(lambda stream: stream.add_stream(name="tickets", subjects=["tickets.*"]))

    def publish(self, message: Mapping[str, Any] | bytes) -> None:
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        self._do(lambda stream: stream.publish("tickets.new", body))

    def open_messages(self) -> int:
        information = self._do(lambda stream: stream.consumer_info("tickets", "g"))
        return information.num_ack_pending + information.num_pending

    def dead(self) -> list[bytes]:
        async def read(stream: Any) -> list[bytes]:
            count = (await stream.stream_info("tickets-dead")).state.messages
            return [(await stream.get_msg("tickets-dead", number)).data for number in range(1, count + 1)]

        return self._do(read)

    def _do(self, what: Callable[[Any], Awaitable[Any]]) -> Any:
        import nats

        async def work() -> Any:
            client = await nats.connect(self.server)
            try:
                return await what(client.jetstream())
            finally:
                await client.close()

        return asyncio.run(work())


@contextlib.contextmanager
def open_queue(kind: str, folder: Path) -> Iterator[RedisQueue | NatsQueue]:
    port = free_port()
    if kind == "redis":
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        with running(command, port):
            yield RedisQueue(port)
    else:
        with running(["nats-server", "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(folder)], port):
            yield NatsQueue(port)
