# SPDX-License-Identifier: Apache-2.0
"""Servers with queues for the tests: Debian's redis-server, nats-server with JetStream, and librdkafka's Kafka cluster.

Redis and NATS are the real ones. Kafka's broker is the one that librdkafka brings for tests: it speaks Kafka's protocol
over TCP, with groups, rebalances and commits, and keeps everything in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
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


class KafkaQueue:
    """The topic `tickets`, of four partitions, of a cluster of our own with one broker.

    A partition has the messages in order; `publish` uses the first one unless the message has an `id` to spread by.
    """

    def __init__(self) -> None:
        kafka = pytest.importorskip("confluent_kafka", reason="pip install 'open-autoglm[kafka]'")
        found = list(Path(kafka.__file__).parent.parent.glob("confluent_kafka.libs/librdkafka*"))
        if not found:
            pytest.skip("confluent-kafka is not installed from a wheel, which brings librdkafka")
        self._library = ctypes.CDLL(str(found[0]))
        self._handle = ctypes.c_void_p(self._call("new", 0, None, None, ctypes.c_size_t(0)))
        self._cluster = ctypes.c_void_p(self._call("mock_cluster_new", self._handle, 1))
        self._call("mock_group_initial_rebalance_delay_ms", self._cluster, 0)
        for topic, partitions in (("tickets", 4), ("tickets.dead", 1)):
            self._call("mock_topic_create", self._cluster, topic.encode(), partitions, 1)
        self.server = ctypes.string_at(self._call("mock_cluster_bootstraps", self._cluster)).decode()
        self.address = f"kafka://{self.server}/tickets"
        self.client: Any = kafka.Producer({"bootstrap.servers": self.server, "log_level": 0})

    def publish(self, message: Mapping[str, Any] | bytes) -> None:
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        partition = message["id"] % 4 if isinstance(message, Mapping) else 0
        self.client.produce("tickets", value=body, partition=partition)
        assert self.client.flush(30) == 0

    def open_messages(self) -> int:
        from confluent_kafka import TopicPartition

        with self._reader("g") as reader:
            count = 0
            for one in reader.committed([TopicPartition("tickets", number) for number in range(4)], timeout=30):
                low, high = reader.get_watermark_offsets(one, timeout=30)
                count += high - max(low, one.offset)
            return count

    def dead(self) -> list[bytes]:
        from confluent_kafka import TopicPartition

        with self._reader("reader") as reader:
            _, high = reader.get_watermark_offsets(TopicPartition("tickets.dead", 0), timeout=30)
            reader.assign([TopicPartition("tickets.dead", 0, 0)])
            return [message.value() for message in reader.consume(high, 30)]

    def go_away(self) -> None:
        self._call("mock_broker_set_down", self._cluster, 1)

    def come_back(self) -> None:
        self._call("mock_broker_set_up", self._cluster, 1)

    def close(self) -> None:
        self._call("mock_cluster_destroy", self._cluster)
        self._call("destroy", self._handle)

    def _call(self, name: str, *arguments: Any) -> Any:
        function = getattr(self._library, f"rd_kafka_{name}")
        function.restype = ctypes.c_void_p if name in ("new", "mock_cluster_new", "mock_cluster_bootstraps") else None
        return function(*arguments)

    @contextlib.contextmanager
    def _reader(self, group: str) -> Iterator[Any]:
        from confluent_kafka import Consumer

        reader = Consumer({"bootstrap.servers": self.server, "group.id": group, "log_level": 0})
        try:
            yield reader
        finally:
            reader.close()


AnyQueue = RedisQueue | NatsQueue | KafkaQueue


@contextlib.contextmanager
def open_queue(kind: str, folder: Path) -> Iterator[AnyQueue]:
    if kind == "kafka":
        queue = KafkaQueue()
        try:
            yield queue
        finally:
            queue.close()
        return
    port = free_port()
    if kind == "redis":
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        with running(command, port):
            yield RedisQueue(port)
    else:
        with running(["nats-server", "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(folder)], port):
            yield NatsQueue(port)
