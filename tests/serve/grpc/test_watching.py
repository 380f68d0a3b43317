# SPDX-License-Identifier: Apache-2.0
"""Calls are told of as REST requests are: in /metrics, in the log, in spans; those that are refused or left too."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from open_autoglm.engine.request import Delta
from open_autoglm.serve.grpc import open_autoglm_pb2 as pb
from open_autoglm.serve.grpc.language_models import SERVICE
from open_autoglm.serve.guards.guard_settings import CacheSettings, ConnectionSettings
from open_autoglm.serve.watching.watch_settings import WatchSettings
from tests.serve.grpc.conftest import METHODS, STREAMED, Twin, chat, twin
from tests.serve.test_watch_logs import Lines, told
from tests.serve.test_watch_metrics import read
from tests.serve.test_watch_traces import PARENT, TRACE, collector

KEY = "key-" + "k" * 40
TEXT = [pb.Input(text="play")]
LONG: dict[str, Any] = {"ignore_eos": True, "max_tokens": 200, "n": 8}
FREE: dict[str, Any] = {"ignore_eos": True, "max_tokens": 4}
ASKED: dict[str, Any] = {
    "Chat": chat("zebra", **FREE),
    "StreamChat": chat("zebra", **FREE),
    "Complete": pb.CompleteRequest(prompt=TEXT, **FREE),
    "StreamComplete": pb.CompleteRequest(prompt=TEXT, **FREE),
    "Embed": pb.EmbedRequest(input=TEXT),
    "Tokenize": pb.TokenizeRequest(prompt="play"),
    "Detokenize": pb.DetokenizeRequest(tokens=[5]),
    "ListModels": pb.ListModelsRequest(),
    "GetModel": pb.GetModelRequest(model="talker"),
}


def call(running: Twin, method: str, request: Any, *metadata: tuple[str, str]) -> tuple[Any, dict[str, Any]]:
    """The answer of a call, the last message of a stream; and its trailers, also those of one that fails."""
    try:
        if method in STREAMED:
            stream = getattr(running.stub, method)(request, timeout=30, metadata=metadata)
            return list(stream)[-1], dict(stream.trailing_metadata())
        answer, ended = getattr(running.stub, method).with_call(request, timeout=30, metadata=metadata)
        return answer, dict(ended.trailing_metadata())
    except grpc.RpcError as error:
        trailers: Any = error.trailing_metadata()
        return None, dict(trailers)


def test_a_call_of_each_kind_is_counted_told_and_traced(dialogue_bundle: Path) -> None:
    assert set(ASKED) | {"Classify"} == set(METHODS), "a model that is no classifier refuses that one"
    with collector() as (address, taken), told() as lines:
        with twin(dialogue_bundle, api_key=KEY, watching=WatchSettings(otlp_endpoint=address)) as running:
            answers: dict[str, Any] = {}
            for method, request in ASKED.items():
                answers[method], trailers = call(
                    running,
                    method,
                    request,
                    ("authorization", f"Bearer {KEY}"),
                    ("x-request-id", method),
                    ("traceparent", f"00-{TRACE}-{PARENT}-01"),
                )
                assert trailers["x-request-id"] == method
                fields = lines.of(method)
                assert (fields["protocol"], fields["route"], fields["status"]) == ("grpc", f"{SERVICE}/{method}", 200)
                assert fields["key"].startswith("api-key-")
                assert fields["trace_id"] == TRACE
                assert not {"method", "error", "aborted"} & set(fields)
            for method in ("Chat", "StreamChat", "Complete", "StreamComplete"):
                fields, usage = lines.of(method), answers[method].usage
                assert (fields["model"], fields["stream"]) == ("talker", method in STREAMED)
                assert fields["finish_reasons"] == ["length"]
                assert fields["completion_tokens"] == usage.completion_tokens == 4
                assert fields["prompt_tokens"] == usage.prompt_tokens > 0
                assert 0 <= fields["queue_seconds"] <= fields["first_token_seconds"] <= fields["total_seconds"]
            assert lines.of("Embed")["prompt_tokens"] == answers["Embed"].usage.prompt_tokens
            assert "zebra" not in str(lines.fields)
            samples = read(running.rest.url, Authorization=f"Bearer {KEY}")
            for method in ASKED:
                labels = {"protocol": "grpc", "method": "", "route": f"{SERVICE}/{method}", "status": "200"}
                assert samples.get("requests_total", **labels) == 1
            assert samples.get("completion_tokens_total", model="talker") == 16
            assert samples.get("answers_total", model="talker", reason="length") == 4
        spans = [
            span
            for _, request in taken
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
            if span.trace_id.hex() == TRACE
        ]
        roots = {span.name: span for span in spans if span.parent_span_id.hex() == PARENT}
        assert set(roots) == {f"{SERVICE}/{method}" for method in ASKED}
        for name, span in roots.items():
            known = {item.key: item.value.string_value for item in span.attributes}
            assert (known["rpc.system"], known["rpc.method"]) == ("grpc", name)
        names = [span.name for span in spans]
        assert (names.count("chat talker"), names.count("text_completion talker"), names.count("decode")) == (2, 2, 4)
        assert names.count("embeddings talker") == names.count("tokenize talker") == 1


@pytest.mark.parametrize(
    ("method", "request_", "path", "body", "key", "status"),
    [
        ("Chat", chat(), "/v1/chat/completions", {}, "wrong", 401),
        ("StreamChat", chat(), "/v1/chat/completions", {"stream": True}, "wrong", 401),
        ("Chat", chat(temperature=9), "/v1/chat/completions", {"temperature": 9}, KEY, 400),
        ("StreamChat", chat(max_tokens=10**6), "/v1/chat/completions", {"max_tokens": 10**6}, KEY, 400),
        ("Chat", chat(max_tokens=220), "/v1/chat/completions", {"max_tokens": 254}, KEY, 400),
        ("Chat", chat(model="other"), "/v1/chat/completions", {"model": "other"}, KEY, 404),
        ("Classify", pb.ClassifyRequest(input=["x"]), "/v1/classify", {"input": ["x"]}, KEY, 400),
        ("GetModel", pb.GetModelRequest(model="other"), "/v1/models/other", None, KEY, 404),
    ],
    ids=str,
)
def test_a_call_that_is_refused_is_told_of_as_by_rest(
    guarded: Twin, method: str, request_: Any, path: str, body: dict[str, Any] | None, key: str, status: int
) -> None:
    if isinstance(body, dict) and path == "/v1/chat/completions":
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3, **body}
        if body["max_tokens"] == 254:
            request_ = chat(max_tokens=254)
    with told() as lines:
        headers = {"Authorization": f"Bearer {key}"}
        rest = httpx.request("GET" if body is None else "POST", guarded.rest.url + path, json=body, headers=headers)
        assert rest.status_code == status
        _, trailers = call(guarded, method, request_, ("authorization", f"Bearer {key}"))
        expected, fields = (lines.of(name) for name in (rest.headers["x-request-id"], trailers["x-request-id"]))
        for name in ("status", "error", "error_message", "key", "level", "model"):
            assert fields.get(name) == expected.get(name), name
        assert fields["error"]
        assert fields["route"] == f"{SERVICE}/{method}"


@pytest.fixture(scope="module")
def guarded(dialogue_bundle: Path) -> Any:
    with twin(dialogue_bundle, api_key=KEY) as running:
        yield running


def test_a_client_that_leaves_and_a_call_out_of_time_are_told_of(dialogue_bundle: Path) -> None:
    with twin(dialogue_bundle) as running, told() as lines:
        long = chat(**LONG)
        stream = running.stub.StreamChat(long, timeout=30, metadata=[("x-request-id", "left")])
        next(stream)
        stream.cancel()
        fields = lines.of("left")
        assert (fields["status"], fields["error"], fields["aborted"]) == (499, "client_gone", True)
        assert 0 < fields["completion_tokens"] < 8 * 200
        whole = running.stub.Chat.future(long, timeout=30, metadata=[("x-request-id", "gone")])
        whole.cancel()
        running.rest.wait_until_idle()
        give_time(running, 0.001)
        _, trailers = call(running, "Chat", long)
        fields = lines.of(trailers["x-request-id"])
        assert (fields["status"], fields["error"]) == (504, "timeout")


def test_a_call_that_had_begun_before_its_time_was_up_was_given_up(
    dialogue_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with twin(dialogue_bundle) as running, told() as lines:
        engine = running.rest.llm.engine
        has_begun, may_end = threading.Event(), threading.Event()

        def held(step: Callable[[], list[Delta]] = engine.step) -> list[Delta]:
            if has_begun.is_set():
                may_end.wait(60)
            deltas = step()
            if len(deltas) > 1:  # else it is the token by which the engine sees whether it still can
                has_begun.set()
            return deltas

        monkeypatch.setattr(engine, "step", held)
        for attempt, seconds in enumerate((0.1, 1.0, 10.0)):  # a slow machine takes a while to begin
            has_begun.clear()
            may_end.clear()
            give_time(running, seconds)
            metadata = [("x-request-id", f"begun{attempt}")]
            with pytest.raises(grpc.RpcError):
                list(running.stub.StreamChat(chat(**LONG), timeout=30, metadata=metadata))
            may_end.set()
            running.rest.wait_until_idle()
            fields = lines.of(f"begun{attempt}")
            assert (fields["status"], fields["error"]) == (504, "timeout")
            if has_begun.is_set() and fields.get("completion_tokens"):
                break
        assert fields["aborted"] is True
        assert 0 < fields["completion_tokens"] < 8 * 200
        assert read(running.rest.url).get("aborted_requests_total", model="talker") >= 1


def give_time(running: Twin, seconds: float) -> None:
    connections = ConnectionSettings(request_timeout=seconds)
    running.guards.reload(type(running.guards.settings)(port=0, grpc_port=0, connections=connections))


def test_ids_that_are_not_sane_are_replaced_and_kept_answers_counted(dialogue_bundle: Path) -> None:
    with twin(dialogue_bundle, cache=CacheSettings(cache="memory")) as running, told() as lines:
        assert cache_of(running, lines, "a b") == "miss"
        assert cache_of(running, lines, "x" * 65) == "hit"
        samples = read(running.rest.url)
        assert [samples.get("response_cache_requests_total", result=result) for result in ("hit", "miss")] == [1, 1]


def cache_of(running: Twin, lines: Lines, request_id: str) -> str:
    _, trailers = call(running, "Chat", chat(temperature=0), ("x-request-id", request_id))
    assert trailers["x-request-id"] != request_id
    fields = lines.of(trailers["x-request-id"])
    assert fields["cache"] == trailers["x-cache"]
    return fields["cache"]
