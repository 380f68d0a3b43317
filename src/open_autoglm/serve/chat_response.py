# SPDX-License-Identifier: Apache-2.0
"""Completions and deltas in the shapes of OpenAI's chat completions API."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from open_autoglm.engine.detokenizer import Vocabulary
from open_autoglm.engine.request import Completion, Delta, TokenLogprob
from open_autoglm.errors import EngineError


class ChatResponseWriter:
    """The answer to one request: a whole `chat.completion`, or its stream of chunks."""

    def __init__(self, model: str, vocabulary: Vocabulary, *, logprobs: bool) -> None:
        self._vocabulary, self._logprobs = vocabulary, logprobs
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """The body of an answer that is not streamed. Raises EngineError if a choice failed."""
        choices: list[dict[str, Any]] = []
        for index, completion in enumerate(completions):
            check_finished(completion)
            choices.append(
                {
                    "index": index,
                    "message": {"role": "assistant", "content": completion.text, "refusal": None},
                    "logprobs": self._logprobs_of(completion.logprobs or ()),
                    "finish_reason": completion.finish_reason,
                }
            )
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": usage(completions)}

    def first_chunk(self, index: int, *, with_usage: bool) -> str:
        """The event that opens a choice."""
        return self._chunk(index, {"role": "assistant", "content": ""}, None, (), with_usage=with_usage)

    def chunks(self, index: int, delta: Delta, *, with_usage: bool) -> str:
        """The events of one delta: its text, if any, and its end. Raises EngineError if the choice failed."""
        events = ""
        if delta.text or (self._logprobs and delta.logprobs):
            events += self._chunk(index, {"content": delta.text}, None, delta.logprobs, with_usage=with_usage)
        if delta.completion is not None:
            check_finished(delta.completion)
            events += self._chunk(index, {}, delta.completion.finish_reason, (), with_usage=with_usage)
        return events

    def usage_chunk(self, completions: Sequence[Completion]) -> str:
        """The event with the token counts, after the last choice's end."""
        return event({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage(completions)})

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        finish_reason: str | None,
        logprobs: Sequence[TokenLogprob],
        *,
        with_usage: bool,
    ) -> str:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs_of(logprobs) if logprobs else None,
            "finish_reason": finish_reason,
        }
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": [choice]}
        return event({**chunk, "usage": None} if with_usage else chunk)

    def _logprobs_of(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        content = [
            {
                **self._token(item.token_id, item.logprob),
                "top_logprobs": [self._token(token_id, logprob) for token_id, logprob in item.top],
            }
            for item in logprobs
            if self._vocabulary.bytes_of(item.token_id)  # a stop token is no part of the content
        ]
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        written = self._vocabulary.bytes_of(token_id)
        return {"token": written.decode(errors="replace"), "logprob": logprob, "bytes": list(written)}


def usage(completions: Sequence[Completion]) -> dict[str, int]:
    """Token counts of all choices; the prompt counts once."""
    prompt = completions[0].prompt_tokens
    answers = sum(completion.completion_tokens for completion in completions)
    return {"prompt_tokens": prompt, "completion_tokens": answers, "total_tokens": prompt + answers}


def check_finished(completion: Completion) -> None:
    """Raise EngineError for a completion that was cut off by a fault or a shutdown."""
    if completion.finish_reason == "error":
        raise EngineError(completion.error or "the engine failed")
    if completion.finish_reason == "abort":
        raise EngineError("the server is stopping; ask again later")


def event(value: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
