# SPDX-License-Identifier: Apache-2.0
"""A topic of Kafka, read by a consumer group: `kafka://HOST:PORT[,HOST:PORT]/TOPIC?group=NAME`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from open_autoglm.errors import ConfigurationError, PipelineError
from open_autoglm.pipeline.triggers.queues.address import check_options

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Message, Producer

_BATCH: Final = 100
_FETCH_SECONDS: Final = 0.2
_CALL_SECONDS: Final = 10.0
_JOIN_SECONDS: Final = 15.0
"""A group takes in a new member within seconds; so long a worker waits for it once, at its start."""

_MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_NOT_OURS: Final = ("ILLEGAL_GENERATION", "UNKNOWN_MEMBER_ID", "REBALANCE_IN_PROGRESS", "_ASSIGNMENT_LOST")


@dataclass
class _Held:
    """A message, and when it was given out last; None if it was not yet."""

    message: Message
    given: float | None = None


@dataclass
class _Partition:
    """What we hold of a partition. open: offset -> the message, None if it is dealt with; in the topic's order.

    count: how often the first message that is not dealt with was delivered, this time included.
    """

    count: int
    open: dict[int, _Held | None] = field(default_factory=dict)


class KafkaTopic:
    """A `Queue`. A message's value is a JSON object; its id is its partition, its offset and its time.

    Kafka keeps one offset for a group and a partition: it is committed when all messages before it are dealt with. How
    often the message there was delivered stands beside it, in the commit's metadata, written before it is given out. A
    worker that is not heard of for the idle time loses its partitions to the others; what it then says is of no effect.
    Dead letters go to the topic `TOPIC.dead`.
    """

    def connect(self, config: Mapping[str, Any]) -> None:
        """Take the address; Kafka is asked at the first `receive`. Raises ConfigurationError."""
        try:
            import confluent_kafka  # noqa: F401 - is it there?
        except ImportError:
            raise ConfigurationError("a queue of Kafka needs: pip install 'open-autoglm[kafka]'") from None
        check_options(dict(config), ("dead", "mechanism"))
        if len(config["path"]) != 1:
            raise ConfigurationError("a queue of Kafka is kafka://HOST:PORT/TOPIC")
        self._topic, self._group = config["path"][0], config["group"]
        self._dead = config["options"].get("dead") or f"{self._topic}.dead"
        if self._dead == self._topic:
            raise ConfigurationError(f"dead letters of the topic '{self._topic}' cannot go to itself")
        self._client = client_settings(config["server"], config["options"].get("mechanism"))
        self._idle = config["idle_seconds"]
        if not 1 <= self._idle <= 3600:
            raise ConfigurationError(
                "the queue's idle must be from 1s to 1h with Kafka, whose brokers allow 6s to 30m by default"
            )
        self._consumer: Consumer | None = None
        self._producer: Producer | None = None
        self._partitions: dict[int, _Partition] = {}
        self._fetched: list[Message] = []
        self._is_member = self._has_waited = False
        self._trouble: KafkaError | None = None

    def receive(self) -> Iterable[tuple[str, bytes, int]]:
        """What the group's offsets say is not dealt with, of the partitions that are ours.

        Nothing new while we hold something; of that comes again what was given out and not kept for the idle time.
        """
        with self._explained():
            consumer = self._open()
            self._ask_whether_it_is_there()
            if any(held for _, _, held in self._undone()):
                self._stay()
            else:
                consumer.resume(consumer.assignment())
                self._fetch(_FETCH_SECONDS)
                if not self._has_waited:
                    self._wait_for_the_group()
                self._hold()
        now = time.monotonic()
        for number, offset, held in self._undone():
            if held.given is not None and now - held.given < self._idle:
                continue
            held.given = now
            partition = self._partitions[number]
            is_first = next(known for known, one in partition.open.items() if one is not None) == offset
            body = held.message.value() or b""
            yield _id_of(held.message), body, partition.count if is_first else 1

    def keep(self, message_ids: Sequence[str]) -> None:
        """Stay in the group, without taking more."""
        with self._explained():
            self._stay()
        for number, offset in map(_place_of, message_ids):
            held = self._partitions[number].open.get(offset) if number in self._partitions else None
            if held is not None:
                held.given = time.monotonic()

    def acknowledge(self, message_id: str) -> None:
        """Commit the offset that follows the messages that are dealt with; no matter if another has the partition."""
        number, offset = _place_of(message_id)
        partition = self._partitions.get(number)
        if partition is None or offset not in partition.open:
            return  # the partition went to another worker, who gets the message too, and finds its run
        kept = partition.open[offset]
        partition.open[offset] = None
        try:
            self._advance(number, partition)
        except BaseException:
            partition.open[offset] = kept
            raise

    def bury(self, message_id: str, reason: str) -> None:
        """Produce it to the topic of dead letters, and once it is stored there be done with it."""
        number, offset = _place_of(message_id)
        held = self._partitions[number].open[offset]
        assert held is not None
        message = held.message
        failures: list[KafkaError | None] = []
        with self._explained():
            if self._producer is None:
                from confluent_kafka import Producer

                self._producer = Producer(
                    {**self._client, "acks": "all", "message.timeout.ms": int(_CALL_SECONDS * 1000)}
                )
            self._producer.produce(
                self._dead,
                value=message.value(),
                key=message.key(),
                headers={"dead.id": message_id, "dead.reason": reason},
                on_delivery=lambda error, _: failures.append(error),
            )
            self._producer.flush(_CALL_SECONDS * 2)
        if failures != [None]:
            raise PipelineError(
                f"Kafka does not store a dead letter in the topic '{self._dead}' "
                f"({failures[0].str() if failures and failures[0] else 'no answer'}); is there such a topic?"
            )
        self.acknowledge(message_id)

    def close(self) -> None:
        """Leave the group."""
        if self._consumer is not None:
            self._consumer.close()
        self._consumer = None

    def _open(self) -> Consumer:
        from confluent_kafka import Consumer

        if self._consumer is not None:
            return self._consumer
        session = int(self._idle * 1000)
        consumer = Consumer(
            {
                **self._client,
                "group.id": self._group,
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "session.timeout.ms": session,
                "heartbeat.interval.ms": min(3000, session // 3),
                "max.poll.interval.ms": max(300_000, session),
                "queued.min.messages": 1000,
                "queued.max.messages.kbytes": 16_384,
                "error_cb": self._on_error,
            }
        )
        try:
            found = consumer.list_topics(self._topic, timeout=_CALL_SECONDS / 2).topics.get(self._topic)
            if found is None or (found.error is not None and found.error.name() == "UNKNOWN_TOPIC_OR_PART"):
                raise PipelineError(
                    f"Kafka has no topic '{self._topic}'; make it: kafka-topics.sh --create --topic {self._topic} ..."
                )
            consumer.subscribe(
                [self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
            )
        except BaseException:
            consumer.close()
            raise
        self._consumer, self._trouble = consumer, None
        return consumer

    def _ask_whether_it_is_there(self) -> None:
        """When the library has said that something is wrong: ask whether it still is. It mends connections itself."""
        if self._trouble is None:
            return
        from confluent_kafka import KafkaException

        trouble, self._trouble = self._trouble, None
        assert self._consumer is not None
        try:
            self._consumer.list_topics(self._topic, timeout=_CALL_SECONDS / 2)
        except KafkaException:
            self._trouble = trouble
            raise KafkaException(trouble) from None
        if trouble.fatal():
            raise KafkaException(trouble)

    def _fetch(self, seconds: float) -> None:
        """Take what the library has into `_fetched`; what it has may be errors too."""
        from confluent_kafka import KafkaException

        assert self._consumer is not None
        fault: KafkaError | None = None
        for message in self._consumer.consume(_BATCH, seconds):
            error = message.error()
            if error is None:
                self._fetched.append(message)
            elif not error.retriable() and error.name() not in ("_PARTITION_EOF", "_MAX_POLL_EXCEEDED"):
                fault = error
        if fault is not None:
            raise KafkaException(fault)

    def _stay(self) -> None:
        """Poll, as a member of the group must, without taking more."""
        consumer = self._open()
        consumer.pause(consumer.assignment())
        self._fetch(0.0)

    def _wait_for_the_group(self) -> None:
        """At the start: until the group has taken us in, and the first message is here if there is one."""
        deadline = time.monotonic() + _JOIN_SECONDS
        while not self._fetched and time.monotonic() < deadline and not (self._is_member and self._is_at_the_end()):
            self._fetch(_FETCH_SECONDS)
        self._has_waited = True

    def _is_at_the_end(self) -> bool:
        consumer = self._consumer
        assert consumer is not None
        for one in consumer.committed(consumer.assignment(), timeout=_CALL_SECONDS):
            low, high = consumer.get_watermark_offsets(one, timeout=_CALL_SECONDS)
            if max(one.offset, low) < high:
                return False
        return True

    def _hold(self) -> None:
        """Write down that the first message of each partition is delivered once more, then hold all."""
        counts: dict[int, int] = {}
        for message in self._fetched:
            number, offset = _place(message)
            if number not in counts:
                known = self._partitions.get(number)
                counts[number] = 1 + (self._delivered(number) if known is None else known.count)
                self._commit(number, offset, counts[number])
        for message in self._fetched:
            number, offset = _place(message)
            partition = self._partitions.setdefault(number, _Partition(0))
            partition.count = counts[number]
            partition.open[offset] = _Held(message)
        self._fetched = []

    def _undone(self) -> list[tuple[int, int, _Held]]:
        """Partition, offset and message of all that we hold."""
        return [
            (number, offset, held)
            for number, partition in self._partitions.items()
            for offset, held in partition.open.items()
            if held is not None
        ]

    def _delivered(self, number: int) -> int:
        """How often the message at the group's offset was delivered and not dealt with."""
        from confluent_kafka import TopicPartition

        assert self._consumer is not None
        [known] = self._consumer.committed([TopicPartition(self._topic, number)], timeout=_CALL_SECONDS)
        metadata = known.metadata or ""
        return int(metadata) if metadata.isascii() and metadata.isdigit() else 0

    def _advance(self, number: int, partition: _Partition) -> None:
        """Commit how far everything is dealt with, if that has changed."""
        offsets = list(partition.open)
        done = next((index for index, offset in enumerate(offsets) if partition.open[offset] is not None), len(offsets))
        if not done:
            return
        rest = offsets[done:]
        with self._explained():
            self._commit(number, rest[0] if rest else offsets[-1] + 1, 1 if rest else 0)
        for offset in offsets[:done]:
            del partition.open[offset]
        partition.count = 1 if rest else 0

    def _commit(self, number: int, offset: int, count: int) -> None:
        from confluent_kafka import KafkaException, TopicPartition

        assert self._consumer is not None
        try:
            [committed] = self._consumer.commit(
                offsets=[TopicPartition(self._topic, number, offset, str(count))], asynchronous=False
            )
        except KafkaException as error:
            if error.args[0].name() not in _NOT_OURS:
                raise
            return
        if committed.error is not None and committed.error.name() not in _NOT_OURS:
            raise KafkaException(committed.error)

    def _on_assign(self, _: Consumer, __: object) -> None:
        self._is_member = True

    def _on_revoke(self, _: Consumer, partitions: Iterable[Any]) -> None:
        """Others get what we hold of these, from the offset on that is committed."""
        gone = {one.partition for one in partitions}
        self._partitions = {number: kept for number, kept in self._partitions.items() if number not in gone}
        self._fetched = [message for message in self._fetched if message.partition() not in gone]

    def _on_error(self, error: KafkaError) -> None:
        self._trouble = error

    @contextmanager
    def _explained(self) -> Iterator[None]:
        from confluent_kafka import KafkaException

        try:
            yield
        except KafkaException as error:
            fault = error.args[0]
            reason = fault.str() if hasattr(fault, "str") else str(fault)
            hint = "; the broker does not allow this idle time" if "session timeout" in reason.lower() else ""
            raise PipelineError(f"the topic '{self._topic}' of Kafka does not answer: {reason}{hint}") from None


