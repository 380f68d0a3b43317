# SPDX-License-Identifier: Apache-2.0
"""Slow, huge and broken clients over raw sockets: what each gets, in bounded memory, while others are served."""

import gc
import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from open_autoglm.errors import ConfigurationError
from open_autoglm.serve.guards.connection_limits import with_open_files
from open_autoglm.serve.guards.guard_settings import ConnectionSettings
from open_autoglm.serve.settings import ServeSettings
from tests.peak_memory import peak_memory
from tests.serve.conftest import serving
from tests.serve.guarded import Guarded, guarded, read_all

LIMITS = ConnectionSettings(
    max_header_bytes=8192,
    max_headers=50,
    max_url=2048,
    header_seconds=1.0,
    body_seconds=1.5,
    write_seconds=1.0,
    request_timeout=2.0,
    keep_alive_seconds=1,
    max_connections=60,
)
HEAD = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Guarded]:
    with guarded(ServeSettings(port=0, max_body=5_000_000, connections=LIMITS)) as running:
        yield running


@pytest.fixture(autouse=True)
def others_are_served(server: Guarded) -> Iterator[None]:
    yield
    assert server.get("/v1/models").status_code == 200


def status_of(answer: bytes) -> int:
    """The status of an answer in the shape of all faults; 0 for none."""
    if not answer:
        return 0
    head, _, body = answer.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert b"connection: close" in head.lower()
    return int(head.split()[1])


def answers_to(server: Guarded, *requests: tuple[bytes, ...]) -> list[bytes]:
    """What each gets on a connection of its own, all at once: the server waits a second before it closes a bad one."""
    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(lambda parts: server.raw(*parts), requests))


def test_a_header_that_never_ends_is_cut_off_by_size(server: Guarded) -> None:
    lines = [b"X-%d: %s\r\n" % (index, b"y" * 1000) for index in range(3000)]
    answers = answers_to(server, (HEAD, *lines), (HEAD, b"X: " + b"y" * 3_000_000))
    assert [status_of(answer) for answer in answers] == [431, 431]


def test_a_header_that_comes_at_once_is_held_to_the_same_limit(server: Guarded) -> None:
    large = HEAD + b"X: " + b"y" * 9000 + b"\r\n\r\n"
    assert status_of(server.raw(large)) == 431
    many = HEAD + b"".join(b"X-%d: y\r\n" % index for index in range(60)) + b"\r\n"
    assert status_of(server.raw(many)) == 431
    fits = HEAD + b"X: " + b"y" * 7000 + b"\r\nConnection: close\r\n\r\n"
    assert server.raw(fits).startswith(b"HTTP/1.1 200")


