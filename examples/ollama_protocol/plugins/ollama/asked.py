# SPDX-License-Identifier: Apache-2.0
"""From the body of an Ollama request to the body of a chat completion; what has no counterpart is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

_OPTIONS: Final = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "seed": "seed",
    "stop": "stop",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
"""Ollama's names of options, and the chat route's."""
_OPERATORS: Final = frozenset(
    (
        *("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "numa", "low_vram", "f16_kv"),
        *("use_mmap", "use_mlock", "vocab_only"),
    )
)
"""Options about how a model is run, which the operator of a server has decided: taken and not used."""
_SHARED: Final = frozenset(("model", "stream", "format", "options", "keep_alive", "think"))
_CHAT: Final = _SHARED | {"messages", "tools"}
_GENERATE: Final = _SHARED | {"prompt", "system"}
_MESSAGE: Final = frozenset(("role", "content", "thinking", "tool_calls", "tool_name", "tool_call_id"))


class AskedError(ValueError):
    """A body that is no request of Ollama's, or asks for what is not done here."""


def json_body(body: bytes) -> dict[str, Any]:
    """The JSON object of a request. Raises AskedError."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise AskedError(f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise AskedError("the body must be a JSON object")
    if not isinstance(value.get("model"), str) or not value["model"]:
        raise AskedError("model is required, and a text")
    if not isinstance(value.get("stream", True), bool | None):
        raise AskedError("stream must be true or false")
    return value


def chat_of_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """The chat completion that `/api/chat` asks for. Raises AskedError."""
    _only(body, _CHAT)
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(one, Mapping) for one in messages):
        raise AskedError("messages must be a list of messages")
    tools = body.get("tools")
    return {**_shared(body), "messages": _messages(messages), **({"tools": tools} if tools else {})}


def chat_of_generate(body: Mapping[str, Any]) -> dict[str, Any]:
    """The chat completion that `/api/generate` asks for: a prompt of a user. Raises AskedError."""
    _only(body, _GENERATE)
    messages = [{"role": "user", "content": body.get("prompt") or ""}]
    if body.get("system"):
        messages.insert(0, {"role": "system", "content": body["system"]})
    return {**_shared(body), "messages": messages}


def is_streamed(body: Mapping[str, Any]) -> bool:
    """Whether the answer is wanted as lines: unless it is said otherwise."""
    return body.get("stream") is not False


def _only(body: Mapping[str, Any], known: frozenset[str]) -> None:
    """Clients send empty values for what they do not mean."""
    for name, value in body.items():
        if name not in known and value not in (None, False, "", [], {}):
            raise AskedError(f"{name[:64]} is not supported here; leave it out")


def _shared(body: Mapping[str, Any]) -> dict[str, Any]:
    asked: dict[str, Any] = {"model": body["model"], **_sampling(body.get("options"))}
    form = body.get("format")
    if form == "json":
        asked["response_format"] = {"type": "json_object"}
    elif isinstance(form, Mapping) and form:
        asked["response_format"] = {"type": "json_schema", "json_schema": {"name": "format", "schema": form}}
    elif form:
        raise AskedError("format must be 'json' or a JSON schema")
    think = body.get("think")
    if isinstance(think, bool):
        asked["chat_template_kwargs"] = {"enable_thinking": think}
    elif think is not None:
        asked["reasoning_effort"] = think
    if is_streamed(body):
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
    return asked


def _sampling(options: Any) -> dict[str, Any]:
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise AskedError("options must be an object")
    asked: dict[str, Any] = {}
    for name, value in options.items():
        if value is None or name in _OPERATORS:
            continue
        if name == "num_predict":
            if value not in (-1, -2):  # as much as fits, which is what the chat route does where nothing is said
                asked["max_tokens"] = value
        elif name in _OPTIONS:
            asked[_OPTIONS[name]] = value
        else:
            raise AskedError(f"the option {name[:64]} is not supported here; leave it out")
    return asked


def _messages(messages: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Ollama's clients name calls by their function; the chat route wants ids, so each call gets one."""
    found: list[dict[str, Any]] = []
    waiting: list[tuple[str, str]] = []
    for index, message in enumerate(messages):
        place = f"messages[{index}]"
        for name, value in message.items():
            if name not in _MESSAGE and value not in (None, "", []):
                reason = "the model reads text only" if name == "images" else "it is not supported here"
                raise AskedError(f"{place}.{name[:64]}: {reason}; leave it out")
        made: dict[str, Any] = {"role": message.get("role"), "content": message.get("content") or ""}
        if message.get("thinking"):
            made["reasoning_content"] = message["thinking"]
        if calls := message.get("tool_calls"):
            made["tool_calls"] = [_call(call, f"{place}.tool_calls") for call in calls]
            for call in made["tool_calls"]:
                call["id"] = call["id"] or f"call_{len(found)}_{len(waiting)}"
                waiting.append((call["function"]["name"], call["id"]))
        if message.get("role") == "tool":
            known = message.get("tool_call_id") or _answered(message.get("tool_name"), waiting)
            if known is not None:
                made["tool_call_id"] = known
        found.append(made)
    return found


def _call(call: Any, place: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise AskedError(f"{place}: each call has a function with a name and arguments")
    arguments = function.get("arguments") or {}
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"id": call.get("id"), "type": "function", "function": {"name": function["name"], "arguments": text}}


def _answered(name: str | None, waiting: list[tuple[str, str]]) -> str | None:
    """The id of the earliest call, of the function if one is named, that has no answer yet."""
    for number, (function, call_id) in enumerate(waiting):
        if name in (None, "", function):
            del waiting[number]
            return call_id
    return None
