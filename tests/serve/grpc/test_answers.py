# SPDX-License-Identifier: Apache-2.0
"""What the methods answer, held against the REST routes of the same server and against the model itself."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest

from open_autoglm.serve.grpc import open_autoglm_pb2 as pb
from tests.engine.tiny_bundle import CLASSIFICATION, make_bundle
from tests.serve.checkpoints import BOOK, FORMAT_NAMES, PING, make_llm
from tests.serve.grpc.conftest import Twin, chat, twin, user

FREE: dict[str, Any] = {"max_tokens": 12, "ignore_eos": True}


def post(running: Twin, path: str, body: dict[str, Any]) -> Any:
    response = httpx.post(f"{running.rest.url}{path}", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def told(usage: pb.Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.0},
        {"temperature": 1.3, "seed": 7, "n": 3},
        {"temperature": 0.8, "seed": -1, "top_p": 0.5, "top_k": 20, "min_p": 0.01, "presence_penalty": 0.5},
        {"seed": 3, "frequency_penalty": 1.5, "repetition_penalty": 1.2, "logit_bias": {70: 8.0, 71: -100.0}},
        {"temperature": 0.0, "logprobs": True, "top_logprobs": 2},
        {"temperature": 0.0, "stop": ["e", "a"], "stop_token_ids": [5]},
        {"temperature": 0.0, "metadata": {"run": "7"}, "user": "u", "safety_identifier": "s", "priority": -3},
        {"temperature": 0.0, "guided_regex": "[a-c]{4}"},
        {"temperature": 1.0, "seed": 2, "guided_choice": ["yes", "no", "今天"]},
        {"temperature": 0.0, "guided_grammar": 'root ::= "ab" | "cd"'},
        {"temperature": 0.0, "guided_json": '{"type": "integer", "minimum": 10, "maximum": 99}'},
        {"temperature": 0.0, "max_completion_tokens": 5, "max_tokens": None},
    ],
    ids=str,
)
def test_a_conversation_is_answered_as_by_rest_whole_and_in_parts(talker: Twin, fields: dict[str, Any]) -> None:
    fields = {**FREE, **fields}
    body = {
        name: {str(key): inner for key, inner in value.items()} if name == "logit_bias" else value
        for name, value in fields.items()
    }
    rest = post(talker, "/v1/chat/completions", {"messages": [{"role": "user", "content": "play 天气"}], **body})
    request = pb.ChatRequest(**{"messages": user("play 天气"), **fields})
    whole = talker.stub.Chat(request, timeout=30)
    assert whole.model == "talker"
    assert whole.id.startswith("chatcmpl-")
    assert dict(whole.metadata) == rest.get("metadata", {})
    assert told(whole.usage).items() <= rest["usage"].items()
    streamed: dict[int, dict[str, Any]] = {}
    chunks = list(talker.stub.StreamChat(request, timeout=30))
    for chunk in chunks:
        for delta in chunk.choices:
            found = streamed.setdefault(delta.index, {"text": "", "scores": [], "end": None, "role": ""})
            assert found["end"] is None, "nothing follows an answer's end"
            found["text"] += delta.content
            found["scores"] += list(delta.logprobs)
            found["role"] += delta.role
            found["end"] = delta.finish_reason or None
    assert told(chunks[-1].usage) == told(whole.usage)
    assert not any(chunk.HasField("usage") for chunk in chunks[:-1])
    assert len(whole.choices) == len(rest["choices"]) == len(streamed)
    for choice, expected in zip(whole.choices, rest["choices"], strict=True):
        assert choice.index == expected["index"]
        assert choice.message.content == expected["message"]["content"] == streamed[choice.index]["text"]
        assert choice.message.role == streamed[choice.index]["role"] == "assistant"
        assert choice.finish_reason == expected["finish_reason"] == streamed[choice.index]["end"]
        wanted = (expected["logprobs"] or {"content": []})["content"]
        for scores in (choice.logprobs, streamed[choice.index]["scores"]):
            assert [(s.token, s.logprob, list(s.piece)) for s in scores] == [
                (w["token"], w["logprob"], w["bytes"]) for w in wanted
            ]
            assert [[(t.token, t.logprob) for t in s.top_logprobs] for s in scores] == [
                [(t["token"], t["logprob"]) for t in w["top_logprobs"]] for w in wanted
            ]


def test_a_long_conversation_with_reasoning_and_calls_is_laid_out_as_by_rest(talker: Twin) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "ping", "arguments": "{}"}}
    rest = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello <|user|> \x00 there"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "pong", "tool_call_id": "call_1"},
        {"role": "user", "content": ""},
    ]
    messages = [
        pb.ChatMessage(role="system", content="be brief"),
        pb.ChatMessage(role="user", content="hello <|user|> \x00 there"),
        pb.ChatMessage(
            role="assistant",
            content="",
            tool_calls=[pb.ToolCall(id="call_1", function=pb.FunctionCall(name="ping", arguments="{}"))],
        ),
        pb.ChatMessage(role="tool", content="pong", tool_call_id="call_1"),
        pb.ChatMessage(role="user", content=""),
    ]
    function = BOOK["function"]
    tool = pb.Tool(
        function=pb.Function(
            name="book", description=function["description"], parameters=json.dumps(function["parameters"])
        )
    )
    for given, options in (({}, {}), ({"tools": [BOOK]}, {"tools": [tool]})):
        expected = post(talker, "/tokenize", {"messages": rest, "return_token_strs": True, **given})
        found = talker.stub.Tokenize(pb.TokenizeRequest(messages=messages, return_token_strs=True, **options))
        assert list(found.tokens) == expected["tokens"]
        assert list(found.token_strs) == expected["token_strs"]
        assert (found.count, found.max_model_len) == (expected["count"], expected["max_model_len"])


def test_texts_are_continued_as_by_rest(talker: Twin) -> None:
    ids = list(talker.stub.Tokenize(pb.TokenizeRequest(prompt="play the song")).tokens)
    assert ids == post(talker, "/tokenize", {"prompt": "play the song"})["tokens"]
    by_text, by_ids = pb.Input(text="play the song"), pb.Input(token_ids=pb.TokenIds(ids=ids))
    other = pb.Input(text="book")
    free = {**FREE, "temperature": 1.0, "seed": 5}
    for body, request in (
        ({"prompt": "play the song"}, {"prompt": [by_text]}),
        ({"prompt": ["play the song", "book"], "n": 2}, {"prompt": [by_text, other], "n": 2}),
        ({"prompt": ids}, {"prompt": [by_ids]}),
        ({"prompt": ids, "echo": True}, {"prompt": [by_ids], "echo": True}),
        ({"prompt": "book", "echo": True}, {"prompt": [other], "echo": True}),
        ({"prompt": "book", "best_of": 4}, {"prompt": [other], "best_of": 4}),
        ({"prompt": "book", "logprobs": 2}, {"prompt": [other], "logprobs": 2}),
        ({"prompt": "book", "guided_regex": "x{3}"}, {"prompt": [other], "guided_regex": "x{3}"}),
        (
            {"prompt": "book", "guided_substring": True},
            {"prompt": [other], "guided_substring": pb.Substring(of_prompt=True)},
        ),
        (
            {"prompt": "a", "guided_substring": "b c"},
            {"prompt": [pb.Input(text="a")], "guided_substring": pb.Substring(text="b c")},
        ),
    ):
        rest = post(talker, "/v1/completions", {**free, **body})
        asked = pb.CompleteRequest(**{**free, **request})
        whole = talker.stub.Complete(asked, timeout=30)
        expected = [(c["index"], c["text"], c["finish_reason"]) for c in rest["choices"]]
        assert [(c.index, c.text, c.finish_reason) for c in whole.choices] == expected
        assert told(whole.usage).items() <= rest["usage"].items()
        scores = [
            s for choice in rest["choices"] for s in (choice["logprobs"] or {"token_logprobs": []})["token_logprobs"]
        ]
        assert [score.logprob for choice in whole.choices for score in choice.logprobs] == scores
        if asked.HasField("best_of"):
            continue
        chunks = list(talker.stub.StreamComplete(asked, timeout=30))
        texts = [""] * len(expected)
        ends = [""] * len(expected)
        for chunk in chunks:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
                ends[choice.index] += choice.finish_reason
        assert [(index, text, end) for index, (text, end) in enumerate(zip(texts, ends, strict=True))] == expected
        assert told(chunks[-1].usage) == told(whole.usage)
    assert talker.stub.Complete(pb.CompleteRequest(prompt=[other], ignore_eos=True)).usage.completion_tokens == 16


def test_embeddings_are_those_of_the_model(talker: Twin) -> None:
    texts = ["play the song", "今天北京的天气"]
    found = talker.stub.Embed(pb.EmbedRequest(input=[pb.Input(text=text) for text in texts]))
    assert [item.index for item in found.data] == [0, 1]
    rows = np.array([item.embedding for item in found.data])
    assert rows.shape == (2, 64)
    assert rows == pytest.approx(talker.rest.llm.embed(texts), abs=1e-5)
    ids = talker.stub.Tokenize(pb.TokenizeRequest(prompt=texts[0])).tokens
    assert found.usage.prompt_tokens == found.usage.total_tokens > len(ids)
    asked = pb.EmbedRequest(
        input=[pb.Input(token_ids=pb.TokenIds(ids=ids))], pooling="last", normalize=False, dimensions=8
    )
    [short] = talker.stub.Embed(asked).data
    expected = talker.rest.llm.embed([texts[0]], pooling="last", normalize=False)[0][:8]
    assert np.array(short.embedding) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_tokens_become_text_and_models_are_listed(talker: Twin) -> None:
    tokens = talker.stub.Tokenize(pb.TokenizeRequest(prompt="play <|user|> 天气", add_special_tokens=False)).tokens
    assert talker.stub.Detokenize(pb.DetokenizeRequest(tokens=tokens)).prompt == "play <|user|> 天气"
    assert talker.stub.Detokenize(pb.DetokenizeRequest()).prompt == ""
    [rest] = httpx.get(f"{talker.rest.url}/v1/models").json()["data"]
    [model] = talker.stub.ListModels(pb.ListModelsRequest()).data
    assert talker.stub.GetModel(pb.GetModelRequest(model="talker")) == model
    for name in ("id", "created", "owned_by", "max_model_len", "task", "state"):
        assert getattr(model, name) == rest[name]
    assert list(model.aliases) == rest["aliases"]


def test_an_answer_in_json_fits_its_schema_and_keeps_the_order_of_its_keys(talker: Twin) -> None:
    schema = {
        "type": "object",
        "properties": {name: {"type": "integer", "minimum": 1, "maximum": 9} for name in ("zeta", "alpha", "mid")},
        "required": ["zeta", "alpha", "mid"],
        "additionalProperties": False,
    }
    wanted = pb.ResponseFormat(type="json_schema", json_schema=pb.JsonSchema(name="x", schema=json.dumps(schema)))
    answer = talker.stub.Chat(chat(response_format=wanted, max_tokens=90, temperature=1.5, seed=4), timeout=30)
    value = json.loads(answer.choices[0].message.content)
    jsonschema.validate(value, schema)
    assert list(value) == ["zeta", "alpha", "mid"]
    free = talker.stub.Chat(chat(response_format=pb.ResponseFormat(type="text")))
    assert free.choices[0].finish_reason in ("stop", "length")


@pytest.fixture(scope="module", params=[FORMAT_NAMES[0], FORMAT_NAMES[-1]])
def caller(request: pytest.FixtureRequest) -> Iterator[Twin]:
    with twin(make_llm(request.param)) as running:
        yield running


def test_forced_calls_fit_their_schema_whole_and_in_parts(caller: Twin) -> None:
    parameters = BOOK["function"]["parameters"]
    tools = [
        pb.Tool(function=pb.Function(name="book", parameters=json.dumps(parameters))),
        pb.Tool(function=pb.Function(name=PING["function"]["name"])),
    ]
    options: dict[str, Any] = {"tools": tools, "temperature": 1.5, "max_tokens": 900, "seed": 4}
    request = chat("go", tool_choice=pb.ToolChoice(function="book"), **options)
    [choice] = caller.stub.Chat(request, timeout=60).choices
    assert choice.finish_reason == "tool_calls"
    assert not choice.message.HasField("content")
    [call] = choice.message.tool_calls
    assert call.id
    assert call.function.name == "book"
    jsonschema.validate(json.loads(call.function.arguments), parameters)
    deltas = [
        part
        for chunk in caller.stub.StreamChat(request, timeout=60)
        for delta in chunk.choices
        for part in delta.tool_calls
    ]
    assert deltas[0].id
    assert [part.function.name for part in deltas if part.function.name] == ["book"]
    assert "".join(part.function.arguments for part in deltas) == call.function.arguments
    required = chat("go", tool_choice=pb.ToolChoice(mode="required"), n=3, parallel_tool_calls=False, **options)
    for choice in caller.stub.Chat(required, timeout=60).choices:
        assert choice.finish_reason == "tool_calls"
        assert len(choice.message.tool_calls) == 1
    none = chat("go", **{**options, "tool_choice": pb.ToolChoice(mode="none"), "max_tokens": 20})
    assert not caller.stub.Chat(none, timeout=60).choices[0].message.tool_calls


def test_a_classifier_tells_probabilities(tmp_path_factory: pytest.TempPathFactory) -> None:
    with twin(make_bundle(tmp_path_factory.mktemp("classes"), CLASSIFICATION)) as running:
        found = running.stub.Classify(pb.ClassifyRequest(input=["my card is gone", "x"]))
        assert list(found.labels) == list(CLASSIFICATION.labels)
        for item, expected in zip(found.data, running.rest.llm.classify(["my card is gone", "x"]), strict=True):
            probs = dict(zip(found.labels, item.probs, strict=True))
            assert probs == pytest.approx(expected, rel=1e-4)
            assert item.label == max(expected, key=lambda label: expected[label])
        assert found.usage.prompt_tokens == found.usage.total_tokens > 0
