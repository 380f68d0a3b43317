# SPDX-License-Identifier: Apache-2.0
"""The log: lines that cannot be forged, one for each request, no prompts in it, and a reader who stops stops nobody."""

import functools
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_autoglm.errors import ConfigurationError
from open_autoglm.serve.watching.log_lines import json_line, line_formatter, text_line
from open_autoglm.serve.watching.log_output import BackgroundLines, logging_to_stderr
from open_autoglm.serve.watching.watch_settings import WatchSettings
from tests.serve.conftest import Running, serving
from tests.serve.process_tools import server, wait_until, workers_of

# Without the second halves of surrogate pairs: after a first half JSON takes them for one character.
TEXT = st.text(st.characters(exclude_categories=()).filter(lambda c: not "\udc00" <= c <= "\udfff"), max_size=40)
NASTY = "\n\r\x00\x1b\x7f\x85\x9b\u2028\u2029\u202e\u2066\ufeff\ud800"
QUICK_CLIENT: dict[str, Any] = {"verify": False, "timeout": 30}  # reading certificates takes longer than a request
get = functools.partial(httpx.get, **QUICK_CLIENT)
post = functools.partial(httpx.post, **QUICK_CLIENT)


@settings(max_examples=100, deadline=None)
@given(TEXT, st.dictionaries(TEXT, st.one_of(TEXT, st.integers(), st.lists(TEXT, max_size=2)), max_size=3))
def test_a_line_is_one_line_and_says_what_was_said(event: str, fields: dict[str, Any]) -> None:
    given_event = {**fields, "event": event, "level": "info"}
    line = json_line(given_event)
    assert len(line.splitlines()) == 1
    assert json.loads(line) == given_event
    assert not set(line) & set(NASTY)
    line.encode()
    line = text_line({**given_event, "timestamp": "T"})
    assert line.splitlines() == [line]
    assert line.startswith("T info")
    assert not set(line) & set(NASTY)
    line.encode()


def test_a_traceback_cannot_pass_for_lines_of_the_log() -> None:
    try:
        raise ValueError("x\n2026-01-01T00:00:00Z error   forged")
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, "", 0, "it broke: %s", ("y\nz",), sys.exc_info())
    first, *rest = line_formatter("text").format(record).split("\n")
    assert first.endswith("error   it broke: y\\u000az")
    assert len(rest) > 3
    assert all(line.startswith("    | ") for line in rest)
    value = json.loads(line_formatter("json").format(record))
    assert value["event"] == "it broke: y\nz"
    assert "ValueError: x" in value["exception"]
    assert value["timestamp"].endswith("Z")
    assert (value["level"], value["logger"]) == ("error", "a")


def test_what_others_log_as_fields_is_a_text() -> None:
    record = logging.LogRecord("other", logging.INFO, "", 0, {"event": "request", "status": 200}, None, None)
    assert json.loads(line_formatter("json").format(record))["event"] == "{'event': 'request', 'status': 200}"
    record.name = "open_autoglm.serve"
    assert json.loads(line_formatter("json").format(record))["status"] == 200


def test_text_is_for_people() -> None:
    event = {"timestamp": "T", "level": "info", "logger": "l", "event": "request", "route": "/v1/x", "text": 'a "b" c'}
    assert text_line({**event, "reasons": ["stop"], "stream": True}) == (
        'T info    request  route=/v1/x text="a \\"b\\" c" reasons=["stop"] stream=true'
    )


@contextmanager
def background(most: int) -> Iterator[tuple[BackgroundLines, int]]:
    reader, writer = os.pipe()
    handler = BackgroundLines(writer, most=most)
    handler.setFormatter(line_formatter("json"))
    try:
        yield handler, reader
    finally:
        handler.close()
        os.close(writer)
        os.close(reader)


def test_a_reader_who_stops_stops_nobody_and_is_told_what_was_lost() -> None:
    with background(most=50) as (handler, reader):
        for number in range(5_000):  # far more than a pipe holds, and nobody reads
            handler.handle(logging.LogRecord("a", logging.INFO, "", 0, f"line {number:4d} " + "x" * 200, (), None))
        numbers: list[int] = []
        dropped: list[int] = []
        rest = b""
        while len(numbers) + sum(dropped) < 5_000:  # every line is written, or counted
            *lines, rest = (rest + os.read(reader, 65_536)).split(b"\n")
            for item in map(json.loads, lines):
                words = item["event"].split()
                if words[0] == "line":
                    numbers.append(int(words[1]))
                else:
                    assert item["level"] == "warning"
                    dropped.append(int(words[0]))
    assert len(numbers) + sum(dropped) == 5_000
    assert numbers == sorted(set(numbers))
    assert sum(dropped) > 0


