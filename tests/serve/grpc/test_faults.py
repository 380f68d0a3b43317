# SPDX-License-Identifier: Apache-2.0
"""Bad input over gRPC: the code that stands for REST's status, the same field and words, and the server lives on."""

import contextlib
import gzip
import json
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from open_autoglm.serve.grpc import open_autoglm_pb2 as pb
from open_autoglm.serve.grpc.faults import code_of
from open_autoglm.serve.guards.guard_settings import ConnectionSettings
from tests.serve.grpc.conftest import METHODS, STREAMED, Twin, chat, failing, fault_of, twin, user

GOOD: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(autouse=True)
def answers_afterwards(talker: Twin) -> Iterator[None]:
    yield
    assert talker.stub.Chat(chat(), timeout=30).choices
    talker.rest.wait_until_idle()


def rest_fault(running: Twin, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    response = httpx.post(f"{running.rest.url}{path}", content=json.dumps(body), timeout=60)
    return response.status_code, response.json()["error"]


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 10**9},
        {"n": 0},
        {"n": 9},
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"max_tokens": 100_000},
        {"max_tokens": 400, "n": 8},
        {"max_tokens": 3, "max_completion_tokens": 3},
        {"logprobs": True, "top_logprobs": -1},
        {"logprobs": True, "top_logprobs": 21},
        {"top_logprobs": 2},
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"top_p": 1.5},
        {"min_p": -1.0},
        {"top_k": -2},
        {"presence_penalty": 2.5},
        {"frequency_penalty": -9.0},
        {"repetition_penalty": 0.0},
        {"priority": 101},
        {"stop": [""]},
        {"stop": ["x" * 257]},
        {"stop": ["x"] * 17},
        {"stop_token_ids": [-1]},
        {"reasoning_effort": "much"},
        {"reasoning_effort": "high"},
        {"model": "other"},
        {"model": ""},
        {"guided_regex": "("},
        {"guided_regex": "(a|a?)+" * 3000},
        {"guided_json": "{"},
        {"guided_json": '{"type": "nonsense"}'},
        {"guided_json": '{"not": {}}'},
        {"guided_choice": ["a"], "guided_regex": "a"},
        {"parallel_tool_calls": True},
        {"metadata": {"a": "x" * 600}},
        {"metadata": {str(index): "x" for index in range(17)}},
    ],
    ids=lambda fields: str(fields)[:60],
)
def test_the_same_bad_fields_get_the_same_fault(talker: Twin, fields: dict[str, Any]) -> None:
    status, error = rest_fault(talker, "/v1/chat/completions", {**GOOD, **fields})
    assert status in (400, 404)
    for method in (talker.stub.Chat, talker.stub.StreamChat):
        fault = failing(method, chat(**fields))
        assert fault.code is code_of(status)
        assert fault.field == error["param"]
        assert fault.message == error["message"]
        assert fault.reason == (error["code"] or error["type"]).upper()


PING = pb.Function(name="ping")


def schema(value: Any) -> pb.Tool:
    return pb.Tool(function=pb.Function(name="f", parameters=json.dumps(value)))