def test_a_url_that_is_too_long_is_414(server: Guarded) -> None:
    targets = (b"/" + b"a" * 3000, b"/v1/models?" + b"a" * 3000, b"/" + b"a" * 200_000, b"/" + b"a" * 2_000_000)
    requests = [(b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",) for target in targets]
    never_ends = (b"GET /", *[b"a" * 1000] * 1000)
    assert [status_of(answer) for answer in answers_to(server, *requests, never_ends)] == [414] * 5


def test_a_header_that_trickles_in_is_cut_off_in_time(server: Guarded) -> None:
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(HEAD)
        connection.settimeout(0.2)
        answer = b""
        for index in range(40):
            try:
                connection.sendall(b"X-%d: y\r\n" % index)
                answer += connection.recv(65_536)
            except TimeoutError:
                continue
            except OSError:
                break
            if answer:
                break
    assert status_of(answer) == 408
    assert time.monotonic() - started < 8, "the header had one second, however often a byte came"


def test_a_connection_that_says_nothing_is_closed(server: Guarded) -> None:
    assert server.raw() == b""


def test_a_connection_that_is_used_no_more_is_closed(server: Guarded) -> None:
    answer = server.raw(HEAD + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1") == 1


def test_a_second_header_that_trickles_in_is_cut_off_too(server: Guarded) -> None:
    answer = server.raw(HEAD + b"\r\n", HEAD, pause=0.2)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 408" in answer


def test_bodies_that_trickle_in_are_cut_off_in_time(server: Guarded) -> None:
    before = len(server.answered)
    answers = answers_to(
        server,
        (POST + b"Content-Length: 100\r\n\r\n{",),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",),
    )
    assert [status_of(answer) for answer in answers] == [408, 408]
    assert len(server.answered) == before


def test_a_body_that_goes_on_after_its_answer_is_cut_off_in_time(server: Guarded) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        connection.sendall(b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nx")
        started = time.monotonic()
        assert b"404" in connection.recv(65_536)
        read_all(connection)
        assert time.monotonic() - started < 8


def test_slow_clients_do_not_keep_others_out(server: Guarded) -> None:
    """Fifty connections that send a byte now and then, and one client that asks as usual."""
    stopping = threading.Event()
    connections = [socket.create_connection(("127.0.0.1", server.port), 10) for _ in range(50)]

    def trickle() -> None:
        while not stopping.wait(0.1):
            for connection in connections:
                try:
                    connection.sendall(b"G")
                except OSError:
                    continue

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        for _ in range(20):
            assert server.get("/v1/models").status_code == 200
        for connection in connections:
            connection.settimeout(10)
            read_all(connection)
    finally:
        stopping.set()
        thread.join()
        for connection in connections:
            connection.close()


def test_one_connection_too_many_is_told_so(server: Guarded) -> None:
    connections = [socket.create_connection(("127.0.0.1", server.port), 10) for _ in range(60)]
    try:
        answers: list[bytes] = []
        for _ in range(100):
            answers.append(server.raw(timeout=10))
            if answers[-1]:
                break
        assert status_of(answers[-1]) == 503
        assert b"retry-after" in answers[-1].lower()
    finally:
        for connection in connections:
            connection.close()
    for _ in range(100):
        try:
            if server.get("/v1/models").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.05)
    raise AssertionError("the connections were closed and their places are still taken")


def test_three_megabytes_of_tiny_chunks_stay_within_bounded_memory() -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 3_000_000}]}).encode()
    chunks = b"".join(b"14\r\n%s\r\n" % body[start : start + 20].ljust(20) for start in range(0, len(body), 20))
    request = POST + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + chunks + b"0\r\n\r\n"
    with guarded(ServeSettings(port=0)) as roomy:
        gc.collect()
        before = peak_memory(start_anew=True)
        answer = roomy.raw(request, timeout=60)
        after = peak_memory()
        assert answer.startswith(b"HTTP/1.1 200")
        assert len(roomy.answered[0]["messages"][0]["content"]) == 3_000_000
    assert after - before < 64 * 1024 * 1024


def test_what_is_no_http_is_a_400_of_our_shape(server: Guarded) -> None:
    requests = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500,
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX : y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: other\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /caf\xc3\xa9 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: gzip\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"a" * 100_000,
    ]
    before = len(server.answered)
    for request, answer in zip(requests, answers_to(server, *((one,) for one in requests)), strict=True):
        assert status_of(answer) in (400, 431, 501), request[:100]
    assert len(server.answered) == before


def test_websockets_are_not_a_way_in(server: Guarded) -> None:
    upgrade = b"Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    answer = server.raw(HEAD + upgrade + b"Sec-WebSocket-Version: 13\r\n\r\n")
    assert not answer.startswith(b"HTTP/1.1 101")


def test_a_whole_answer_that_takes_too_long_is_504(server: Guarded) -> None:
    server.cancelled.clear()
    response = server.chat({"seconds": 20})
    assert response.status_code == 504
    assert "2 s" in response.json()["error"]["message"]
    assert server.cancelled == ["whole"]


