# SPDX-License-Identifier: Apache-2.0
"""The other routes: texts continued, embeddings, labels, tokens, documents; held to OpenAI's document and to ours."""

import base64
import json
import math
from typing import Any

import httpx
import jsonschema
import numpy as np
import openai
import pytest

from open_autoglm.serve.routes.openapi_document import openapi_document
from tests.engine.tiny_bundle import CLASSIFICATION
from tests.serve.conftest import Running
from tests.serve.openai_document import check_openai

DOCUMENT = openapi_document()


def check_ours(name: str, body: Any) -> None:
    schema = {"components": DOCUMENT["components"], "$ref": f"#/components/schemas/{name}"}
    jsonschema.validate(body, schema, jsonschema.Draft202012Validator)


def post(running: Running, path: str, body: dict[str, Any], status: int = 200) -> Any:
    response = httpx.post(f"{running.url}{path}", json=body, timeout=60)
    assert response.status_code == status, response.text
    return response.json()


def complete(running: Running, prompt: Any, **options: Any) -> Any:
    return running.client().completions.create(model=running.llm.name, prompt=prompt, **options)


def plain(value: Any) -> Any:
    return json.loads(value.model_dump_json(exclude_unset=True))


def test_texts_and_token_ids_are_continued(talker: Running) -> None:
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 0, "extra_body": {"ignore_eos": True}}
    ids = post(talker, "/tokenize", {"prompt": "play the song"})["tokens"]
    one = complete(talker, "play the song", **options)
    check_openai("CreateCompletionResponse", plain(one))
    check_ours("Completion", plain(one))
    assert one.choices[0].finish_reason == "length"
    assert one.usage.completion_tokens == 12
    many = complete(talker, ["play the song", "book a table"], n=2, **options)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    assert many.choices[0].text == many.choices[1].text == one.choices[0].text
    assert many.usage.prompt_tokens == one.usage.prompt_tokens + len(
        post(talker, "/tokenize", {"prompt": "book a table"})["tokens"]
    )
    assert complete(talker, ids, **options).choices[0].text == one.choices[0].text
    assert complete(talker, [ids, ids[:4]], **options).choices[0].text == one.choices[0].text
    streamed = ["", ""]
    for chunk in complete(talker, ["play the song", "book a table"], stream=True, **options):
        check_ours("Completion", plain(chunk))
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == [many.choices[0].text, many.choices[2].text]
    assert complete(talker, "x", extra_body={"ignore_eos": True}).usage.completion_tokens == 16


def test_echo_best_of_and_the_older_logprobs(talker: Running) -> None:
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 1.0, "seed": 3, "extra_body": {"ignore_eos": True}}
    free = complete(talker, "hello", **options).choices[0].text
    assert complete(talker, "hello", echo=True, **options).choices[0].text == "hello" + free
    ids = post(talker, "/tokenize", {"prompt": "hello", "add_special_tokens": False})["tokens"]
    assert complete(talker, ids, echo=True, **options).choices[0].text.startswith("hello")
    chunks = list(complete(talker, "hello", echo=True, stream=True, stream_options={"include_usage": True}, **options))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == "hello" + free
    assert chunks[-1].usage.completion_tokens == 8
    found = complete(talker, "hello", logprobs=2, **options)
    check_openai("CreateCompletionResponse", plain(found))
    logprobs = found.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 8
    assert logprobs.text_offset[0] == 0
    assert all(2 <= len(top) <= 3 for top in logprobs.top_logprobs)
    assert all(top[token] == value for top, token, value in zip(
        logprobs.top_logprobs, logprobs.tokens, logprobs.token_logprobs, strict=True
    ))  # fmt: skip
    made = complete(talker, "hello", n=6, logprobs=0, **options).choices
    best = complete(talker, "hello", best_of=6, **options)
    means = [sum(choice.logprobs.token_logprobs) / 8 for choice in made]
    assert best.choices[0].text == made[means.index(max(means))].text
    assert best.choices[0].logprobs is None
    assert best.usage.completion_tokens == 48


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["x", 1]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [10**6]}, "prompt_token_ids"),
        ({"prompt": "x", "best_of": 1, "n": 2}, "best_of"),
        ({"prompt": "x", "best_of": 2, "stream": True}, "best_of"),
        ({"prompt": "x", "echo": True, "logprobs": 1}, "echo"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "messages": []}, "messages"),
        ({}, "prompt"),
    ],
    ids=str,
)
def test_bad_completions_name_the_field(talker: Running, body: dict[str, Any], field: str) -> None:
    error = post(talker, "/v1/completions", body, 400)
    check_openai("ErrorResponse", error)
    assert str(error["error"]["param"]).startswith(field)