def test_closing_writes_what_waits_and_a_reader_who_has_gone_is_no_fault() -> None:
    with background(most=1000) as (handler, reader):
        for number in range(100):
            handler.handle(logging.LogRecord("a", logging.INFO, "", 0, str(number), (), None))
        handler.close()
        lines = os.read(reader, 1 << 20).decode().splitlines()
        assert [json.loads(line)["event"] for line in lines] == [str(number) for number in range(100)]
        handler.handle(logging.LogRecord("a", logging.INFO, "", 0, "too late", (), None))
    reader, writer = os.pipe()
    handler = BackgroundLines(writer)
    os.close(reader)
    handler.handle(logging.LogRecord("a", logging.INFO, "", 0, "x", (), None))
    handler.close()
    os.close(writer)


def test_logging_is_left_as_it_was(tmp_path: Path) -> None:
    root, ours = logging.getLogger(), logging.getLogger("open_autoglm")
    before = (root.handlers[:], root.level, ours.level)
    path = tmp_path / "log"
    with path.open("w") as stream, logging_to_stderr(WatchSettings(log_level="warning"), stream):
        ours.info("too little")
        ours.warning("our %s", "own")
        logging.getLogger("other").info("no")
        logging.getLogger("open_autoglm.serve.server").info("ready")
    assert (root.handlers, root.level, ours.level) == before
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["our own", "ready"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"log_format": "xml"}, {"log_level": "loud"}, {"score_share": 1.5}, {"trace_share": -0.1},
        {"score_share": float("nan")}, {"otlp_endpoint": "collector:4317"}, {"otlp_endpoint": "http://x:y"},
        {"otlp_endpoint": "file:///x"},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong)).replace("_", "-")):
        WatchSettings(**wrong)


class Lines(logging.Handler):
    """What requests are told of, as fields."""

    def __init__(self) -> None:
        super().__init__()
        self.fields: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        assert isinstance(record.msg, dict)
        self.fields.append({**record.msg, "level": record.levelname})

    def of(self, request_id: str) -> dict[str, Any]:
        def found() -> list[dict[str, Any]]:
            return [item for item in self.fields if item["request_id"] == request_id]

        wait_until(found)
        [only] = found()
        return only


@contextmanager
def told() -> Iterator[Lines]:
    logger = logging.getLogger("open_autoglm.serve.request")
    lines, level = Lines(), logger.level
    logger.addHandler(lines)
    logger.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        logger.removeHandler(lines)
        logger.setLevel(level)


def body(text: str = "hello", **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 5, "ignore_eos": True, **fields}


def test_each_request_is_one_line_with_what_it_took(talker: Running) -> None:
    with told() as lines:
        whole = talker.post(body(n=2), headers={"X-Request-Id": "Ab-1._z"})
        assert whole.headers["x-request-id"] == "Ab-1._z"
        fields = lines.of("Ab-1._z")
        assert fields["event"] == "request"
        assert (fields["method"], fields["route"], fields["status"]) == ("POST", "/v1/chat/completions", 200)
        assert (fields["model"], fields["stream"], fields["finish_reasons"]) == ("talker", False, ["length"] * 2)
        usage = whole.json()["usage"]
        assert fields["prompt_tokens"] == usage["prompt_tokens"]
        assert fields["completion_tokens"] == usage["completion_tokens"] == 10
        assert fields["cached_tokens"] == usage["prompt_tokens_details"]["cached_tokens"]
        assert 0 <= fields["queue_seconds"] <= fields["first_token_seconds"] <= fields["total_seconds"] < 30
        assert "error" not in fields
        assert "key" not in fields
        streamed = talker.post(body(stream=True, stream_options={"include_usage": True}))
        fields = lines.of(streamed.headers["x-request-id"])
        assert fields["stream"]
        assert fields["completion_tokens"] == 5
        assert fields["finish_reasons"] == ["length"]
        failed = talker.post(body(max_tokens=-1))
        assert lines.of(failed.headers["x-request-id"])["error"] == "invalid_request"
        parent = f"00-{'a' * 32}-{'b' * 16}-01"
        found = get(f"{talker.url}/v1/nothing/at%0aall?x=1", headers={"traceparent": parent})
        fields = lines.of(found.headers["x-request-id"])
        assert (fields["route"], fields["error"], fields["trace_id"]) == ("other", "not_found", "a" * 32)
        vectors = post(f"{talker.url}/v1/embeddings", json={"input": ["a", "b c"]})
        fields = lines.of(vectors.headers["x-request-id"])
        assert fields["prompt_tokens"] == vectors.json()["usage"]["prompt_tokens"]
        assert "completion_tokens" not in fields
        alive = get(f"{talker.url}/health")
        assert lines.of(alive.headers["x-request-id"])["level"] == "DEBUG"
        told_before = len(lines.fields)
        for wrong in ("a" * 65, "a b", "a;b", "ä", ""):
            given_id = get(f"{talker.url}/health", headers={"X-Request-Id": wrong.encode()})
            own = given_id.headers["x-request-id"]
            assert len(own) == 32
            assert lines.of(own)
        assert len(lines.fields) == told_before + 5
        everything = json.dumps(lines.fields, ensure_ascii=False)
        assert "hello" not in everything


