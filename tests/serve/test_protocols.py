# SPDX-License-Identifier: Apache-2.0
"""Plugins that speak other protocols: what they are told and may answer, the guards around them, clients that leave."""

import json
import logging
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from open_autoglm.engine import LLM
from open_autoglm.errors import ConfigurationError
from open_autoglm.plugins.registry import PluginRegistry
from open_autoglm.plugins.scaffold import scaffold
from open_autoglm.serve.app import create_app
from open_autoglm.serve.guards.api_keys import KeyLimits
from open_autoglm.serve.guards.guard_settings import AccessSettings, CacheSettings, ConnectionSettings, RateSettings
from open_autoglm.serve.launch import LaunchPlan, launch
from open_autoglm.serve.pipelines.pipeline_settings import PipelineSettings
from open_autoglm.serve.protocols.protocol_names import OWN_PATHS, protocol_of
from open_autoglm.serve.settings import ServeSettings
from tests.serve.conftest import Running, serving
from tests.serve.process_tools import wait_until
from tests.serve.test_api_keys import make
from tests.serve.test_watch_logs import told

ODD = '''
import json
import threading

from open_autoglm.serve.error_shape import HttpError

NOTES = []
GATE = threading.Event()


class Odd:
    """Does what the last part of the path says."""

    def answer(self, request, chat):
        what = request["path"].strip("/")
        return getattr(self, "_" + what)(request, chat)

    def _echo(self, request, chat):
        return {"body": json.dumps({**request, "body": request["body"].decode()})}

    def _ask(self, request, chat):
        return {"body": json.dumps(chat(json.loads(request["body"])))}

    def _twice(self, request, chat):
        body = json.loads(request["body"])
        return {"body": json.dumps([chat(body), chat({**body, "max_tokens": 2})])}

    def _own_refusal(self, request, chat):
        try:
            return self._ask(request, chat)
        except HttpError as error:
            return {"status": 418, "headers": {"x-was": str(error.status)}, "body": f"no: {error}"}

    def _models(self, request, chat):
        return {"body": json.dumps(list(chat.models()))}

    def _lines(self, request, chat):
        chunks = chat({**json.loads(request["body"]), "stream": True})
        def lines():
            try:
                for chunk in chunks:
                    yield json.dumps(chunk) + "\\n"
            finally:
                NOTES.append("closed")
        return {"content_type": "application/x-ndjson", "body": lines()}

    def _lazy(self, request, chat):
        def lines():
            yield from (json.dumps(one) for one in chat({**json.loads(request["body"]), "stream": True}))
        return {"body": lines()}

    def _one_chunk(self, request, chat):
        chunks = chat({**json.loads(request["body"]), "stream": True})
        first = next(chunks)
        chunks.close()
        return {"body": json.dumps([first, list(chunks)])}

    def _left_open(self, request, chat):
        next(chat({**json.loads(request["body"]), "stream": True}))
        return {"body": "{}"}

    def _stubborn(self, request, chat):
        while True:
            try:
                list(chat({**json.loads(request["body"]), "stream": True}))
            except Exception:
                NOTES.append("swallowed")
            except BaseException as error:
                NOTES.append(type(error).__name__)
                raise

    def _value(self, request, chat):
        return eval(request["body"])

    def _breaks(self, request, chat):
        raise KeyError("something of the client's")

    def _leaves(self, request, chat):
        raise SystemExit(3)

    def _breaks_late(self, request, chat):
        def pieces():
            yield "one"
            raise KeyError("late")
        return {"body": pieces()}

    def _waits(self, request, chat):
        GATE.wait()
        return {"body": "at last"}
'''
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5, "ignore_eos": True, "temperature": 0
}  # fmt: skip
LONG = {**ASKED, "max_tokens": 200}