def client_settings(server: str, mechanism: str | None) -> dict[str, Any]:
    """The settings of librdkafka for `kafka://[USER:PASSWORD@]HOST:PORT`, or `kafkas://` for TLS.

    mechanism: how the password is shown, SCRAM-SHA-512 if nothing is said. Raises ConfigurationError.
    """
    parts = urlsplit(server)
    user, _, hosts = parts.netloc.rpartition("@")
    if not hosts:
        raise ConfigurationError("a queue of Kafka is kafka://HOST:PORT/TOPIC")
    name, _, password = user.partition(":")
    if mechanism is not None and mechanism not in _MECHANISMS:
        raise ConfigurationError(f"the queue's mechanism is one of {', '.join(_MECHANISMS)}, not '{mechanism}'")
    if mechanism is not None and not name:
        raise ConfigurationError("the queue's mechanism is for a user: kafka://USER:PASSWORD@HOST:PORT/TOPIC")
    protocol = ("SASL_" if name else "") + ("SSL" if parts.scheme == "kafkas" else "PLAINTEXT")
    settings: dict[str, Any] = {
        "bootstrap.servers": hosts,
        "client.id": "open-autoglm",
        "security.protocol": protocol,
        "socket.timeout.ms": int(_CALL_SECONDS * 1000),
        "socket.connection.setup.timeout.ms": 5000,
        "reconnect.backoff.max.ms": 1000,
        "log_level": 0,  # what matters comes as an error
    }
    if name:
        settings |= {
            "sasl.mechanism": mechanism or "SCRAM-SHA-512",
            "sasl.username": unquote(name),
            "sasl.password": unquote(password),
        }
    return settings


def _place(message: Message) -> tuple[int, int]:
    """Partition and offset."""
    number, offset = message.partition(), message.offset()
    assert number is not None
    assert offset is not None
    return number, offset


def _id_of(message: Message) -> str:
    """Its place, and its time: a topic that was made anew has other messages at the same places."""
    number, offset = _place(message)
    return f"{number}-{offset}-{message.timestamp()[1]}"


def _place_of(message_id: str) -> tuple[int, int]:
    number, offset = message_id.split("-")[:2]
    return int(number), int(offset)