def test_embeddings_in_both_encodings(talker: Running) -> None:
    client = talker.client()
    texts = ["play the song", "今天北京的天气"]
    found = client.embeddings.create(model="talker", input=texts, encoding_format="float")
    check_openai("CreateEmbeddingResponse", plain(found))
    check_ours("Embeddings", plain(found))
    rows = np.array([item.embedding for item in found.data])
    assert rows.shape == (2, 64)
    assert np.linalg.norm(rows, axis=1) == pytest.approx([1, 1])
    assert talker.llm.embed(texts) == pytest.approx(rows, abs=1e-5)
    decoded = client.embeddings.create(model="talker", input=texts)  # the client asks for base64 and decodes it
    assert np.array([item.embedding for item in decoded.data]) == pytest.approx(rows, abs=1e-6)
    raw = post(talker, "/v1/embeddings", {"input": texts[0], "encoding_format": "base64"})
    assert np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), "<f4") == pytest.approx(rows[0], abs=1e-6)
    ids = post(talker, "/tokenize", {"prompt": texts[0]})["tokens"]
    by_ids = post(talker, "/v1/embeddings", {"input": ids})
    assert by_ids["data"][0]["embedding"] == pytest.approx(rows[0], abs=1e-6)
    assert by_ids["usage"] == {"prompt_tokens": len(ids), "total_tokens": len(ids)}
    short = post(talker, "/v1/embeddings", {"input": [ids, ids], "dimensions": 8})
    assert [len(item["embedding"]) for item in short["data"]] == [8, 8]
    last = post(talker, "/v1/embeddings", {"input": texts, "pooling": "last", "normalize": False})
    expected = talker.llm.embed(texts, pooling="last", normalize=False)
    assert np.array([item["embedding"] for item in last["data"]]) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    wrong: list[dict[str, Any]] = [
        *({"input": given} for given in ("", [], [""], [[-1]], ["x"] * 2049, [10**6], 1)),
        {"input": "x", "dimensions": 65},
        {"input": "x", "pooling": "max"},
    ]
    for body in wrong:
        check_openai("ErrorResponse", post(talker, "/v1/embeddings", body, 400))


def test_labels_have_probabilities_and_other_models_none(classifier: Running, talker: Running) -> None:
    found = post(classifier, "/v1/classify", {"input": ["my card is gone", "x"]})
    check_ours("Classes", found)
    assert found["labels"] == list(CLASSIFICATION.labels)
    for item in found["data"]:
        assert math.fsum(item["probs"]) == pytest.approx(1)
        assert item["label"] == found["labels"][item["probs"].index(max(item["probs"]))]
    [expected] = classifier.llm.classify(["x"])
    assert dict(zip(found["labels"], found["data"][1]["probs"], strict=True)) == pytest.approx(expected, rel=1e-4)
    error = post(talker, "/v1/classify", {"input": "x"}, 400)
    assert "not a classifier" in error["error"]["message"]
    check_openai("ErrorResponse", error)
    check_openai("ErrorResponse", post(classifier, "/v1/classify", {"input": []}, 400))


def test_a_whole_number_may_be_written_with_a_point(talker: Running) -> None:
    body = {"prompt": "play", "max_tokens": 4.0, "n": 2.0, "seed": 3.0, "stop_token_ids": [1.0], "temperature": 1}
    whole = {name: int(value) if isinstance(value, float) else value for name, value in body.items()}
    answers = [post(talker, "/v1/completions", item)["choices"] for item in (body, {**whole, "stop_token_ids": [1]})]
    assert answers[0] == answers[1]
    ids = post(talker, "/tokenize", {"prompt": "play"})["tokens"]
    assert post(talker, "/detokenize", {"tokens": [float(item) for item in ids]})["prompt"].endswith("play")


def test_each_event_of_a_stream_is_as_the_document_says(talker: Running) -> None:
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]}),
        ("/v1/completions", {"prompt": "hello"}),
    ):
        events = DOCUMENT["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]["itemSchema"]
        done, chunk = events["properties"]["data"]["anyOf"]
        schema = {"components": DOCUMENT["components"], **chunk["contentSchema"]}
        options = {"stream": True, "max_tokens": 4, "ignore_eos": True}
        text = httpx.post(f"{talker.url}{path}", json={**body, **options}, timeout=60).text
        *chunks, last = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
        assert last == done["const"]
        assert len(chunks) > 2
        for item in chunks:
            jsonschema.validate(json.loads(item), schema, jsonschema.Draft202012Validator)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**json.loads(chunks[0]), "more": 1}, schema, jsonschema.Draft202012Validator)