@pytest.fixture(scope="module", autouse=True)
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPEN_AUTOGLM_CONFIG", str(home / "config"))
        patch.setenv("OPEN_AUTOGLM_CACHE", str(home / "cache"))
        patch.chdir(home)
        for name, code in (("odd", ODD), ("other", ODD.replace("Odd", "Other"))):
            folder = home / "plugins" / name
            folder.mkdir(parents=True)
            (folder / f"{name}.py").write_text(code)
            (folder / "plugin.yaml").write_text(
                f"name: {name}\nkind: protocol\nversion: '1'\nentry: {name}:{name.title()}\n"
            )
            PluginRegistry().enable(name)
        scaffold("protocol", "plain", home / "plugins")
        PluginRegistry().enable("plain")
        yield home


@pytest.fixture(scope="module")
def running(dialogue_bundle: Path, plugins: Path) -> Iterator[Running]:
    with serving(dialogue_bundle, protocol=("odd", "plain"), max_body=5000) as server:
        yield server


def module_of(name: str) -> Any:
    found = [known for known in sys.modules if known.startswith("open_autoglm_plugin_") and known.endswith(f".{name}")]
    [only] = found
    return sys.modules[only]


def notes() -> list[str]:
    return module_of("odd").NOTES


def post(server: Running, what: str, body: Any = None, status: int = 200, **options: Any) -> httpx.Response:
    content = body if isinstance(body, str) else json.dumps(ASKED if body is None else body)
    found = httpx.post(f"{server.url}/odd/{what}", content=content, timeout=30, **options)
    assert found.status_code == status, found.text
    return found


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_scaffold_answers_with_what_the_chat_route_says(running: Running) -> None:
    asked = {**ASKED, "temperature": None, "max_tokens": None, "ignore_eos": None}
    expected = running.post(asked).json()["choices"][0]["message"]["content"]
    found = httpx.post(f"{running.url}/plain", content=b"hello\n", timeout=30)
    assert (found.status_code, found.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    assert found.text == expected + "\n"
    assert found.headers["x-content-type-options"] == "nosniff"
    assert httpx.post(f"{running.url}/plain/", content=b" ").status_code == 400
    assert httpx.get(f"{running.url}/plain/a/b").headers["allow"] == "POST"


def test_a_plugin_is_told_of_the_request_but_no_secrets(running: Running) -> None:
    headers = {"Authorization": "Bearer secret", "Cookie": "a=b", "Proxy-Authorization": "x", "X-Thing": "1, 2"}
    for method in ("PUT", "POST", "DELETE", "PATCH"):
        url = f"{running.url}/odd/echo/?a=1&b=%20&a=2"
        told_of = httpx.request(method, url, content=b"text", headers=headers).json()
        assert (told_of["method"], told_of["path"], told_of["body"]) == (method, "/echo/", "text")
        assert told_of["query"] == {"a": "2", "b": " "}
        assert told_of["headers"]["x-thing"] == "1, 2"
        assert not {"authorization", "cookie", "proxy-authorization"} & set(told_of["headers"])
    assert httpx.get(f"{running.url}/oddly/echo").status_code == 404
    post(running, "echo", "x" * 5001, 413)


def test_a_completion_whole_and_streamed_is_the_chat_routes_own(running: Running) -> None:
    expected = running.post(ASKED).json()
    assert expected["usage"]["completion_tokens"] == 5
    with told() as lines:
        found = post(running, "ask").json()
        for body in (expected, found):
            del body["id"], body["created"]
        assert found == expected
        streamed = post(running, "lines", {**ASKED, "stream_options": {"include_usage": True}})
        assert streamed.headers["content-type"] == "application/x-ndjson"
        chunks = [json.loads(line) for line in streamed.text.splitlines()]
        text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
        assert text == expected["choices"][0]["message"]["content"]
        assert chunks[-1]["usage"]["completion_tokens"] == 5
        fields = lines.of(streamed.headers["x-request-id"])
        assert (fields["method"], fields["route"], fields["status"]) == ("POST", "/odd/{path}", 200)
        assert (fields["model"], fields["completion_tokens"], fields["stream"]) == ("talker", 5, True)
        before = len(lines.fields)
        both = post(running, "twice", headers={"X-Request-Id": "both"}).json()
        assert [one["usage"]["completion_tokens"] for one in both] == [5, 2]
        wait_until(lambda: len(lines.fields) == before + 2)
        of_both = [one for one in lines.fields if one["request_id"] == "both"]
        assert sorted(one["completion_tokens"] for one in of_both) == [2, 5]
        assert {one["status"] for one in of_both} == {200}
    assert post(running, "models").json() == ["talker"]


def test_what_the_server_refuses_reaches_the_plugin_with_its_status(running: Running) -> None:
    unknown = {**ASKED, "model": "talkr"}
    expected = running.post(unknown)
    found = post(running, "ask", unknown, 404)
    assert found.json() == expected.json()
    assert post(running, "lazy", unknown, 404).json() == expected.json(), "before the first piece"
    own = post(running, "own_refusal", unknown, 418)
    assert own.headers["x-was"] == "404"
    assert "did you mean 'talker'" in own.text
    assert post(running, "ask", {**ASKED, "max_tokens": -1}, 400).json()["error"]["param"] == "max_tokens"
    assert post(running, "ask", {**ASKED, "tokens": 1}, 400).json()["error"]["param"] == "tokens"
    assert post(running, "ask", {**ASKED, "n": 9999}, 400).json()["error"]["param"] == "n"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("7", "a int, not a mapping"),
        ("None", "a NoneType, not a mapping"),
        ("{}", "no 'body'"),
        ("{'body': 'x', 'contenttype': 'y'}", "'contenttype', which is none of"),
        ("{'body': {'a': 1}}", "write it as JSON text"),
        ("{'body': 3}", "neither bytes nor a text"),
        ("{'body': [3]}", "neither bytes nor a text"),
        ("{'body': '\\ud800'}", "surrogate"),
        ("{'body': 'x', 'status': 99}", "status 99"),
        ("{'body': 'x', 'status': True}", "status True"),
        ("{'body': 'x', 'status': 204}", "status 204"),
        ("{'body': 'x', 'content_type': 'a\\r\\nb: c'}", "content_type"),
        ("{'body': 'x', 'headers': {'a': 'b\\r\\nc: d'}}", "header a"),
        ("{'body': 'x', 'headers': {'a b': 'c'}}", "name of a header"),
        ("{'body': 'x', 'headers': {'Content-Length': '9'}}", "which the server writes"),
        ("{'body': 'x', 'headers': ['a']}", "a list as headers"),
    ],
)
def test_what_is_no_answer_is_a_500_and_named_in_the_log(
    running: Running, value: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "open_autoglm.serve"):
        found = post(running, "value", value, 500)
    assert found.json()["error"]["message"] == "internal error; the server's log says more"
    assert "'odd'" in caplog.text
    assert words in caplog.text