def test_a_stream_that_takes_too_long_ends_with_an_error_event(server: Guarded) -> None:
    server.cancelled.clear()
    response = server.chat({"stream": True, "num_events": 1000, "seconds": 0.1})
    assert response.status_code == 200
    events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]
    assert [event["index"] for event in events[:-1]] == list(range(len(events) - 1))
    assert len(events) > 5
    assert events[-1]["error"]["type"] == "server_error"
    assert "[DONE]" not in response.text
    assert server.cancelled == ["stream"]


def test_a_client_that_does_not_read_is_dropped() -> None:
    body = json.dumps({"stream": True, "num_events": 4000, "filling": 20_000, "messages": []}).encode()
    limits = ConnectionSettings(write_seconds=0.5)
    with guarded(ServeSettings(port=0, connections=limits)) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        for _ in range(200):
            if server.cancelled:
                break
            time.sleep(0.05)
        assert server.cancelled == ["stream"]


def test_pipelined_requests_are_answered_in_order(server: Guarded) -> None:
    answer = server.raw(HEAD + b"\r\n" + HEAD + b"\r\n" + HEAD + b"Connection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200") == 3


def test_what_is_wrong_with_a_later_request_does_not_cost_the_first_its_answer(server: Guarded) -> None:
    for rest in (b"nonsense\r\n\r\n", HEAD + b"X : y\r\n\r\n", (HEAD + b"\r\n") * 150):
        slow = b'{"seconds": 0.3}'
        answer = server.raw(POST + b"Content-Length: %d\r\n\r\n" % len(slow) + slow + rest)
        assert answer.startswith(b"HTTP/1.1 200"), rest[:20]
        assert answer.count(b"HTTP/1.1") == 1


def test_a_client_that_leaves_with_requests_sent_ahead_aborts_the_first(server: Guarded) -> None:
    server.cancelled.clear()
    body = b'{"stream": true, "num_events": 100000, "seconds": 0.01}'
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body + HEAD + b"\r\n")
        assert connection.recv(1000)
    for _ in range(100):
        if server.cancelled:
            break
        time.sleep(0.01)
    assert server.cancelled == ["stream"]


def test_what_follows_a_body_in_chunks_is_no_header(server: Guarded) -> None:
    before = len(server.answered)
    chunks = b"2\r\n{}\r\n0\r\nHost: evil\r\nAuthorization: Bearer x\r\n\r\n"
    answer = server.raw(POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n", chunks, pause=0.05)
    assert answer.startswith(b"HTTP/1.1 200")
    assert server.answered[before:] == [{}]


def test_other_protocols_are_not_spoken(server: Guarded) -> None:
    assert status_of(server.raw(b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n")) in (400, 404, 405)
    assert status_of(server.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")) == 400
    upgrade = HEAD + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n"
    assert not server.raw(upgrade).startswith(b"HTTP/1.1 101")


def test_a_real_stream_is_not_cut_by_the_limits(extraction_bundle: Path) -> None:
    with serving(extraction_bundle, connections=LIMITS) as running:
        events = list(
            running.client().chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "play the song"}], stream=True
            )
        )
        assert events[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    "options",
    [
        {"max_connections": 0},
        {"header_seconds": 0},
        {"request_timeout": float("nan")},
        {"body_seconds": float("inf")},
        {"max_header_bytes": 10},
        {"max_headers": 3},
        {"max_url": 10},
    ],
)
def test_limits_that_cannot_be_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="--"):
        ConnectionSettings(**options)  # type: ignore[arg-type]


def test_connections_fit_the_files_that_the_process_may_open() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    settings = ServeSettings(connections=ConnectionSettings(max_connections=2000))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (500, hard))
        assert with_open_files(settings) == settings
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (2256, hard)
        if hard != resource.RLIM_INFINITY:
            many = ServeSettings(connections=ConnectionSettings(max_connections=2 * hard))
            assert with_open_files(many).connections.max_connections == hard - 256
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
