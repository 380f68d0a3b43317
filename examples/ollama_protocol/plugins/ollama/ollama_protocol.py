# SPDX-License-Identifier: Apache-2.0
"""Ollama's HTTP API over a served model: `/api/chat`, `/api/generate`, `/api/tags` and `/api/version`.

Source of the API: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

import contextlib
import datetime
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from open_autoglm.serve.error_shape import HttpError
from open_autoglm.version import __version__

from .asked import AskedError, chat_of_chat, chat_of_generate, is_streamed, json_body

_LINES: Final = "application/x-ndjson"
_ALLOWED: Final = {
    "/": ("GET", "HEAD"),
    "/api/tags": ("GET", "HEAD"),
    "/api/version": ("GET", "HEAD"),
    "/api/chat": ("POST",),
    "/api/generate": ("POST",),
}

Part = Callable[[dict[str, Any]], dict[str, Any]]
"""From `content`, `thinking` and `tool_calls` to the fields in which a route has them."""


class OllamaProtocol:
    """The plugin: a request in, an answer in Ollama's shape out."""

    def answer(self, request: Mapping[str, Any], chat: Any) -> dict[str, Any]:
        """See `open_autoglm.plugins.interfaces.ProtocolPlugin`."""
        path, method = request["path"].rstrip("/") or "/", request["method"]
        allowed = _ALLOWED.get(path)
        if allowed is None:
            return _error(404, f"there is nothing at {path} here")
        if method not in allowed:
            return {**_error(405, f"{method} is not a method of {path}"), "headers": {"allow": ", ".join(allowed)}}
        try:
            if path == "/":
                return {"content_type": "text/plain; charset=utf-8", "body": "Ollama is running"}
            if path == "/api/version":
                return _json({"version": __version__})
            if path == "/api/tags":
                return _json({"models": [{"name": name, "model": name} for name in chat.models()]})
            if path == "/api/chat":
                return self._completion(request["body"], chat, chat_of_chat, _as_message)
            return self._completion(request["body"], chat, chat_of_generate, _as_response)
        except AskedError as error:
            return _error(400, str(error))
        except HttpError as error:
            told = {name: value for name, value in error.headers.items() if name.lower() == "retry-after"}
            return {**_error(error.status, str(error)), "headers": told}

    def _completion(self, data: bytes, chat: Any, read: Callable[[Mapping[str, Any]], Any], part: Part) -> Any:
        began = time.monotonic_ns()
        body = json_body(data)
        answer = chat(read(body))
        if is_streamed(body):
            return {"content_type": _LINES, "body": _lines(body["model"], answer, part, began)}
        [choice] = answer["choices"]
        message = choice["message"]
        said = {
            "content": message.get("content") or "",
            "thinking": message.get("reasoning_content"),
            "tool_calls": _calls(message.get("tool_calls") or ()),
        }
        return _json({**_head(body["model"]), **part(said), **_end(choice["finish_reason"], answer["usage"], began)})


def _lines(model: str, chunks: Any, part: Part, began: int) -> Iterator[str]:
    """A line of JSON for each piece of an answer. Calls come whole, as Ollama's clients expect them."""
    calls: dict[int, dict[str, Any]] = {}
    usage: Mapping[str, int] = {}
    reason = "stop"
    try:
        for chunk in chunks:
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                delta = choice["delta"]
                reason = choice["finish_reason"] or reason
                for piece in delta.get("tool_calls") or ():
                    call = calls.setdefault(piece["index"], {"id": "", "function": {"name": "", "arguments": ""}})
                    call["id"] += piece.get("id") or ""
                    call["function"]["name"] += piece["function"].get("name") or ""
                    call["function"]["arguments"] += piece["function"].get("arguments") or ""
                said = {"content": delta.get("content") or "", "thinking": delta.get("reasoning_content")}
                if said["content"] or said["thinking"]:
                    yield _line({**_head(model), **part(said), "done": False})
    except HttpError as error:
        yield _line({"error": str(error)})
        return
    finally:
        chunks.close()
    if whole := _calls(calls[number] for number in sorted(calls)):
        yield _line({**_head(model), **part({"content": "", "tool_calls": whole}), "done": False})
    yield _line({**_head(model), **part({"content": ""}), **_end(reason, usage, began)})


def _as_message(said: dict[str, Any]) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": said["content"], **_beside(said)}}


def _as_response(said: dict[str, Any]) -> dict[str, Any]:
    return {"response": said["content"], **_beside(said)}


def _beside(said: dict[str, Any]) -> dict[str, Any]:
    return {name: said[name] for name in ("thinking", "tool_calls") if said.get(name)}


def _calls(calls: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Calls, their arguments as objects. One that max tokens cut off is no call, and `done_reason` says `length`."""
    found: list[dict[str, Any]] = []
    for call in calls:
        function = call["function"]
        with contextlib.suppress(ValueError):
            arguments = json.loads(function["arguments"] or "{}")
            found.append({"id": call["id"], "function": {"name": function["name"], "arguments": arguments}})
    return found


def _head(model: str) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC)
    return {"model": model, "created_at": now.isoformat().replace("+00:00", "Z")}


def _end(reason: str, usage: Mapping[str, int], began: int) -> dict[str, Any]:
    """What the last part says. Durations but for the whole are not known here, and left out."""
    return {
        "done": True,
        "done_reason": "length" if reason == "length" else "stop",
        "total_duration": time.monotonic_ns() - began,
        "prompt_eval_count": usage.get("prompt_tokens", 0),
        "eval_count": usage.get("completion_tokens", 0),
    }


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _json(value: Mapping[str, Any], status: int = 200) -> dict[str, Any]:
    return {"status": status, "body": json.dumps(value, ensure_ascii=False)}


def _error(status: int, message: str) -> dict[str, Any]:
    return _json({"error": message}, status)
