# SPDX-License-Identifier: Apache-2.0
"""The official `openai` client against a real server."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from open_autoglm.engine import LLM
from tests.engine.tiny_bundle import CLASSIFICATION, LINES
from tests.serve.conftest import Running


def ask(running: Running, text: str = "hello", **options: Any) -> Any:
    messages = options.pop("messages", [{"role": "user", "content": text}])
    return running.client().chat.completions.create(
        model=options.pop("model", running.llm.name), messages=messages, **options
    )


def test_an_answer_is_the_tasks_json_by_default_and_equals_the_python_face(
    extractor: Running, extraction_bundle: Path
) -> None:
    for line in LINES:
        answer = ask(extractor, line)
        choice = answer.choices[0]
        value = json.loads(choice.message.content)
        assert list(value) == ["intent", "slots"]
        assert all(copied in line for copied in value["slots"].values())
        assert choice.finish_reason == "stop"
        assert choice.message.role == "assistant"
        assert choice.logprobs is None
        assert answer.object == "chat.completion"
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    over_http = [ask(extractor, line).choices[0].message.content for line in LINES]
    streamed = [
        "".join(chunk.choices[0].delta.content or "" for chunk in ask(extractor, line, stream=True)) for line in LINES
    ]
    assert streamed == over_http
    with LLM(extraction_bundle) as llm:
        assert [completion.text for completion in llm.chat(LINES)] == over_http


def test_a_stream_has_the_same_text_a_role_an_end_and_usage(talker: Running) -> None:
    options: dict[str, Any] = {"max_tokens": 60, "temperature": 1.0, "seed": 5, "extra_body": {"ignore_eos": True}}
    whole = ask(talker, "今天天气", **options)
    chunks = list(ask(talker, "今天天气", stream=True, stream_options={"include_usage": True}, **options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert chunks[-1].usage.completion_tokens == 60
    assert len({chunk.id for chunk in chunks}) == 1


def test_several_choices_differ_by_seed_and_come_again(talker: Running) -> None:
    options: dict[str, Any] = {"n": 4, "temperature": 1.5, "seed": 11, "max_tokens": 20}
    first, again = ask(talker, **options), ask(talker, **options)
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2, 3]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) > 1
    streamed = ["", "", "", ""]
    for chunk in ask(talker, stream=True, **options):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts
    assert first.usage.prompt_tokens == ask(talker, max_tokens=1).usage.prompt_tokens


def test_logprobs_belong_to_the_text(talker: Running) -> None:
    options: dict[str, Any] = {"max_tokens": 30, "logprobs": True, "top_logprobs": 3}
    choice = ask(talker, **options).choices[0]
    assert choice.logprobs is not None
    tokens = choice.logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode(errors="replace") == choice.message.content
    for token in tokens:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob), "greedy takes the likeliest"
        assert sum(math.exp(other.logprob) for other in token.top_logprobs) <= 1 + 1e-6
    chunks = list(ask(talker, stream=True, **options))
    streamed = [token for chunk in chunks if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content]
    assert [token.bytes for token in streamed] == [token.bytes for token in tokens]


class Person(BaseModel):
    kind: Literal["child", "adult"]
    tags: list[Literal["x", "y"]]


def test_json_schema_is_parsed_by_pydantic(talker: Running) -> None:
    parsed = talker.client().chat.completions.parse(
        model="talker", messages=[{"role": "user", "content": "who"}], response_format=Person, temperature=1.0, seed=2
    )
    assert isinstance(parsed.choices[0].message.parsed, Person)
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    assert ask(talker, response_format=wanted).choices[0].message.content == '{"a": 1}'


@pytest.mark.parametrize(
    ("body", "allowed"),
    [
        ({"guided_choice": ["left", "right", "中间"]}, {"left", "right", "中间"}),
        ({"guided_regex": "(yes|no), sir"}, {"yes, sir", "no, sir"}),
        ({"guided_grammar": 'root ::= "up" | "down"'}, {"up", "down"}),
        ({"guided_substring": "left right"}, {"left", "right", "left right", " right"}),
        ({"guided_json": {"enum": ["a", 1]}}, {'"a"', "1"}),
        ({"guided_json": '{"const": [1, null]}'}, {"[1, null]"}),
        ({"guided_grammar": 'start: "a" ("b" | "c")'}, {"ab", "ac"}),
    ],
)
def test_guides_of_the_extra_body(talker: Running, body: dict[str, Any], allowed: set[str]) -> None:
    found = {
        choice.message.content
        for seed in range(3)
        for choice in ask(talker, n=8, max_tokens=20, temperature=2.0, seed=seed * 100, extra_body=body).choices
    }
    assert found <= allowed


def test_a_classifier_gives_labels_and_text_frees_it(classifier: Running) -> None:
    answer = ask(classifier, "x", temperature=2.0, n=8)
    assert {choice.message.content for choice in answer.choices} <= set(CLASSIFICATION.labels)
    free = ask(classifier, "x", max_tokens=5, response_format={"type": "text"}, extra_body={"ignore_eos": True})
    assert free.usage.completion_tokens == 5


def test_stop_strings_and_sampling_fields_arrive(talker: Running) -> None:
    free = ask(talker, max_tokens=40, extra_body={"ignore_eos": True}).choices[0].message.content
    stop = free[3:6]
    ended = ask(talker, max_tokens=40, stop=[stop, "never in it"], extra_body={"ignore_eos": True})
    assert ended.choices[0].message.content == free[: free.index(stop)]
    assert ended.choices[0].finish_reason == "stop"
    chunks = ask(talker, max_tokens=40, stop=stop, stream=True, extra_body={"ignore_eos": True})
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == free[: free.index(stop)]
    only = ask(talker, max_tokens=40, temperature=2.0, extra_body={"top_k": 1, "ignore_eos": True})
    assert only.choices[0].message.content == free
    only = ask(talker, max_tokens=40, temperature=2.0, top_p=0.0, extra_body={"ignore_eos": True})
    assert only.choices[0].message.content == free
    other = ask(talker, max_tokens=40, extra_body={"ignore_eos": True, "repetition_penalty": 5.0})
    assert other.choices[0].message.content != free
    assert ask(talker, max_completion_tokens=3, extra_body={"ignore_eos": True}).usage.completion_tokens == 3


def test_messages_in_all_their_shapes(talker: Running) -> None:
    plain = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello there"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "more"},
    ]
    parts = [
        {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]},
        {"role": "user", "content": [{"type": "text", "text": "hello there"}]},
        {"role": "assistant", "content": "hi", "refusal": None, "tool_calls": None, "annotations": None},
        {"role": "user", "content": "more"},
    ]
    expected = ask(talker, messages=plain, max_tokens=10)
    found = ask(talker, messages=parts, max_tokens=10, user="somebody")
    assert found.choices[0].message.content == expected.choices[0].message.content
    assert found.usage.total_tokens == expected.usage.total_tokens


def test_models_and_health(talker: Running) -> None:
    models = talker.client().models
    assert [model.id for model in models.list()] == ["talker"]
    assert models.retrieve("talker").owned_by == "open-autoglm"
    with pytest.raises(openai.NotFoundError):
        models.retrieve("other")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 1_000_000_000}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"n": 8, "max_tokens": 200}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"seed": 2**70}, "seed"),
        ({"presence_penalty": 9}, "presence_penalty"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}},
            "response_format.json_schema.schema",
        ),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"extra_body": {"guided_substring": " "}}, "guided_substring"),
        ({"extra_body": {"top_k": -5}}, "top_k"),
        ({"extra_body": {"top_k": "many"}}, "top_k"),
        ({"extra_body": {"top_k": 1.5}}, "top_k"),
        ({"extra_body": {"repetition_penalty": 1e-40}}, "repetition_penalty"),
        ({"extra_body": {"guided_regex": "(a"}}, "guided_regex"),
        ({"extra_body": {"guided_choice": []}}, "guided_choice"),
        ({"extra_body": {"guided_choice": ["a"], "guided_regex": "b"}}, "guided_choice"),
        ({"extra_body": {"chat_template_kwargs": {"tokenize": False}}}, "chat_template_kwargs.tokenize"),
        ({"extra_body": {"best_of": 2}}, "best_of"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "name": "me"}]}, "messages[0].name"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254"}}]}
                ]
            },
            "messages[0].content",
        ),
    ],
)
def test_faults_are_bad_requests_that_name_the_field(talker: Running, options: dict[str, Any], field: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(talker, **options)
    assert caught.value.param == field
    assert caught.value.type == "invalid_request_error"
    assert not talker.model.num_open


def test_an_unknown_model_is_not_found_and_a_long_prompt_says_the_numbers(talker: Running) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        ask(talker, model="gpt-9")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match=r"\d+ tokens and the context is 256"):
        ask(talker, "龘" * 200)
    with pytest.raises(openai.BadRequestError, match=r"at least \d+ tokens and the context is 256"):
        ask(talker, "x" * 20_000)


def test_many_clients_at_once_get_what_each_gets_alone(extractor: Running) -> None:
    expected = {line: ask(extractor, line).choices[0].message.content for line in LINES}
    with ThreadPoolExecutor(16) as pool:
        jobs = [(line, pool.submit(ask, extractor, line)) for line in LINES * 6]
        for line, job in jobs:
            assert job.result().choices[0].message.content == expected[line]
    extractor.wait_until_idle()