@pytest.mark.parametrize("what", ["breaks", "leaves", "no_such_thing"])
def test_what_a_plugin_raises_is_a_500_without_its_words(
    running: Running, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "open_autoglm.serve"):
        found = post(running, what, status=500)
    assert found.json()["error"]["type"] == "server_error"
    assert "Traceback" not in found.text
    assert "something" not in found.text
    assert "the protocol 'odd' failed" in caplog.text
    assert post(running, "ask").json()["usage"]["completion_tokens"] == 5, "others are served"


def test_good_answers_of_every_form(running: Running) -> None:
    assert post(running, "value", "{'body': b'\\xff\\x00'}").content == b"\xff\x00"
    assert post(running, "value", "{'body': iter([b'a', '', 'é'])}").text == "aé"
    assert post(running, "value", "{'body': []}").content == b""
    empty = post(running, "value", "{'body': '', 'status': 204, 'headers': {'X-Some': 'ü'}}", 204)
    assert empty.headers["x-some"] == "ü"
    assert post(running, "value", "{'body': '{}'}").headers["content-type"] == "application/json"
    shown = httpx.head(f"{running.url}/plain")
    assert (shown.status_code, shown.content) == (405, b"")


def test_an_answer_that_breaks_off_is_cut_and_not_taken_for_whole(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "open_autoglm.serve"), pytest.raises(httpx.RemoteProtocolError):
        post(running, "breaks_late")
    assert "the protocol 'odd' failed: KeyError" in caplog.text


