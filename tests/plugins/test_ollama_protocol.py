# SPDX-License-Identifier: Apache-2.0
"""The example of a protocol plugin: Ollama's official client against a real server with a key."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import ollama
import pytest

from open_autoglm.errors import ConfigurationError
from open_autoglm.plugins.discovery import plugin_in
from open_autoglm.plugins.loading import DirectLoader
from open_autoglm.plugins.probe import probe
from open_autoglm.plugins.registry import PluginRegistry
from open_autoglm.version import __version__
from tests.engine.tiny_bundle import DIALOGUE, make_bundle
from tests.serve import process_tools
from tests.serve.process_tools import server, wait_until

PLUGIN = Path(__file__).parents[2] / "examples" / "ollama_protocol" / "plugins" / "ollama"
KEY = "key-for-tests"
FORCED = '''
from .ollama_protocol import OllamaProtocol


class Forced(OllamaProtocol):
    """A random model calls no tool by itself; Ollama has no word for making it."""

    def answer(self, request, chat):
        return super().answer(request, lambda body: chat({**body, "tool_choice": "required"}))
'''
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "北京"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Forecast of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Paris", "北京"]},
                "days": {"type": "integer", "enum": [1, 2, 3]},
            },
            "required": ["city", "days"],
        },
    },
}
"""Ollama's client sends no other keywords of a tool's JSON schema."""
HELLO = [{"role": "user", "content": "hello"}]
DRAWN = {"temperature": 1.0, "seed": 3, "num_predict": 40, "num_ctx": 512}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[process_tools.Server]:
    home = tmp_path_factory.mktemp("home")
    bundle = make_bundle(home / "model", DIALOGUE, name="talker", max_position_embeddings=2048)
    shutil.copytree(PLUGIN, home / "plugins" / "ollama")
    forced = home / "plugins" / "forced"
    shutil.copytree(PLUGIN, forced)
    (forced / "forced.py").write_text(FORCED)
    (forced / "plugin.yaml").write_text("name: forced\nkind: protocol\nversion: '1'\nentry: forced:Forced\n")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("OPEN_AUTOGLM_CONFIG", "config"), ("OPEN_AUTOGLM_CACHE", "cache")):
            patch.setenv(name, str(home / value))
            patch.setitem(process_tools.ENVIRONMENT, name, str(home / value))
        patch.chdir(home)
        for name in ("ollama", "forced"):
            PluginRegistry().enable(name)
        flags = ("--protocol", "ollama", "--protocol", "forced", "--api-key", KEY, "--threads", "1")
        with server(bundle, *flags, cwd=home) as found:
            yield found


def connect(running: process_tools.Server, protocol: str = "ollama", key: str = KEY) -> ollama.Client:
    headers = {"Authorization": f"Bearer {key}"}
    return ollama.Client(host=f"http://127.0.0.1:{running.port}/{protocol}", headers=headers, timeout=60)


def completion(running: process_tools.Server, messages: Any, **fields: Any) -> Any:
    body = {"messages": messages, "max_tokens": 40, "temperature": 1.0, "seed": 3, **fields}
    headers = {"Authorization": f"Bearer {KEY}"}
    found = httpx.post(f"{running.url}/chat/completions", json=body, headers=headers, timeout=60)
    assert found.status_code == 200, found.text
    return found.json()


def get(running: process_tools.Server, path: str) -> Any:
    return httpx.get(f"http://127.0.0.1:{running.port}{path}", headers={"Authorization": f"Bearer {KEY}"})


def test_check_finds_nothing_wrong() -> None:
    result = probe(plugin_in(PLUGIN), behaviour=True)
    assert (result.fault, result.tried) == (None, ("gives answers of the right form", "asks the model"))


def test_the_client_chats_whole_and_streamed(running: process_tools.Server) -> None:
    expected = completion(running, HELLO)
    said = expected["choices"][0]["message"]["content"]
    client = connect(running)
    whole = client.chat("talker", HELLO, options=DRAWN)
    assert (whole.message.role, whole.message.content, whole.model, whole.done) == ("assistant", said, "talker", True)
    assert whole.done_reason == expected["choices"][0]["finish_reason"]
    assert (whole.prompt_eval_count, whole.eval_count) == (
        expected["usage"]["prompt_tokens"], expected["usage"]["completion_tokens"]
    )  # fmt: skip
    assert (whole.total_duration or 0) > 0
    parts = list(client.chat("talker", HELLO, stream=True, options=DRAWN))
    assert "".join(part.message.content or "" for part in parts) == said
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count == whole.eval_count


def test_the_client_generates(running: process_tools.Server) -> None:
    messages = [{"role": "system", "content": "be short"}, *HELLO]
    said = completion(running, messages)["choices"][0]["message"]["content"]
    client = connect(running)
    assert client.generate("talker", "hello", system="be short", options=DRAWN).response == said
    parts = list(client.generate("talker", "hello", system="be short", options=DRAWN, stream=True))
    assert "".join(part.response or "" for part in parts) == said
    assert parts[-1].done


def test_a_schema_holds(running: process_tools.Server) -> None:
    client = connect(running)
    for seed in range(3):
        whole = client.chat("talker", HELLO, format=SCHEMA, options={"seed": seed, "temperature": 1.5})
        jsonschema.validate(json.loads(whole.message.content or ""), SCHEMA)


def test_tools_are_called_and_their_results_taken(running: process_tools.Server) -> None:
    client = connect(running, "forced")
    options = {**DRAWN, "num_predict": 400}
    whole = client.chat("talker", HELLO, tools=[TOOL], options=options)
    parts = list(client.chat("talker", HELLO, tools=[TOOL], options=options, stream=True))
    calls = whole.message.tool_calls or []
    assert calls
    for call in calls:
        assert call.function.name == "weather"
        jsonschema.validate(dict(call.function.arguments), TOOL["function"]["parameters"])
    streamed = [call for part in parts for call in part.message.tool_calls or ()]
    assert [call.function for call in streamed] == [call.function for call in calls]
    assert parts[-1].done_reason == whole.done_reason == "stop"
    results = [{"role": "tool", "tool_name": "weather", "content": "rain"} for _ in calls]
    answer = connect(running).chat("talker", [*HELLO, whole.message, *results], tools=[TOOL], options=DRAWN)
    assert answer.done


def test_models_and_the_version_are_told(running: process_tools.Server) -> None:
    assert [model.model for model in connect(running).list().models] == ["talker"]
    assert get(running, "/ollama/api/version").json() == {"version": __version__}
    assert get(running, "/ollama").text == get(running, "/ollama/").text == "Ollama is running"
    assert get(running, "/ollama/api/ps").json() == {"error": "there is nothing at /api/ps here"}
    assert get(running, "/ollama/api/chat").headers["allow"] == "POST"


def test_what_is_wrong_is_said_as_the_client_reads_it(running: process_tools.Server) -> None:
    client = connect(running)
    with pytest.raises(ollama.ResponseError, match="there is no model 'tolker' here; did you mean 'talker'") as caught:
        client.chat("tolker", HELLO)
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="no model 'tolker'") as caught:
        list(client.generate("tolker", "hello", stream=True))
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="the option mirostat is not supported") as caught:
        client.chat("talker", HELLO, options={"mirostat": 2})
    assert caught.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match=r"messages\[0\].images: the model reads text only"):
        client.chat("talker", [{**HELLO[0], "images": [b"\x89PNG"]}])
    with pytest.raises(ollama.ResponseError, match="suffix is not supported"):
        client.generate("talker", "a", suffix="b")
    with pytest.raises(ollama.ResponseError, match="temperature"):
        client.chat("talker", HELLO, options={"temperature": -1})
    for key in ("wrong", KEY[:-1]):
        with pytest.raises(ollama.ResponseError) as caught:
            connect(running, key=key).list()
        assert caught.value.status_code == 401


def test_a_client_that_leaves_frees_the_model(running: process_tools.Server) -> None:
    parts = connect(running).chat("talker", HELLO, stream=True, options={"num_predict": 1500})
    assert next(iter(parts)).message.content
    parts.close()  # pyright: ignore[reportAttributeAccessIssue] - it is a generator
    wait_until(lambda: (health := get(running, "/health").json())["running"] == 0
               and health["kv_blocks"]["free"] == health["kv_blocks"]["total"])  # fmt: skip


def test_ollamas_words_become_the_chat_routes() -> None:
    plugin: Any = DirectLoader().load(plugin_in(PLUGIN))()
    asked: list[dict[str, Any]] = []

    def chat(body: dict[str, Any]) -> Any:
        asked.append(body)
        raise ConfigurationError("enough")

    call = {"function": {"name": "weather", "arguments": {"city": "北京"}}}
    body = {
        "model": "m", "stream": False, "format": "json", "keep_alive": "5m", "think": False, "raw": False,
        "options": {"num_predict": -1, "top_k": 3, "repeat_penalty": 1.1, "stop": ["a"], "num_gpu": 1, "seed": None},
        "messages": [
            {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [call, call]},
            {"role": "tool", "tool_name": "weather", "content": "rain"},
            {"role": "tool", "tool_name": "weather", "content": "sun"},
        ],
    }  # fmt: skip
    request = {"method": "POST", "path": "/api/chat", "query": {}, "headers": {}, "body": json.dumps(body).encode()}
    with pytest.raises(ConfigurationError, match="enough"):
        plugin.answer(request, chat)
    function = {"name": "weather", "arguments": '{"city": "北京"}'}
    assert asked == [
        {
            "model": "m", "top_k": 3, "repetition_penalty": 1.1, "stop": ["a"],
            "response_format": {"type": "json_object"}, "chat_template_kwargs": {"enable_thinking": False},
            "messages": [
                {
                    "role": "assistant", "content": "", "reasoning_content": "hm",
                    "tool_calls": [{"id": f"call_0_{n}", "type": "function", "function": function} for n in (0, 1)],
                },
                {"role": "tool", "content": "rain", "tool_call_id": "call_0_0"},
                {"role": "tool", "content": "sun", "tool_call_id": "call_0_1"},
            ],
        }
    ]  # fmt: skip
    for text, words in ((b"[]", "JSON object"), (b"{", "not valid JSON"), (b"{}", "model is required")):
        found = plugin.answer({**request, "body": text}, chat)
        assert (found["status"], words in found["body"]) == (400, True)
