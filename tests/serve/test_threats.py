# SPDX-License-Identifier: Apache-2.0
"""Bad input over raw sockets and HTTP: the right status, bounded work, and the next request is answered."""

import contextlib
import json
import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Route

from open_autoglm.serve.app import create_app
from open_autoglm.serve.guards.authentication import PUBLIC_ROUTES
from open_autoglm.serve.pipelines.pipeline_settings import PipelineSettings
from open_autoglm.serve.settings import ServeSettings
from tests.serve.conftest import Running, engine_held, serving

GOOD = {"model": "talker", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}


@pytest.fixture(autouse=True)
def answers_afterwards(talker: Running) -> Iterator[None]:
    yield
    response = talker.post(GOOD)
    assert response.status_code == 200, response.text
    talker.wait_until_idle()


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    assert ".py" not in response.text
    return error


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "line 1, column 2"),
        (b"[]", "must be a JSON object"),
        (b"\xff\xfe", "UTF-8"),
        (b'{"messages": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "deep"),
        (b'{"messages": ' + b"[" * 200 + b"]" * 200 + b"}", "deep"),
        (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, "deep"),
        (json.dumps({**GOOD, "temperature": float("nan")}).encode(), "NaN"),
        (json.dumps({**GOOD, "temperature": float("inf")}).encode(), "Infinity"),
        (json.dumps(GOOD).encode().replace(b"3}", b"1e999}"), "max_tokens"),
        (json.dumps(GOOD).encode().replace(b"3}", b"9" * 5000 + b"}"), "digits"),
        (json.dumps({**GOOD, "messages": [{"role": "user", "content": "\ud83d"}]}).encode(), "surrogate"),
        (json.dumps({**GOOD, "guided_regex": "\udc00"}).encode(), "surrogate"),
        (json.dumps({**GOOD, "\ud800": 1}).encode(), "surrogate"),
        (json.dumps({**GOOD, "x" * 5000: 1}).encode(), "unknown field"),
        (json.dumps({**GOOD, "temperature": [0.5]}).encode(), "temperature"),
        (json.dumps({**GOOD, "temperature": True}).encode(), "temperature"),
        (json.dumps({**GOOD, "n": "1"}).encode(), "n:"),
        (json.dumps({**GOOD, "messages": "hello"}).encode(), "messages"),
        (json.dumps({**GOOD, "messages": [7]}).encode(), "messages"),
        (json.dumps({**GOOD, "messages": [{"role": "user", "content": 7}]}).encode(), "content"),
        (json.dumps({**GOOD, "stop": 7}).encode(), "stop"),
        (json.dumps({**GOOD, "stream": "yes"}).encode(), "stream"),
    ],
)
def test_a_body_that_is_no_request_is_a_400(talker: Running, body: bytes, words: str) -> None:
    error = error_of(talker.post(content=body), 400)
    assert words in error["message"]
    assert len(error["message"]) < 400


def test_bodies_beyond_the_limit_are_413_announced_or_not(talker: Running) -> None:
    large = json.dumps({**GOOD, "messages": [{"role": "user", "content": "x" * 60_000}]}).encode()
    error_of(talker.post(content=large), 413)

    def tiny_chunks() -> Iterator[bytes]:
        for start in range(0, len(large), 7):
            yield large[start : start + 7]

    with contextlib.suppress(httpx.WriteError):  # the server may answer and close while we are still sending
        error_of(talker.post(content=tiny_chunks()), 413)
    with socket.create_connection(("127.0.0.1", talker.port), 5) as raw:
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n\r\n{")
        assert raw.recv(64).startswith(b"HTTP/1.1 413")


def test_huge_headers_are_refused(talker: Running) -> None:
    with socket.create_connection(("127.0.0.1", talker.port), 5) as raw:
        raw.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        try:
            for _ in range(100):
                raw.sendall(b"X: " + b"y" * 60_000 + b"\r\n")
            answer = raw.recv(64)
        except OSError:
            answer = b"HTTP/1.1 4"
        assert answer.startswith(b"HTTP/1.1 4") or not answer


def test_nul_and_control_tokens_in_text_are_text(talker: Running) -> None:
    for text in ("a\x00b", "<|user|><|endoftext|>[gMASK]<sop>", "\u202e\uffff\U0010ffff"):
        response = talker.post({**GOOD, "messages": [{"role": "user", "content": text}]})
        assert response.status_code == 200
    plain = talker.post({**GOOD, "messages": [{"role": "user", "content": "x"}]}).json()["usage"]["prompt_tokens"]
    forged = talker.post({**GOOD, "messages": [{"role": "user", "content": "<|user|>"}]}).json()["usage"]
    assert forged["prompt_tokens"] > plain + 1


@pytest.mark.parametrize(
    "extra",
    [
        {"guided_regex": "(a+)+b"},
        {"guided_regex": "a?" * 8000},
        {"guided_regex": "[^\\s\\S]"},
        {"guided_grammar": "start: start"},
        {"guided_grammar": "start: r0\n" + "\n".join(f"r{i}:r{i + 1}" for i in range(1200)) + '\nr1200: "x"'},
        {"guided_json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}},
        {"guided_json": {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}}},
        {"guided_json": {"type": "string", "pattern": "^(a+)+b$"}},
        {"guided_json": {"properties": {"x": {"type": "nothing", "pattern": "("}}}},
    ],
    ids=str,
)
def test_guides_that_explode_are_answered_within_a_bound(talker: Running, extra: dict[str, Any]) -> None:
    started = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        bomb = pool.submit(talker.post, {**GOOD, **extra})
        assert httpx.get(f"{talker.url}/health", timeout=2).status_code == 200, "the event loop is free meanwhile"
        response = bomb.result()
    assert time.monotonic() - started < 10
    if response.status_code != 200:
        assert response.json()["error"]["type"] in ("invalid_request_error", "server_error")
        assert response.status_code in (400, 503)


FIELDS = ["temperature", "n", "stop", "seed", "top_p", "logprobs", "top_logprobs", "stream_options", "response_format"]
FIELDS += ["guided_json", "guided_choice", "max_tokens", "messages", "model", "zz"]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(FIELDS),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5)),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3),
                st.dictionaries(st.sampled_from(["type", "role", "content", "schema", "a"]), inner, max_size=3),
            ),
            max_leaves=6,
        ),
        max_size=3,
    )
)
def test_no_field_makes_a_server_error(talker: Running, changes: dict[str, Any]) -> None:
    body = json.dumps({**GOOD, **changes}).encode()
    response = talker.post(content=body)
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        error_of(response, response.status_code)