def test_streams_that_nobody_reads_to_the_end_are_stopped(running: Running) -> None:
    first, rest = post(running, "one_chunk", LONG).json()
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert rest == []
    running.wait_until_idle()
    post(running, "left_open", LONG)
    running.wait_until_idle()


def leave(server: Running, what: str, *, after: bytes) -> None:
    """Ask for a long answer over a socket of its own and cut the line once these bytes have come."""
    body = json.dumps({**LONG, "n": 2}).encode()
    head = f"POST /odd/{what} HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: left\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), 10) as raw:
        raw.sendall(head.encode() + body)
        seen = b""
        while after not in seen:
            data = raw.recv(400)
            assert data
            seen += data
        if not after:
            wait_until(lambda: server.model.num_open > 0 or notes(), 10)


def test_a_client_that_leaves_ends_the_chat_and_the_plugin(running: Running) -> None:
    notes().clear()
    with told() as lines:
        leave(running, "lines", after=b"assistant")
        running.wait_until_idle()
        wait_until(lambda: notes() == ["closed"], 10)
        fields = lines.of("left")
        assert fields["aborted"]
        assert fields["completion_tokens"] < 400
    leave(running, "ask", after=b"")
    running.wait_until_idle()
    notes().clear()
    leave(running, "stubborn", after=b"")
    wait_until(lambda: notes() == ["RequestOver"], 10)
    running.wait_until_idle()
    with socket.create_connection(("127.0.0.1", running.port), 10) as raw:
        raw.sendall(b"POST /odd/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nab")
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda number: leave(running, "lines", after=(b"assistant", b"content", b"")[number % 3]), range(24)
            )
        )
    running.wait_until_idle()
    wait_until(lambda: not any(thread.name == "protocol-odd" for thread in threading.enumerate()), 10)
    assert post(running, "ask").status_code == 200


