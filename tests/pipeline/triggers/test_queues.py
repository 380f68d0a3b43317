# SPDX-License-Identifier: Apache-2.0
"""Queues of real servers as triggers: workers die by SIGKILL, and each message becomes one run and no more."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from queue_servers import AnyQueue, KafkaQueue, RedisQueue, free_port, open_queue
from queue_worker_for_tests import CONTENT

from open_autoglm.errors import ConfigurationError, PipelineError, SpecificationError, StorageError
from open_autoglm.pipeline.catalog import default_catalog
from open_autoglm.pipeline.journal import Journal
from open_autoglm.pipeline.triggers.queues.address import connect, parse_address
from open_autoglm.pipeline.triggers.queues.arrival import QueueArrival
from open_autoglm.pipeline.triggers.queues.kafka_topic import client_settings
from open_autoglm.pipeline.triggers.source import PipelineSource, start_runs
from open_autoglm.pipeline.yaml_file import read_pipeline

PROGRAM = Path(__file__).with_name("queue_worker_for_tests.py")
IDLE = 0.3
IDLE_OF_KAFKA = 1.5
"""A member of a group must have time to say that it lives."""


@pytest.fixture(params=["redis", "nats", "kafka"])
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnyQueue]:
    with open_queue(request.param, tmp_path) as made:
        yield made


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(f"sqlite:///{tmp_path}/x.sqlite")
    yield journal
    journal.close()


def url_of(queue: AnyQueue, deliveries: int = 9, idle_of_kafka: float = IDLE_OF_KAFKA) -> str:
    idle = idle_of_kafka if isinstance(queue, KafkaQueue) else IDLE
    return f"{queue.address}?group=g&idle={int(idle * 1000)}ms&deliveries={deliveries}"


def ids(journal: Journal) -> list[Any]:
    return [run.packet.payload["records"][0]["id"] for run in journal.list(limit=1000)]


def until(journal: Journal, source: QueueArrival, queue: AnyQueue, expected: list[int]) -> None:
    """Start runs until there are those, and the queue has nothing left."""
    deadline = time.monotonic() + 60
    while sorted(ids(journal)) != expected or queue.open_messages():
        assert time.monotonic() < deadline, (sorted(ids(journal)), queue.open_messages())
        with contextlib.suppress(PipelineError):
            start_runs(journal, PipelineSource(CONTENT, source), "runs")
        time.sleep(0.05)


def test_each_message_is_one_run_whatever_moment_workers_die_at(
    queue: AnyQueue, journal: Journal, tmp_path: Path
) -> None:
    url = url_of(queue)
    for number in range(20):
        queue.publish({"id": number, "body": "北京"})
    command = [sys.executable, str(PROGRAM), f"sqlite:///{tmp_path}/x.sqlite", url]
    for moment in ("received", "recorded"):
        done = subprocess.run([*command, moment], check=False)
        assert done.returncode == -signal.SIGKILL
    assert len(ids(journal)) == 5
    said: list[str] = []
    source = QueueArrival(parse_address(url), said.append)
    try:
        until(journal, source, queue, list(range(20)))
    finally:
        source.close()
    assert said == []


def test_what_cannot_be_a_run_is_put_aside_and_said(queue: AnyQueue, journal: Journal) -> None:
    for message in (b"{", b"[1]", b'{"id": 1, "body": "\\ud800"}', b'{"id": 7}'):
        queue.publish(message)
    said: list[str] = []
    source = QueueArrival(parse_address(url_of(queue)), said.append)
    start_runs(journal, PipelineSource(CONTENT, source), "runs")
    assert ids(journal) == [7]
    assert len(said) == 3
    assert all("is put aside as a dead letter" in line for line in said)
    assert "it is not JSON" in said[0]
    assert queue.dead() == [b"{", b"[1]", b'{"id": 1, "body": "\\ud800"}']
    assert queue.open_messages() == 0
    source.close()


def test_a_message_that_its_workers_die_of_is_put_aside(queue: AnyQueue, journal: Journal) -> None:
    queue.publish({"id": 1})
    for _ in range(2):
        dying = connect(parse_address(url_of(queue)))
        deadline = time.monotonic() + 30
        while not list(dying.receive()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        dying.close()
    said: list[str] = []
    source = QueueArrival(parse_address(url_of(queue, deliveries=2)), said.append)
    deadline = time.monotonic() + 30
    while not said:
        assert start_runs(journal, PipelineSource(CONTENT, source), "runs") == []
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "it was delivered 2 times" in said[0]
    assert queue.dead() == [b'{"id": 1}']
    assert queue.open_messages() == 0
    source.close()


def test_a_database_that_is_away_is_not_the_messages_fault(
    queue: AnyQueue, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.publish({"id": 1})
    # Kafka counts a worker that is not heard of as dead: not here, however busy the machine is.
    source = QueueArrival(parse_address(url_of(queue, deliveries=1, idle_of_kafka=30.0)), pytest.fail)

    def refuse(*_: object, **__: object) -> None:
        raise StorageError("the database is away")

    with monkeypatch.context() as away:
        away.setattr(Journal, "submit", refuse)
        for _ in range(4):
            with pytest.raises(StorageError):
                start_runs(journal, PipelineSource(CONTENT, source), "runs")
            time.sleep(IDLE / 2)
    assert len(start_runs(journal, PipelineSource(CONTENT, source), "runs")) == 1
    assert queue.open_messages() == 0
    source.close()


def test_what_is_worked_on_stays_with_who_holds_it(tmp_path: Path) -> None:
    with open_queue("redis", tmp_path) as queue:
        assert isinstance(queue, RedisQueue)
        queue.publish({"id": 1})
        held = connect(parse_address(url_of(queue)))
        assert len(list(held.receive())) == 1
        deadline = time.monotonic() + 30
        while True:
            time.sleep(0.2)
            [before] = queue.client.xpending_range("tickets", "g", "-", "+", 1)
            held.keep([before["message_id"].decode()])
            [after] = queue.client.xpending_range("tickets", "g", "-", "+", 1)
            if after["time_since_delivered"] < before["time_since_delivered"]:
                break
            assert time.monotonic() < deadline
        assert after["times_delivered"] == before["times_delivered"] == 1
        held.close()


@pytest.mark.parametrize("kind", ["redis", pytest.param("kafka", marks=pytest.mark.thorough)])
def test_a_worker_takes_messages_through_a_pipeline(kind: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        "name: p\ntrigger: {queue: '${env:QUEUE}?group=g'}\npipeline:\n"
        "- {stage: clean, module: text_cleaner, config: {remove_html: true}}\n"
        "- {stage: write, module: file_sink, config: {path: out/}}\n"
    )
    with open_queue(kind, tmp_path) as queue:
        for number in range(3):
            queue.publish({"id": number, "body": f"<b>{number}</b>"})
        queue.publish(b"no JSON")
        done = subprocess.run(
            [sys.executable, "-m", "open_autoglm", "worker", "p.yaml", "--until-idle"], cwd=tmp_path, check=False,
            env={**os.environ, "QUEUE": queue.address}, capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "put aside as a dead letter: it is not JSON" in done.stderr
    written = [path.read_text() for path in (tmp_path / "out").glob("*.jsonl")]
    assert sorted(written) == [f'{{"id": {number}, "body": "{number}"}}\n' for number in range(3)]


def test_a_broker_of_kafka_that_goes_away_and_comes_back(journal: Journal, tmp_path: Path) -> None:
    with open_queue("kafka", tmp_path) as queue:
        assert isinstance(queue, KafkaQueue)
        queue.publish({"id": 1})
        source = QueueArrival(parse_address(url_of(queue)), pytest.fail)
        assert len(list(source.poll())) == 1  # held, and not acknowledged
        queue.go_away()
        with pytest.raises(PipelineError, match="the topic 'tickets' of Kafka does not answer") as caught:
            start_runs(journal, PipelineSource(CONTENT, source), "runs")
        assert "127.0.0.1" not in str(caught.value)
        assert ids(journal) == [1]
        queue.come_back()
        queue.publish({"id": 2})
        until(journal, source, queue, [1, 2])
        source.close()


def test_partitions_of_kafka_go_from_a_worker_that_froze_to_another(journal: Journal, tmp_path: Path) -> None:
    """What the first one then acknowledges changes nothing: the second one has the partition, and its place there."""
    with open_queue("kafka", tmp_path) as queue:
        assert isinstance(queue, KafkaQueue)
        url = url_of(queue)
        for number in (0, 4, 8):  # all of one partition
            queue.publish({"id": number})
        frozen = connect(parse_address(url))
        held = [message_id for message_id, _, _ in frozen.receive()]
        assert len(held) == 3
        frozen.acknowledge(held[0])
        source = QueueArrival(parse_address(url), pytest.fail)  # its group has a new member who polls
        taken: list[Any] = []
        deadline = time.monotonic() + 60
        while not taken:
            assert time.monotonic() < deadline
            taken = list(source.poll())
            frozen.keep(
                []
            )  # and an old one who gives up its partitions, as the library does for a member that was away
        frozen.acknowledge(held[2])
        assert queue.open_messages() == 2
        assert [arrival.payload["records"][0]["id"] for arrival in taken] == [4, 8]
        frozen.close()
        until(journal, source, queue, [4, 8])
        source.close()


def test_what_kafka_is_told_about_users_and_tls() -> None:
    known = client_settings("kafkas://me:p%40ss@a:9092,b:9093", "PLAIN")
    assert known["bootstrap.servers"] == "a:9092,b:9093"
    assert known["security.protocol"] == "SASL_SSL"
    assert (known["sasl.mechanism"], known["sasl.username"], known["sasl.password"]) == ("PLAIN", "me", "p@ss")
    assert client_settings("kafka://a", None)["security.protocol"] == "PLAINTEXT"
    assert client_settings("kafka://u:p@a", None)["sasl.mechanism"] == "SCRAM-SHA-512"
    assert client_settings("kafkas://a", None)["security.protocol"] == "SSL"


@pytest.mark.parametrize("scheme", ["redis", "nats", "kafka"])
def test_a_server_that_is_away_is_named_without_its_password(scheme: str) -> None:
    source = QueueArrival(parse_address(f"{scheme}://user:hidden@127.0.0.1:{free_port()}/tickets"), print)
    with pytest.raises(PipelineError, match=r"the (stream|topic) 'tickets' of \w+ does not answer") as caught:
        list(source.poll())
    assert "hidden" not in str(caught.value)
    source.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("tickets", "the queue is no URL"),
        ("redis://[", "the queue is no URL"),
        ("reddis://localhost/x", "no queue is known as reddis://; did you mean 'redis'"),
        ("amqp://localhost/x", "a plugin of the kind queue adds another"),
        ("kafka://localhost:9092,other:x/y", "the queue is no URL"),
        ("redis://localhost/x?idle=soon", "the queue's idle: 'soon' is not a time"),
        ("redis://localhost/x?deliveries=0", "deliveries must be a whole number from 1"),
        ("${secrets:NONE}", "there is no secret 'NONE'"),
        ("${matrix:x}://y/z", "has no value in a trigger"),
    ],
)
def test_a_wrong_queue_is_named_by_line(url: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(f"name: p\ntrigger:\n  queue: '{url}'\npipeline:\n- {{stage: a, module: file_source}}\n")
    with pytest.raises(SpecificationError) as caught:
        read_pipeline(path, default_catalog())
    assert f"{path}:3:" in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://localhost", "redis://HOST:PORT/STREAM"),
        ("redis://localhost/a/b", "redis://HOST:PORT/STREAM"),
        ("redis://localhost/a?dead=a", "cannot go to itself"),
        ("redis://localhost/a?grup=x", "unknown option 'grup'; did you mean 'group'"),
        ("nats://localhost", "nats://HOST:PORT/STREAM"),
        ("kafka://localhost", "kafka://HOST:PORT/TOPIC"),
        ("kafka://localhost/a?dead=a", "cannot go to itself"),
        ("kafka://localhost/a?idle=300ms", "idle must be from 1s to 1h with Kafka"),
        ("kafka://u:p@localhost/a?mechanism=MD5", "mechanism is one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, not 'MD5'"),
        ("kafka://localhost/a?mechanism=PLAIN", "mechanism is for a user"),
    ],
)
def test_an_address_that_the_queue_does_not_understand(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        connect(parse_address(url))