def rest_schema(value: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": value}}


DEEP = {"type": "object", "properties": {"a": {"$ref": "#"}}}
BAD_PATTERN = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(a"}}}
BAD_TYPE = {"type": "object", "properties": {"a": {"type": "strin"}}}
EXPLODING = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(a|a?)+" * 900}}}


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"messages": []}, {"messages": []}),
        (
            {"messages": [{"role": "nobody", "content": "x"}]},
            {"messages": [pb.ChatMessage(role="nobody", content="x")]},
        ),
        ({"messages": [{"role": "", "content": "x"}]}, {"messages": [pb.ChatMessage(content="x")]}),
        ({"messages": [{"role": "user"}]}, {"messages": [pb.ChatMessage(role="user")]}),
        (
            {"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]},
            {"messages": [pb.ChatMessage(role="user", content="x", tool_call_id="1")]},
        ),
        ({"messages": [{"role": "user", "content": "x y " * 4000}]}, {"messages": user("x y " * 4000)}),
        ({"logit_bias": {"1": 101.0}}, {"logit_bias": {1: 101.0}}),
        ({"logit_bias": {"-1": 1.0}}, {"logit_bias": {-1: 1.0}}),
        ({"logit_bias": {"1000000": 1.0}}, {"logit_bias": {1000000: 1.0}}),
        ({"response_format": {"type": "xml"}}, {"response_format": pb.ResponseFormat(type="xml")}),
        ({"response_format": {"type": "json_schema"}}, {"response_format": pb.ResponseFormat(type="json_schema")}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            {"response_format": pb.ResponseFormat(type="json_schema", json_schema=pb.JsonSchema(name="x"))},
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
            {"response_format": pb.ResponseFormat(type="json_schema", json_schema=pb.JsonSchema(schema='{"not": {}}'))},
        ),
        ({"tools": [rest_schema(BAD_PATTERN)]}, {"tools": [schema(BAD_PATTERN)]}),
        ({"tools": [rest_schema(BAD_TYPE)]}, {"tools": [schema(BAD_TYPE)]}),
        (
            {"tools": [rest_schema(EXPLODING)], "tool_choice": "required"},
            {"tools": [schema(EXPLODING)], "tool_choice": pb.ToolChoice(mode="required")},
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            {"tools": [pb.Tool(function=pb.Function(name="a b"))]},
        ),
        (
            {
                "tools": [rest_schema({"type": "object"})],
                "tool_choice": {"type": "function", "function": {"name": "g"}},
            },
            {"tools": [schema({"type": "object"})], "tool_choice": pb.ToolChoice(function="g")},
        ),
        ({"tool_choice": "required"}, {"tool_choice": pb.ToolChoice(mode="required")}),
        ({"tool_choice": "any"}, {"tool_choice": pb.ToolChoice(mode="any")}),
        (
            {"chat_template_kwargs": {"enable_thinking": True}},
            {"chat_template_kwargs": pb.TemplateOptions(enable_thinking=True)},
        ),
    ],
    ids=lambda value: str(value)[:60].replace("\n", " "),
)
def test_what_is_written_in_another_shape_gets_the_same_fault(
    talker: Twin, body: dict[str, Any], fields: dict[str, Any]
) -> None:
    status, error = rest_fault(talker, "/v1/chat/completions", {**GOOD, **body})
    assert status == 400
    fault = failing(talker.stub.Chat, chat(**fields))
    assert (fault.code, fault.field) == (INVALID, error["param"])
    if body != {"messages": []}:  # to protobuf an empty list is none
        assert fault.message == error["message"]


@pytest.mark.parametrize(
    ("path", "method", "body", "request_"),
    [
        ("/v1/completions", "Complete", {}, pb.CompleteRequest()),
        (
            "/v1/completions",
            "Complete",
            {"prompt": [[]]},
            pb.CompleteRequest(prompt=[pb.Input(token_ids=pb.TokenIds())]),
        ),
        (
            "/v1/completions",
            "Complete",
            {"prompt": ["x", [1]]},
            pb.CompleteRequest(prompt=[pb.Input(text="x"), pb.Input(token_ids=pb.TokenIds(ids=[1]))]),
        ),
        (
            "/v1/completions",
            "Complete",
            {"prompt": [[10**6]]},
            pb.CompleteRequest(prompt=[pb.Input(token_ids=pb.TokenIds(ids=[10**6]))]),
        ),
        (
            "/v1/completions",
            "StreamComplete",
            {"prompt": ["x"], "best_of": 2, "stream": True},
            pb.CompleteRequest(prompt=[pb.Input(text="x")], best_of=2),
        ),
        (
            "/v1/completions",
            "Complete",
            {"prompt": ["x"], "echo": True, "logprobs": 1},
            pb.CompleteRequest(prompt=[pb.Input(text="x")], echo=True, logprobs=1),
        ),
        ("/v1/embeddings", "Embed", {"input": [""]}, pb.EmbedRequest(input=[pb.Input(text="")])),
        ("/v1/embeddings", "Embed", {"input": ["x"] * 2049}, pb.EmbedRequest(input=[pb.Input(text="x")] * 2049)),
        (
            "/v1/embeddings",
            "Embed",
            {"input": ["x"], "pooling": "max"},
            pb.EmbedRequest(input=[pb.Input(text="x")], pooling="max"),
        ),
        (
            "/v1/embeddings",
            "Embed",
            {"input": ["x"], "dimensions": 65},
            pb.EmbedRequest(input=[pb.Input(text="x")], dimensions=65),
        ),
        ("/v1/classify", "Classify", {"input": ["x"]}, pb.ClassifyRequest(input=["x"])),
        ("/v1/classify", "Classify", {}, pb.ClassifyRequest()),
        ("/tokenize", "Tokenize", {}, pb.TokenizeRequest()),
        (
            "/tokenize",
            "Tokenize",
            {"prompt": "x", "messages": GOOD["messages"]},
            pb.TokenizeRequest(prompt="x", messages=user("hello")),
        ),
        ("/detokenize", "Detokenize", {"tokens": [10**6]}, pb.DetokenizeRequest(tokens=[10**6])),
        ("/detokenize", "Detokenize", {"tokens": [-1]}, pb.DetokenizeRequest(tokens=[-1])),
    ],
    ids=lambda value: str(value)[:40].replace("\n", " "),
)
def test_the_other_methods_refuse_as_their_routes_do(
    talker: Twin, path: str, method: str, body: dict[str, Any], request_: Any
) -> None:
    status, error = rest_fault(talker, path, body)
    fault = failing(getattr(talker.stub, method), request_)
    assert (status, fault.code) == (400, INVALID)
    assert (fault.field, fault.message) == (error["param"], error["message"])