def test_keys_scopes_models_and_limits_hold(dialogue_bundle: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    counted, _ = make(keys, "counted", limits=KeyLimits(requests_per_minute=6, tokens_per_day=10_000))
    equal, _ = make(keys, "equal", limits=KeyLimits(requests_per_minute=6, tokens_per_day=10_000))
    few, _ = make(keys, "few", limits=KeyLimits(tokens_per_day=40))
    other, _ = make(keys, "other", models=("another",))
    own, _ = make(keys, "own", models=("talker",))
    embedder, _ = make(keys, "embedder", scopes=("embed",))
    access = AccessSettings(api_keys=str(keys))
    with serving(dialogue_bundle, protocol=("odd",), access=access) as server:
        for headers in ({}, bearer("wrong"), {"Authorization": f"Basic {counted}"}):
            assert post(server, "ask", status=401, headers=headers).json()["error"]["code"] == "invalid_api_key"
            assert httpx.get(f"{server.url}/odd", headers=headers).status_code == 401
        assert post(server, "ask", status=403, headers=bearer(embedder)).json()["error"]["code"] == "missing_scope"
        refused = post(server, "ask", {**ASKED, "model": "talker"}, 403, headers=bearer(other))
        assert refused.json()["error"]["code"] == "model_not_allowed"
        assert post(server, "models", headers=bearer(other)).json() == []
        assert post(server, "models", headers=bearer(own)).json() == ["talker"]
        assert post(server, "ask", {**ASKED, "model": "talker"}, headers=bearer(own)).status_code == 200

        def left(answer: httpx.Response) -> int:
            return int(answer.headers["x-ratelimit-remaining-requests"])

        assert left(post(server, "ask", headers=bearer(counted))) == 5
        assert left(post(server, "models", headers=bearer(counted))) == 4, "what asks no model counts too"
        post(server, "twice", headers=bearer(counted))
        assert left(server.post(ASKED, headers=bearer(equal))) == 5
        for tokens in (5, 2):
            server.post({**ASKED, "max_tokens": tokens}, headers=bearer(equal))
        found = [httpx.get(f"{server.url}/v1/models", headers=bearer(key)) for key in (counted, equal)]
        assert [left(one) for one in found] == [1, 2]
        tokens_left = {one.headers["x-ratelimit-remaining-tokens"] for one in found}
        assert len(tokens_left) == 1
        assert int(tokens_left.pop()) < 10_000
        last = post(server, "own_refusal", headers=bearer(counted))
        assert left(last) == 0
        assert post(server, "ask", status=429, headers=bearer(counted)).headers["retry-after"]
        many = post(server, "own_refusal", LONG, 418, headers=bearer(few))
        assert many.headers["x-was"] == "429"


def test_addresses_are_counted_once_and_equal_answers_are_kept(dialogue_bundle: Path) -> None:
    rates = RateSettings(address_requests_per_minute=3)
    with serving(dialogue_bundle, protocol=("odd",), rates=rates, cache=CacheSettings(cache="memory")) as server:
        with told() as lines:
            found = [post(server, "ask") for _ in range(2)]
            assert found[0].json() == found[1].json(), "with its id: it is the first answer"
            assert [lines.of(one.headers["x-request-id"])["cache"] for one in found] == ["miss", "hit"]
        assert server.post(ASKED).headers["x-cache"] == "hit"
        post(server, "ask", status=429)


def test_requests_wait_for_a_thread_and_end_in_time(dialogue_bundle: Path) -> None:
    limits = ConnectionSettings(request_timeout=1.0)
    with serving(dialogue_bundle, protocol=("odd", "other"), max_queued=1, connections=limits) as server:
        gate = module_of("odd").GATE
        try:
            fault = post(server, "waits", status=504).json()["error"]
            assert fault["message"].startswith("the request took longer than 1 s")
            post(server, "models", status=504)  # the one thread of this protocol is still at work
            wait_until(lambda: httpx.get(f"{server.url}/other/models").status_code == 200)
        finally:
            gate.set()
        wait_until(lambda: httpx.get(f"{server.url}/odd/models").status_code == 200)
        post(server, "stubborn", status=504)
        server.wait_until_idle()


def test_names_that_cannot_be_are_told_at_the_start(dialogue_bundle: Path, plugins: Path) -> None:
    for name in OWN_PATHS:
        with pytest.raises(ConfigurationError, match=f"--protocol {name} would cover the server's own path /{name}"):
            ServeSettings(protocol=(name,))
    for name, words in (("a/b", "cannot name a plugin"), ("", "cannot name"), ("V1", "cannot name")):
        with pytest.raises(ConfigurationError, match=words):
            ServeSettings(protocol=(name,))
    with pytest.raises(ConfigurationError, match="odd is given twice"):
        ServeSettings(protocol=("odd", "odd"))
    with pytest.raises(ConfigurationError, match="no protocol 'plane' that is enabled and works; did you mean 'plain'"):
        launch(LaunchPlan([str(plugins / "no_model")]), ServeSettings(port=0, protocol=("plane",)))


def test_every_path_of_our_own_is_reserved(dialogue_bundle: Path, tmp_path: Path) -> None:
    pipelines = PipelineSettings(pipelines=str(tmp_path), runs_folder=str(tmp_path / "runs"))
    with LLM(dialogue_bundle) as llm:
        app = create_app(llm, ServeSettings(port=0, pipelines=pipelines))
    firsts = {protocol_of(path).partition(".")[0] for route in app.routes if (path := getattr(route, "path", ""))}
    assert firsts - {""} <= OWN_PATHS
    assert {"v1", "metrics", "pipelines", "hooks"} <= firsts
