# SPDX-License-Identifier: Apache-2.0
"""Pieces of an answer in the shapes of OpenAI's older completions API."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from open_autoglm.engine.orders import Piece, TokenScore, Usage
from open_autoglm.serve.routes.answering import STREAM_END, event
from open_autoglm.serve.routes.usage_body import usage_body


class CompletionResponseWriter:
    """The answer to one request: a whole `text_completion`, or its stream.

    num_made: answers to each prompt; the `num_choices` likeliest of them are given. echoes: what each prompt's answers
    begin with.
    """

    def __init__(
        self,
        model: str,
        echoes: Sequence[str],
        *,
        num_choices: int,
        num_made: int,
        logprobs: bool,
        with_usage: bool = False,
    ) -> None:
        self._echoes, self._num_choices, self._num_made = echoes, num_choices, num_made
        self._logprobs, self._with_usage = logprobs, with_usage
        self._head = {
            "id": f"cmpl-{secrets.token_hex(16)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._pieces: list[list[Piece]] = [[] for _ in range(len(echoes) * num_made)]
        self._lengths = [0] * (len(echoes) * num_made)
        self._opened: set[int] = set()
        self._usage: dict[int, Usage] = {}

    def add(self, piece: Piece) -> None:
        """Keep a piece for `whole`."""
        self._pieces[piece.choice].append(piece)
        self._count(piece)

    def whole(self) -> dict[str, Any]:
        """The body of an answer that is not streamed, from the pieces that were added."""
        choices: list[dict[str, Any]] = []
        for number, echo in enumerate(self._echoes):
            made = self._pieces[number * self._num_made : (number + 1) * self._num_made]
            for pieces in likeliest(made, self._num_choices):
                text = echo + "".join(piece.text for piece in pieces)
                scores = [score for piece in pieces for score in piece.scores]
                choices.append(self._choice(len(choices), text, scores, 0, pieces[-1].finish_reason))
        return {**self._head, "choices": choices, "usage": self._usage_body()}

    def events(self, piece: Piece) -> bytes:
        """The event of a piece in a stream."""
        self._count(piece)
        text = piece.text
        if piece.choice not in self._opened:
            self._opened.add(piece.choice)
            text = self._echoes[piece.choice // self._num_made] + text
        if not (text or piece.scores or piece.finish_reason):
            return b""
        choice = self._choice(piece.choice, text, piece.scores, self._lengths[piece.choice], piece.finish_reason)
        self._lengths[piece.choice] += sum(len(_name(score.piece)) for score in piece.scores)
        body = {**self._head, "choices": [choice]}
        return event({**body, "usage": None} if self._with_usage else body)

    def closing_events(self) -> bytes:
        """What follows the last choice's end: the token counts, if they were asked for, and the end of the stream."""
        if not self._with_usage:
            return STREAM_END
        return event({**self._head, "choices": [], "usage": self._usage_body()}) + STREAM_END

    def _choice(
        self, index: int, text: str, scores: Sequence[TokenScore], offset: int, finish_reason: str | None
    ) -> dict[str, Any]:
        logprobs = _logprobs(scores, offset) if self._logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    def _count(self, piece: Piece) -> None:
        if piece.usage is not None:
            self._usage[piece.choice] = piece.usage

    def _usage_body(self) -> dict[str, Any]:
        return usage_body(self._usage, self._num_made)


def likeliest(made: Sequence[list[Piece]], count: int) -> Sequence[list[Piece]]:
    """The `count` answers that are likeliest per token, best first; all of them, as they are, if there are no more."""
    return made if len(made) <= count else sorted(made, key=_mean_logprob, reverse=True)[:count]


def _logprobs(scores: Sequence[TokenScore], offset: int) -> dict[str, Any]:
    """The older shape: lists beside each other. offset: characters of the answer's tokens before these."""
    offsets: list[int] = []
    for score in scores:
        offsets.append(offset)
        offset += len(_name(score.piece))
    return {
        "tokens": [_name(score.piece) for score in scores],
        "token_logprobs": [score.logprob for score in scores],
        "top_logprobs": [
            {**{_name(piece): logprob for piece, logprob in score.top}, _name(score.piece): score.logprob}
            for score in scores
        ],
        "text_offset": offsets,
    }


def _name(piece: bytes) -> str:
    """A token as text, or byte by byte where it is not whole characters, as OpenAI writes it."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _mean_logprob(pieces: Sequence[Piece]) -> float:
    scores = [score.logprob for piece in pieces for score in piece.scores]
    return sum(scores) / len(scores) if scores else 0.0