def test_numbers_that_json_does_not_have_are_refused(talker: Twin) -> None:
    for value in (float("nan"), float("inf"), float("-inf")):
        fault = failing(talker.stub.Chat, chat(temperature=value))
        assert (fault.code, fault.field) == (INVALID, "temperature")
        assert failing(talker.stub.Chat, chat(logit_bias={1: value})).field == "logit_bias.1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "must be a JSON object"),
        ("[" * 10_000 + "]" * 10_000, "deep"),
        ('{"a":' * 5_000 + "1" + "}" * 5_000, "deep"),
        ('{"maximum": NaN}', "NaN"),
        ('{"maximum": ' + "9" * 5000 + "}", "digits"),
        ('{"const": "\\ud83d"}', "surrogate"),
    ],
    ids=lambda text: text[:20],
)
def test_json_in_a_field_is_read_as_a_body_is(talker: Twin, text: str, words: str) -> None:
    tool = pb.Tool(function=pb.Function(name="f", parameters=text))
    fault = failing(talker.stub.Chat, chat(tools=[tool]))
    assert (fault.code, fault.field) == (INVALID, "tools[0].function.parameters")
    assert words in fault.message
    form = pb.ResponseFormat(type="json_schema", json_schema=pb.JsonSchema(schema=text))
    fault = failing(talker.stub.Chat, chat(response_format=form))
    assert (fault.code, fault.field) == (INVALID, "response_format.json_schema.schema")


def varint(value: int) -> bytes:
    found = b""
    while value > 0x7F:
        found += bytes([value & 0x7F | 0x80])
        value >>= 7
    return found + bytes([value])