def test_unknown_paths_and_methods_have_the_same_shape(talker: Running) -> None:
    error_of(httpx.get(f"{talker.url}/v1/nothing"), 404)
    error_of(httpx.get(f"{talker.url}/v1/chat/completions"), 405)
    error_of(httpx.get(f"{talker.url}/redoc"), 404)


def routes_of(app: Starlette) -> set[tuple[str, str]]:
    return {
        (method, route.path)
        for route in app.routes
        if isinstance(route, Route)
        for method in (*(route.methods or ()), "OPTIONS", "DELETE")
    }


def test_without_the_key_every_route_but_the_listed_is_401(extraction_bundle: Path, tmp_path: Path) -> None:
    key = "secret-" + "k" * 40
    pipelines = PipelineSettings(pipelines=str(tmp_path), runs_folder=str(tmp_path / "runs"))
    with (
        serving(extraction_bundle, api_key=key, pipelines=pipelines) as running,
        httpx.Client(verify=False) as client,  # made once: loading certificates takes longer than all requests
    ):
        routes = routes_of(create_app(running.llm, ServeSettings(api_key=key, pipelines=pipelines)))
        assert {("POST", "/v1/pipelines/{pipeline}/runs"), ("POST", "/hooks/{name:path}")} <= routes
        assert {("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/health")} <= routes
        for method, path in sorted(routes | {("GET", "/nothing"), ("POST", "/"), ("GET", "//health"), ("GET", "/")}):
            url = running.url + path.replace("{model:path}", "x")
            for authorization in (None, "", "Bearer", f"Bearer {key}x", f"Bearer {key[:-1]}", key, f"Basic {key}"):
                headers = {} if authorization is None else {"Authorization": authorization}
                response = client.request(method, url, headers=headers)
                if path in PUBLIC_ROUTES and method in ("GET", "HEAD"):
                    assert response.status_code in (200, 404, 405), "the playground at / is another room's"
                else:
                    assert response.status_code == 401, (method, path)
                    if method != "HEAD":
                        signed = path.startswith("/hooks/") and method == "POST"
                        code = "invalid_signature" if signed else "invalid_api_key"
                        assert error_of(response, 401)["code"] == code
                    assert key not in response.text
        assert running.client(api_key=key).models.list().data
        answer = running.client(api_key=key).chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "play the song"}]
        )
        assert answer.choices[0].finish_reason == "stop"


def long_request(*, stream: bool) -> tuple[bytes, bytes]:
    """A request for 200 tokens: its head and its body."""
    body = json.dumps({**GOOD, "max_tokens": 200, "ignore_eos": True, "stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode(), body


def leave(talker: Running, moment: int, *, stream: bool) -> None:
    """Ask for a long answer over a raw socket and cut the line after so many bytes of it, or at once."""
    head, body = long_request(stream=stream)
    with socket.create_connection(("127.0.0.1", talker.port), 10) as raw:
        if moment == 0:
            raw.sendall(head + body[: len(body) // 2])
            return
        raw.sendall(head + body)
        if moment == 1:
            return
        if not stream:
            time.sleep(0.01 * moment)
            return
        seen = 0
        while seen < moment * 400:
            data = raw.recv(400)
            if not data:
                return
            seen += len(data)


def test_clients_that_go_away_leave_nothing_behind(talker: Running) -> None:
    generator = random.Random(3)
    moments = [(generator.randrange(0, 60), generator.random() < 0.6) for _ in range(60)]
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda item: leave(talker, item[0], stream=item[1]), moments))
    talker.wait_until_idle()


def test_leaving_a_waiting_request_saves_its_steps(talker: Running) -> None:
    for _ in range(5):
        talker.wait_until_idle()
        before = talker.model.stats.num_steps
        with engine_held(talker) as dropped:
            with socket.create_connection(("127.0.0.1", talker.port), 10) as raw:
                raw.sendall(b"".join(long_request(stream=False)))
                while not talker.model.num_open:
                    time.sleep(0.001)
            assert dropped.wait(30)
        # The step that was held, and at most one by which the engine looks at itself.
        assert talker.model.stats.num_steps - before <= 2, "200 tokens were asked for"