def test_a_client_that_leaves_is_told_of(talker: Running) -> None:
    with told() as lines:
        data = json.dumps(body(max_tokens=180, n=8, stream=True)).encode()
        lines_of_head = ("POST /v1/chat/completions HTTP/1.1", "Host: localhost", "X-Request-Id: left")
        head = "\r\n".join((*lines_of_head, f"Content-Length: {len(data)}"))
        with socket.create_connection(("127.0.0.1", talker.port), 10) as raw:
            raw.sendall(head.encode() + b"\r\n\r\n" + data)
            raw.recv(400)
        fields = lines.of("left")
        assert fields["aborted"]
        assert fields["error"] == "client_gone"
        assert 0 < fields["completion_tokens"] < 8 * 180
        talker.wait_until_idle()


def test_contents_are_told_only_if_asked_for(dialogue_bundle: Path) -> None:
    with serving(dialogue_bundle, watching=WatchSettings(log_content=True)) as running, told() as lines:
        found = running.post(body("my secret", n=2))
        fields = lines.of(found.headers["x-request-id"])
        assert fields["messages"] == [{"role": "user", "content": "my secret"}]
        texts = [choice["message"]["content"] for choice in found.json()["choices"]]
        assert [answer["text"] for answer in fields["answers"]] == texts


def test_all_that_a_server_says_is_json_and_nothing_of_it_is_secret(dialogue_bundle: Path) -> None:
    key, marks = "key-" + "k" * 30, ("zebra", "quagga")
    with server(dialogue_bundle, "--api-key", key, "--log-format", "json", "--threads", "1") as running:
        assert running.process.stderr is not None
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.extend(running.process.stderr or ()), daemon=True)
        reader.start()
        headers = {"Authorization": f"Bearer {key}"}
        url = running.url.removesuffix("/v1")
        for mark in marks:
            sent = {**body(mark), "model": None}
            assert post(f"{url}/v1/chat/completions", json=sent, headers=headers).status_code == 200
        assert get(f"{url}/{marks[0]}%0aforged", headers=headers).status_code == 404
        assert get(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}x"}).status_code == 401
        worker = running.worker
        os.kill(worker, signal.SIGABRT)  # its last words go to its stderr
        wait_until(lambda: any("open_autoglm.serve.worker" in line and "Fatal" in line for line in said))
        # For a moment there is none, and what was asked of the last one still counts.
        wait_until(lambda: workers_of(running.process.pid) not in ([], [worker]))
        wait_until(lambda: get(f"{url}/ready").status_code == 200)
        text = get(f"{url}/metrics", headers=headers).text
        assert f'open_autoglm_worker_restarts_total{{model="{dialogue_name(url, headers)}"}} 1.0' in text
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(30) == 0
        reader.join(10)
    lines = [json.loads(line) for line in said]
    assert all(set(line) >= {"timestamp", "level", "logger", "event"} for line in lines)
    told_of = [line for line in lines if line["event"] == "request"]
    assert sum(line["route"] == "/v1/chat/completions" and line["key"].startswith("api-key-") for line in told_of) == 2
    assert [line["error"] for line in told_of if line["status"] == 401] == ["authentication"]
    everything = "".join(said)
    assert key not in everything
    assert not any(mark in everything for mark in marks)


def dialogue_name(url: str, headers: dict[str, str]) -> str:
    return get(f"{url}/v1/models", headers=headers).json()["data"][0]["id"]
