# SPDX-License-Identifier: Apache-2.0
"""Pieces of an answer in the shapes of OpenAI's chat completions API."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from open_autoglm.engine.orders import CallPiece, Piece, TokenScore, Usage
from open_autoglm.serve.routes.answering import STREAM_END, event
from open_autoglm.serve.routes.usage_body import usage_body


class ChatResponseWriter:
    """The answer to one request: a whole `chat.completion`, or its stream of chunks.

    num_choices: how many answers there are. with_usage: a stream tells its token counts at its end.
    echoed: fields of the request that come back as they are, such as `metadata`.
    """

    def __init__(
        self,
        model: str,
        num_choices: int,
        *,
        logprobs: bool,
        with_usage: bool = False,
        echoed: Mapping[str, Any] | None = None,
    ) -> None:
        self._logprobs, self._with_usage, self._num_choices = logprobs, with_usage, num_choices
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(16)}",
            "created": int(time.time()),
            "model": model,
            **(echoed or {}),
        }
        self._pieces: list[list[Piece]] = [[] for _ in range(num_choices)]
        self._opened: set[int] = set()
        self._usage: dict[int, Usage] = {}

    def add(self, piece: Piece) -> None:
        """Keep a piece for `whole`."""
        self._pieces[piece.choice].append(piece)
        self._count(piece)

    def whole(self) -> dict[str, Any]:
        """The body of an answer that is not streamed, from the pieces that were added."""
        choices = [self._choice(index, pieces) for index, pieces in enumerate(self._pieces)]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": self._usage_body()}

    def events(self, piece: Piece) -> bytes:
        """The events of a piece in a stream: the choice's opening, what is new in it, and its end."""
        self._count(piece)
        deltas: list[dict[str, Any]] = []
        if piece.choice not in self._opened:
            self._opened.add(piece.choice)
            deltas.append({"role": "assistant", "content": ""})
        if piece.reasoning:
            deltas.append({"reasoning_content": piece.reasoning})
        deltas += [{"tool_calls": [_call_chunk(call)]} for call in piece.calls]
        events = b"".join(self._chunk(piece.choice, delta) for delta in deltas)
        if piece.text or piece.scores:
            events += self._chunk(piece.choice, {"content": piece.text}, scores=piece.scores)
        if piece.finish_reason is not None:
            events += self._chunk(piece.choice, {}, finish_reason=piece.finish_reason)
        return events

    def closing_events(self) -> bytes:
        """What follows the last choice's end: the token counts, if they were asked for, and the end of the stream."""
        if not self._with_usage:
            return STREAM_END
        body = {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage_body()}
        return event(body) + STREAM_END

    def _choice(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        calls = whole_calls([call for piece in pieces for call in piece.calls])
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
        if reasoning := "".join(piece.reasoning for piece in pieces):
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = calls
        return {
            "index": index,
            "message": message,
            "logprobs": self._scores([score for piece in pieces for score in piece.scores]),
            "finish_reason": pieces[-1].finish_reason,
        }

    def _count(self, piece: Piece) -> None:
        if piece.usage is not None:
            self._usage[piece.choice] = piece.usage

    def _usage_body(self) -> dict[str, Any]:
        return usage_body(self._usage, self._num_choices)

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        scores: Sequence[TokenScore] = (),
        finish_reason: str | None = None,
    ) -> bytes:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": self._scores(scores) if scores else None,
            "finish_reason": finish_reason,
        }
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": [choice]}
        return event({**chunk, "usage": None} if self._with_usage else chunk)

    def _scores(self, scores: Sequence[TokenScore]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        content = [
            {
                **_token(score.piece, score.logprob),
                "top_logprobs": [_token(piece, logprob) for piece, logprob in score.top],
            }
            for score in scores
        ]
        return {"content": content, "refusal": None}


def whole_calls(pieces: Sequence[CallPiece]) -> list[dict[str, Any]]:
    """Calls in OpenAI's shape, put together from their pieces."""
    calls: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        call = calls.setdefault(
            piece.index, {"id": piece.id, "type": "function", "function": {"name": piece.name, "arguments": ""}}
        )
        call["function"]["arguments"] += piece.arguments
    return list(calls.values())


def _call_chunk(piece: CallPiece) -> dict[str, Any]:
    if not piece.name:
        return {"index": piece.index, "function": {"arguments": piece.arguments}}
    function = {"name": piece.name, "arguments": piece.arguments}
    return {"index": piece.index, "id": piece.id, "type": "function", "function": function}


def _token(piece: bytes, logprob: float) -> dict[str, Any]:
    return {"token": piece.decode(errors="replace"), "logprob": logprob, "bytes": list(piece)}