def test_tokens_there_and_back(talker: Running) -> None:
    found = post(talker, "/tokenize", {"prompt": "play <|user|> 天气", "return_token_strs": True})
    check_ours("Tokens", found)
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert found["token_strs"][:2] == ["[gMASK]", "<sop>"]
    assert "<|user|>" not in found["token_strs"]
    assert found["max_model_len"] == 256
    without = post(talker, "/tokenize", {"prompt": "play <|user|> 天气", "add_special_tokens": False})
    assert without["tokens"] == found["tokens"][2:]
    assert without["token_strs"] is None
    assert post(talker, "/detokenize", {"tokens": without["tokens"]}) == {"prompt": "play <|user|> 天气"}
    messages = [{"role": "user", "content": "hi"}]
    laid = post(talker, "/tokenize", {"messages": messages, "return_token_strs": True})
    assert laid["token_strs"][-1] == "<|assistant|>"
    bare = post(talker, "/tokenize", {"messages": messages, "add_generation_prompt": False})
    assert bare["tokens"] == laid["tokens"][:-1]
    tools = [{"type": "function", "function": {"name": "ping"}}]
    assert post(talker, "/tokenize", {"messages": messages, "tools": tools})["count"] > laid["count"]
    for body in ({}, {"prompt": "x", "messages": messages}, {"prompt": "x", "tools": tools}, {"messages": []}):
        check_openai("ErrorResponse", post(talker, "/tokenize", body, 400))
    check_openai("ErrorResponse", post(talker, "/detokenize", {"tokens": [10**6]}, 400))


def test_what_official_clients_send_by_habit_is_taken_or_told(talker: Running) -> None:
    create = talker.client().chat.completions.create
    asked: dict[str, Any] = {"model": "talker", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    answer = create(**asked, store=False, metadata={"run": "7"}, service_tier="auto", user="u", modalities=["text"])
    assert answer.metadata == {"run": "7"}
    check_openai("CreateChatCompletionResponse", plain(answer))
    for options in (
        {"store": True}, {"service_tier": "flex"}, {"modalities": ["audio"]}, {"verbosity": "high"},
        {"prediction": {"type": "content", "content": "x"}}, {"metadata": {"a": 1}}, {"prompt_cache_key": "x"},
        {"stream": True, "stream_options": {"include_obfuscation": True}},
    ):  # fmt: skip
        with pytest.raises(openai.BadRequestError) as caught:
            create(**{**asked, **options})
        assert caught.value.param.split(".")[0].split("[")[0] in options


def test_documents_are_whole_and_public_pages_load_nothing_else(talker: Running) -> None:
    document = httpx.get(f"{talker.url}/openapi.json").json()
    assert document["openapi"] == "3.2.0"
    for path, name in (("/v1/models", "Models"), ("/health", "Health"), ("/ready", "Readiness")):
        check_ours(name, httpx.get(f"{talker.url}{path}").json())
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    page = httpx.get(f"{talker.url}/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "/v1/chat/completions" in page.text
    assert "src=" not in page.text
    assert "http" not in page.text.replace("http-equiv", "").split("<body>")[0]


def test_every_fault_has_openais_shape_on_every_route(talker: Running) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/classify", "/tokenize"):
        for method in ("GET", "PUT", "DELETE", "OPTIONS"):
            response = httpx.request(method, f"{talker.url}{path}")
            assert response.status_code == 405
            assert response.headers["allow"] == "POST"
            check_openai("ErrorResponse", response.json())
        check_openai("ErrorResponse", post(talker, path, {"nonsense": 1}, 400))
    for path in ("/v1/models", "/health", "/docs", "/openapi.json", "/v1/models/talker"):
        head = httpx.head(f"{talker.url}{path}")
        assert head.status_code == 200
        assert not head.content
    assert httpx.head(f"{talker.url}/v1/nothing").status_code == 404
    check_openai("ErrorResponse", httpx.get(f"{talker.url}/v1/models/other").json())
    check_openai("ListModelsResponse", httpx.get(f"{talker.url}/v1/models").json())
    check_openai("Model", httpx.get(f"{talker.url}/v1/models/talker").json())