def field(number: int, data: bytes) -> bytes:
    """A field of bytes, on the wire."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def test_fields_that_are_not_known_are_refused_wherever_they_are(talker: Twin) -> None:
    message = pb.ChatMessage(role="user", content="x").SerializeToString()
    picture = field(99, b"http://169.254.169.254/picture.png")
    for data, place, where in (
        (chat().SerializeToString() + field(900, b"x"), None, "ChatRequest"),
        (field(2, message + picture), "messages[0]", "messages[0]"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            talker.raw("Chat", data)
        fault = fault_of(caught.value)
        assert (fault.code, fault.field) == (INVALID, place)
        assert f"{where} has the unknown field number" in fault.message
    options = field(31, field(9, b"x"))
    with pytest.raises(grpc.RpcError) as caught:
        talker.raw("Chat", chat().SerializeToString() + options)
    assert fault_of(caught.value).field == "chat_template_kwargs"


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff\xff", field(2, field(2, b"\xff\xfe")), field(2, field(1, b"\xed\xa0\xbd")), b"\x0b" * 500, b"\x08"],
    ids=str,
)
def test_bytes_that_are_no_request_are_refused(talker: Twin, data: bytes) -> None:
    for method in METHODS:
        if data == b"\x08" and method in ("ListModels", "GetModel"):
            continue
        with pytest.raises(grpc.RpcError) as caught:
            answer = talker.raw(method, data)
            if method in STREAMED:
                list(answer)
        assert fault_of(caught.value).code is INVALID


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=60), method=st.sampled_from(METHODS))
def test_no_bytes_are_a_fault_of_the_server(talker: Twin, data: bytes, method: str) -> None:
    try:
        answer = talker.raw(method, data)
        if method in STREAMED:
            list(answer)
    except grpc.RpcError as error:
        assert fault_of(error).code in (INVALID, grpc.StatusCode.NOT_FOUND)


def test_a_message_beyond_the_limit_is_refused_before_it_is_taken(talker: Twin) -> None:
    for method in (talker.stub.Chat, talker.stub.StreamChat):
        with pytest.raises(grpc.RpcError) as caught:
            answer = method(chat("x" * 60_000), timeout=30)
            list(answer)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    status, _ = rest_fault(
        talker, "/v1/chat/completions", {**GOOD, "messages": [{"role": "user", "content": "x" * 60_000}]}
    )
    assert code_of(status) is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_metadata_beyond_the_limits_is_refused(talker: Twin) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        talker.stub.Chat(chat(), timeout=30, metadata=[("x-large", "x" * 40_000)])
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    many = [(f"x-{index}", "y") for index in range(120)]
    fault = failing(talker.stub.Chat, chat(), metadata=many)
    assert fault.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "lines" in fault.message


def test_what_there_is_not_is_unimplemented(talker: Twin) -> None:
    for path in ("/open_autoglm.v1.LanguageModels/Nothing", "/other.Service/Chat"):
        with pytest.raises(grpc.RpcError) as caught:
            talker.channel.unary_unary(path)(b"", timeout=30)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_bytes_that_are_no_http2_do_no_harm(talker: Twin) -> None:
    host, port = talker.target.split(":")
    for data in (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00" * 3000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 400,
    ):
        with socket.create_connection((host, int(port)), 10) as raw:
            raw.sendall(data)
            raw.settimeout(10)
            with contextlib.suppress(ConnectionError):
                while raw.recv(65_536):
                    pass


def frame(kind: int, flags: int, stream: int, data: bytes = b"") -> bytes:
    """An HTTP/2 frame."""
    return struct.pack(">I", len(data))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + data


def header(name: str, value: str) -> bytes:
    """A header that is neither indexed nor compressed."""
    return b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


HEADERS = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/open_autoglm.v1.LanguageModels/Chat"),
    (":authority", "localhost"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
)


def written(target: str, data: bytes = b"", added: tuple[tuple[str, str], ...] = ()) -> bytes:
    """What a server sends until it ends a call that was written by hand, and never ends by itself."""
    fields = b"".join(header(*item) for item in (*HEADERS, *added))
    parts = [data[start : start + 16_000] for start in range(0, len(data), 16_000)]
    host, port = target.split(":")
    with socket.create_connection((host, int(port)), 10) as raw:
        raw.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0) + frame(1, 4, 1, fields))
        raw.sendall(b"".join(frame(0, 0, 1, part) for part in parts))
        found = b""
        while b"grpc-status" not in found:
            data = raw.recv(65_536)
            assert data, "the connection stays open"
            found += data
        return found


def test_a_message_that_never_comes_ends_in_time(dialogue_bundle: Path) -> None:
    with twin(dialogue_bundle, connections=ConnectionSettings(body_seconds=0.3)) as running:
        for data in (b"", b"\x00\x00\x00\x10\x00" + b"x" * 100):
            assert b"message did not come" in written(running.target, data).replace(b"%20", b" ")
        assert running.stub.Chat(chat(), timeout=30).choices


def test_a_compressed_message_is_refused_and_never_unpacked(talker: Twin) -> None:
    bomb = gzip.compress(b"\x00" * 40_000_000)
    assert len(bomb) < 50_000, "what is sent is within the limit"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = b"\x01" + struct.pack(">I", len(bomb)) + bomb
    assert b"disabled" in written(talker.target, message, (("grpc-encoding", "gzip"),))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000, "kilobytes"


def test_one_call_too_many_is_told_to_come_again(dialogue_bundle: Path) -> None:
    with twin(dialogue_bundle, connections=ConnectionSettings(max_connections=2)) as running:
        long = chat(max_tokens=200, ignore_eos=True)
        streams = [running.stub.StreamChat(long, timeout=30) for _ in range(2)]
        for stream in streams:
            next(stream)
        fault = failing(running.stub.Chat, chat())
        assert (fault.code, fault.retry_seconds) == (grpc.StatusCode.UNAVAILABLE, 1)
        for stream in streams:
            stream.cancel()
        running.rest.wait_until_idle()
        until(lambda: succeeds(running))


def succeeds(running: Twin) -> bool:
    try:
        running.stub.Chat(chat(), timeout=30)
    except grpc.RpcError:
        return False
    return True


def until(condition: Any, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.02)
